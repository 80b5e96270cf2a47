"""Paired differences over seeds, and how they are read. The rule was set before any run (see the package)."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Literal

from exact_prep.validation.results import Difference, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exact_prep.validation.results import Results, Run

GUARD = "mixture short"
"""What short contexts pay: loss of the targets below the tail, on rows as they are trained on."""


def differences(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Every arm less `uniform`, and every EXACT arm less `lr`, for every measure, paired by seed."""
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
                found.append(difference(arm, control, measure, values))
    return tuple(found)


def difference(arm: str, against: str, measure: str, values: Sequence[float]) -> Difference:
    """Mean and 95 % t-interval of paired differences, and what they show."""
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


def in_order(measures: Iterable[str]) -> list[str]:
    """Measures as a person reads them: by kind, then by context or distance."""
    return sorted(measures, key=lambda measure: (measure.partition(" ")[0], place_of(measure) or 0, measure))


def lower_is_better(measure: str) -> bool:
    """Losses and what follows from them; of all other measures more is better."""
    return measure.startswith(("loss", "mixture")) or measure.endswith(("perplexity", "bits_per_byte"))


def place_of(measure: str) -> int | None:
    """Effective context or distance that a measure belongs to, its lower end; None if it has none."""
    kind, _, where = measure.partition(" ")
    low = where.split("-")[0]
    return int(low) if kind in ("loss", "recall", "gain", "margin") and low.isdigit() else None


def tallies(results: Results) -> dict[str, dict[str, int]]:
    """By arm: how many measures in the tail are better than uniform, worse, or show nothing.

    `null` shows what chance and rounding alone give: a count is worth what it exceeds that by.
    """
    counted: dict[str, dict[str, int]] = {}
    for d in results.differences:
        if d.against == "uniform" and in_tail(d.measure, results.tail_from):
            tally = counted.setdefault(d.arm, {"better": 0, "worse": 0, "shows nothing": 0, "one seed": 0})
            tally[d.reading] += 1
    return counted


def in_tail(measure: str, tail_from: int) -> bool:
    """Whether a measure belongs to a context or distance in the tail."""
    place = place_of(measure)
    return place is not None and place >= tail_from


def readings(found: Sequence[Difference], tail_from: int) -> tuple[Reading, ...]:
    """Where EXACT is said to help: in the tail, better than uniform and better than lr."""
    better = {(d.arm, d.against, d.measure) for d in found if d.reading == "better"}
    seen = []
    for d in found:
        if d.arm.startswith("exact") and d.against == "uniform" and in_tail(d.measure, tail_from):
            helps = all((d.arm, control, d.measure) in better for control in ("uniform", "lr"))
            seen.append(Reading(arm=d.arm, measure=d.measure, helps=helps))
    return tuple(seen)
