"""The tasks of a plan: how much each reads, what a worker is told, which are finished."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from exact_prep.dataset import documents_name
from exact_prep.engines import count_cores
from exact_prep.errors import DatasetError
from exact_prep.stages.pack import PackTask
from exact_prep.stores.local import digest, digest_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.records.options import PackOptions
    from exact_prep.records.work import Slice, TaskRecord
    from exact_prep.sources import Inputs

WORKER_BYTES = 128 << 20
"""Input that is worth a worker of its own: it takes 1 to 2 CPU-seconds to start, in which 128 MB are packed."""

SLOWNESS = 64
"""How many times as long the reference takes to encode."""


def measure_tasks(inputs: Inputs, tasks: Sequence[Sequence[Slice]]) -> list[int]:
    """Bytes of input that each task reads; row groups count as equal shares of their file."""
    units: dict[int, int] = {}
    for part in itertools.chain.from_iterable(tasks):
        units[part.file] = max(units.get(part.file, 0), part.stop or 0)

    def share(part: Slice) -> int:
        size, whole = inputs.files[part.file].bytes, units[part.file]
        return size * ((part.stop or whole) - part.start) // whole if whole else size

    return [sum(map(share, task)) for task in tasks]


def make_task(planned: PackPlan, index: int, options: PackOptions | None = None, *, alone: bool = True) -> PackTask:
    """A task with its own files alone: a plan of a million files is not sent to every worker."""
    inputs, slices = planned.inputs.only(planned.tasks[index])
    options = options or planned.plan.options
    return PackTask(
        index=index,
        inputs=inputs,
        slices=slices,
        key=planned.keys[index],
        options=options,
        tokenizer=planned.plan.tokenizer,
        tokenizer_path=planned.tokenizer_path,
        shard_bytes=planned.plan.shard_bytes,
        work=planned.work.url,
        homes={seq_len: str(planned.home(seq_len)) for seq_len in options.packing.seq_lens},
        alone=alone,
    )


def worker_bytes(planned: PackPlan) -> int:
    """Bytes of input that are worth a worker; what comes from a hub has a size that is not known."""
    if any(file.format == "hub" for file in planned.inputs.files):
        return max(sum(measure_tasks(planned.inputs, planned.tasks)) // count_cores(), 1)
    return WORKER_BYTES // (SLOWNESS if planned.plan.tokenizer.backend == "tokenizers" else 1)


def find_finished(planned: PackPlan, tasks: Iterable[int] | None = None) -> dict[int, TaskRecord]:
    """Records on disk, of some tasks or all, whose shards, lists and histograms are there too."""
    records = {}
    for task in range(len(planned.tasks)) if tasks is None else tasks:
        if planned.work.size(planned.record_name(task)) is None:
            continue
        try:
            record = planned.load_record(task)
        except DatasetError:
            continue
        if is_whole(planned, task, record):
            records[task] = record
    return records


def is_whole(planned: PackPlan, task: int, record: TaskRecord) -> bool:
    """Whether a record is this plan's, and all that it speaks of is on disk."""
    if record.task != task or set(record.packed) != set(planned.plan.options.packing.seq_lens):
        return False
    if record.documents.rejected and planned.work.size(planned.rejected_name(task)) is None:
        return False
    name = planned.lengths_name(task)
    if planned.work.size(name) is None or digest([planned.work.read(name)]) != record.lengths_xxh3:
        return False
    if (record.held is None) != (planned.plan.options.validation is None):
        return False
    if record.held is not None:
        held = planned.work.path / planned.held_name(task)
        if not held.is_file() or digest_file(held) != record.held.file_xxh3:
            return False
    return has_files(record, {seq_len: planned.home(seq_len) for seq_len in record.packed})


def has_files(record: TaskRecord, homes: Mapping[int, Path]) -> bool:
    """Whether the shards and the table of documents' own ids of a record are in its datasets."""
    for seq_len, counts in record.packed.items():
        home = homes[seq_len]
        documents = home / documents_name(record.task)
        if record.documents_xxh3 and (not documents.is_file() or digest_file(documents) != record.documents_xxh3):
            return False
        for shard in counts.shards:
            path = home / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                return False
    return True
