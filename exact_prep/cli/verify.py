"""`exact-prep verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from exact_prep.cli.arguments import Dataset, Workers


def verify(
    directory: Dataset,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and structure alone; contents are not read.")] = False,
    workers: Workers = None,
) -> None:
    """Check everything that can be checked from the bytes; a line per finding, exit code 1 if there is one."""
    from exact_prep.cli.progress import Display
    from exact_prep.pipeline import verify as run

    with Display() as display:
        findings = run(directory, quick=quick, workers=workers, emit=display)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    typer.echo(f"{directory}: {'sizes and structure are' if quick else 'everything is'} as it should be")
