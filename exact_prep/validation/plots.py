"""Plots an experiment, readable in grey.

`plot` draws small multiples: a column per arm, a row per kind of measure, and the sweep of the learning rate.
`plot_primary` draws the primary measure of all arms in one column of a paper. Both say how many seeds, which model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exact_prep.errors import UsageError
from exact_prep.validation.differences import lower_is_better, parse_distance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exact_prep.validation.results import Difference, Level, Results

KINDS = {
    "context": "context gain",
    "loss": "held-out loss",
    "gain": "worth of evidence",
    "recall": "recall",
    "match": "text suite",
}
COLUMN_INCHES = 3.3
"""One column of a two-column paper."""


def describe(results: Results) -> str:
    """The caption: model, tokens, seeds, interval."""
    steps = next((run for run in results.runs if run.arm == "uniform"), None)
    return (
        f"{results.parameters / 1e6:.1f}M parameters, base {results.base_tokens / 1e6:.1f}M tokens, "
        f"arms {(steps.tokens if steps else 0) / 1e6:.2f}M; n = {len(results.seeds)} seeds on {results.bases} base(s), "
        f"bars: 95 % over seeds and held-out items; tail from {results.tail_from}"
    )


def import_pyplot() -> Any:
    """Matplotlib without a screen; raises UsageError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'exact-prep[validate]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot(results: Results, path: Path) -> None:
    """Write the small multiples to `path`; its suffix sets the format. Raises UsageError without matplotlib."""
    pyplot = import_pyplot()
    found = [d for d in results.differences if d.against == "uniform"]
    kinds = [kind for kind in KINDS if any(d.measure.startswith(f"{kind} ") for d in found)] or ["loss"]
    arms = [arm for arm in results.arms if arm != "uniform"] or ["uniform"]
    columns = len(arms) + bool(results.sweep)
    figure, axes = pyplot.subplots(
        len(kinds), columns, figsize=(1.7 * columns + 0.8, 1.9 * len(kinds) + 0.7), sharey="row", squeeze=False
    )
    for row, kind in zip(axes, kinds, strict=True):
        better = "lower" if lower_is_better(kind) else "higher"
        row[0].set_ylabel(f"{KINDS[kind]}\nminus uniform ({better} is better)", fontsize=8)
        for axis, arm in zip(row, arms, strict=False):
            draw_panel(axis, [d for d in found if d.arm == arm and d.measure.startswith(f"{kind} ")], results)
    for axis, arm in zip(axes[0], arms, strict=False):
        axis.set_title(arm, fontsize=10)
    if results.sweep:
        for axis in axes[:, -1]:
            axis.remove()
        draw_sweep(figure.add_subplot(len(kinds), columns, columns), results)
    figure.suptitle(describe(results), fontsize=8, x=0.01, y=0.01, ha="left", va="bottom")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_levels(results: Results, path: Path) -> None:
    """Write what a model that was only measured reaches, by context, to `path`; its suffix sets the format.

    Raises UsageError without matplotlib.
    """
    pyplot = import_pyplot()
    kinds = [kind for kind in KINDS if any(level.measure.startswith(f"{kind} ") for level in results.levels)]
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 2.8), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        own = [level for level in results.levels if level.measure.startswith(f"{kind} ")]
        draw_points(axis, own, results)
        axis.set_ylabel(KINDS[kind], fontsize=8)
    caption = (
        f"{results.parameters / 1e6:.1f}M parameters, {results.held_out} held-out rows of {results.seq_len:,} tokens; "
        f"bars: 95 % over rows; tail from {results.tail_from:,}"
    )
    figure.suptitle(caption, fontsize=8, x=0.01, y=0.01, ha="left", va="bottom")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_panel(axis: Any, found: list[Difference], results: Results) -> None:
    """One arm's differences to uniform by context or distance."""
    axis.axhline(0, color="0.4", linewidth=0.8)
    draw_points(axis, found, results)


def draw_points(axis: Any, found: Sequence[Difference | Level], results: Results) -> None:
    """Measures with their intervals by context or distance; the tail is shaded."""
    known = [(place, d) for d in found if (place := parse_distance(d.measure)) is not None]
    points = sorted(known, key=lambda point: point[0])
    axis.set_xscale("log", base=2)
    if points:
        x = [max(place, 4) for place, _ in points]
        errors = [(d.high - d.low) / 2 for _, d in points]
        axis.errorbar(x, [d.mean for _, d in points], errors, color="black", marker="o", markersize=3, linewidth=1)
        axis.axvspan(results.tail_from, max(*x, results.tail_from + 1), color="0.92", zorder=-1)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("tokens", fontsize=7)


def draw_sweep(axis: Any, results: Results) -> None:
    """Uniform's held-out loss by learning rate; the chosen one is marked."""
    points = [(point.lr, point.loss) for point in results.sweep if point.loss is not None]
    axis.plot([lr for lr, _ in points], [loss for _, loss in points], color="black", marker="o", markersize=3)
    axis.axvline(results.lr, color="0.6", linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=10)
    axis.set_xticks([lr for lr, _ in points], [f"{lr:g}" for lr, _ in points], rotation=90)
    axis.set_xticks([], minor=True)
    axis.set_title("uniform: loss by lr", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def plot_primary(results: Results, path: Path) -> bool:
    """Write the primary measure of all arms, one column wide, to `path`; false if it was not measured."""
    found = [d for d in results.differences if d.against == "uniform" and d.measure == results.primary]
    if not found:
        return False
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(COLUMN_INCHES, 0.24 * len(found) + 1.0))
    places = range(len(found), 0, -1)
    errors = [(d.high - d.low) / 2 for d in found]
    axis.errorbar([d.mean for d in found], list(places), xerr=errors, fmt="o", color="black", markersize=3, linewidth=1)
    axis.set_yticks(list(places), [d.arm for d in found])
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(f"{KINDS['context']} at {results.tail_from} tokens and more,\nnats above uniform", fontsize=8)
    words = describe(results).split("; ")
    figure.text(0.01, 0.01, "\n".join(words), fontsize=4.5)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path)
    pyplot.close(figure)
    return True
