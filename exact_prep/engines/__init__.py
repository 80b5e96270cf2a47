"""Engines run a function over independent items. They know no stage, no file and no record.

    serial      in this process, one after the other
    processes   in spawned worker processes

A function takes (item, meter) and returns something small; what it makes, it makes on disk. Engines may run items in
any order, and an item twice if its worker died.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableSequence, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

METERS = 2
"""Counters per item: bytes read and tokens made, in this order."""


@dataclass(frozen=True)
class Meter:
    """How far one item has come; written by the function that works on it, read by the engine."""

    counters: MutableSequence[int]
    """Counters of all items; this item's lie at `start`."""
    start: int

    def add(self, *amounts: int) -> None:
        """Count `amounts` more, in the order of the counters."""
        for offset, amount in enumerate(amounts):
            self.counters[self.start + offset] += amount

    def reset(self) -> None:
        """Begin again at 0."""
        for offset in range(METERS):
            self.counters[self.start + offset] = 0


class Observer(Protocol):
    """Who is told how a run goes."""

    def progressed(self, totals: tuple[int, ...]) -> None:
        """The sums of all items' counters are `totals`."""

    def worker_died(self, name: str, cause: str) -> None:
        """A worker died of `cause` while it worked on the item `name`, which starts again."""


class Silent:
    """An observer that does not look."""

    def progressed(self, totals: tuple[int, ...]) -> None:
        """Ignore it."""

    def worker_died(self, name: str, cause: str) -> None:
        """Ignore it."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crew(work: int, each: int) -> int:
    """How many workers to start for an amount of work: one per core, as long as there is `each` for every one."""
    return max(min(cores(), work // each), 1)


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield (index of item, result) as items finish, on `workers` processes, or in this one if that is 1.

    Raises what the function raises, and WorkerError if a worker dies twice over one item.
    """
    observer = observer or Silent()
    if min(workers, len(items)) <= 1:
        from exact_prep.engines import serial as engine
    else:
        from exact_prep.engines import processes as engine
    engine_run: Any = engine.run
    return engine_run(function, items, workers=min(workers, len(items)), name=name, observer=observer)
