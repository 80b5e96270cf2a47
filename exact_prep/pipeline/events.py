"""What a run tells whoever watches it. Records only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Started:
    """Tasks are about to run."""

    what: str
    """`pack`, `weigh`, `verify`."""
    tasks: int
    done: int
    """Tasks found done by an earlier run."""
    total_bytes: int
    """Bytes that all tasks, done ones included, read."""
    done_bytes: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the running tasks are."""

    bytes: int
    """Since the start, of the tasks that were not done."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A task's record is on disk."""

    done: int
    tasks: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something the user should know, one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All tasks are done."""


Event = Started | Progress | TaskDone | Note | Finished
Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Watcher:
    """Passes what an engine observes on as events."""

    emit: Emit
    bytes: int = 0
    tokens: int = 0
    """What engines that ran before have come to."""

    def progressed(self, totals: tuple[int, ...]) -> None:
        """The counters of all items."""
        self.emit(Progress(bytes=self.bytes + totals[0], tokens=self.tokens + totals[1]))

    def worker_died(self, name: str, cause: str) -> None:
        """An item starts again."""
        self.emit(Note(text=f"a worker died over {name}: {cause}; the task starts again"))
