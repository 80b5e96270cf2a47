"""Finished tasks of `pack` to a dataset: shards to their places, records summed, the manifest last."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

from exact_prep.dataset import MANIFEST, REJECTED, shard_name, tree_hash, write_info, write_state
from exact_prep.records import encode, sealed
from exact_prep.records.manifest import (
    DocumentCounts,
    InputRecord,
    Manifest,
    PackedCounts,
    TaskRecord,
    TaskSummary,
    TokenLedger,
)
from exact_prep.shards import ShardWriter
from exact_prep.stages.pack import rejected_path
from exact_prep.stores.local import (
    TEMPORARY,
    digest,
    explained,
    make_directory,
    publish,
    read_blocks,
    read_bytes,
    save,
    sync_file,
)
from exact_prep.version import __version__
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import exposure_of, record_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exact_prep.pipeline.work import Run
    from exact_prep.records.manifest import ShardRecord


def shards_of(records: Iterable[TaskRecord], seq_len: int) -> list[ShardRecord]:
    """All shards of a row length in order."""
    return [shard for record in records for shard in record.packed[seq_len].shards]


def publish_dataset(planned: Run, seq_len: int, records: list[TaskRecord]) -> Manifest:
    """Move the shards of one row length to their places and write the manifest, last."""
    home = planned.home(seq_len)
    make_directory(home)
    parts = shards_of(records, seq_len) or [shard_without_rows(home, seq_len)]
    shards = []
    for index, part in enumerate(parts):
        waiting = planned.work / str(seq_len) / part.file
        shard = part.model_copy(update={"file": shard_name(index, len(parts))})
        if waiting.exists():
            publish(waiting, home / shard.file)
        shards.append(shard)
    rejected = publish_rejected(planned, home, records)
    manifest = manifest_of(planned, seq_len, records, tuple(shards), rejected)
    if (home / MANIFEST).exists() and read_bytes(home / MANIFEST) == encode(manifest):
        return manifest
    write_info(home, seq_len)
    write_state(home, shards, manifest.tree_hash)
    save(manifest, home / MANIFEST)
    return manifest


def shard_without_rows(home: Path, seq_len: int) -> ShardRecord:
    """The shard of a corpus without a token: Hugging Face opens no dataset that has none."""
    writer = ShardWriter(home / (shard_name(0, 1) + TEMPORARY), seq_len)
    record = writer.close(file=shard_name(0, 1), task=0)
    publish(writer.path, home / record.file)
    return record


def manifest_of(
    planned: Run, seq_len: int, records: list[TaskRecord], shards: tuple[ShardRecord, ...], rejected: str | None
) -> Manifest:
    """The sum of the tasks' records; `rejected` is the checksum of rejected.jsonl."""
    plan, packed = planned.plan, [record.packed[seq_len] for record in records]
    first_records = [0]
    for record in records:
        first_records.append(first_records[-1] + record.documents.records)
    exposure = sum((exposure_of(counts.exposure) for counts in packed), Exposure())
    return sealed(
        Manifest(
            tool_version=__version__,
            seq_len=seq_len,
            packing=plan.options.packing.packing,
            options=plan.options,
            tokenizer=plan.tokenizer.model_copy(
                update={
                    "parity_texts": plan.tokenizer.parity_texts + sum(record.parity_texts for record in records),
                    "parity_bytes": plan.tokenizer.parity_bytes + sum(record.parity_bytes for record in records),
                }
            ),
            inputs=tuple(InputRecord(path=file.path, bytes=file.bytes, format=file.format) for file in plan.inputs),
            left_out=planned.left_out,
            tasks=tuple(
                TaskSummary(slices=plan.tasks[record.task], first_record=first, documents=record.documents)
                for record, first in zip(records, first_records, strict=False)
            ),
            documents=documents_of(records),
            text_bytes=sum(record.text_bytes for record in records),
            documents_cut=sum(counts.documents_cut for counts in packed),
            longest_context=max((counts.longest_context for counts in packed), default=0),
            ledger=ledger_of(packed),
            exposure=record_of(exposure),
            rows=sum(shard.rows for shard in shards),
            shards=shards,
            rejected_xxh3=rejected,
            tree_hash=tree_hash(shards),
        )
    )


def documents_of(records: Iterable[TaskRecord]) -> DocumentCounts:
    """The sum of the tasks' documents."""
    sums = Counter[str]()
    for record in records:
        sums.update(record.documents.model_dump())
    return DocumentCounts(**sums)


def ledger_of(packed: Iterable[PackedCounts]) -> TokenLedger:
    """The sum of the tasks' ledgers."""
    sums, dropped = Counter[str](), Counter[str]()
    for counts in packed:
        sums.update(counts.ledger.model_dump(exclude={"dropped"}))
        dropped.update(counts.ledger.dropped)
    return TokenLedger.model_validate({**sums, "dropped": dict(dropped)})


def publish_rejected(planned: Run, home: Path, records: list[TaskRecord]) -> str | None:
    """rejected.jsonl: what the tasks set aside, in order; absent if nothing was. Returns its checksum."""
    lists = [rejected_path(planned.work, record.task) for record in records if record.documents.rejected]
    if not lists:
        return None
    temporary = home / (REJECTED + TEMPORARY)
    with explained("write", temporary), temporary.open("wb") as file:
        for path in lists:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
    sync_file(temporary)
    publish(temporary, home / REJECTED)
    return digest(read_blocks(home / REJECTED, [slice(0, (home / REJECTED).stat().st_size)]))
