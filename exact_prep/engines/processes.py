"""Runs items in a pool of spawned worker processes (spawn, because forking after threads hangs tokenizer libraries).

Each worker has its own pipe and shares no lock, queue or memory with the others. So it may be killed at any
instruction, and no other process waits for something it held; and no /dev/shm is needed, which containers keep small.
Workers ignore Ctrl-C (the parent decides), die at once on SIGTERM, and die when their parent dies, for any reason. When
a worker dies, for example killed because memory ran out, its item is reported and tried once more.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from exact_prep.engines import METERS, Item, Meter, Observer, Result
from exact_prep.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

POLL_S = 0.1
"""How often workers send their progress, and the run reports it."""

SPAWN = multiprocessing.get_context("spawn")

SHUTDOWN_S = 5.0
"""How long a worker may take to end after SIGTERM before it is killed."""


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) as items finish; see `exact_prep.engines.run`."""
    pool = WorkerPool(function, items, name, observer)
    left, looked = len(items), 0.0
    try:
        for _ in range(workers):
            pool.start()
        while left:
            for index, result in pool.read_answers(pool.wait()):
                left -= 1
                yield index, result
            pool.assign()
            if not left or time.monotonic() - looked > POLL_S:
                looked = time.monotonic()
                observer.progressed(pool.totals)
    finally:
        pool.shutdown()


@dataclass
class Worker:
    """A worker process, as its parent sees it."""

    process: BaseProcess
    pipe: Connection
    """Carries items to the worker, and back (kind, value): ready, progress, result or error."""
    is_replacement: bool
    """Whether it replaces a worker that died before it was ready."""
    ready: bool = False
    index: int | None = None
    """The index of the item it processes; None while it is idle."""
    counts: tuple[int, ...] = (0,) * METERS
    """How far that item is."""


class WorkerPool:
    """The workers of a run, and the items that wait for a worker."""

    def __init__(
        self,
        function: Callable[[Any, Meter], Any],
        items: Sequence[Any],
        name: Callable[[Any], str],
        observer: Observer,
    ) -> None:
        self._function, self._items = function, items
        self._name, self._observer = name, observer
        self._waiting = deque(range(len(items)))
        self._died: set[int] = set()
        self._workers: list[Worker] = []
        self._done = (0,) * METERS
        """Counts of finished items."""

    @property
    def totals(self) -> tuple[int, ...]:
        """Counts of all items, finished or not."""
        return tuple(map(sum, zip(self._done, *(worker.counts for worker in self._workers), strict=True)))

    def start(self, *, is_replacement: bool = False) -> None:
        """Start a worker."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(there, self._function), daemon=True)
        with interrupts_blocked():
            process.start()
        there.close()
        self._workers.append(Worker(process, here, is_replacement))

    def wait(self) -> list[Worker]:
        """Wait up to POLL_S; return the workers that have answered or died."""
        readable = wait([worker.pipe for worker in self._workers], timeout=POLL_S)
        return [worker for worker in self._workers if worker.pipe in readable]

    def read_answers(self, workers: Sequence[Worker]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) from workers that have answered; raises what they raised, and WorkerError."""
        for worker in workers:
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):  # the worker has died, perhaps in the middle of an answer
                self._replace(worker)
                continue
            if kind == "error":
                raise value
            if kind == "progress":
                worker.counts = value
                continue
            worker.ready = True
            if kind == "result" and worker.index is not None:
                result, worker.counts = value
                self._done, worker.counts = self._add(worker.counts), (0,) * METERS
                index, worker.index = worker.index, None
                yield index, result

    def _add(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(done + own for done, own in zip(self._done, counts, strict=True))

    def assign(self) -> None:
        """Give each idle worker one of the waiting items."""
        for worker in self._workers:
            if self._waiting and worker.ready and worker.index is None:
                worker.index = self._waiting.popleft()
                with suppress(OSError):  # the worker has died; `read_answers` will see it at its pipe
                    worker.pipe.send(self._items[worker.index])

    def _replace(self, worker: Worker) -> None:
        """Replace a dead worker if items are waiting; raises WorkerError if its item or its start failed before."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        cause = describe_exit(worker.process.exitcode or 0)
        if worker.index is not None:
            task = self._name(self._items[worker.index])
            if worker.index in self._died:
                raise WorkerError(
                    f"a worker died twice over {task}: {cause}; "
                    "use fewer workers (--workers) or more memory, then run the same command again to continue"
                )
            self._died.add(worker.index)
            self._waiting.appendleft(worker.index)
            self._observer.worker_died(task, cause)
        elif not worker.ready:
            if worker.is_replacement:
                raise WorkerError(
                    f"worker processes cannot start: {cause}; "
                    "run again with --workers 1 to see why: it continues from here"
                )
            self._observer.worker_died("a task it had not begun", cause)
        if self._waiting:
            self.start(is_replacement=not worker.ready)

    def shutdown(self) -> None:
        """End all workers at once, busy or idle: SIGTERM, and SIGKILL after SHUTDOWN_S."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(SHUTDOWN_S)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


class ParentGoneError(BaseException):
    """The parent closed the pipe. Not an Exception: the function that reports progress must not handle it."""


def serve(pipe: Connection, function: Callable[[Any, Meter], Any]) -> None:
    """The main loop of a worker: process items until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=die_with_parent, daemon=True).start()
    sent = time.monotonic()

    def report(counts: tuple[int, ...]) -> None:
        nonlocal sent
        if time.monotonic() - sent > POLL_S:
            sent = time.monotonic()
            try:
                pipe.send(("progress", counts))
            except OSError as error:
                raise ParentGoneError from error

    with suppress(EOFError, ConnectionError):
        pipe.send(("ready", None))
        while True:
            item, meter = pipe.recv(), Meter(report)
            try:
                answer = ("result", (function(item, meter), meter.counts))
            except ParentGoneError:
                return
            except Exception as error:  # sent to the parent, which raises it
                answer = ("error", make_portable(error))
            pipe.send(answer)


def make_portable(error: Exception) -> Exception:
    """The error in a form that can be sent to another process, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # a library's exception may fail in any way when pickled and unpickled
        error = WorkerError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error


def die_with_parent() -> None:
    """Wait until the parent has ended, then end this process at once, so that it publishes nothing incomplete."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C (SIGINT) for threads and processes that are started inside: they inherit the signal mask.

    Without this, Ctrl-C would kill a worker, with a traceback, while it is still importing modules.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def describe_exit(exitcode: int) -> str:
    """Describe in words how a process ended."""
    if exitcode == -9:
        return "killed by signal 9 (SIGKILL), most likely by the kernel because memory ran out"
    if exitcode < 0:
        return f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"exit code {exitcode}"
