"""Runs a function on several processes, the ranks of a test, and ends whatever hangs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Callable


def run_ranks(function: Callable, *arguments, nprocs: int = 2, seconds: float = 180) -> None:
    """Call `function(rank, *arguments)` on `nprocs` ranks; raise what one raised, or TimeoutError at the limit."""
    context = torch.multiprocessing.spawn(_run, (function, arguments), nprocs=nprocs, join=False)
    end = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            for process in context.processes:
                process.join()
            raise TimeoutError(f"{function.__name__} did not end on {nprocs} ranks in {seconds:g} s and were killed")


def _run(rank: int, function: Callable, arguments: tuple) -> None:
    function(rank, *arguments)
    # Not destroy_process_group(): a gloo group that DDP's reducer is the last to hold joins its threads while it has
    # the GIL, which they may want: a deadlock (torch 2.13). The process ends here, its threads with it.
    if distributed.is_initialized():
        distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
