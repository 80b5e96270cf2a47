"""Items on spawned worker processes (spawn, because forking after threads hangs tokenizer libraries).

Workers ignore Ctrl-C (the parent decides), die at once of SIGTERM, and die with their parent however it dies. A
worker that dies (of the kernel's out-of-memory killer, say) is reported with the item it worked on, which is tried
once more.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from exact_prep.engines import METERS, Item, Meter, Observer, Result
from exact_prep.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableSequence, Sequence

POLL_S = 0.1
"""How often progress is looked at."""

_counters: MutableSequence[int] = []


def run(
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: Callable[[Item], str],
    observer: Observer,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) as items finish; see `exact_prep.engines.run`."""
    context = multiprocessing.get_context("spawn")
    # One slot per item, no lock: a worker killed while it holds a lock would stop all others.
    counters = context.RawArray("q", METERS * len(items))
    left, broken = set(range(len(items))), False
    while left:
        pool = ProcessPool(workers, initializer=begin, initargs=(counters,), context=context)
        try:
            for index, result in run_on(pool, function, items, sorted(left), name, observer, counters):
                left.discard(index)
                yield index, result
            pool.close()
        except BrokenProcessPool as error:
            # A worker killed before any has begun a task breaks the pool: nobody knows what it was about to do.
            if broken:
                raise WorkerError(
                    "worker processes cannot start or be reached; try --workers 1 to see why, the run continues"
                ) from error
            broken = True
            observer.worker_died("a task it had not begun", "killed or unable to start")
        finally:
            pool.stop()
            pool.join()


def run_on(
    pool: ProcessPool,
    function: Callable[[Item, Meter], Result],
    items: Sequence[Item],
    indices: Sequence[int],
    name: Callable[[Item], str],
    observer: Observer,
    counters: Sequence[int],
) -> Iterator[tuple[int, Result]]:
    """Run some of the items on a pool; raises BrokenProcessPool, WorkerError, and what the function raises."""
    died: set[int] = set()
    with interrupts_blocked():
        pending: dict[Any, int] = {submit(pool, function, items[i], i): i for i in indices}
    while pending:
        done, _ = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
        observer.progressed(tuple(sum(counters[m::METERS]) for m in range(METERS)))
        if not done and not pool.active:
            # A pool that breaks fails what its workers were sent; what still waits to be sent would wait for ever.
            raise BrokenProcessPool("the pool is broken")
        for future in done:
            index = pending.pop(future)
            try:
                result = future.result()
            except ProcessExpired as error:
                if index in died:
                    raise WorkerError(
                        f"a worker died twice over {name(items[index])}: {cause_of(error.exitcode)}; "
                        "give the run more memory or fewer workers, then start it again: it continues"
                    ) from error
                died.add(index)
                observer.worker_died(name(items[index]), cause_of(error.exitcode))
                pending[submit(pool, function, items[index], index)] = index
            else:
                yield index, result


def submit(pool: ProcessPool, function: Callable[[Any, Meter], Any], item: object, index: int) -> Any:
    """The future of an item; raises BrokenProcessPool."""
    try:
        return pool.schedule(work, (function, item, index))
    except RuntimeError as error:
        raise BrokenProcessPool(str(error)) from error


def work(function: Callable[[Any, Meter], Any], item: object, index: int) -> object:
    """In a worker: run one item from the start."""
    meter = Meter(_counters, METERS * index)
    meter.reset()
    return function(item, meter)


def begin(counters: MutableSequence[int]) -> None:
    """In a worker, first of all: know the counters, obey the parent and outlive it not."""
    global _counters
    _counters = counters
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=die_with_parent, daemon=True).start()


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
