"""`exact-prep simulate`."""

from __future__ import annotations

from typing import Annotated, Optional, get_args

import typer

from exact_prep.choices import Packing, ReportFormat
from exact_prep.cli.arguments import Config, Dataset
from exact_prep.errors import UsageError

HELP = """Show what other settings would do to a dataset: weights, row length, packing. Nothing is written.

Options may be given several times; every combination is tried. Under the present rows results are exact; other rows are
estimated from the lengths of the documents.

Examples:
    exact-prep simulate packed --alpha 0.15 --alpha 0.3 --alpha 1
    exact-prep simulate packed --seq-len 8k --seq-len 32k --packing best-fit
    exact-prep simulate packed --tail-share 0.4
    exact-prep simulate packed --window 4096 --format csv
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def simulate(
    directory: Dataset,
    alpha: Annotated[
        Optional[list[float]],  # noqa: UP045 - Typer reads it at run time
        typer.Option(min=0, metavar="X", help="Extra supervision of the tail.", show_default="as the dataset, or 0.15"),
    ] = None,
    gamma: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(
            min=0, metavar="X", help="Exponent of the inverse bucket frequency.", show_default="as the dataset, or 0.5"
        ),
    ] = None,
    tail_from: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="Effective context from which the tail begins: a bucket edge.",
            show_default="a quarter of the row",
        ),
    ] = None,
    tail_share: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(
            metavar="X",
            help="The share of supervision that the tail is to have, such as 0.4: which alpha, or how much drawing of "
            "long rows, reaches it.",
            show_default=False,
        ),
    ] = None,
    seq_len: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="N|4k|16K", help="Tokens per row.", show_default="as the dataset"),
    ] = None,
    packing: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="concat|best-fit", help="How documents become rows.", show_default="as the dataset"),
    ] = None,
    window: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="TOKENS|none", help="Sliding-window attention of this many tokens.", show_default="as the dataset"
        ),
    ] = None,
    kind: Annotated[ReportFormat, typer.Option("--format", help="`md`, `csv`, `latex`: a table.")] = "terminal",
    as_json: Annotated[bool, typer.Option("--json", help="All figures.")] = False,
    config: Config = None,
) -> None:
    """Run `exact-prep simulate`; see HELP."""
    from exact_prep.api import parse_seq_len
    from exact_prep.dataset import find_datasets, open_dataset
    from exact_prep.records import encode
    from exact_prep.reports.simulate import Settings, simulate

    datasets = {home: open_dataset(home) for home in find_datasets(directory)}
    homes = [home for home, one in datasets.items() if one.manifest.split != "validation"] or list(datasets)
    if len(homes) > 1:
        raise UsageError(f"{directory} holds several datasets; name one of them: {', '.join(map(str, homes))}")
    settings = Settings(
        alpha=tuple(alpha or ()),
        gamma=tuple(gamma or ()),
        tail_from=tuple(tail_from or ()),
        tail_share=tuple(tail_share or ()),
        seq_len=tuple(map(parse_seq_len, seq_len or ())),
        packing=[parse_packing(name) for name in packing or ()],
        window=tuple(map(parse_window, window or ())),
    )
    simulation = simulate(str(homes[0]), datasets[homes[0]], settings)
    if as_json or kind == "json":
        typer.echo(encode(simulation).decode(), nl=False)
        return
    from exact_prep.reports.simulate_views import format_simulation, render_simulation

    if kind != "terminal":
        typer.echo(format_simulation(simulation, kind), nl=False)
        return
    from rich.console import Console

    console = Console()
    console.print(render_simulation(simulation, width=console.width))


PACKINGS: tuple[Packing, ...] = get_args(Packing)


def parse_packing(text: str) -> Packing:
    """The name of a packing; raises UsageError."""
    for name in PACKINGS:
        if text == name:
            return name
    raise UsageError(f"--packing {text}: it is one of {', '.join(PACKINGS)}")


def parse_window(text: str) -> int | None:
    """Tokens of a window, or None for `none`; raises UsageError."""
    if text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 2**31):
        raise UsageError(f"--window {text}: a number of tokens of at least 1, or none")
    return int(text)
