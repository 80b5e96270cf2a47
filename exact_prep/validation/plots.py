"""Plots an experiment: loss by effective context, gain and recall by distance of the evidence; one line per arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exact_prep.errors import UsageError
from exact_prep.validation.differences import parse_distance

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.validation.results import Results

PANELS = (
    ("loss", "held-out loss by effective context", "difference to uniform, nats (lower is better)"),
    ("gain", "what evidence is worth, by its distance", "difference to uniform, nats (higher is better)"),
    ("recall", "recall by distance of the evidence", "difference to uniform (higher is better)"),
)
COLOURS = {"exact": "#d9480f", "flat": "#e8a33d", "mirror": "#1c7ed6", "permuted": "#7048e8", "null": "#adb5bd"}
CONTROLS = {"lr": "#2b8a3e", "steps": "#66a80f"}


def plot(results: Results, path: Path) -> None:
    """Write the plots to `path`; its suffix sets the format (.png, .svg). Raises UsageError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'exact-prep[validate]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = {d.measure.partition(" ")[0] for d in results.differences}
    panels = [panel for panel in PANELS if panel[0] in kinds]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.4), squeeze=False)
    for axis, (kind, title, label) in zip(axes[0], panels, strict=True):
        draw_panel(axis, results, kind)
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_ylabel(label, fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_panel(axis: Any, results: Results, kind: str) -> None:
    """Draw one kind of measure: a line per arm with its 95 % interval; the tail is shaded."""
    farthest = 0
    for arm in results.arms:
        points = (
            sorted(
                (place, d)
                for d in results.differences
                if d.arm == arm
                and d.against == "uniform"
                and d.measure.startswith(f"{kind} ")
                and (place := parse_distance(d.measure)) is not None
            )
            if arm != "uniform"
            else []
        )
        if not points:
            continue
        name, _, alpha = arm.partition("@")
        colour = {**COLOURS, **CONTROLS}[name]
        x = [max(place, 4) for place, _ in points]
        farthest = max(farthest, *x)
        style = "--" if alpha else ":" if name in CONTROLS else "-"
        axis.plot(x, [d.mean for _, d in points], style, color=colour, marker="o", markersize=3, label=arm)
        axis.fill_between(x, [d.low for _, d in points], [d.high for _, d in points], color=colour, alpha=0.12)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.axvspan(results.tail_from, max(farthest, results.tail_from), color="#f1f3f5", zorder=-1)
    axis.axvline(results.seq_len, color="#868e96", linewidth=0.8, linestyle="--")
    axis.set_xlabel("tokens (shaded: the tail; dashed: trained length)", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
