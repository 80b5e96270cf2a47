"""`exact-prep show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exact_prep.cli.arguments import Config, Dataset, FromElsewhere, WeightsTable

if TYPE_CHECKING:
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.reports.row import RowReader
    from exact_prep.reports.row_search import Chosen

HELP = """Show one row: its segments, their text, contexts and weights, and where each came from.

A line begins at each bucket edge of effective context. Without a choice, the row is that of --random 0.

Examples:
    exact-prep show packed
    exact-prep show packed --row 7
    exact-prep show packed --find "def main" --whole | less -R
    exact-prep show packed --doc 0:12 --html row.html
    exact-prep show packed --random 3 --json > row.json
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def show(
    directory: Dataset,
    row: Annotated[int | None, typer.Option(metavar="N", help="This row, counted from 0.", show_default=False)] = None,
    doc: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The first row of this document: its own id (pack --id-field), or TASK:RECORD as shown.",
            show_default=False,
        ),
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The first row that holds this text; says how many do.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--random", metavar="SEED", min=0, help="A row by chance, one per seed.", show_default="0"),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="All text; else long text is cut in its middle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All facts of the row, whole.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else.", show_default=False),
    ] = None,
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    config: Config = None,
) -> None:
    """Run `exact-prep show`; see HELP."""
    from exact_prep.errors import UsageError
    from exact_prep.reports.hostile import escape_controls, escape_json
    from exact_prep.reports.row import RowReader
    from exact_prep.stores import check_local

    given = {"--row": row, "--doc": doc, "--find": find, "--random": seed}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} each choose a row; keep one of them")
    if as_json and html is not None:
        raise UsageError("--json and --html exclude each other; leave one out")
    if html is not None:
        check_local(html)
    reader = RowReader(open_rows(directory, weights, elsewhere=weights_from_elsewhere))
    chosen = choose(reader, row, doc, find, seed or 0)
    facts = reader.load(chosen.row)
    if as_json or html is not None:
        if chosen.said:
            typer.echo(f"exact-prep: row {facts.row:,}: {escape_controls(chosen.said)}", err=True)
        if html is None:
            typer.echo(escape_json(facts.model_dump_json(indent=2)))
            return
        from exact_prep.reports.row_html import render_page
        from exact_prep.stores.local import write_atomically

        write_atomically(html, render_page(facts, said=chosen.said, needle=find or "").encode())
        typer.echo(html)
        return
    from rich.console import Console

    from exact_prep.reports.row_terminal import render_row

    console = Console(highlight=False)
    shown = render_row(facts, said=chosen.said, needle=find or "", whole=whole, width=console.width)
    console.print(shown, soft_wrap=False)


def choose(reader: RowReader, row: int | None, doc: str | None, find: str | None, seed: int) -> Chosen:
    """The row that the options name."""
    from exact_prep.reports.row_search import Chosen, choose_document, choose_random, choose_text

    if row is not None:
        return Chosen(row, "")
    if doc is not None:
        return choose_document(reader, doc)
    if find is not None:
        return choose_text(reader, find)
    return choose_random(reader, seed)


def open_rows(directory: Path, weights: Path | None, *, elsewhere: bool) -> PackedDataset:
    """The dataset with its own weights, those of a table, or plain ones if it is not weighed; raises DatasetError."""
    from exact_prep.dataset import is_split_in_two, open_dataset
    from exact_prep.reader.rows import open as open_packed

    home = directory / "train" if is_split_in_two(directory) else directory
    if weights is not None:
        return open_packed(home, weights=weights, weights_from_elsewhere=elsewhere)
    return open_packed(home, plain=open_dataset(home).weights().kind == "plain")
