"""`exact-prep verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from exact_prep.cli.arguments import (
    Config,
    Quiet,
    StoredDatasets,
    StoreOptions,
    Verbose,
    WeightsTable,
    Workers,
    find_places,
)

HELP = """Check everything that can be checked from the bytes; a line per finding, exit code 1 if there is one.

Datasets that were weighed as one mixture must hold the same table. With --weights that table is checked too: that it
was made for these datasets, and follows from their exposure.

Examples:
    exact-prep verify packed
    exact-prep verify packed --quick
    exact-prep verify books code web
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def verify(
    directories: StoredDatasets,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and structure alone; contents are not read.")] = False,
    weights: WeightsTable = None,
    workers: Workers = None,
    store_option: StoreOptions = None,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep verify`; see HELP."""
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:
        from exact_prep.pipeline.verify import verify as run

        places = find_places(directories, store_option)
        findings = run(places, quick=quick, workers=workers, weights=weights, emit=display)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    names = ", ".join(directories)
    typer.echo(f"{names}: {'sizes and structure are correct' if quick else 'everything is correct'}")
