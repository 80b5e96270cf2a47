"""`verify`: a dataset held against its own records, from the bytes."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    INFO,
    REJECTED,
    STATE,
    WEIGHTS,
    datasets_in,
    info_of,
    is_untouched,
    load_manifest,
    state_of,
    tree_hash,
)
from exact_prep.engines import crew, run
from exact_prep.errors import ExactPrepError, WeightsError
from exact_prep.pipeline.events import Finished, Started, TaskDone, Watcher
from exact_prep.pipeline.work import WORKER_BYTES
from exact_prep.records import fingerprint, parse
from exact_prep.records.manifest import WeightsFile
from exact_prep.shards import runs_of_plain_weights
from exact_prep.stages.verify import VerifyTask, verify_shards
from exact_prep.stores.local import digest, mapped, read_bytes
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import begun, record_of, table_of, weights_file
from exact_prep.weighing.weights import float16_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.pipeline.events import Emit
    from exact_prep.records.manifest import Manifest


def verify(
    directory: Path, *, quick: bool = False, workers: int | None = 1, emit: Emit = lambda event: None
) -> list[str]:
    """Check every dataset of `directory`; returns findings, one sentence each, empty if all is well.

    `quick` looks at sizes and structure alone; `workers` None starts as many as the work is worth. Raises DatasetError
    if there is no dataset at all, WorkerError.
    """
    findings = []
    for home in datasets_in(directory):
        weights = None
        try:
            manifest = load_manifest(home)
            if (home / WEIGHTS).is_file():
                data = read_bytes(home / WEIGHTS)
                weights = parse(WeightsFile, data, home / WEIGHTS)
                if not is_untouched(weights, data):
                    findings.append(f"{home}: {WEIGHTS} was changed after it was written (checksum)")
        except ExactPrepError as error:
            findings.append(str(error))
            continue
        findings += [f"{home}: {text}" for text in records_of(home, manifest, weights)]
        findings += shards_of(home, manifest, weights, quick=quick, workers=workers, emit=emit)
    emit(Finished())
    return findings


def records_of(home: Path, manifest: Manifest, weights: WeightsFile | None) -> Iterator[str]:
    """Findings about the records: what they say of each other and of the directory."""
    ledger = manifest.ledger
    shards = manifest.shards
    if ledger.balance():
        yield f"the token ledger does not add up: {ledger.balance():+,} tokens"
    if ledger.row_tokens != sum(shard.tokens for shard in shards) or manifest.rows != sum(s.rows for s in shards):
        yield "the shards' rows and tokens do not sum to the manifest's"
    if sum(manifest.exposure.counts) + manifest.exposure.segments != ledger.row_tokens:
        yield "the exposure does not sum to the tokens in rows"
    if manifest.tree_hash != tree_hash(shards):
        yield "the tree hash is not that of the shards' checksums"
    if ledger.padding != manifest.rows * manifest.seq_len - ledger.row_tokens:
        yield f"the ledger says {ledger.padding:,} padding tokens, which rows and tokens do not leave"
    packing = manifest.options.packing
    if manifest.seq_len not in packing.seq_lens or manifest.packing != packing.packing:
        yield "its options are not those of its rows (seq_len, packing)"
    yield from documents_of(manifest)
    listed = {shard.file for shard in shards}
    for path in sorted(home.glob("*.arrow")):
        if path.name not in listed:
            yield f"{path.name} is no shard of this dataset"
    if beyond := [shard for shard in shards if shard.task >= len(manifest.tasks)]:
        yield f"{beyond[0].file} is of task {beyond[0].task}, the manifest has {len(manifest.tasks)} tasks"
    if manifest.documents.rejected:
        path = home / REJECTED
        if not path.is_file() or digest([mapped(path)]) != manifest.rejected_xxh3:
            yield f"{REJECTED} is not the list that was written (checksum)"
    elif (home / REJECTED).exists():
        yield f"{REJECTED} is no list of this dataset, of which nothing was rejected"
    yield from hugging_face(home, manifest, weights)
    if weights:
        yield from weights_of(manifest, weights)


def documents_of(manifest: Manifest) -> Iterator[str]:
    """Findings about counts of documents: what tasks say of themselves and of each other, and what all have in common.

    The first of its kind is enough.
    """
    sums, before = Counter[str](), 0
    holders = {shard.task for shard in manifest.shards}
    wrong: list[str] = []
    for number, task in enumerate(manifest.tasks):
        counts = task.documents
        if counts.records != counts.packed + counts.empty + counts.rejected:
            wrong.append(f"task {number}: {counts.records:,} records, of which not all were packed, empty or rejected")
        if task.first_record != before:
            wrong.append(
                f"task {number}: its first record is {task.first_record:,}, the tasks before it read {before:,}"
            )
        if counts.packed and number not in holders:
            wrong.append(f"task {number}: it packed {counts.packed:,} documents, and has no shard")
        before += counts.records
        sums.update(counts.model_dump())
    yield from wrong[:1]
    if dict(sums) != manifest.documents.model_dump():
        yield "the tasks' documents do not sum to the manifest's"
    tokenizer, ledger = manifest.tokenizer, manifest.ledger
    for name, token, counted in (
        ("BOS", tokenizer.bos_id, ledger.bos_tokens),
        ("EOS", tokenizer.eos_id, ledger.eos_tokens),
    ):
        if counted != (0 if token is None else manifest.documents.packed):
            yield f"the ledger says {counted:,} {name} tokens, of {manifest.documents.packed:,} documents"


def hugging_face(home: Path, manifest: Manifest, weights: WeightsFile | None) -> Iterator[str]:
    """Findings about the files that make `datasets.load_from_disk` work."""
    identity = [manifest.tree_hash, *([fingerprint(begun(weights))] if weights else [])]
    state = state_of(manifest.shards, *identity)
    if weights and weights.state != "complete":
        # Killed before or after the fingerprint was changed: either is right.
        del state["_fingerprint"]
    for name, expected in ((STATE, state), (INFO, info_of(manifest.seq_len))):
        try:
            found = json.loads((home / name).read_bytes())
        except (OSError, ValueError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        wrong = [key for key in expected if not isinstance(found, dict) or found.get(key, name) != expected[key]]
        if wrong:
            yield f"{name}: {wrong[0]} is not what the manifest calls for"


def weights_of(manifest: Manifest, weights: WeightsFile) -> Iterator[str]:
    """Findings about weights.json: whose it is, whether it is finished, whether its table follows from its exposure."""
    if weights.dataset_tree_hash != manifest.tree_hash or weights.seq_len != manifest.seq_len:
        yield f"{WEIGHTS} belongs to another dataset; run `exact-prep weigh` again"
        return
    if weights.state != "complete":
        yield "half-weighed: some shards hold the weights of weights.json, others do not; run `exact-prep weigh` again"
    elif [shard.file for shard in weights.shards] != [shard.file for shard in manifest.shards]:
        yield f"{WEIGHTS} does not list the shards of the manifest"
    if weights.exposure != manifest.exposure:
        yield f"{WEIGHTS}: its exposure is not the manifest's"
        return
    try:
        expected = weights_file(table_of(weights), manifest)
    except WeightsError as error:
        yield f"{WEIGHTS}: {error}"
        return
    apart = {"state", "shards", "checksum", "tool_version", "exposure"}
    wrong = [
        name
        for name, value in expected.model_dump(exclude=apart).items()
        if not is_close(value, weights.model_dump(include={name})[name])
    ]
    if wrong:
        yield f"{WEIGHTS}: its table does not follow from its exposure and parameters ({', '.join(wrong)})"


def is_close(one: object, another: object) -> bool:
    """Whether two values are the same but for the last digits of floats, which another machine may round otherwise."""
    if isinstance(one, float) and isinstance(another, float):
        return math.isclose(one, another, rel_tol=1e-9)
    if isinstance(one, dict) and isinstance(another, dict):
        return one.keys() == another.keys() and all(is_close(value, another[key]) for key, value in one.items())
    if isinstance(one, tuple) and isinstance(another, tuple):
        return len(one) == len(another) and all(map(is_close, one, another))
    return one == another


def shards_of(
    home: Path, manifest: Manifest, weights: WeightsFile | None, *, quick: bool, workers: int | None, emit: Emit
) -> list[str]:
    """Findings about the shards, and whether their exposure is the manifest's."""
    edges, values = runs_of_plain_weights(manifest.seq_len)
    checksums: dict[str, str | None] = {shard.file: shard.weights_xxh3 for shard in manifest.shards}
    if weights:
        checksums = dict.fromkeys(checksums)
        # What is wrong with a table from which nothing follows was said by `weights_of`.
        with suppress(WeightsError):
            edges, values = float16_runs(table_of(weights), manifest.seq_len)
            checksums |= {shard.file: shard.weights_xxh3 for shard in weights.shards}
    known = [shard for shard in manifest.shards if shard.task < len(manifest.tasks)]
    tasks = []
    for index, group in itertools.groupby(known, key=lambda shard: shard.task):
        shards = tuple(group)
        tasks.append(
            VerifyTask(
                directory=home,
                seq_len=manifest.seq_len,
                pad_id=manifest.tokenizer.pad_id,
                vocab_size=manifest.tokenizer.vocab_size,
                bos_id=manifest.tokenizer.bos_id,
                eos_id=manifest.tokenizer.eos_id,
                records=manifest.tasks[index].documents.records,
                documents=manifest.tasks[index].documents.packed,
                shards=shards,
                edges=edges,
                values=values,
                weights_xxh3=tuple(checksums[shard.file] for shard in shards),
                quick=quick,
            )
        )
    size = sum(shard.bytes for shard in manifest.shards)
    emit(Started(what=f"verify {home}", tasks=len(tasks), done=0, total_bytes=size, done_bytes=0))
    findings: dict[int, list[str]] = {}
    exposure, documents_cut, longest = Exposure(), 0, 0
    for index, verified in run(
        verify_shards, tasks, workers=workers or crew(size, WORKER_BYTES), name=lambda t: t.name, observer=Watcher(emit)
    ):
        findings[index] = verified.findings
        exposure += verified.exposure
        documents_cut += verified.documents_cut
        longest = max(longest, verified.longest_context)
        emit(TaskDone(done=len(findings), tasks=len(tasks)))
    found = [finding for index in sorted(findings) for finding in findings[index]]
    if not quick and not found:
        found += [f"{home}: {text}" for text in sums_of(manifest, exposure, documents_cut, longest)]
    return found


def sums_of(manifest: Manifest, exposure: Exposure, documents_cut: int, longest: int) -> Iterator[str]:
    """Findings about what was counted from all shards together."""
    if record_of(exposure) != manifest.exposure:
        yield "the exposure counted from the shards is not the manifest's"
    if documents_cut != manifest.documents_cut:
        yield f"{documents_cut:,} documents are cut, the manifest says {manifest.documents_cut:,}"
    if longest != manifest.longest_context:
        yield f"the longest context is {longest:,}, the manifest says {manifest.longest_context:,}"
