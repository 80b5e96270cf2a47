"""`exact-prep export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exact_prep.choices import Align, ExportFormat
from exact_prep.cli.arguments import Config, FromElsewhere, NoLock, Overwrite, Quiet, Verbose, WeightsTable, check_path

HELP = """Write a weighed dataset as another trainer's files; export.json says what they hold.

Trainers that import Python need no export: `exact_prep.open(DIR)` reads the dataset as it is.

Examples:
    exact-prep export packed --to megatron -o megatron
    exact-prep export packed --to mds --align prediction -o streaming
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""

UNWEIGHTED = ("olmo", "datatrove")
"""Formats of ids alone."""


def export(
    directory: Annotated[
        Path, typer.Argument(callback=check_path, metavar="DIR", help="A weighed dataset, packed or measured.")
    ],
    to: Annotated[
        ExportFormat,
        typer.Option(
            metavar="FORMAT",
            help="megatron: .bin, .idx, weights beside them; mds: MosaicML streaming; parquet; levanter: its prebuilt "
            "format; numpy: .npy to be mapped; olmo: bare ids by row; datatrove: documents end to end; lut: weight by "
            "position; row-weights: how often to draw each row; sidecar: a weight beside each token that `measure` "
            "read.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", callback=check_path, help="The new directory.")],
    align: Annotated[
        Align | None,
        typer.Option(
            help="Which token carries a target's weight: itself, or the one before, where it is predicted.",
            show_default="as the format's readers expect",
        ),
    ] = None,
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    overwrite: Overwrite = False,
    no_lock: NoLock = False,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep export`; see HELP."""
    from exact_prep.dataset import is_split_in_two
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:
        from exact_prep.pipeline.export import export as run

        made = run(
            directory,
            to,
            out,
            align=align,
            weights=weights,
            weights_from_elsewhere=weights_from_elsewhere,
            overwrite=overwrite,
            lock=not no_lock,
            emit=display,
        )
    said = "no weights" if to in UNWEIGHTED else f"weights aligned with the {made['align']}"
    typer.echo(f"{out}: {made['rows']:,} rows of {made['seq_len']:,} tokens for {to}, {said}")
    if is_split_in_two(directory):
        typer.echo(f"{out}: these are training rows alone; export {directory / 'validation'} for the others")
    if shares := made.get("tail_share_of_supervision"):
        typer.echo(
            f"{out}: the tail gets {shares['uniform']:.2%} of supervision when rows are sampled uniformly, "
            f"{shares['row_weights']:.2%} with these row weights, {shares['token_weights']:.2%} with token weights"
        )
