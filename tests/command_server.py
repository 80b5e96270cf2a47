"""Runs `exact-prep` commands for tests: `python -m tests.command_server`.

A command takes a second to import what it needs, and the tests run hundreds. Here it is imported once; each command is
then a process of its own, forked from this one, that runs the real entry point with its own arguments, directory and
standard streams. Linux alone: elsewhere forking is not safe.

Reads a JSON object per line, {arguments, directory, stdin, stdout, stderr}, the last three paths of files; answers with
the exit code.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer requests until standard input ends."""
    # What the commands import, but no library that starts threads: those do not survive a fork.
    import numba  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.progress  # noqa: F401

    import exact_prep.cli
    import exact_prep.pipeline
    import exact_prep.reports.terminal  # noqa: F401
    from exact_prep.kernels.contexts import count_left_contexts, fill_by_position
    from exact_prep.kernels.rows import gather, splice

    for kernel in (count_left_contexts, fill_by_position, gather, splice):
        kernel.load()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(request: dict[str, object]) -> None:
    """Run one command in this process, and end it."""
    code = 70
    try:
        os.chdir(str(request["directory"]))
        for number, (name, flags) in enumerate(
            (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY))
        ):
            os.dup2(os.open(str(request[name]), flags), number)
        sys.argv = ["exact-prep", *request["arguments"]]  # type: ignore[misc]
        from exact_prep.__main__ import main as command

        try:
            command()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
