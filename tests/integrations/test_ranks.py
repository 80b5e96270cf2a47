"""Laws of the tests' own ranks: what a rank raises is raised, and ranks that hang are killed."""

from __future__ import annotations

import os
import time

import psutil
import pytest
from oracle import framework

framework("torch")

from ranks import run_ranks  # noqa: E402
from torch import multiprocessing  # noqa: E402


def fail(rank):
    if rank == 1:
        raise ArithmeticError("of rank 1")
    time.sleep(600)


def hang(rank, directory):
    (directory / str(rank)).write_text(str(os.getpid()))
    time.sleep(600)


def test_what_a_rank_raises_is_raised_and_the_other_ends():
    with pytest.raises(multiprocessing.ProcessRaisedException, match="ArithmeticError: of rank 1"):
        run_ranks(fail)


def test_ranks_that_hang_are_killed(tmp_path):
    with pytest.raises(TimeoutError, match="hang did not end on 2 ranks"):
        run_ranks(hang, tmp_path, seconds=20)
    assert not any(psutil.pid_exists(int((tmp_path / str(rank)).read_text())) for rank in range(2))
