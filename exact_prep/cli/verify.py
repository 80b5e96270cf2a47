"""`exact-prep verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from exact_prep.cli.arguments import Dataset, WeightsTable, Workers

HELP = """Check everything that can be checked from the bytes; a line per finding, exit code 1 if there is one.

With --weights the table is checked too: that it was made for this dataset, and follows from its exposure.
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def verify(
    directory: Dataset,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and structure alone; contents are not read.")] = False,
    weights: WeightsTable = None,
    workers: Workers = None,
) -> None:
    """Run `exact-prep verify`; see HELP."""
    from exact_prep.cli.progress import Display
    from exact_prep.pipeline import verify as run

    with Display() as display:
        findings = run(directory, quick=quick, workers=workers, weights=weights, emit=display)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    typer.echo(f"{directory}: {'sizes and structure are correct' if quick else 'everything is correct'}")
