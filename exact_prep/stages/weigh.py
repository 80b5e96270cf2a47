"""One task of `weigh`: a shard's `loss_weights` overwritten in place, and its checksum saved last.

Also the exposure of one shard, for `weigh --recount`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exact_prep.records import Digest, FileName, Record
from exact_prep.shards import open_shard, overwrite_weights
from exact_prep.stores.local import save
from exact_prep.weighing.exposure import Exposure, measure_rows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from exact_prep.engines import Meter
    from exact_prep.records.manifest import ExposureRecord
    from exact_prep.stores.paths import Home


class WeighedShard(Record):
    """The completion marker of one shard, on disk while `weigh` is incomplete."""

    table: str
    """Fingerprint of the table: a record of other weights counts for nothing."""
    file: FileName
    weights_xxh3: Digest
    """xxh3-128 of the values of `loss_weights`."""


@dataclass(frozen=True, kw_only=True)
class WeighTask:
    """What a worker needs to know."""

    path: Path
    edges: np.ndarray
    """Runs by position, int32[K + 1]; see `weighing.weights.float16_runs`."""
    values: np.ndarray
    """Their float16 bit patterns, uint16[K]."""
    table: str
    """Fingerprint of the table."""
    record: Path
    """Where the completion marker goes."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return str(self.path)


def weigh_shard(task: WeighTask, meter: Meter) -> str:
    """Write the weights of one shard and save its record; returns their checksum. Raises StorageError, DatasetError."""
    checksum = overwrite_weights(task.path, task.edges, task.values)
    save(WeighedShard(table=task.table, file=task.path.name, weights_xxh3=checksum), task.record)
    meter.add(task.path.stat().st_size)
    return checksum


def recount_shard(path: Home, meter: Meter) -> ExposureRecord:
    """The exposure of one shard, from its segments; raises StorageError, DatasetError."""
    shard = open_shard(path)
    exposure = Exposure()
    for batch in shard.batches:
        exposure = sum(measure_rows(batch, int(batch.sources.max(initial=0)) + 1), exposure)
    meter.add(shard.memory.nbytes)
    return exposure.to_record()
