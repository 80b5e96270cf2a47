"""Paired differences between arms over seeds and held-out items, and how to read them.

The rule was set before any run (`__init__`). Intervals hold two kinds of noise, as a bootstrap that draws seeds and
items does (Owen 2007, "The pigeonhole bootstrap"); its variance is computed in closed form, not drawn.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exact_prep.validation.arms import parse_arm
from exact_prep.validation.items import Items
from exact_prep.validation.results import Difference, Level, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exact_prep.validation.results import Results, Run

GUARD = "mixture short"
"""The measure that shows the price for short contexts: loss of targets below the tail, on rows as in training."""
TUNED = "mixture all"
"""The measure that the learning rate is chosen by."""
FLOORS = {"context": 0.0, "gain": 0.0, "recall": 1 / 32, "match": 0.0}
"""What a model that has learnt nothing gets; of `recall` the chance to guess one of 32 values."""
CEILINGS = {"recall": 1.0, "match": 1.0}
LEVEL, POWER = 0.05, 0.8

Word = Literal["better", "worse", "shows nothing", "one seed", "at its floor", "at its ceiling"]


def name_primary(tail_from: int) -> str:
    """The primary measure: context gain at tau, what tokens tau and more back are worth on held-out data."""
    return f"context {tail_from}"


def compare_arms(runs: Sequence[Run]) -> tuple[Difference, ...]:
    """Every arm minus `uniform`, and every EXACT arm minus every other control, for every measure, paired by seed.

    Runs that diverged have no measures, so their seeds are left out.
    """
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        if not run.diverged:
            by_arm.setdefault(run.arm, {})[run.seed] = run
    found = []
    for arm in by_arm:
        exact = parse_arm(arm)[0] == "exact"
        for control in by_arm:
            seeds = sorted(by_arm[arm].keys() & by_arm[control].keys())
            if arm == control or not seeds or not (control == "uniform" or exact):
                continue
            pairs = [(by_arm[arm][seed], by_arm[control][seed]) for seed in seeds]
            found += [
                make_difference(
                    arm, control, name, [subtract(one, other, name) for one, other in pairs], find_limit(by_arm, name)
                )
                for name in pairs[0][0].measures
            ]
    return tuple(found)


def find_limit(by_arm: dict[str, dict[int, Run]], measure: str) -> Word | None:
    """Whether a measure is at its floor or ceiling in every arm: not above chance, or not below 1, by two errors."""
    kind = measure.partition(" ")[0]
    levels = [
        (average(values), standard_error(values))
        for own in by_arm.values()
        if (values := [get_items(run, measure) for run in own.values() if measure in run.measures])
    ]
    if kind in FLOORS and all(mean <= FLOORS[kind] + 2 * error for mean, error in levels):
        return "at its floor"
    if kind in CEILINGS and all(mean >= CEILINGS[kind] - max(2 * error, 0.005) for mean, error in levels):
        return "at its ceiling"
    return None


def get_items(run: Run, measure: str) -> Items:
    """A run's measure by item; one item for a measure of which only the mean is known."""
    if measure not in run.items:
        return Items(np.array([run.measures[measure]]), np.ones(1))
    own = run.items[measure]
    return Items(np.array(own.sums), np.array(own.counts))


def subtract(one: Run, other: Run, measure: str) -> Items:
    """The difference of two runs of a seed by item: both were measured on the same targets."""
    first, second = get_items(one, measure), get_items(other, measure)
    return Items(first.sums - second.sums, first.counts)


def average(values: Sequence[Items]) -> float:
    """Mean over seeds of a measure."""
    return statistics.fmean(own.mean for own in values)


def standard_error(values: Sequence[Items]) -> float:
    """Standard error of the mean over seeds and items, `values` by seed; over items alone for one seed.

    The variance of a bootstrap that draws seeds and items independently, with n / (n - 1) for the few there are. It
    counts what varies between both, the interaction, more than once: intervals are rather too wide than too narrow.
    """
    counts = np.array([own.counts for own in values])
    # What each item adds to the mean beyond its share, [S, I].
    rest = np.array([own.sums for own in values]) - average(values) * counts
    rest = rest / counts.sum(1, keepdims=True) / len(values)
    seeds, items = rest.shape
    both = rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean()
    variance = (both**2).sum()
    if seeds > 1:
        variance += (rest.sum(1) ** 2).sum() * seeds / (seeds - 1)
    if items > 1:
        variance += (rest.sum(0) ** 2).sum() * items / (items - 1)
    return math.sqrt(variance)


def find_levels(runs: Sequence[Run]) -> tuple[Level, ...]:
    """What every arm reaches at every measure, with its interval; runs that diverged are left out."""
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        if not run.diverged:
            by_arm.setdefault(run.arm, []).append(run)
    return tuple(
        make_level(arm, name, [get_items(run, name) for run in own])
        for arm, own in by_arm.items()
        for name in sort_measures(own[0].measures)
    )


def make_level(arm: str, measure: str, values: Sequence[Items]) -> Level:
    """Mean and 95 % interval of `values` by seed; degrees of freedom are of seeds, or of items for one seed."""
    from scipy.stats import t

    known = values[0].counts > 0
    values = [Items(own.sums[known], own.counts[known]) for own in values]
    mean, items = average(values), int(known.sum())
    freedom = (len(values) if len(values) > 1 else items) - 1
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * standard_error(values) if freedom else 0.0
    return Level(
        arm=arm,
        measure=measure,
        mean=mean,
        low=mean - half,
        high=mean + half,
        items=items,
        targets=round(float(values[0].counts.sum())),
        seeds=len(values),
    )


def make_difference(
    arm: str, against: str, measure: str, values: Sequence[Items], limit: Word | None = None
) -> Difference:
    """Mean, 95 % interval, p and power of the paired differences `values` by seed, and their reading.

    `limit` replaces the reading: the measure is at its floor or ceiling. Degrees of freedom are those of the seeds.
    """
    from scipy.stats import t

    mean, half, p, detectable = average(values), 0.0, None, None
    reading: Word = "one seed"
    if len(values) > 1:
        error, freedom = standard_error(values), len(values) - 1
        half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
        p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
        detectable = find_detectable(error, freedom)
        reading = "shows nothing" if abs(mean) <= half else "better"
        if reading == "better" and (mean < 0) != lower_is_better(measure):
            reading = "worse"
    return Difference(
        arm=arm,
        against=against,
        measure=measure,
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        detectable=detectable,
        seeds=len(values),
        reading=limit or reading,
    )


def find_detectable(error: float, freedom: int) -> float:
    """The smallest true mean that a two-sided t-test finds with power 0.8, given its standard error."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.ppf(1 - LEVEL / 2, freedom)
    far: Any = brentq(lambda far: float(nct.sf(critical, freedom, far)) - POWER, 0, 100)
    return error * float(far)


def sort_measures(measures: Iterable[str]) -> list[str]:
    """Measures sorted by kind, the primary's first, then by context or distance; those of all targets last."""
    kinds = ("context", "loss", "mixture")

    def place(measure: str) -> tuple[int, str, float, str]:
        kind = measure.partition(" ")[0]
        first = kinds.index(kind) if kind in kinds else len(kinds)
        distance = parse_distance(measure)
        return first, kind, math.inf if distance is None else distance, measure

    return sorted(measures, key=place)


def lower_is_better(measure: str) -> bool:
    """Whether lower values are better: true for losses and what is computed from them, false for other measures."""
    return measure.startswith(("loss", "mixture")) or measure.endswith(("perplexity", "bits_per_byte"))


def parse_distance(measure: str) -> int | None:
    """The effective context or distance of a measure (the lower end of a range); None if it has none.

    Of a task of the text suite it is the length of the text, in which the answer lies anywhere.
    """
    kind, _, where = measure.partition(" ")
    if kind in ("match", "logp"):
        where = where.rpartition("@")[2]
    low = where.split("-")[0]
    return (
        int(low) if kind in ("context", "loss", "recall", "gain", "margin", "match", "logp") and low.isdigit() else None
    )


def in_tail(measure: str, tail_from: int) -> bool:
    """Whether a measure belongs to a context or distance in the tail."""
    place = parse_distance(measure)
    return place is not None and place >= tail_from


def is_read(measure: str, tail_from: int) -> bool:
    """Whether a measure belongs to a family: those in the tail, and the tasks of lm-evaluation-harness."""
    return in_tail(measure, tail_from) or measure.startswith("harness ")


def count_readings(results: Results) -> dict[str, dict[str, int]]:
    """Count by arm how many measures in the tail are better than uniform, worse, or show nothing; not corrected.

    The counts of `null` come from chance and rounding alone: only counts clearly above them mean something.
    """
    counted: dict[str, dict[str, int]] = {}
    for d in results.differences:
        if d.against == "uniform" and is_read(d.measure, results.tail_from):
            tally = counted.setdefault(d.arm, {})
            tally[d.reading] = tally.get(d.reading, 0) + 1
    return counted


def find_controls(arm: str, arms: Iterable[str]) -> tuple[str, ...]:
    """What an EXACT arm must beat: uniform, and `lr` at the same alpha, or `lr` if there is none."""
    alpha = arm.partition("@")[2]
    rates = [name for name in (f"lr@{alpha}", "lr") if name in arms]
    return ("uniform", *rates[:1])


def read_differences(found: Sequence[Difference], tail_from: int) -> tuple[Reading, ...]:
    """For each measure in a family, whether an EXACT arm helps: better than uniform and lr, corrected by Holm.

    Two families: the primary measure, and all others in the tail. Nothing is read with one seed, without `lr`, or at a
    measure's floor or ceiling.
    """
    by_key = {(d.arm, d.against, d.measure): d for d in found}
    arms = list(dict.fromkeys([d.arm for d in found]))
    primary = name_primary(tail_from)
    drafts = []
    for arm in arms:
        controls = find_controls(arm, arms)
        if parse_arm(arm)[0] != "exact" or len(controls) < 2:
            continue
        for measure in dict.fromkeys(d.measure for d in found if d.arm == arm):
            pairs = [by_key[arm, control, measure] for control in controls if (arm, control, measure) in by_key]
            numbers = [d.p for d in pairs if d.p is not None and not d.reading.startswith("at its")]
            if is_read(measure, tail_from) and len(numbers) == len(controls):
                better = all((d.mean < 0) == lower_is_better(measure) and d.mean != 0 for d in pairs)
                drafts.append((arm, measure, controls, max(numbers) if better else 1.0, better))
    readings = []
    for family in (True, False):
        own = [draft for draft in drafts if (draft[1] == primary) is family]
        corrected = correct_by_holm([draft[3] for draft in own])
        readings += [
            Reading(
                arm=arm,
                measure=measure,
                primary=family,
                against=controls,
                p=p,
                p_holm=holm,
                helps=better and holm < LEVEL,
            )
            for (arm, measure, controls, p, better), holm in zip(own, corrected, strict=True)
        ]
    return tuple(readings)


def correct_by_holm(numbers: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's method, in the same order."""
    order = np.argsort(numbers, kind="stable")
    corrected, worst = np.zeros(len(numbers)), 0.0
    for rank, place in enumerate(order.tolist()):
        worst = max(worst, min((len(numbers) - rank) * numbers[place], 1.0))
        corrected[place] = worst
    return corrected.tolist()
