"""`exact-prep report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exact_prep.choices import FigureTheme, FigureWidth, ReportFormat
from exact_prep.cli.arguments import (
    Config,
    FromElsewhere,
    StoredDatasets,
    StoreOptions,
    WeightsTable,
    check_path,
    find_places,
)
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.reports.facts import Facts, MeasuredFacts

HELP = """Show where supervision goes: targets and weights by effective context, before and after weighing.

Several datasets are shown one after the other, and side by side.

Examples:
    exact-prep report packed
    exact-prep report packed --weights alpha-0.3.json
    exact-prep report packed --json > facts.json
    exact-prep report books code --by-source --format csv
    exact-prep report packed --figure supervision.pdf
    exact-prep report books code --html report.html
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def report(
    directories: StoredDatasets,
    kind: Annotated[
        ReportFormat,
        typer.Option("--format", help="`md`, `csv` and `latex`: one table of the buckets, or of the sources."),
    ] = "terminal",
    as_json: Annotated[bool, typer.Option("--json", help="All facts: a list, one entry per dataset.")] = False,
    by_source: Annotated[bool, typer.Option("--by-source", help="Show the sources, all of them.")] = False,
    compare_to: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The dataset that others are compared with.", show_default="the first"),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            callback=check_path,
            help="Write one page that shows all of it, with sliders and sampled rows; it loads nothing from anywhere.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pdf|svg|png",
            callback=check_path,
            help="Write a paper's figure of the dataset, and its caption to FILE.txt. Needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        FigureWidth, typer.Option(help="Of the figure: one column (3.3 in) or the whole text (6.9 in), at 8 pt.")
    ] = "column",
    theme: Annotated[
        FigureTheme, typer.Option(help="Of the figure: black on white, or light on whatever lies below.")
    ] = "light",
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    store_option: StoreOptions = None,
    config: Config = None,
) -> None:
    """Run `exact-prep report`; see HELP."""
    from exact_prep.dataset import find_datasets
    from exact_prep.records import canonical_json
    from exact_prep.reports import load_facts
    from exact_prep.reports.tables import check_reference, format_facts

    written = {"--html": html, "--figure": figure}
    given = [name for name, path in written.items() if path is not None]
    given += ["--json"] * as_json + ["--format"] * (kind != "terminal" and not as_json)
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; write one after the other")
    homes = [home for place in find_places(directories, store_option) for home in find_datasets(place)]
    facts = [load_facts(home, weights, weights_from_elsewhere=weights_from_elsewhere) for home in homes]
    reference = check_reference(compare_to, facts)
    if html is not None:
        local = [home for home in homes if isinstance(home, Path)]
        if len(local) < len(homes):
            raise UsageError("--html shows text of rows, which takes a dataset on this machine; copy it first")
        write_page(local, reference, html, weights, weights_from_elsewhere=weights_from_elsewhere)
        return
    if figure is not None:
        write_figure(facts, figure, width, theme)
        return
    if as_json or kind == "json":
        typer.echo(canonical_json([fact.model_dump(mode="json") for fact in facts]).decode(), nl=False)
        return
    if kind != "terminal":
        typer.echo(format_facts(facts, kind, by_source=by_source), nl=False)
        return
    from rich.console import Console

    from exact_prep.reports.terminal import compare, render

    console = Console()
    for number, fact in enumerate(facts):
        if number:
            console.print()
        console.print(render(fact, by_source=by_source, width=console.width))
    if len(facts) > 1:
        console.print()
        console.print(compare(facts, reference, width=console.width))


def write_page(
    homes: Sequence[Path], reference: int, path: Path, weights: Path | None, *, weights_from_elsewhere: bool
) -> None:
    """Write the page of some datasets."""
    from exact_prep.reports.page import render_page
    from exact_prep.reports.page_data import load_page_datasets
    from exact_prep.stores.local import write_atomically

    datasets = load_page_datasets(homes, weights, weights_from_elsewhere=weights_from_elsewhere)
    write_atomically(path, render_page(datasets, reference).encode())
    typer.echo(str(path))


def write_figure(facts: Sequence[Facts | MeasuredFacts], path: Path, width: FigureWidth, theme: FigureTheme) -> None:
    """Write a figure and its caption; raises UsageError for several datasets, or a suffix that no format has."""
    from exact_prep.reports.figure import caption, draw_bytes
    from exact_prep.stores.local import write_atomically

    if len(facts) > 1:
        names = ", ".join(one.directory for one in facts)
        raise UsageError(f"--figure draws one dataset, and here are {len(facts)}; name one of them: {names}")
    drawn, said = draw_bytes(facts[0], path.suffix[1:].lower(), width, theme), caption(facts[0])
    write_atomically(path, drawn)
    write_atomically(path.with_suffix(".txt"), said.encode())
    typer.echo(f"{path}, and its caption in {path.with_suffix('.txt')}:\n{said}", nl=False)
