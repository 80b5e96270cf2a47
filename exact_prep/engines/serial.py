"""Items one after the other in this process: nothing to start, everything in one traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.engines import METERS, Item, Meter, Observer, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Watched(list[int]):
    """Counters that tell their observer of every change."""

    def __init__(self, size: int, observer: Observer) -> None:
        super().__init__([0] * size)
        self._observer = observer
        self._totals = [0] * METERS

    def __setitem__(self, index: int, value: int) -> None:  # type: ignore[override]
        """Change a counter and report the new totals."""
        self._totals[index % METERS] += value - self[index]
        super().__setitem__(index, value)
        self._observer.progressed(tuple(self._totals))


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) in the order of the items; see `exact_prep.engines.run`."""
    counters = Watched(METERS * len(items), observer)
    for index, item in enumerate(items):
        yield index, function(item, Meter(counters, METERS * index))
