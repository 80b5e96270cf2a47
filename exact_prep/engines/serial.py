"""Runs items one after the other in this process: nothing to start, and errors keep their whole traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.engines import METERS, Item, Meter, Observer, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) in the order of the items; see `exact_prep.engines.run`."""
    done = (0,) * METERS

    def report(counts: tuple[int, ...]) -> None:
        observer.progressed(tuple(before + own for before, own in zip(done, counts, strict=True)))

    for index, item in enumerate(items):
        meter = Meter(report)
        yield index, function(item, meter)
        done = tuple(before + own for before, own in zip(done, meter.counts, strict=True))
