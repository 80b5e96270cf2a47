"""Items on spawned worker processes (spawn, because forking after threads hangs tokenizer libraries).

Each worker has a pipe of its own and shares no lock or queue with the others: it may be killed at any instruction, and
nobody waits for what it held. Workers ignore Ctrl-C (the parent decides), die at once of SIGTERM, and die with their
parent however it dies. A worker that dies (of the kernel's out-of-memory killer, say) is reported with the item it
worked on, which is tried once more.
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

import numpy as np

from exact_prep.engines import METERS, Item, Meter, Observer, Result
from exact_prep.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableSequence, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

POLL_S = 0.1
"""How often progress is looked at."""

SPAWN = multiprocessing.get_context("spawn")

PATIENCE_S = 5.0
"""How long a worker that was told to end may take before it is killed."""


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) as items finish; see `exact_prep.engines.run`."""
    # One slot per item, written by one worker at a time.
    counters = SPAWN.RawArray("q", METERS * len(items))
    crew, totals = Crew(function, items, counters, name, observer), np.frombuffer(counters, np.int64)
    left, looked = len(items), 0.0
    try:
        for _ in range(workers):
            crew.start()
        while left:
            for index, result in crew.answers(crew.wait()):
                left -= 1
                yield index, result
            crew.assign()
            if not left or time.monotonic() - looked > POLL_S:
                looked = time.monotonic()
                observer.progressed(tuple(totals.reshape(-1, METERS).sum(axis=0).tolist()))
    finally:
        crew.dismiss()


@dataclass
class Worker:
    """A worker process, as its parent sees it."""

    process: BaseProcess
    pipe: Connection
    """It says that it is ready, gets an item, answers with its result or an exception, gets the next."""
    second: bool
    """Whether it stands in for one that died before it was ready."""
    ready: bool = False
    index: int | None = None
    """The item it works on."""


class Crew:
    """The workers of a run, and the items that wait for one."""

    def __init__(
        self,
        function: Callable[[Any, Meter], Any],
        items: Sequence[Any],
        counters: MutableSequence[int],
        name: Callable[[Any], str],
        observer: Observer,
    ) -> None:
        self._function, self._items, self._counters = function, items, counters
        self._name, self._observer = name, observer
        self._waiting = deque(range(len(items)))
        self._died: set[int] = set()
        self._workers: list[Worker] = []

    def start(self, *, second: bool = False) -> None:
        """Start a worker."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(there, self._function, self._counters), daemon=True)
        with interrupts_blocked():
            process.start()
        there.close()
        self._workers.append(Worker(process, here, second))

    def wait(self) -> list[Worker]:
        """Wait a moment for workers to say something, or to die."""
        heard = wait([worker.pipe for worker in self._workers], timeout=POLL_S)
        return [worker for worker in self._workers if worker.pipe in heard]

    def answers(self, heard: Sequence[Worker]) -> Iterator[tuple[int, Any]]:
        """What those workers have to say of their items; raises what they raised, and WorkerError."""
        for worker in heard:
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError):  # the pipe ends with the process, perhaps in the middle of an answer
                self._replace(worker)
                continue
            index, worker.index, worker.ready = worker.index, None, True
            if isinstance(answer, BaseException):
                raise answer
            if index is not None:
                yield index, answer

    def assign(self) -> None:
        """Give every idle worker an item that waits."""
        for worker in self._workers:
            if self._waiting and worker.ready and worker.index is None:
                worker.index = self._waiting.popleft()
                with suppress(OSError):  # it has died, and its pipe will say so
                    worker.pipe.send((self._items[worker.index], worker.index))

    def _replace(self, worker: Worker) -> None:
        """Start another worker for one that died, if there is work for it; raises WorkerError the second time."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        cause = cause_of(worker.process.exitcode or 0)
        if worker.index is not None:
            task = self._name(self._items[worker.index])
            if worker.index in self._died:
                raise WorkerError(
                    f"a worker died twice over {task}: {cause}; "
                    "give the run more memory or fewer workers, then start it again: it continues"
                )
            self._died.add(worker.index)
            self._waiting.appendleft(worker.index)
            self._observer.worker_died(task, cause)
        elif not worker.ready:
            if worker.second:
                raise WorkerError(
                    f"worker processes cannot start: {cause}; try --workers 1 to see why, the run continues"
                )
            self._observer.worker_died("a task it had not begun", cause)
        if self._waiting:
            self.start(second=not worker.ready)

    def dismiss(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(PATIENCE_S)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def serve(pipe: Connection, function: Callable[[Any, Meter], Any], counters: MutableSequence[int]) -> None:
    """A worker's life: obey the parent and outlive it not; answer items until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=die_with_parent, daemon=True).start()
    answer: object = None
    with suppress(EOFError, ConnectionError):
        while True:
            pipe.send(answer)
            item, index = pipe.recv()
            meter = Meter(counters, METERS * index)
            meter.reset()
            try:
                answer = function(item, meter)
            except Exception as error:  # the parent's to deal with
                answer = portable(error)


def portable(error: Exception) -> Exception:
    """The error as it survives the way to another process, with a note of where it was raised."""
    trace = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = None
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's exception does when it is taken apart and put together
        error = WorkerError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error


def die_with_parent() -> None:
    """Wait for the parent's end, then end this process at once: nothing half-made is ever published."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from threads and processes that are started inside: they inherit the mask.

    A worker would otherwise die of it while it still imports, with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cause_of(exitcode: int) -> str:
    """What an exit code says, in words."""
    if exitcode == -9:
        return "killed by signal 9 (SIGKILL), most likely by the kernel because memory ran out"
    if exitcode < 0:
        return f"killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"exit code {exitcode}"
