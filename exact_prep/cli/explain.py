"""`exact-prep explain`."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated, Optional

import typer

from exact_prep.cli.arguments import Config

HELP = """Explain a word of the reports, such as effective context, bucket, tail, exposure or tree hash.

Without a word it lists them all.

Examples:
    exact-prep explain
    exact-prep explain effective context
    exact-prep explain tau
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""

WIDTH = 80
"""Columns that a line takes, at most."""


def explain(
    term: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer reads it at run time
        typer.Argument(metavar="[TERM]", help="The word or words to explain.", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Run `exact-prep explain`; see HELP."""
    from exact_prep.reports.glossary import TERMS, find_term

    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    if not term:
        for one in TERMS:
            first = one.text.split(". ")[0].rstrip(".")
            lines = textwrap.wrap(f"{first}.", width - 20, break_on_hyphens=False, break_long_words=False)
            typer.echo("\n".join(f"{one.name if not number else '':18}  {line}" for number, line in enumerate(lines)))
        return
    found = find_term(" ".join(term))
    also = f" (also: {', '.join(found.also)})" if found.also else ""
    typer.echo(f"{found.name}{also}\n")
    typer.echo(textwrap.fill(found.text, width, break_on_hyphens=False, break_long_words=False))
