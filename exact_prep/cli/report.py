"""`exact-prep report`."""

from __future__ import annotations

from typing import Annotated

import typer

from exact_prep.cli.arguments import Config, Dataset, FromElsewhere, WeightsTable

HELP = """Show where supervision goes: targets and weights by effective context, before and after weighing.

Examples:
    exact-prep report packed
    exact-prep report packed --weights alpha-0.3.json
    exact-prep report packed --json > facts.json
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def report(
    directory: Dataset,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same facts as JSON: a list, one entry per dataset.")
    ] = False,
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    config: Config = None,
) -> None:
    """Run `exact-prep report`; see HELP."""
    from exact_prep.dataset import find_datasets
    from exact_prep.records import canonical_json
    from exact_prep.reports import load_facts

    facts = [
        load_facts(home, weights, weights_from_elsewhere=weights_from_elsewhere) for home in find_datasets(directory)
    ]
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
