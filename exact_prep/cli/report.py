"""`exact-prep report`."""

from __future__ import annotations

from typing import Annotated

import typer

from exact_prep.cli.arguments import Dataset


def report(
    directory: Dataset,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same facts as JSON: a list, one entry per dataset.")
    ] = False,
) -> None:
    """Show where supervision goes: targets and weights by effective context, before and after weighing."""
    from exact_prep.dataset import datasets_in
    from exact_prep.records import canonical_json
    from exact_prep.reports import gather

    facts = [gather(home) for home in datasets_in(directory)]
    if as_json:
        typer.echo(canonical_json([fact.model_dump(mode="json") for fact in facts]).decode(), nl=False)
        return
    from rich.console import Console

    from exact_prep.reports.terminal import render

    console = Console()
    for number, fact in enumerate(facts):
        if number:
            console.print()
        console.print(render(fact))
