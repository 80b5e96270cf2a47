"""Paired differences between arms over seeds, and how to read them. The rule was set before any run (`__init__`)."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Literal

from exact_prep.validation.results import Difference, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exact_prep.validation.results import Results, Run

GUARD = "mixture short"
"""The measure that shows the price for short contexts: loss of targets below the tail, on rows as in training."""


def compare_arms(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Every arm minus `uniform`, and every EXACT arm minus `lr`, for every measure, paired by seed."""
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, {})[run.seed] = run
    found = []
    for arm in by_arm:
        controls = ["uniform"] + (["lr"] if arm.startswith("exact") else [])
        for control in controls:
            if arm == control or control not in by_arm:
                continue
            seeds = sorted(by_arm[arm].keys() & by_arm[control].keys())
            for measure in by_arm[arm][seeds[0]].measures:
                values = [by_arm[arm][s].measures[measure] - by_arm[control][s].measures[measure] for s in seeds]
                found.append(make_difference(arm, control, measure, values))
    return tuple(found)


def make_difference(arm: str, against: str, measure: str, values: Sequence[float]) -> Difference:
    """Mean and 95 % t-interval of the paired differences `values`, and their reading."""
    mean = statistics.fmean(values)
    half = half_width(values) if len(values) > 1 else 0.0
    reading: Literal["better", "worse", "shows nothing", "one seed"] = "shows nothing"
    if len(values) < 2:
        reading = "one seed"
    elif abs(mean) > half:
        reading = "better" if (mean < 0) == lower_is_better(measure) else "worse"
    return Difference(
        arm=arm,
        against=against,
        measure=measure,
        mean=mean,
        low=mean - half,
        high=mean + half,
        seeds=len(values),
        reading=reading,
    )


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def sort_measures(measures: Iterable[str]) -> list[str]:
    """Measures sorted by kind, then by context or distance."""
    return sorted(measures, key=lambda measure: (measure.partition(" ")[0], parse_distance(measure) or 0, measure))


def lower_is_better(measure: str) -> bool:
    """Whether lower values are better: true for losses and what is computed from them, false for other measures."""
    return measure.startswith(("loss", "mixture")) or measure.endswith(("perplexity", "bits_per_byte"))


def parse_distance(measure: str) -> int | None:
    """The effective context or distance of a measure (the lower end of a range); None if it has none."""
    kind, _, where = measure.partition(" ")
    low = where.split("-")[0]
    return int(low) if kind in ("loss", "recall", "gain", "margin") and low.isdigit() else None


def count_readings(results: Results) -> dict[str, dict[str, int]]:
    """Count by arm how many measures in the tail are better than uniform, worse, or show nothing.

    The counts of `null` come from chance and rounding alone: only counts clearly above them mean something.
    """
    counted: dict[str, dict[str, int]] = {}
    for d in results.differences:
        if d.against == "uniform" and in_tail(d.measure, results.tail_from):
            tally = counted.setdefault(d.arm, {"better": 0, "worse": 0, "shows nothing": 0, "one seed": 0})
            tally[d.reading] += 1
    return counted


def in_tail(measure: str, tail_from: int) -> bool:
    """Whether a measure belongs to a context or distance in the tail."""
    place = parse_distance(measure)
    return place is not None and place >= tail_from


def read_differences(found: Sequence[Difference], tail_from: int) -> tuple[Reading, ...]:
    """For each measure in the tail, whether an EXACT arm helps: better than both uniform and lr."""
    better = {(d.arm, d.against, d.measure) for d in found if d.reading == "better"}
    seen = []
    for d in found:
        if d.arm.startswith("exact") and d.against == "uniform" and in_tail(d.measure, tail_from):
            helps = all((d.arm, control, d.measure) in better for control in ("uniform", "lr"))
            seen.append(Reading(arm=d.arm, measure=d.measure, helps=helps))
    return tuple(seen)
