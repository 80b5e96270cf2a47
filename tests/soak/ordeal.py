"""Real runs, killed and started again until one gets through; what is on disk is checked after every death."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from exact_prep.errors import DatasetError
from exact_prep.pipeline import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

VICTIMS = ("parent", "group", "worker")
PATIENCE_S = 180

PACK_SIGNS = {
    ".work/plan.json": 1,
    ".work/task-*.json": 12,
    ".work/*/part-*.arrow": 12,
    "**/data-*.arrow": 12,
    "**/state.json*": 1,
    "**/manifest.*": 2,
}
WEIGH_SIGNS = {"**/weights.json*": 2, "**/data-*.arrow.tmp": 1, "**/.work/data-*.json": 20, "**/state.json.tmp": 1}
"""What comes to lie on disk while a run goes on, and up to how many of it a kill waits for."""


@dataclass
class Tally:
    """What was done to the runs, and how they took it."""

    starts: int = 0
    ended: int = 0
    """Runs that got to their end; each was compared with the undisturbed one."""
    kills: Counter[str] = field(default_factory=Counter)
    """By command and victim."""
    too_late: int = 0
    """Times at which the run had ended before it could be killed."""
    recovered: int = 0
    """Runs that lost a worker and went on by themselves."""
    given_up: int = 0
    """Runs that lost a worker and ended with a message; they were started again."""

    @property
    def killed(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def __str__(self) -> str:
        by = ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()))
        return (
            f"{self.killed} kills ({by}), {self.starts} starts, {self.ended} runs ended and were equal to the "
            f"undisturbed one; {self.recovered} went on without a worker killed, {self.given_up} gave up with a message"
        )


@dataclass(frozen=True, kw_only=True)
class Ordeal:
    """A command that is killed, where it writes, and what must come out."""

    name: str
    command: list[str]
    directory: Path
    signs: dict[str, int]
    expected: dict[str, bytes]
    """Every file of an undisturbed run."""
    unfinished: tuple[str, ...]
    """What `verify` may say of an unfinished run."""
    lasts: float
    """Seconds that an undisturbed run takes."""
    prepare: Callable[[Path], None]
    """Makes `directory` what it is before the first start."""


def files_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command as the leader of its own process group."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def wait_for_moment(ordeal: Ordeal, process: subprocess.Popen[str], choose: random.Random) -> str:
    """Let a run go on until a random time or sign, and a little longer; returns what was waited for."""
    if choose.random() < 0.4:
        delay, what = choose.uniform(0, 1.1 * ordeal.lasts), "time"
        deadline = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return f"{what} {delay:.2f} s"
    sign = choose.choice(sorted(ordeal.signs))
    count, before = choose.randint(1, ordeal.signs[sign]), found(ordeal.directory, sign)
    while process.poll() is None and found(ordeal.directory, sign) < before + count:
        time.sleep(0.002)
    longer = choose.choice([0, 0, choose.uniform(0, 0.05)])
    time.sleep(longer)
    return f"{count} x {sign} + {longer * 1000:.0f} ms"


def found(directory: Path, sign: str) -> int:
    """How many files of a kind are there now."""
    while True:
        try:
            return len(list(directory.glob(sign)))
        except FileNotFoundError:
            continue  # a directory went away while it was listed


def kill(process: subprocess.Popen[str], victim: str, choose: random.Random) -> bool:
    """Kill the victim with SIGKILL; returns whether there was one."""
    if process.poll() is not None:
        return False
    if victim == "worker":
        workers = workers_of(process)
        if not workers:
            return False
        try:
            choose.choice(workers).kill()
        except psutil.NoSuchProcess:
            return False
    elif victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    return True


def await_silence(group: int) -> None:
    """Wait until no process of a group is left: workers must not outlive their parent."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        alive = [p for p in psutil.process_iter() if is_of_group(p, group)]
        if not alive:
            return
        time.sleep(0.02)
    raise AssertionError(f"processes of a dead run are alive: {alive}")


def is_of_group(process: psutil.Process, group: int) -> bool:
    """Whether a process belongs to a process group and is not merely waiting to be reaped."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


def check_between(ordeal: Ordeal) -> None:
    """After a death the directory must be clean, or called unfinished."""
    try:
        findings = verify(ordeal.directory)
    except DatasetError as error:
        findings = [str(error)]
    for finding in findings:
        assert any(words in finding for words in ordeal.unfinished), finding


def torment(ordeal: Ordeal, kills: int, choose: random.Random, tally: Tally, say: Callable[[str], None]) -> None:
    """Kill a run `kills` times, then let it end, and compare. Raises AssertionError."""
    shutil.rmtree(ordeal.directory, ignore_errors=True)
    ordeal.prepare(ordeal.directory)
    while True:
        process = start(ordeal.command)
        tally.starts += 1
        victim, moment, struck = "", "", False
        if kills > 0:
            victim = choose.choice(VICTIMS)
            moment = wait_for_moment(ordeal, process, choose)
            struck = kill(process, victim, choose)
        _, talk = process.communicate(timeout=PATIENCE_S)
        await_silence(process.pid)
        if struck:
            kills -= 1
            tally.kills[f"{ordeal.name} {victim}"] += 1
            say(f"{ordeal.name}: killed {victim} at {moment}: exit {process.returncode}")
        elif victim:
            tally.too_late += 1
        if process.returncode == 0:
            tally.recovered += struck
            break
        if process.returncode == 2 and "holds a dataset already" in talk:
            break  # it was killed when all was done: the comparison below says whether it was
        if not struck or victim == "worker":
            assert struck, f"exit {process.returncode}: {talk}"
            assert process.returncode == 1, talk
            assert "worker" in talk, talk
            assert "Traceback" not in talk, talk
            tally.given_up += 1
        check_between(ordeal)
    made = files_of(ordeal.directory)
    if process.returncode:
        # What was being swept away when it was killed may lie there still; it is no part of the dataset.
        made = {name: data for name, data in made.items() if ".work/" not in name}
    assert made.keys() == ordeal.expected.keys(), sorted(made.keys() ^ ordeal.expected.keys())
    for name, data in ordeal.expected.items():
        assert made[name] == data, f"{name} differs from the undisturbed run"
    assert verify(ordeal.directory) == []
    tally.ended += 1


def write_corpus(folder: Path, files: int, documents: int) -> None:
    """JSON lines of log-uniform length, some lines bad, from a small vocabulary."""
    words = ["the", "long", "context", "of", "a", "row", "straße", "東京", "0123", "{", "\n"]
    folder.mkdir(parents=True)
    choose = random.Random(7)
    for number in range(files):
        texts = [" ".join(choose.choices(words, k=int(3000 ** choose.random()))) for _ in range(documents)]
        lines = [json.dumps({"text": text}) for text in texts]
        lines[number] = "not JSON"
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n")


def timed(command: list[str]) -> float:
    """Run a command to its end; returns the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun


def ordeals(
    folder: Path,
    tokenizer: Path,
    *,
    files: int,
    documents: int,
    workers: int,
    row_lengths: Sequence[tuple[int, ...]] = ((256,), (128, 512)),
) -> list[Ordeal]:
    """`pack`, `weigh` in place and `weigh --out` for each of `row_lengths`, all run once undisturbed."""
    corpus = folder / "corpus"
    write_corpus(corpus, files, documents)
    tool, crew = [sys.executable, "-m", "exact_prep"], ["--workers", str(workers)]
    pack = [*tool, "pack", str(corpus), "--tokenizer", str(tokenizer), "--on-error", "reject", "--task-size", "60000"]
    made = []
    for lengths in row_lengths:
        packed, weighed, copy = (folder / "undisturbed" / f"{name} {lengths}" for name in ("pack", "weigh", "copy"))
        rows = [word for length in lengths for word in ("--seq-len", str(length))]

        def copied(directory: Path, source: Path = packed) -> None:
            shutil.copytree(source, directory)

        def weigh(home: Path, *options: str) -> list[str]:
            return [*tool, "weigh", str(home), *crew, *options]

        target = folder / "killed" / f"pack {lengths}"
        lasts = timed([*pack, *rows, *crew, "--out", str(packed)])
        made.append(
            Ordeal(
                name=f"pack {lengths}",
                command=[*pack, *rows, *crew, "--out", str(target)],
                directory=target,
                signs=PACK_SIGNS,
                expected=files_of(packed),
                unfinished=("is not finished", "does not exist", "is not a packed dataset"),
                lasts=lasts,
                prepare=make_parent,
            )
        )
        copied(weighed)
        lasts = timed(weigh(weighed))
        target = folder / "killed" / f"weigh {lengths}"
        made.append(
            Ordeal(
                name=f"weigh {lengths}",
                command=weigh(target),
                directory=target,
                signs=WEIGH_SIGNS,
                expected=files_of(weighed),
                unfinished=("half-weighed",),
                lasts=lasts,
                prepare=copied,
            )
        )
        lasts = timed(weigh(packed, "--out", str(copy)))
        assert files_of(copy) == files_of(weighed)
        target = folder / "killed" / f"weigh --out {lengths}"
        made.append(
            Ordeal(
                name=f"weigh --out {lengths}",
                command=weigh(packed, "--out", str(target)),
                directory=target,
                signs=WEIGH_SIGNS,
                expected=files_of(copy),
                unfinished=("unfinished copy", "does not exist", "is not a packed dataset", "is not finished"),
                lasts=lasts,
                prepare=make_parent,
            )
        )
    return made


def make_parent(directory: Path) -> None:
    """Make the place for a directory."""
    directory.parent.mkdir(parents=True, exist_ok=True)


def soak(made: list[Ordeal], kills: int, seed: int, say: Callable[[str], None], most: int = 8) -> Tally:
    """Kill runs until `kills` have struck, each dataset up to `most` times; raises AssertionError."""
    choose, tally = random.Random(seed), Tally()
    while tally.killed < kills:
        for ordeal in made:
            left = kills - tally.killed
            if left > 0:
                torment(ordeal, min(choose.randint(1, most), left), choose, tally, say)
    return tally
