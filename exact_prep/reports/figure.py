"""A paper's figure of one dataset: where supervision goes by effective context, before and after weighting.

It is drawn at its final size, so that its text is 8 pt on the page: include it without scaling. Colours are Okabe and
Ito's, and hatches tell the bars apart in grey. The same facts give the same bytes.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from exact_prep.choices import CUTS
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from exact_prep.choices import FigureTheme, FigureWidth
    from exact_prep.reports.facts import Facts, MeasuredFacts

WIDTHS: dict[FigureWidth, float] = {"column": 3.3, "text": 6.9}
"""Inches, by `--width`."""
HEIGHT = 2.3
FORMATS = ("pdf", "svg", "png")
BEFORE, AFTER = "#56B4E9", "#D55E00"
INKS: dict[FigureTheme, tuple[str, str]] = {"light": ("#000000", "#EEEEEE"), "dark": ("#E6E6E6", "#333A44")}
"""Ink (text, lines, weights) and shade of the tail. Paper is white when light, whatever lies below when dark."""
BAR = 0.4
"""Width of a bar; a bucket has one or two."""
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # outlines that a publisher's tools can embed
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "exact-prep",  # else ids of elements are random
}
UNDATED: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def draw_bytes(facts: Facts | MeasuredFacts, kind: str, width: FigureWidth, theme: FigureTheme = "light") -> bytes:
    """The figure as a file of `kind`: pdf, svg or png. Raises UsageError for another kind, or without matplotlib."""
    if kind not in FORMATS:
        raise UsageError(f"a figure cannot be written as {kind or 'a file without suffix'}; name it .pdf, .svg or .png")
    try:
        import matplotlib
    except ImportError:
        raise UsageError("--figure needs matplotlib: pip install 'exact-prep[plot]'") from None
    ink, _ = INKS[theme]
    inked = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    with matplotlib.rc_context(STYLE | inked):
        out = BytesIO()
        drawn = draw(facts, width, theme)
        drawn.savefig(out, format=kind, dpi=300, metadata=UNDATED[kind], transparent=theme == "dark")
    return out.getvalue()


def draw(facts: Facts | MeasuredFacts, width: FigureWidth, theme: FigureTheme = "light") -> Figure:
    """The figure: a bar per bucket before weighting and one after it; the weight as a line, on an axis of its own."""
    from matplotlib.figure import Figure

    ink, shade = INKS[theme]
    figure = Figure(figsize=(WIDTHS[width], HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    weighed = facts.weights is not None
    tail = [number for number, bucket in enumerate(facts.buckets) if bucket.in_tail]
    if tail:
        axes.axvspan(tail[0] - 0.5, len(facts.buckets) - 0.5, color=shade, linewidth=0, zorder=0, label="tail")
    left = -BAR / 2 if weighed else 0.0
    draw_bars(axes, [bucket.share for bucket in facts.buckets], left, BEFORE, "", "before" if weighed else "share")
    if weighed:
        draw_bars(axes, [bucket.weighted_share or 0.0 for bucket in facts.buckets], BAR / 2, AFTER, "////", "after")
        draw_weights(axes, [bucket.weight or 0.0 for bucket in facts.buckets], ink)
    axes.set_xlim(-0.5, len(facts.buckets) - 0.5)
    axes.set_xlabel("effective context of the target (tokens)")
    axes.set_ylabel("share of supervision (%)")
    every = 2 if width == "column" and len(facts.buckets) > 7 else 1
    axes.set_xticks(range(0, len(facts.buckets), every))
    axes.set_xticklabels([short_context(bucket.low) for bucket in facts.buckets][::every])
    axes.spines["top"].set_visible(False)
    handles = [handle for one in figure.axes for handle in one.get_legend_handles_labels()[0]]
    names = [name for one in figure.axes for name in one.get_legend_handles_labels()[1]]
    figure.legend(
        handles, names, loc="outside upper center", ncols=4, frameon=False, handlelength=1.5, columnspacing=1.0
    )
    return figure


def draw_bars(axes: Axes, shares: list[float], shift: float, colour: str, hatch: str, label: str) -> None:
    """A bar per bucket, in percent."""
    axes.bar(
        [number + shift for number in range(len(shares))],
        [100 * share for share in shares],
        width=BAR,
        color=colour,
        edgecolor="black",
        linewidth=0.4,
        hatch=hatch,
        label=label,
        zorder=2,
    )


def draw_weights(axes: Axes, weights: list[float], ink: str) -> None:
    """The weight of each bucket: a step from edge to edge, on an axis at the right."""
    beside = axes.twinx()
    edges = [number - 0.5 for number in range(len(weights) + 1)]
    beside.step(edges, [*weights, weights[-1]], where="post", color=ink, linestyle="--", label="weight", zorder=3)
    beside.set_ylim(0, 1.3 * max(weights))
    beside.set_ylabel("weight of a target")
    beside.spines["top"].set_visible(False)


def short_context(low: int) -> str:
    """The lower edge of a bucket, in K where it is a multiple of 1,024."""
    return f"{low // 1024}K" if low and low % 1024 == 0 else str(low)


def caption(facts: Facts | MeasuredFacts) -> str:
    """What the figure shows, in words and numbers, ready to stand below it."""
    from exact_prep.reports.facts import Facts

    if isinstance(facts, Facts):
        how = f"{facts.packing} packing, documents isolated"
    else:
        how = f"{CUTS[facts.options.rows]}, documents {'isolated' if facts.options.isolated else 'not kept apart'}"
    shape = (
        f"{facts.supervised_targets:,} supervised targets in {facts.rows:,} rows of {facts.seq_len:,} tokens ({how})"
    )
    weights = facts.weights
    if weights is None:
        tail = sum(bucket.share for bucket in facts.buckets if bucket.in_tail)
        return (
            f"Supervised targets by effective context: {shape}. Every target weighs 1. The tail (shaded) has "
            f"{tail:.2%} of supervision.\n"
        )
    options = weights.options
    return (
        f"Share of supervision by effective context, before and after EXACT weighting (alpha {options.alpha:g}, gamma "
        f"{options.gamma:g}): {shape}. The tail (shaded, {weights.tail_start:,} tokens or more) has "
        f"{weights.tail_share:.2%} before and {weights.weighted_tail_share:.2%} after. Dashed: weight of a target.\n"
    )
