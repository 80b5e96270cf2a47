"""Engines run a function over independent items. They know nothing about stages, files or records.

    serial      in this process, one item at a time
    processes   in a pool of spawned worker processes

The function takes (item, meter) and returns something small; large results go to disk. Engines may run items in any
order, and run an item again if its worker died.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA, CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
"""Where Linux keeps a container's share of the processors: two numbers in microseconds."""

METERS = 2
"""Counters per item: bytes read and tokens produced, in this order."""


class Meter:
    """The progress of one item, written by the function that processes it: bytes read and tokens produced."""

    def __init__(self, report: Callable[[tuple[int, ...]], None]) -> None:
        """`report` receives the counts each time they change; it must be quick."""
        self.counts = (0,) * METERS
        self._report = report

    def add(self, *amounts: int) -> None:
        """Add `amounts` to the counts, in their order."""
        more = amounts + (0,) * (METERS - len(amounts))
        self.counts = tuple(count + own for count, own in zip(self.counts, more, strict=True))
        self._report(self.counts)


class Observer(Protocol):
    """Receives the progress of a run."""

    def progressed(self, totals: tuple[int, ...]) -> None:
        """Called often; `totals` are the sums of all items' counters."""

    def worker_died(self, name: str, cause: str) -> None:
        """Called when a worker died of `cause` while it processed the item `name`, which is started again."""


class Silent:
    """An observer that ignores everything."""

    def progressed(self, totals: tuple[int, ...]) -> None:
        """Ignore it."""

    def worker_died(self, name: str, cause: str) -> None:
        """Ignore it."""


def count_cores() -> int:
    """The number of processors that this process may use, at most what its control group allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cores, read_quota())), 1)


def read_quota() -> float:
    """Processors that the control group of a container allows (cgroup v2, then v1); infinity without a limit."""
    for path, read in ((CPU_MAX, str.split), (CPU_QUOTA, lambda text: [text, CPU_PERIOD.read_text()])):
        try:
            quota, period, *_ = (float(word) for word in read(path.read_text()))
        except (OSError, ValueError):  # no such file, or no limit: `max`
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def count_workers(work: int, each: int) -> int:
    """How many workers to start for an amount of `work`: at most one per core, and each gets at least `each` of it."""
    return max(min(count_cores(), work // each), 1)


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield (index of item, result) as items finish, on `workers` processes; with one worker, in this process.

    Raises what the function raises, and WorkerError if two workers die on the same item.
    """
    observer = observer or Silent()
    if min(workers, len(items)) <= 1:
        from exact_prep.engines import serial as engine
    else:
        from exact_prep.engines import processes as engine
    engine_run: Any = engine.run
    return engine_run(function, items, workers=min(workers, len(items)), name=name, observer=observer)
