"""What a run tells whoever watches it. Records only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Something begins that may take long, and whose end cannot be foretold."""

    text: str
    """`finding the inputs`, `loading the vocabulary`, ..."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """Tasks are about to run."""

    what: str
    """`pack`, `weigh DIR`, `verify DIR`, ..."""
    tasks: int
    done: int
    """Tasks that an earlier run finished."""
    total_bytes: int
    """Bytes that all tasks, finished ones included, read."""
    done_bytes: int
    unit: Literal["bytes", "tasks"] = "bytes"
    """What progress is measured in; `tasks` where a task has no size in bytes."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the running tasks are."""

    bytes: int
    """Since the start, of the tasks that were not finished."""
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A task is finished; if it keeps a record, that is on disk."""

    done: int
    tasks: int
    name: str = ""
    """What the task worked on."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something the user should know, one line."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All tasks are finished."""


Event = Phase | Started | Progress | TaskDone | Note | Finished
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `Emit` for who does not watch."""
