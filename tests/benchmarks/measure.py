"""Runs a command and measures its whole process tree: CPU-seconds, wall-clock seconds, peak memory, tokens."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_S = 0.2
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Figures:
    """The measurements of one run."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    """The largest sampled sum of proportional set sizes over the process tree."""
    tokens: int
    """Tokens produced, if the last line of output is JSON with `tokens`; else 0."""


def run(command: list[str], **environment: str) -> Figures:
    """Run a command until it ends; raises CalledProcessError with its output if it fails."""
    adopt_orphans()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    # Byte code is cached, as on a user's machine.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    peak = Peak(process.pid)
    output, _ = process.communicate()
    wall = time.perf_counter() - started
    reap_orphans()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figures(cpu, wall, peak.stop(), parse_tokens(output))


def adopt_orphans() -> None:
    """Become the parent of processes that a command leaves behind (Linux): their CPU time counts only when reaped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans() -> None:
    """Wait for all processes that a command has left behind."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def parse_tokens(output: str) -> int:
    """`tokens` of the last line, if that is a JSON object."""
    lines = output.strip().splitlines()
    try:
        last: Any = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return 0
    return int(last.get("tokens", 0)) if isinstance(last, dict) else 0


class Peak:
    """Samples the memory of a process tree in a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop sampling; returns the peak in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)


def median(figures: list[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(
        statistics.median(f.cpu_s for f in figures),
        statistics.median(f.wall_s for f in figures),
        int(statistics.median(f.peak_bytes for f in figures)),
        figures[0].tokens,
    )
