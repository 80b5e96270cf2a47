"""Finished tasks of `pack` to a dataset: records summed, tables and Hugging Face's files written, the manifest last.

Shards are in their places already; nothing is renamed.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rows
from exact_prep.dataset import (
    CARD,
    DICTIONARY,
    INFO,
    MANIFEST,
    REJECTED,
    SPLITS,
    STATE,
    TOKENIZER,
    WEIGHTS,
    WORK,
    describe,
    make_card,
    make_info,
    make_state,
    shard_name,
    table_name,
    tree_hash,
)
from exact_prep.packing import BATCH_TOKENS
from exact_prep.records import canonical_json, encode, seal
from exact_prep.records.manifest import DocumentCounts, Manifest, TokenLedger
from exact_prep.records.tables import (
    SCHEMAS,
    encode_batches,
    encode_inputs,
    encode_shards,
    encode_table,
    encode_tasks,
    encode_weights,
)
from exact_prep.shards import ShardWriter
from exact_prep.sources.formats import FORMATS
from exact_prep.sources.places import describe_place
from exact_prep.stages.lengths import decode_lengths, sum_lengths
from exact_prep.stores.local import LocalStore, digest, digest_file, explained, sync_file
from exact_prep.version import __version__
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import plain_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exact_prep.choices import Split
    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.records.work import PackedCounts, ShardRecord, TaskRecord


MOST_REASONS = 100
"""Reasons for not reading files that a manifest lists apart."""


def publish_both(
    planned: PackPlan, seq_len: int, records: Sequence[TaskRecord], validation: TaskRecord | None
) -> list[Manifest]:
    """Publish the dataset of one row length, and its validation rows if there are any to be."""
    if validation is None:
        return [publish_dataset(planned, seq_len, records)]
    train = publish_dataset(planned, seq_len, records, split="train")
    held = publish_dataset(planned, seq_len, records, split="validation", held=validation, train_hash=train.tree_hash)
    LocalStore(planned.home(seq_len).parent).write(DICTIONARY, canonical_json({"splits": list(SPLITS)}))
    return [train, held]


def publish_dataset(
    planned: PackPlan,
    seq_len: int,
    tasks: Sequence[TaskRecord],
    *,
    split: Split | None = None,
    held: TaskRecord | None = None,
    train_hash: str | None = None,
) -> Manifest:
    """Write the tables, side files and manifest of one row length; returns the manifest, which is written last.

    `tasks` are the records of the tasks that read the corpus; `held` is that of the last one, which packed validation
    rows: the dataset is then theirs.
    """
    home = LocalStore(planned.home(seq_len, validation=held is not None))
    records = tasks if held is None else [held]
    shards = [shard for record in records for shard in record.packed[seq_len].shards]
    if not shards:
        shards = [write_empty_shard(home, planned, seq_len)]
    padding = write_padding_rows(home, planned, seq_len, records, sum(shard.rows for shard in shards))
    shards += padding
    remove_strays(home, {shard.file for shard in shards})
    files = make_tables(planned, seq_len, records, shards, held=held is not None)
    files |= {f"{TOKENIZER}/{name}": data for name, data in planned.tokenizer_files.items()}
    manifest = make_manifest(planned, seq_len, records, shards)
    manifest = manifest.model_copy(
        update={"padding_rows": sum(shard.rows for shard in padding), "split": split, "train_hash": train_hash}
    )
    files[INFO] = make_info(manifest)
    digests = {name: digest([data]) for name, data in files.items()}
    if rejected := publish_rejected(planned, home, tasks):
        digests[REJECTED] = rejected
    manifest = seal(manifest.model_copy(update={"digests": dict(sorted(digests.items()))}))
    if home.size(MANIFEST) is not None and home.read(MANIFEST) == encode(manifest):
        return manifest  # a run that was stopped after this: all else is there, and perhaps weighed by now
    names = [shard.file for shard in shards]
    weights = plain_weights(describe(manifest), seq_len)
    if manifest.loss_weights == "column":
        table = encode_weights({shard.file: shard.weights_xxh3 or "" for shard in shards})
        weights = weights.model_copy(update={"weights_xxh3": digest([table])})
        files[table_name("weights")] = table
    files |= {
        STATE: make_state(names, manifest.tree_hash),
        CARD: make_card(manifest, names),
        WEIGHTS: encode(seal(weights)),
    }
    for name, data in files.items():
        home.write(name, data)
    home.write(MANIFEST, encode(manifest))
    return manifest


def write_empty_shard(home: LocalStore, planned: PackPlan, seq_len: int) -> ShardRecord:
    """The shard of a corpus without a token: Hugging Face opens no dataset that has none."""
    weights = planned.plan.options.loss_weights == "column"
    masked = planned.plan.options.source.masked
    writer = ShardWriter(home.scratch(shard_name(0, 0)), seq_len, masked=masked, weights=weights)
    record = writer.close(file=shard_name(0, 0), task=0)
    home.upload(writer.path, record.file)
    return record


def write_padding_rows(
    home: LocalStore, planned: PackPlan, seq_len: int, records: Sequence[TaskRecord], rows: int
) -> list[ShardRecord]:
    """A last shard of rows without a segment, where `rows` rows are no multiple of `rows_multiple_of`."""
    missing = -rows % (planned.plan.options.packing.rows_multiple_of or 1)
    if not missing:
        return []
    last = records[-1]
    name = shard_name(last.task, len(last.packed[seq_len].shards))
    masked, weights = planned.plan.options.source.masked, planned.plan.options.loss_weights == "column"
    writer = ShardWriter(home.scratch(name), seq_len, masked=masked, weights=weights)
    step = max(BATCH_TOKENS // seq_len, 1)
    none = np.zeros(0, np.int64)
    for first in range(0, missing, step):
        count = min(step, missing - first)
        writer.write(
            Rows(
                input_ids=np.full((count, seq_len), planned.plan.tokenizer.pad_id, np.int32),
                row_splits=np.zeros(count + 1, np.int32),
                seq_lengths=none.astype(np.int32),
                doc_ids=none,
                doc_offsets=none,
                sources=none.astype(np.int16),
                mask_splits=np.zeros(count + 1, np.int32) if masked else None,
                masked_runs=none.astype(np.int32) if masked else None,
            )
        )
    record = writer.close(file=name, task=last.task)
    home.upload(writer.path, name)
    return [record]


def remove_strays(home: LocalStore, names: set[str]) -> None:
    """Remove shards that are not the dataset's: an earlier attempt to publish had other rows of padding."""
    for path in home.path.glob("data-*.arrow"):
        if path.name not in names:
            home.remove(path.name)


def make_tables(
    planned: PackPlan,
    seq_len: int,
    records: Sequence[TaskRecord],
    shards: Sequence[ShardRecord],
    *,
    held: bool = False,
) -> dict[str, bytes]:
    """The tables of a dataset, by file name; `held`: of the task that packed validation rows and read no slice."""
    labels = sorted({label for record in records for label in record.labels})
    places = {label: place for place, label in enumerate(labels)}
    sources = [[places[label] for label in record.labels] for record in records]
    tables = {
        "inputs": encode_inputs(planned.inputs.files),
        "tasks": encode_tasks(
            [() if held else planned.tasks[record.task] for record in records],
            [record.documents for record in records],
            sources,
            [record.documents_xxh3 or "" for record in records],
        ),
        "shards": encode_shards(shards),
        "batches": encode_batches(shards),
        "sources": encode_sources(labels, records, sources, seq_len),
        "document_lengths": encode_lengths(planned, records, sources, held=held),
    }
    return {table_name(name): data for name, data in tables.items()}


def encode_sources(
    labels: Sequence[str], records: Sequence[TaskRecord], sources: Sequence[Sequence[int]], seq_len: int
) -> bytes:
    """The table of sources: what every task says of them, summed."""
    documents, tokens = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
    exposures = [Exposure() for _ in labels]
    for record, own in zip(records, sources, strict=True):
        for place, counts in zip(own, record.packed[seq_len].sources, strict=True):
            documents[place] += counts.documents
            tokens[place] += counts.tokens
            exposures[place] += Exposure.from_record(counts.exposure)
    return encode_table(
        SCHEMAS["sources"],
        {
            "label": labels,
            "documents": documents,
            "tokens": tokens,
            "segments": [exposure.segments for exposure in exposures],
            "firsts": [exposure.firsts for exposure in exposures],
            "counts": [exposure.trimmed().tolist() for exposure in exposures],
        },
    )


def encode_lengths(
    planned: PackPlan, records: Sequence[TaskRecord], sources: Sequence[Sequence[int]], *, held: bool
) -> bytes:
    """The table of document lengths: the tasks' histograms, summed."""
    whole = np.zeros((3, 0), np.int64)
    for record, own in zip(records, sources, strict=True):
        name = planned.held_lengths_name(record) if held else planned.lengths_name(record.task)
        source, length, count = decode_lengths(planned.work.read(name), planned.out / WORK / name)
        whole = sum_lengths([whole, np.stack([np.array(own, np.int64)[source], length, count])])
    return encode_table(SCHEMAS["document_lengths"], dict(zip(("source", "length", "count"), whole, strict=True)))


def publish_rejected(planned: PackPlan, home: LocalStore, records: Sequence[TaskRecord]) -> str | None:
    """rejected.jsonl: what the tasks skipped, in order; its checksum, or None if nothing was skipped."""
    before = count_lines_before(planned, records)
    lists = [
        (planned.work.path / planned.rejected_name(record.task), before.get(record.task))
        for record in records
        if record.documents.rejected
    ]
    if not lists:
        return None
    scratch = home.scratch(REJECTED)
    with explained("write", scratch), scratch.open("wb") as file:
        for path, before in lists:
            with path.open("rb") as part:
                if before is None:
                    shutil.copyfileobj(part, file)
                else:
                    file.writelines(add_place(line, before) for line in part)
    sync_file(scratch)
    home.upload(scratch, REJECTED)
    return digest_file(home.path / REJECTED)


def count_lines_before(planned: PackPlan, records: Sequence[TaskRecord]) -> dict[int, int]:
    """Lines of the file before the slice of each task that reads a later part of a file of lines.

    Such a task reads one slice, and every line is a record. So the counts of the earlier tasks say what each of these
    tasks would have had to read the file for.
    """
    before: dict[int, int] = {}
    lines = Counter[int]()
    for record in records:
        if not planned.tasks[record.task]:
            continue  # its files were removed while the run was incomplete
        first = planned.tasks[record.task][0]
        if FORMATS[planned.inputs.files[first.file].format].unit == "byte" and first.stop is not None:
            if first.start:
                before[record.task] = lines[first.file]
            lines[first.file] += record.documents.records
    return before


def add_place(line: bytes, before: int) -> bytes:
    """A line of a task's list of skipped documents, with its place; `before` lines of the file came earlier."""
    entry = json.loads(line)
    if "record" in entry:
        place = describe_place("jsonl", before + entry["record"])
        entry = {"source": entry["source"], "place": place, "reason": entry["reason"]}
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()


def make_manifest(
    planned: PackPlan,
    seq_len: int,
    records: Sequence[TaskRecord],
    shards: Sequence[ShardRecord],
) -> Manifest:
    """The sum of the tasks' records, without digests and seal."""
    plan, packed = planned.plan, [record.packed[seq_len] for record in records]
    exposure = sum((Exposure.from_record(counts.exposure) for counts in packed), Exposure())
    compared = {
        "parity_texts": plan.tokenizer.parity_texts + sum(record.parity_texts for record in records),
        "parity_bytes": plan.tokenizer.parity_bytes + sum(record.parity_bytes for record in records),
    }
    return Manifest(
        tool_version=__version__,
        seq_len=seq_len,
        packing=plan.options.packing.packing,
        loss_weights=plan.options.loss_weights,
        masked=plan.options.source.masked,
        continued=plan.continued,
        options=plan.options,
        tokenizer=plan.tokenizer.model_copy(update=compared),
        left_out=limit_reasons(planned.inputs.left_out),
        records_left_out=limit_reasons(sum((Counter(record.left_out) for record in records), Counter())),
        input_files=len(planned.inputs.files),
        tasks=len(records),
        shards=len(shards),
        sources=len({label for record in records for label in record.labels}),
        documents=sum_documents(records),
        text_bytes=sum(record.text_bytes for record in records),
        documents_cut=sum(counts.documents_cut for counts in packed),
        longest_context=max((counts.longest_context for counts in packed), default=0),
        ledger=complete_ledger(sum_ledgers(packed), shards, seq_len),
        exposure=exposure.to_record(),
        rows=sum(shard.rows for shard in shards),
        digests={},
        tree_hash=tree_hash(shards),
    )


def limit_reasons(left_out: Mapping[str, int]) -> dict[str, int]:
    """Counts of files that are not read, by reason; the rarest together, so that a manifest stays small."""
    ranked = sorted(left_out, key=lambda reason: (-left_out[reason], reason))
    kept = {reason: left_out[reason] for reason in sorted(ranked[:MOST_REASONS])}
    rest = sum(left_out[reason] for reason in ranked[MOST_REASONS:])
    return kept | ({"other suffixes": rest} if rest else {})


def sum_documents(records: Iterable[TaskRecord]) -> DocumentCounts:
    """The sum of the tasks' documents."""
    sums = Counter[str]()
    for record in records:
        sums.update(record.documents.model_dump())
    return DocumentCounts(**sums)


def complete_ledger(ledger: TokenLedger, shards: Sequence[ShardRecord], seq_len: int) -> TokenLedger:
    """The ledger with the padding of all rows, also of those that no task made."""
    padding = sum(shard.rows for shard in shards) * seq_len - ledger.row_tokens
    return ledger.model_copy(update={"padding": padding})


def sum_ledgers(packed: Iterable[PackedCounts]) -> TokenLedger:
    """The sum of the tasks' ledgers."""
    sums, dropped = Counter[str](), Counter[str]()
    for counts in packed:
        sums.update(counts.ledger.model_dump(exclude={"dropped"}))
        dropped.update(counts.ledger.dropped)
    return TokenLedger.model_validate({**sums, "dropped": dict(dropped)})
