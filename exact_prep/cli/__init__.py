"""The command line: one file per command. The only room that prints: data on stdout, messages on stderr.

Nothing slow is imported before a command runs: `--help` answers in a fraction of a second (help.py says how it looks).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Annotated, Any, NoReturn

import typer

from exact_prep.cli.config import config
from exact_prep.cli.demo import demo
from exact_prep.cli.explain import explain
from exact_prep.cli.export import export
from exact_prep.cli.help import Command, Group
from exact_prep.cli.measure import measure
from exact_prep.cli.pack import pack
from exact_prep.cli.report import report
from exact_prep.cli.show import show
from exact_prep.cli.simulate import simulate
from exact_prep.cli.validate import validate
from exact_prep.cli.verify import verify
from exact_prep.cli.weigh import weigh
from exact_prep.errors import ExactPrepError, Interrupted, TasksMissing, UsageError, WeightsError
from exact_prep.version import __version__

MISUSE = 2
FAILURE = 1
UNFINISHED = 3
STOPPED = 128 + signal.SIGINT

UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO}
"""Why a write to an open file fails; other numbers mean that memory, processes or open files ran out."""

REPEAT_S = 2.0
"""A second signal within this time of the first is ignored: ending takes less."""

_stopped_at = -REPEAT_S


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with Ctrl-C and SIGTERM as an error like any other."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted("stopped; start the same command again to continue") from None

    return run


app = typer.Typer(
    name="exact-prep",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (pack, measure, weigh, report, simulate, show, verify, export, config, explain, demo, validate):
    app.command(cls=Command, help=sys.modules[command.__module__].HELP)(stoppable(command))


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"exact-prep {__version__}")
        raise typer.Exit


HELP = """Pack text corpora for long-context pretraining, and weigh every token by its effective context (EXACT).

pack a corpus, weigh the result, report where supervision goes, verify that everything is correct.

Examples:
    exact-prep demo
    exact-prep pack corpus/ --tokenizer tokenizer.json --seq-len 16k -o packed
    exact-prep weigh packed
    exact-prep report packed
"""


@app.callback(help=HELP)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    """Run `exact-prep`; see HELP."""


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 tasks of an array are missing, 130 stopped and ready to continue.
    """
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup, or in the background
        signal.signal(signal.SIGINT, stop)
    # Accepted anywhere: a user who needs it has just seen a command fail, and appends it.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        refuse_bytes(arguments)
        app(arguments)
    except ExactPrepError as error:
        if debug:
            raise
        typer.echo(f"exact-prep: {error}", err=True)
        if isinstance(error, Interrupted):
            leave()
        sys.exit(exit_code(error))
    except Exception as error:
        if debug:
            raise
        if limit := explain_limit(error):
            typer.echo(f"exact-prep: {limit}", err=True)
            sys.exit(FAILURE)
        if isinstance(error, OSError) and error.filename is None:  # files come with their names, as StorageError
            what = "the system refuses"
            if error.errno in UNWRITABLE:
                what = "cannot write to standard output"
                drop_output()
            typer.echo(f"exact-prep: {what}: {error.strerror or error}", err=True)
            sys.exit(FAILURE)
        typer.echo(f"exact-prep: internal error, please report it: {type(error).__name__}: {error}", err=True)
        typer.echo("exact-prep: --debug shows where it happened", err=True)
        sys.exit(FAILURE)
    finally:
        # Everything is printed and safe. Python restores the default signal handlers as it ends, and a second Ctrl-C
        # would then turn the exit code into death by a signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def explain_limit(error: Exception) -> str:
    """Which limit of the system an error is about, and what to do; empty if it is about none."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EAGAIN or "can't start new thread" in str(error):
        return (
            "no more threads or processes can be started: a limit is reached (ulimit -u, or the pids limit of a "
            "container); raise it, or use fewer --workers"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return "no more files can be opened: a limit is reached (ulimit -n); raise it, or use fewer --workers"
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "memory ran out; use fewer --workers, or a machine with more memory, and start the same command again"
    return ""


def leave() -> NoReturn:
    """End at once: Python itself would wait for a vocabulary that is still loading in a thread."""
    from multiprocessing import active_children

    for worker in active_children():
        worker.kill()
        worker.join()
    with suppress(OSError, AttributeError):  # closed, or never open
        sys.stdout.flush()
    os._exit(STOPPED)


def drop_output() -> None:
    """Let what is still buffered go nowhere: Python would try to write it again as it ends, and exit with 120."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or never open
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def refuse_bytes(arguments: list[str]) -> None:
    """Raise UsageError for an argument that is not text: records and Arrow files cannot hold it."""
    for argument in arguments:
        if any("\ud800" <= char <= "\udfff" for char in argument):
            raise UsageError(f"the argument {argument!a} is not UTF-8; rename what it names")


def exit_code(error: ExactPrepError) -> int:
    """The exit code of an error."""
    if isinstance(error, TasksMissing):
        return UNFINISHED
    return MISUSE if isinstance(error, (UsageError, WeightsError)) else FAILURE


def stop(number: int, frame: Any) -> None:
    """SIGTERM, as schedulers send it, and Ctrl-C end a run in the same way.

    It is a KeyboardInterrupt until it leaves the command, so that no `except Exception` on its way handles it.
    Signals often come several times (`timeout` signals a process and then its group): those within REPEAT_S of the
    first are ignored.
    """
    global _stopped_at
    before, _stopped_at = _stopped_at, time.monotonic()
    if _stopped_at - before > REPEAT_S:
        raise KeyboardInterrupt
