"""Outcomes of `simulate` as a table: for a terminal, and as Markdown, CSV and LaTeX. Pure functions of the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from exact_prep.reports.tables import FORMATS
from exact_prep.reports.terminal import Columns
from exact_prep.weighing.weights import default_tail_from

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exact_prep.reports.simulate import Outcome, Simulation

SHARES_WIDTH = 66
"""Columns that everything but the setting takes, if differences stand beside the shares."""

HEADER = (
    "dataset",
    "kind",
    "seq_len",
    "packing",
    "window",
    "tail from",
    "alpha",
    "gamma",
    "rows",
    "padding",
    "documents cut",
    "share in the tail",
    "share after",
    "difference",
    "extra",
    "extra float16",
    "largest weight",
    "drawn rows",
    "repeats",
)


def format_simulation(simulation: Simulation, kind: str) -> str:
    """The outcomes as a table of `kind`: shares as fractions, differences to the share after of the present setting."""
    present = simulation.outcomes[0]
    return FORMATS[kind](HEADER, [list_cells(simulation.directory, one, present) for one in simulation.outcomes])


def list_cells(directory: str, one: Outcome, present: Outcome) -> tuple[str, ...]:
    """One outcome as the cells of a row."""
    drawing = one.drawing
    return (
        directory,
        one.kind,
        str(one.seq_len),
        one.packing,
        "" if one.window is None else str(one.window),
        str(one.tail_from),
        f"{one.alpha:.6g}",
        f"{one.gamma:.6g}",
        str(one.rows),
        f"{one.padding_share:.6f}",
        str(one.documents_cut),
        f"{one.tail_share:.6f}",
        f"{one.weighted_tail_share:.6f}",
        f"{one.weighted_tail_share - present.weighted_tail_share:+.6f}",
        f"{one.extra:.6f}",
        f"{one.extra_float16:.6f}",
        f"{one.largest_weight:.6f}",
        "" if drawing is None else f"{drawing.distinct_share:.6f}",
        "" if drawing is None else f"{drawing.repeats:.6f}",
    )


def render_simulation(simulation: Simulation, *, width: int) -> RenderableType:
    """A line per outcome, with differences to the present setting in points of percent.

    `width` is that of the terminal, in columns.
    """
    columns = Columns(width)
    outcomes = simulation.outcomes
    present, *others = outcomes
    settings = [describe_setting(one, present, others) for one in outcomes]
    stacked = width - SHARES_WIDTH < max(map(len, settings))
    table = columns.table()
    table.add_column("setting", overflow="fold")
    for name in ("padding", "tail", "after", "weights to"):
        table.add_column(name, justify="right", no_wrap=True)
    for setting, one in zip(settings, outcomes, strict=True):
        cells = (
            show_share(getattr(one, name), getattr(present, name), stacked=stacked, first=one is present)
            for name in ("padding_share", "tail_share", "weighted_tail_share")
        )
        table.add_row(Text(setting), *cells, f"{one.largest_weight:.4f}")
    return Group(
        Text.assemble((simulation.directory, "bold"), f"  {describe_layout(present)}"),
        Text(),
        table,
        *describe_drawings(others),
        Text(),
        Text(describe_columns(others), "dim"),
    )


def show_share(value: float, present: float, *, stacked: bool, first: bool) -> str:
    """A share in percent, and its difference to the present setting's, on a line of its own if `stacked`."""
    if first:
        return f"{value:.2%}"
    difference = f"{100 * (value - present):+.2f}"
    return f"{value:.2%}\n{difference}" if stacked else f"{value:.2%} ({difference})"


def describe_layout(one: Outcome) -> str:
    """The rows of an outcome."""
    return f"{one.rows:,} rows of {one.seq_len:,} tokens, {one.packing}"


def describe_setting(one: Outcome, present: Outcome, others: list[Outcome]) -> str:
    """What sets an outcome apart from the present setting, and from the other outcomes."""
    if one is present:
        return "present" if one.alpha else "present (not weighed)"
    names = {
        "seq_len": f"{one.seq_len:,} tokens",
        "packing": one.packing,
        "window": "no window" if one.window is None else f"window {one.window:,}",
        "tail_from": f"tail from {one.tail_from:,}",
        "alpha": f"alpha {one.alpha:.4g}",
        "gamma": f"gamma {one.gamma:.4g}",
    }
    told = {name for name in names if len({getattr(other, name) for other in others}) > 1}
    told |= {name for name in names if getattr(one, name) != getattr(present, name)}
    if one.tail_from == default_tail_from(one.seq_len, one.window):
        told.discard("tail_from")
    shown = [said for name, said in names.items() if name in told]
    estimated = "~ " if one.kind == "estimated" else ""
    return estimated + (", ".join(shown) or "as present")


def describe_drawings(others: list[Outcome]) -> list[RenderableType]:
    """What drawing rows would take, for each share of the tail that was asked for."""
    lines: list[RenderableType] = [Text()] if any(one.wanted_tail_share is not None for one in others) else []
    for one in others:
        if one.wanted_tail_share is None:
            continue
        setting = f"tail share {one.wanted_tail_share:.2%}, {one.seq_len:,} tokens, {one.packing}"
        if one.wanted_tail_share <= one.tail_share:
            lines.append(Text(f"{setting}: it has {one.tail_share:.2%} of supervision before weighting"))
            continue
        if one.drawing is None:
            lines.append(Text(f"{setting}: alpha {one.alpha:.4g}; no drawing of whole rows reaches it"))
            continue
        drawing = one.drawing
        lines.append(
            Text(
                f"{setting}: alpha {one.alpha:.4g}, or drawing long rows: {drawing.distinct_share:.1%} of the rows are "
                f"read, {drawing.repeats:.2f} times on average"
            )
        )
    return lines


def describe_columns(others: list[Outcome]) -> str:
    """What the columns mean, and what is estimated."""
    text = "tail, after: its share of supervision before and after weighting, with differences to the present setting"
    if any(one.kind == "estimated" for one in others):
        text += "; ~ estimated from the lengths of the documents, in random order"
    return text
