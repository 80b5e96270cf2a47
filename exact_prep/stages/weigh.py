"""One task of `weigh`: a shard's `loss_weights` overwritten, in place or in a copy, and its checksum saved last.

Also the exposure of one shard, for `weigh --recount`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exact_prep.records import Record
from exact_prep.records.manifest import ExposureRecord, ShardWeights
from exact_prep.shards import opened, overwrite_weights
from exact_prep.stores.local import TEMPORARY, explained, publish, save
from exact_prep.weighing.exposure import Exposure, measure

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from exact_prep.engines import Meter


class WeighedShard(Record):
    """The completion marker of one shard, on disk while `weigh` is under way."""

    table: str
    """Fingerprint of the table: a record of other weights counts for nothing."""
    weights: ShardWeights


@dataclass(frozen=True, kw_only=True)
class WeighTask:
    """What a worker needs to know."""

    source: Path
    target: Path
    """The same as `source`, or where its copy goes."""
    edges: np.ndarray
    """Runs by left context, int32[K + 1]; see `weights.float16_runs`."""
    values: np.ndarray
    """Their float16 bit patterns, uint16[K]."""
    table: str
    """Fingerprint of the table."""
    record: Path
    """Where the completion marker goes."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return str(self.target)


def weigh_shard(task: WeighTask, meter: Meter) -> ShardWeights:
    """Write the weights of one shard and save its record; raises StorageError, DatasetError."""
    if task.target == task.source:
        checksum = overwrite_weights(task.source, task.edges, task.values)
    else:
        temporary = task.target.with_name(task.target.name + TEMPORARY)
        with explained("copy to", temporary):
            shutil.copyfile(task.source, temporary)
        checksum = overwrite_weights(temporary, task.edges, task.values)
        publish(temporary, task.target)
    weights = ShardWeights(file=task.target.name, weights_xxh3=checksum)
    save(WeighedShard(table=task.table, weights=weights), task.record)
    meter.add(task.target.stat().st_size)
    return weights


def recount_shard(path: Path, meter: Meter) -> ExposureRecord:
    """The exposure of one shard, from its segment lengths; raises StorageError, DatasetError."""
    shard = opened(path)
    exposure = sum((measure(batch.seq_lengths) for batch in shard.batches), Exposure())
    meter.add(shard.memory.nbytes)
    return ExposureRecord(counts=tuple(exposure.trimmed().tolist()), segments=exposure.segments)
