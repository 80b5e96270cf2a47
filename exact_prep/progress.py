"""Events drawn on stderr: one line that is kept up to date at a terminal or in a notebook, one line a minute elsewhere.

Imports no other part of the package before the first event: a command shows that it has started while it still imports.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.progress import Task

    from exact_prep.pipeline import events

INTERVAL_S = 60.0
"""Time between two lines where there is no terminal."""

POLL_S = 1.0
"""How often the clock is read then."""


@dataclass
class Work:
    """What a run does at the moment, and how far it is."""

    what: str
    since: float
    """When it began, on the display's clock."""
    total: int = 0
    """Bytes, or tasks; 0 while the end cannot be foretold."""
    done_before: int = 0
    """Of them, what an earlier run had finished."""
    done: int = 0
    tokens: int = 0
    """Since it began."""
    tasks: int = 0
    tasks_done: int = 0

    @property
    def percent(self) -> str:
        """How much is done, rounded down: 100 % means all."""
        return f"{100 * self.done // self.total}%" if self.total else ""

    def rate(self, now: float) -> str:
        """Tokens per second since it began."""
        elapsed = now - self.since
        return f"{shorten(self.tokens / elapsed)} tokens/s" if self.tokens and elapsed > 0 else ""

    def left(self, now: float) -> str:
        """The time that the rest takes at the rate so far."""
        done = self.done - self.done_before
        if not self.total or done <= 0:
            return ""
        return f"{show_time((now - self.since) * (self.total - self.done) / done)} left"

    def facts(self, now: float) -> list[str]:
        """All that is known, for a line of a log."""
        found = [
            self.percent,
            f"{shorten(self.tokens)} tokens" if self.tokens else "",
            self.rate(now),
            f"{show_time(now - self.since)} elapsed",
            self.left(now),
            f"{self.tasks_done:,}/{self.tasks:,} tasks" if self.tasks else "",
        ]
        return [fact for fact in found if fact]


def shorten(count: float) -> str:
    """A count with three digits: 950, 12.3K, 4.56M, 1.20G, 3.00T."""
    units = ["", "K", "M", "G", "T"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    decimals = 0 if units[0] == "" or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{decimals}f}{units[0]}"


def show_time(seconds: float) -> str:
    """A time as h:mm:ss, with days before it if there are any."""
    return str(timedelta(seconds=int(max(seconds, 0))))


def escape_controls(text: str) -> str:
    """The text with control characters spelled out: names come from files, and could hold commands to a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


class Fact(ProgressColumn):
    """A fact about the work in progress, as a column of the terminal's line."""

    def __init__(
        self, show: Callable[[Work, float], str], clock: Callable[[], float], console: Console, *, needs: int
    ) -> None:
        """`needs`: columns that a terminal must have to show it."""
        # Only a column that may wrap gets narrower where space is short; its text is then cut instead.
        super().__init__(Column(no_wrap=True) if needs else Column(min_width=8))
        self._show, self._clock, self._console, self._needs = show, clock, console, needs

    def render(self, task: Task) -> Text:
        """The fact now."""
        text = self._show(task.fields["work"], self._clock()) if self._console.width >= self._needs else ""
        return Text(text, no_wrap=True, overflow="ellipsis")


class Display:
    """Receives events; use it as a context manager around a run. `verbose` adds a line for each task as it ends.

    `quiet` shows nothing at all. Raises UsageError for both. `interval` is the time in seconds between two lines where
    there is no terminal; `console`, `clock` (monotonic, seconds) and `today` (the time of day) are for tests.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        quiet: bool = False,
        interval: float = INTERVAL_S,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = datetime.now,
    ) -> None:
        if verbose and quiet:
            raise UsageError("--verbose and --quiet exclude each other")
        self._verbose, self._quiet = verbose, quiet
        self._interval, self._clock, self._today = interval, clock, today
        self._console = console or Console(stderr=True)
        # Not `is_terminal`, which is true for FORCE_COLOR too: a log may have colours, and no line that is redrawn.
        redraws = self._console.file.isatty() and not self._console.is_dumb_terminal
        if self._console.is_jupyter:
            redraws = find_spec("ipywidgets") is not None  # without them Rich draws nothing
        self._bar = self._make_bar() if redraws and not quiet else None
        self._row: TaskID | None = None
        self._work: Work | None = None
        self._due = 0.0
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def _make_bar(self) -> Bar:
        def fact(show: Callable[[Work, float], str], needs: int) -> Fact:
            return Fact(show, self._clock, self._console, needs=needs)

        return Bar(
            fact(lambda work, now: work.what, 0),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            fact(lambda work, now: work.percent, 20),
            fact(lambda work, now: f"{shorten(work.tokens)} tokens" if work.tokens else "", 78),
            fact(lambda work, now: work.rate(now).replace(" tokens", ""), 66),
            fact(lambda work, now: show_time(now - work.since), 44),
            fact(Work.left, 30),
            fact(lambda work, now: f"{work.tasks_done}/{work.tasks} tasks" if work.tasks else "", 56),
            console=self._console,
            transient=True,
            expand=True,
        )

    def __enter__(self) -> Display:
        """Begin to draw; a display may be entered again."""
        self._due = self._clock() + self._interval
        if self._bar is not None:
            self._bar.start()
        elif not self._quiet:
            self._ended = threading.Event()
            with suppress(RuntimeError):  # no more threads: lines then come with events alone
                threading.Thread(target=self._keep_time, daemon=True).start()
        self._begin(Work("starting", self._clock()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._ended.set()
        self._begin(None)
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        """Draw an event."""
        from exact_prep.pipeline import events

        with self._lock:
            work = self._work
            match event:
                case events.Note():
                    self._print(f"exact-prep: {event.text}")
                case events.Phase():
                    self._begin(Work(event.text, self._clock()))
                case events.Started():
                    self._start(event)
                case events.Progress() if work is not None and work.total:
                    work.done, work.tokens = work.done_before + event.bytes, event.tokens
                case events.TaskDone():
                    if self._verbose:
                        self._print(
                            f"exact-prep: {event.name or 'a task'}: done ({event.done:,}/{event.tasks:,} tasks)"
                        )
                    if work is not None:
                        work.tasks_done = event.done
                case events.Finished():
                    self._begin(None)
            self._draw()

    def tick(self) -> None:
        """Without a terminal, print a line if the last one is a minute old."""
        with self._lock:
            now, work = self._clock(), self._work
            if self._bar is None and work is not None and not self._quiet and now >= self._due:
                self._due = now + self._interval
                stamp = self._today().astimezone().isoformat(sep=" ", timespec="seconds")
                with suppress(OSError):  # a log that cannot be written is no reason to end a run of hours
                    self._print(f"{stamp} exact-prep: {work.what}: {', '.join(work.facts(now))}")

    def _keep_time(self) -> None:
        ended = self._ended  # of this entrance
        while not ended.wait(min(POLL_S, self._interval / 4)):
            self.tick()

    def _start(self, event: events.Started) -> None:
        if event.done:
            self._print(f"exact-prep: {event.what}: {event.done} of {event.tasks} tasks were finished already")
        self._begin(
            Work(
                event.what,
                self._clock(),
                total=event.total_bytes,
                done_before=event.done_bytes,
                done=event.done_bytes,
                tasks=event.tasks,
                tasks_done=event.done,
            )
        )

    def _begin(self, work: Work | None) -> None:
        """Show other work from now on."""
        self._work = work
        if self._bar is None:
            return
        if self._row is not None:
            self._bar.remove_task(self._row)
            self._row = None
        if work is not None:
            self._row = self._bar.add_task("", total=work.total or None, work=work)
        self._bar.refresh()

    def _draw(self) -> None:
        """Bring what is shown up to date."""
        if self._bar is None:
            self.tick()
        elif self._row is not None and self._work is not None:
            self._bar.update(self._row, completed=self._work.done)

    def _print(self, text: str) -> None:
        if not self._quiet:
            self._console.print(escape_controls(text), markup=False, highlight=False, soft_wrap=True)
