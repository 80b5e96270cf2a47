"""The one protocol of runs: hold the directory, know what is done, run the rest on an engine, report, stop cleanly.

    with hold(directory), interruptible(lambda: ...):
        run = TaskRun("pack", sizes, done, emit=emit)         # says how much there is, and how much is done
        for index, result in run.each(function, items, ...):  # the rest, in any order, reported as it ends

Records that tasks leave say what is done (`pack`, `weigh`); runs without records (`verify`, `export`) start anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from exact_prep.engines import count_workers, run
from exact_prep.errors import Interrupted
from exact_prep.pipeline.events import Note, Progress, Started, TaskDone
from exact_prep.stores.local import locked, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from exact_prep.engines import Item, Meter, Result
    from exact_prep.pipeline.events import Emit

SHARD_BYTES_PER_WORKER = 2 << 30
"""Shards that are worth a worker of their own: it takes 1 CPU-second to start, in which 2 GB are weighed or checked."""


@contextmanager
def hold(directory: Path, *others: Path, lock: bool = True) -> Iterator[None]:
    """Lock a directory, and remove the temporary files that dead attempts left in it and in `others` below it."""
    with locked(directory, lock=lock):
        if lock:
            remove_leftovers(directory, *others)
        yield


def check_free(directory: Path, *others: Path, lock: bool = True) -> None:
    """Raise StorageError if another run holds a directory; remove what dead attempts left, as `hold` does."""
    with hold(directory, *others, lock=lock):
        return


@contextmanager
def interruptible(explain: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one sentence that says what is kept and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(explain()) from None


class TaskRun:
    """Tasks of known sizes, some of them finished by an earlier run; says so, runs the others and reports them."""

    def __init__(
        self,
        what: str,
        sizes: Sequence[int],
        done: Iterable[int] = (),
        *,
        emit: Emit,
        unit: Literal["bytes", "tasks"] = "bytes",
    ) -> None:
        """`sizes` are bytes that each task reads (1 each where `unit` is tasks); `done`: indices of finished tasks."""
        self._sizes, self._emit = sizes, emit
        self._done = set(done)
        self._bytes = self._tokens = 0
        """Counted by engines that ran before."""
        emit(
            Started(
                what=what,
                tasks=len(sizes),
                done=len(self._done),
                total_bytes=sum(sizes),
                done_bytes=sum(sizes[index] for index in self._done),
                unit=unit,
            )
        )

    @property
    def missing(self) -> list[int]:
        """Indices of the tasks that are not finished."""
        return [index for index in range(len(self._sizes)) if index not in self._done]

    def each(
        self,
        function: Callable[[Item, Meter], Result],
        items: Mapping[int, Item],
        *,
        name: Callable[[Item], str],
        workers: int | None = 1,
        bytes_per_worker: int = SHARD_BYTES_PER_WORKER,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index, result) of some tasks as they finish; `items` by index.

        `workers` None starts one per core, as long as there are `bytes_per_worker` for each. Raises what the function
        raises, and WorkerError.
        """
        if workers is None:
            workers = count_workers(sum(self._sizes[index] for index in items), bytes_per_worker)
        indices = list(items)
        observer = _Observer(self._emit, self._bytes, self._tokens)
        for place, result in run(
            function, [items[index] for index in indices], workers=workers, name=name, observer=observer
        ):
            self._done.add(indices[place])
            self._emit(TaskDone(done=len(self._done), tasks=len(self._sizes), name=name(items[indices[place]])))
            yield indices[place], result
        self._bytes, self._tokens = observer.seen


class _Observer:
    """Passes what an engine observes on as events."""

    def __init__(self, emit: Emit, bytes_before: int, tokens_before: int) -> None:
        self._emit = emit
        self._before = (bytes_before, tokens_before)
        self.seen = self._before

    def progressed(self, totals: tuple[int, ...]) -> None:
        """The counters of all items."""
        self.seen = (self._before[0] + totals[0], self._before[1] + totals[1])
        self._emit(Progress(bytes=self.seen[0], tokens=self.seen[1]))

    def worker_died(self, name: str, cause: str) -> None:
        """An item starts again."""
        self._emit(Note(text=f"a worker died at {name}: {cause}; the task starts again"))


def find_differences(before: Any, now: Any, limit: int = 5) -> list[str]:
    """In what two records, as JSON values, differ, in words; of long lists only how long they are."""
    found: list[str] = []
    _collect(before, now, "", found, limit)
    return found


def _collect(before: Any, now: Any, name: str, found: list[str], limit: int) -> None:
    if before == now or len(found) >= limit:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        label = f"{before['path']} " if "path" in before and before["path"] == now.get("path") else name
        for key in sorted(before.keys() | now.keys()):
            inner = f"{label}{key}" if label.endswith(" ") else f"{label}.{key}".lstrip(".")
            _collect(before.get(key), now.get(key), inner, found, limit)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and before:
        for old, new in zip(before, now, strict=True):
            _collect(old, new, name, found, limit)
    elif isinstance(before, list) and isinstance(now, list) and (len(before) > 3 or len(now) > 3):
        found.append(f"{name}: {len(before)} entries then, {len(now)} now")
    else:
        found.append(f"{name} was {before!r}, is {now!r}")
