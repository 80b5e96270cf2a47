"""The contract of engines, and what happens when processes die: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from exact_prep.engines import Meter, count_cores, count_workers, run
from exact_prep.errors import SourceError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Log:
    def __init__(self) -> None:
        self.totals: list[tuple[int, ...]] = []
        self.deaths: list[tuple[str, str]] = []

    def progressed(self, totals: tuple[int, ...]) -> None:
        self.totals.append(totals)

    def worker_died(self, name: str, cause: str) -> None:
        self.deaths.append((name, cause))


def square(item: int, meter: Meter) -> int:
    meter.add(item, 1)
    return item * item


def refuse_three(item: int, meter: Meter) -> int:
    if item == 3:
        raise SourceError("file.jsonl:3: no")
    return item


def die_once(item: Path, meter: Meter) -> str:
    meter.add(10)
    if not item.exists():
        item.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item.name


def die(item: int, meter: Meter) -> None:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 3])
class TestContract:
    def test_every_item_gives_its_result_once(self, workers):
        assert sorted(run(square, range(7), workers=workers, name=str)) == [(i, i * i) for i in range(7)]

    def test_progress_ends_at_the_sums(self, workers):
        log = Log()
        list(run(square, range(7), workers=workers, name=str, observer=log))
        assert log.totals[-1] == (21, 7)
        assert log.totals == sorted(log.totals)

    def test_an_error_comes_out_as_it_was_raised(self, workers):
        with pytest.raises(SourceError, match=r"file\.jsonl:3: no"):
            list(run(refuse_three, range(6), workers=workers, name=str))

    def test_no_items_is_no_work(self, workers):
        assert list(run(square, [], workers=workers, name=str)) == []


def test_a_killed_worker_is_named_and_its_item_tried_again(tmp_path):
    log = Log()
    items = [tmp_path / name for name in "abc"]
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    results = sorted(run(die_once, items, workers=2, name=lambda item: item.name, observer=log))
    assert results == [(0, "a"), (1, "b"), (2, "c")]
    assert [name for name, _ in log.deaths] == ["b"]
    assert "SIGKILL" in log.deaths[0][1]
    assert log.totals[-1][0] == 30


def test_an_item_that_kills_two_workers_ends_the_run_with_its_name():
    log = Log()
    with pytest.raises(WorkerError, match=r"item 1: killed by signal 9"):
        list(run(die, range(3), workers=2, name=lambda item: f"item {item}", observer=log))
    assert len(log.deaths) == 1


@contextmanager
def workers_killed_at_their_start(most: int) -> Iterator[None]:
    """Kill up to `most` worker processes as soon as they appear: long before they have begun anything."""
    done = threading.Event()

    def kill() -> None:
        seen: set[int] = set()
        while len(seen) < most and not done.is_set():
            with suppress(psutil.Error):
                for child in psutil.Process().children():
                    if child.pid not in seen and "spawn_main" in " ".join(child.cmdline()) and len(seen) < most:
                        child.kill()
                        seen.add(child.pid)
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()


def test_a_worker_killed_before_it_begins_is_started_again():
    log = Log()
    with workers_killed_at_their_start(1):
        results = sorted(run(square, range(4), workers=2, name=str, observer=log))
    assert results == [(i, i * i) for i in range(4)]
    assert [name for name, _ in log.deaths] == ["a task it had not begun"]
    assert "SIGKILL" in log.deaths[0][1]


@pytest.mark.parametrize("items", [3, 3000])
def test_workers_that_cannot_start_end_the_run_and_nobody_waits_for_ever(items):
    with workers_killed_at_their_start(10**6), pytest.raises(WorkerError, match="cannot start: killed by signal 9"):
        list(run(square, range(items), workers=2, name=str))


def own_pid(item: int, meter: Meter) -> int:
    return os.getpid()


def test_workers_may_die_at_any_instant_and_no_other_waits_for_them():
    """Items are so small that workers are killed while they take one, or answer, as often as while they work on it."""
    log, seen, victims = Log(), [], set()
    for index, pid in run(own_pid, range(20_000), workers=2, name=str, observer=log):
        seen.append(index)
        if len(victims) < 12 and len(seen) % 1000 == 500 and pid not in victims:
            victims.add(pid)
            time.sleep(len(victims) / 10_000)  # until the worker is at another point
            os.kill(pid, signal.SIGKILL)
    assert sorted(seen) == list(range(20_000))
    assert len(victims) == 12
    assert 1 <= len(log.deaths) <= 12


def confess(item: int, meter: Meter) -> None:
    raise Stubborn(1, 2)


class Stubborn(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_pickled_is_reported_and_every_error_says_where_it_was_raised():
    with pytest.raises(WorkerError, match="Stubborn: 1 and 2") as caught:
        list(run(confess, range(2), workers=2, name=str))
    assert "in confess" in caught.value.__notes__[0]
    with pytest.raises(SourceError) as known:
        list(run(refuse_three, range(6), workers=2, name=str))
    assert "in refuse_three" in known.value.__notes__[0]
    assert "refuse_three" not in str(known.value)


SLEEPER = """
import sys, time
from exact_prep.engines import run
def sleep(item, meter):
    open(item, "w").close()
    time.sleep(60)
if __name__ == "__main__":
    list(run(sleep, sys.argv[1:], workers=2, name=str))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(tmp_path, how):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    marks = [tmp_path / "one", tmp_path / "two"]
    parent = subprocess.Popen([sys.executable, script, *marks], stderr=subprocess.DEVNULL, cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not all(mark.exists() for mark in marks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(how)
    parent.wait(5)
    _, alive = psutil.wait_procs(children, timeout=2)
    assert alive == []


def test_there_is_one_worker_per_core_as_long_as_there_is_work_for_each():
    assert [count_workers(work, 100) for work in (0, 99, 100, 199)] == [1, 1, 1, 1]
    assert count_workers(250, 100) == min(2, count_cores())
    assert count_workers(10**6, 100) == count_cores()
