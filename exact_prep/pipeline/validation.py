"""The last task of `pack --validation`, and what tells whether it was done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import xxhash

from exact_prep.dataset import WORK
from exact_prep.errors import DatasetError
from exact_prep.pipeline.runs import TaskRun
from exact_prep.pipeline.tasks import has_files
from exact_prep.records import parse
from exact_prep.records.manifest import DocumentCounts, TokenLedger
from exact_prep.records.work import TaskRecord
from exact_prep.stages.pack import PackTask
from exact_prep.stages.pack_held import PackHeldTask, pack_held_task
from exact_prep.stores.local import digest, remove

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exact_prep.pipeline.events import Emit
    from exact_prep.pipeline.plan import PackPlan


def pack_validation(planned: PackPlan, records: Sequence[TaskRecord], emit: Emit) -> TaskRecord:
    """Pack what the tasks held out, unless that was done; returns the record. Raises StorageError, LedgerError."""
    task = make_held_task(planned, records)
    work = planned.work
    record = find_done(planned, task)
    if record is None:
        for kind in ("validation-*", "validation_lengths-*"):
            for path in work.path.glob(kind):
                remove(path)
        run = TaskRun("pack validation", [len(records)], emit=emit, unit="tasks")
        for _ in run.each(pack_held_task, {0: task}, name=lambda one: one.name):
            pass
        record = parse(TaskRecord, work.read(task.record), work.path / task.record)
    return record


def find_done(planned: PackPlan, task: PackHeldTask) -> TaskRecord | None:
    """The record of the task, if it ended and what it wrote is there."""
    work = planned.work
    if work.size(task.record) is None:
        return None
    try:
        record = parse(TaskRecord, work.read(task.record), planned.out / WORK / task.record)
    except DatasetError:
        return None
    lengths = planned.held_lengths_name(record)
    if work.size(lengths) is None or digest([work.read(lengths)]) != record.lengths_xxh3:
        return None
    homes = {seq_len: planned.home(seq_len, validation=True) for seq_len in record.packed}
    return record if has_files(record, homes) else None


def make_held_task(planned: PackPlan, records: Sequence[TaskRecord]) -> PackHeldTask:
    """The last task, from the records of all others."""
    plan, files = planned.plan, list[tuple["Path", int]]()
    key = xxhash.xxh3_64()
    documents, left_out, ledger = Counter[str](), Counter[str](), Counter[str]()
    text_bytes = 0
    for record in records:
        if record.held is None:
            raise DatasetError(f"task {record.task} held nothing out; start again with --overwrite")
        files.append((planned.work.path / planned.held_name(record.task), documents["records"]))
        key.update(f"{record.held.file_xxh3} {documents['records']}\0".encode())
        documents.update(record.documents.model_dump())
        left_out.update(record.left_out)
        ledger.update(record.held.ledger.model_dump(exclude={"dropped"}))
        text_bytes += record.held.text_bytes
    key.update(repr(sorted(documents.items())).encode())
    inputs, slices = planned.inputs.only(())
    name = key.hexdigest()
    # The other side of each count: what is packed here was held out there.
    documents["packed"], documents["held_out"] = documents["held_out"], documents["packed"]
    return PackHeldTask(
        pack=PackTask(
            index=0,
            inputs=inputs,
            slices=slices,
            key=f"validation-{name}",
            options=plan.options,
            tokenizer=plan.tokenizer,
            tokenizer_path=None,
            shard_bytes=plan.shard_bytes,
            work=planned.work.url,
            homes={seq_len: str(planned.home(seq_len, validation=True)) for seq_len in plan.options.packing.seq_lens},
        ),
        files=tuple(files),
        documents=DocumentCounts(**documents),
        left_out=dict(sorted(left_out.items())),
        ledger=TokenLedger.model_validate(ledger),
        text_bytes=text_bytes,
        record=f"validation-{name}.json",
    )
