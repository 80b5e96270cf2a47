"""Events drawn on stderr: a progress bar at a terminal, a few lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from exact_prep.pipeline import events


class SizeColumn(DownloadColumn):
    """Bytes done of all bytes; nothing for tasks that have no size."""

    def render(self, task: Task) -> Text:
        """The sizes."""
        return super().render(task) if task.fields["unit"] == "bytes" else Text("")


class RateColumn(ProgressColumn):
    """Tokens per second of this run."""

    def render(self, task: Task) -> Text:
        """The rate, in millions."""
        elapsed, tokens = task.elapsed or 0.0, task.fields["tokens"]
        return Text(f"{tokens / elapsed / 1e6:.1f}M tokens/s" if tokens and elapsed else "")


class Display:
    """Receives events; use it as a context manager around a run."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # it may name a path
            BarColumn(),
            SizeColumn(),
            RateColumn(),
            TextColumn("{task.fields[tasks]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = None
        self._done_bytes = 0

    def __enter__(self) -> Display:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def __call__(self, event: events.Event) -> None:
        """Draw an event."""
        match event:
            case events.Note():
                self._console.print(f"exact-prep: {event.text}", markup=False, highlight=False, soft_wrap=True)
            case events.Started():
                self._start(event)
            case events.Progress() if self._task is not None:
                self._progress.update(self._task, completed=self._done_bytes + event.bytes, tokens=event.tokens)
            case events.TaskDone() if self._task is not None:
                self._progress.update(self._task, tasks=f"{event.done}/{event.tasks} tasks")
            case events.Finished() if self._task is not None:
                self._progress.remove_task(self._task)
                self._task = None

    def _start(self, event: events.Started) -> None:
        if event.done:
            self(events.Note(text=f"{event.what}: {event.done} of {event.tasks} tasks were finished already"))
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._done_bytes = event.done_bytes
        self._task = self._progress.add_task(
            event.what,
            total=event.total_bytes,
            completed=event.done_bytes,
            tokens=0,
            unit=event.unit,
            tasks=f"{event.done}/{event.tasks} tasks",
        )
