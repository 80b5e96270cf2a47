"""`exact-prep weigh`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exact_prep.choices import Normalize
from exact_prep.cli.arguments import Dataset, Overwrite, Workers


def weigh(
    directory: Dataset,
    alpha: Annotated[float, typer.Option(min=0, help="Extra supervision of the tail.")] = 0.15,
    gamma: Annotated[
        float, typer.Option(min=0, help="Exponent of the inverse bucket frequency; 0: a flat tail.")
    ] = 0.5,
    tail_from: Annotated[
        int | None,
        typer.Option(min=0, help="Effective context from which the tail begins.", show_default="a quarter of the row"),
    ] = None,
    max_weight: Annotated[
        float | None, typer.Option(min=1, max=65504, help="Clip weights; the report states what that took.")
    ] = None,
    supervise_first: Annotated[
        bool, typer.Option("--supervise-first", help="Let the first token of a segment carry loss.")
    ] = False,
    normalize: Annotated[
        Normalize, typer.Option(help="`mean`: divide all weights by their mean over supervised targets.")
    ] = "none",
    eps: Annotated[float, typer.Option(help="Added to a bucket's share before it is inverted.")] = 1e-6,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count the exposure again from the shards, and compare.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a weighed copy here instead of weighing in place.", rich_help_panel="Run")
    ] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Write EXACT weights into the shards: targets with a long effective context get a fixed extra supervision.

    In place, at the cost of copying the weights; another `weigh` with other parameters replaces them.
    """
    from exact_prep.cli.progress import Display
    from exact_prep.pipeline import WeighOptions
    from exact_prep.pipeline import weigh as run

    options = WeighOptions(
        alpha=alpha,
        gamma=gamma,
        tail_from=tail_from,
        eps=eps,
        max_weight=max_weight,
        supervise_first=supervise_first,
        normalize=normalize,
        recount=recount,
    )
    with Display() as display:
        files = run(directory, options, out=out, workers=workers, overwrite=overwrite, emit=display)
    for file in files:
        typer.echo(
            f"{out or directory}: rows of {file.seq_len:,} tokens, effective context of {file.tail_start:,} or more: "
            f"{file.tail_share:.2%} of supervision before, {file.weighted_tail_share:.2%} after"
        )
