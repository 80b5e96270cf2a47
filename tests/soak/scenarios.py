"""Runs that are killed and started again until one finishes; the files on disk are checked after every kill."""

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
from exact_prep.pipeline.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

VICTIMS = ("parent", "group", "worker")
TIMEOUT_S = 180

PACK_SIGNS = {
    ".work/plan.json": 1,
    ".work/task-*.json": 12,
    "**/data-*.tmp": 2,
    "**/data-*.arrow": 12,
    "**/tables/*": 8,
    "**/state.json*": 1,
    "**/weights.json*": 1,
    "**/manifest.*": 2,
}
WEIGH_SIGNS = {
    "**/weights.json.*": 1,
    "**/state.json.*": 1,
    "**/.work/data-*.json": 20,
    "**/tables/weights.parquet.*": 1,
}
"""Files that appear on disk during a run, and the largest number of them that a kill waits for."""


@dataclass
class Tally:
    """Counts of kills and of how the runs ended."""

    starts: int = 0
    ended: int = 0
    """Runs that finished; each result was compared with that of the undisturbed run."""
    kills: Counter[str] = field(default_factory=Counter)
    """Kills by command and victim."""
    too_late: int = 0
    """How often the run had ended before it could be killed."""
    recovered: int = 0
    """Runs that lost a worker and continued by themselves."""
    given_up: int = 0
    """Runs that lost a worker and ended with an error message; they were started again."""

    @property
    def killed(self) -> int:
        """The number of all kills."""
        return sum(self.kills.values())

    def __str__(self) -> str:
        by = ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()))
        return (
            f"{self.killed} kills ({by}), {self.starts} starts, {self.ended} runs finished and were equal to the "
            f"undisturbed one; {self.recovered} continued without a killed worker, {self.given_up} ended with a message"
        )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command to kill, the directory it writes to, and the expected result."""

    name: str
    command: list[str]
    directory: Path
    signs: dict[str, int]
    expected: dict[str, bytes]
    """Every file of an undisturbed run, by name."""
    incomplete: tuple[str, ...]
    """Words of which each finding of `verify` on an incomplete run must contain at least one."""
    seconds: float
    """Seconds that an undisturbed run takes."""
    prepare: Callable[[Path], None]
    """Prepares `directory` for the first start."""


def read_files(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command as the leader of its own process group."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def find_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    except psutil.Error:
        return []


def wait_for_moment(scenario: Scenario, process: subprocess.Popen[str], choose: random.Random) -> str:
    """Let a run continue until a random time, or shortly after a random sign; returns a description of the moment."""
    if choose.random() < 0.4:
        delay, what = choose.uniform(0, 1.1 * scenario.seconds), "time"
        deadline = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        return f"{what} {delay:.2f} s"
    sign = choose.choice(sorted(scenario.signs))
    count, before = choose.randint(1, scenario.signs[sign]), count_files(scenario.directory, sign)
    while process.poll() is None and count_files(scenario.directory, sign) < before + count:
        time.sleep(0.002)
    longer = choose.choice([0, 0, choose.uniform(0, 0.05)])
    time.sleep(longer)
    return f"{count} x {sign} + {longer * 1000:.0f} ms"


def count_files(directory: Path, sign: str) -> int:
    """How many files match the glob pattern `sign` now."""
    while True:
        try:
            return len(list(directory.glob(sign)))
        except FileNotFoundError:
            continue  # a directory was removed while it was listed


def kill(process: subprocess.Popen[str], victim: str, choose: random.Random) -> bool:
    """Kill the victim with SIGKILL; returns whether there was one."""
    if process.poll() is not None:
        return False
    if victim == "worker":
        workers = find_workers(process)
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


def wait_for_group_end(group: int) -> None:
    """Wait until no process of a group is left; raises AssertionError if workers live longer than their parent."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        alive = [p for p in psutil.process_iter() if is_in_group(p, group)]
        if not alive:
            return
        time.sleep(0.02)
    raise AssertionError(f"processes of a killed run are still alive: {alive}")


def is_in_group(process: psutil.Process, group: int) -> bool:
    """Whether a process belongs to a process group and is not merely waiting to be reaped."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


def check_incomplete(scenario: Scenario) -> None:
    """Check, after a kill, that `verify` finds no fault in the directory except that it is incomplete."""
    try:
        findings = verify(scenario.directory)
    except DatasetError as error:
        findings = [str(error)]
    for finding in findings:
        assert any(words in finding for words in scenario.incomplete), finding


def run_scenario(
    scenario: Scenario, kills: int, choose: random.Random, tally: Tally, say: Callable[[str], None]
) -> None:
    """Kill a run `kills` times, then let it finish, and compare the result. Raises AssertionError."""
    shutil.rmtree(scenario.directory, ignore_errors=True)
    scenario.prepare(scenario.directory)
    while True:
        process = start(scenario.command)
        tally.starts += 1
        victim, moment, killed = "", "", False
        if kills > 0:
            victim = choose.choice(VICTIMS)
            moment = wait_for_moment(scenario, process, choose)
            killed = kill(process, victim, choose)
        _, talk = process.communicate(timeout=TIMEOUT_S)
        wait_for_group_end(process.pid)
        if killed:
            kills -= 1
            tally.kills[f"{scenario.name} {victim}"] += 1
            say(f"{scenario.name}: killed {victim} at {moment}: exit {process.returncode}")
        elif victim:
            tally.too_late += 1
        if process.returncode == 0:
            tally.recovered += killed
            break
        if process.returncode == 2 and "holds a dataset already" in talk:
            break  # the killed run had already finished: the comparison below checks that
        if not killed or victim == "worker":
            assert killed, f"exit {process.returncode}: {talk}"
            assert process.returncode == 1, talk
            assert "worker" in talk, talk
            assert "Traceback" not in talk, talk
            tally.given_up += 1
        check_incomplete(scenario)
    made = read_files(scenario.directory)
    if process.returncode:
        # A run killed during its final clean-up may leave files in .work/; they are not part of the dataset.
        made = {name: data for name, data in made.items() if ".work/" not in name}
    assert made.keys() == scenario.expected.keys(), sorted(made.keys() ^ scenario.expected.keys())
    for name, data in scenario.expected.items():
        assert made[name] == data, f"{name} differs from the undisturbed run"
    assert verify(scenario.directory) == []
    tally.ended += 1


def write_corpus(folder: Path, files: int, documents: int) -> None:
    """Write files of JSON lines: documents of log-uniform length from a small vocabulary, and one bad line per file."""
    words = ["the", "long", "context", "of", "a", "row", "straße", "東京", "0123", "{", "\n"]
    folder.mkdir(parents=True)
    choose = random.Random(7)
    for number in range(files):
        texts = [" ".join(choose.choices(words, k=int(3000 ** choose.random()))) for _ in range(documents)]
        lines = [json.dumps({"text": text}) for text in texts]
        lines[number] = "not JSON"
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n")


def time_command(command: list[str]) -> float:
    """Run a command until it ends; returns the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun


def make_scenarios(
    folder: Path,
    tokenizer: Path,
    *,
    files: int,
    documents: int,
    workers: int,
    row_lengths: Sequence[tuple[int, ...]] = ((256,), (128, 512)),
) -> list[Scenario]:
    """Make the scenarios `pack` and `weigh` for each of `row_lengths`; runs each once, undisturbed."""
    corpus = folder / "corpus"
    write_corpus(corpus, files, documents)
    tool, workers_option = [sys.executable, "-m", "exact_prep"], ["--workers", str(workers)]
    pack = [*tool, "pack", str(corpus), "--tokenizer", str(tokenizer), "--on-error", "reject", "--task-size", "60000"]
    made = []
    for lengths in row_lengths:
        packed, weighed = (folder / "undisturbed" / f"{name} {lengths}" for name in ("pack", "weigh"))
        rows = [word for length in lengths for word in ("--seq-len", str(length))]

        def copied(directory: Path, source: Path = packed) -> None:
            shutil.copytree(source, directory)

        def weigh(home: Path) -> list[str]:
            return [*tool, "weigh", str(home), *workers_option]

        target = folder / "killed" / f"pack {lengths}"
        seconds = time_command([*pack, *rows, *workers_option, "--out", str(packed)])
        made.append(
            Scenario(
                name=f"pack {lengths}",
                command=[*pack, *rows, *workers_option, "--out", str(target)],
                directory=target,
                signs=PACK_SIGNS,
                expected=read_files(packed),
                incomplete=("is incomplete", "does not exist", "is not a packed dataset"),
                seconds=seconds,
                prepare=make_parent,
            )
        )
        copied(weighed)
        seconds = time_command(weigh(weighed))
        target = folder / "killed" / f"weigh {lengths}"
        made.append(
            Scenario(
                name=f"weigh {lengths}",
                command=weigh(target),
                directory=target,
                signs=WEIGH_SIGNS,
                expected=read_files(weighed),
                incomplete=("half-weighed",),
                seconds=seconds,
                prepare=copied,
            )
        )
    return made


def make_parent(directory: Path) -> None:
    """Make the parent of a directory."""
    directory.parent.mkdir(parents=True, exist_ok=True)


def soak(made: list[Scenario], kills: int, seed: int, say: Callable[[str], None], most: int = 8) -> Tally:
    """Repeat the scenarios until `kills` kills were made, each time with up to `most` kills; raises AssertionError."""
    choose, tally = random.Random(seed), Tally()
    while tally.killed < kills:
        for scenario in made:
            left = kills - tally.killed
            if left > 0:
                run_scenario(scenario, min(choose.randint(1, most), left), choose, tally, say)
    return tally
