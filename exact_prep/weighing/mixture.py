"""Several datasets read at fixed rates, as one exposure; and weights under which each keeps its share of supervision.

Rates p_i are shares of the tokens that the trainer reads, padding and masked ones included; N_i are the tokens of a
dataset's rows. The mixture's exposure is `c = (sum_i N_i) * sum_i p_i * c^i / N_i`. With p_i in proportion to N_i, the
default, it is the plain sum of counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.choices import MAX_COUNT
from exact_prep.errors import WeightsError
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.weighing.weights import WeightTable


@dataclass(frozen=True, kw_only=True)
class Part:
    """One dataset of a mixture."""

    exposure: Exposure
    tokens: int
    """Tokens of its rows, padding included: rows * seq_len."""
    rate: float | None = None
    """Share of the tokens that the trainer reads, relative to the other parts; None: in proportion to `tokens`."""


def mix(parts: Sequence[Part]) -> Exposure:
    """The exposure of a mixture: integer counts with the default rates, float64 otherwise.

    Raises WeightsError for invalid rates: some given and some not, negative, or all zero.
    """
    rates = normalize_rates(parts)
    if rates is None:
        return sum((part.exposure for part in parts), Exposure())
    whole = sum(part.tokens for part in parts)
    factors = [whole * rate / part.tokens if part.tokens else 0.0 for part, rate in zip(parts, rates, strict=True)]
    size = max(part.exposure.counts.size for part in parts)
    counts = np.zeros(size)
    for part, factor in zip(parts, factors, strict=True):
        counts[: part.exposure.counts.size] += factor * part.exposure.counts
    return Exposure(
        counts=counts,
        segments=sum(factor * part.exposure.segments for part, factor in zip(parts, factors, strict=True)),
        firsts=sum(factor * part.exposure.firsts for part, factor in zip(parts, factors, strict=True)),
    )


def normalize_rates(parts: Sequence[Part]) -> list[float] | None:
    """The rates with sum 1; None if none is given, or all are in proportion to the tokens. Raises WeightsError."""
    given = [part.rate for part in parts if part.rate is not None]
    if not given:
        return None
    if len(given) < len(parts):
        raise WeightsError(f"{len(given)} rates for {len(parts)} datasets; give one for each, or none")
    if min(given) < 0 or not np.isfinite(sum(given)) or sum(given) == 0:
        raise WeightsError(f"rates {given} must be finite, not negative, and not all 0")
    # A file holds the default rates too. They stand for the sum of counts, which floats would only approach.
    if given == share_tokens(parts) and sum(part.exposure.targets for part in parts) <= MAX_COUNT:
        return None
    return [rate / sum(given) for rate in given]


def share_tokens(parts: Sequence[Part]) -> list[float]:
    """Each part's share of all tokens: its default rate."""
    whole = sum(part.tokens for part in parts)
    return [part.tokens / whole if whole else 1 / len(parts) for part in parts]


def find_rates(parts: Sequence[Part]) -> list[float]:
    """The rates as weights.json states them: normalised, and the default ones where none is given."""
    return normalize_rates(parts) or share_tokens(parts)


def keep_shares(exposures: Sequence[Exposure], table: WeightTable) -> list[float]:
    """What the weights of each dataset are divided by so that the mixture keeps its shares of supervision.

    `m_i = (c^i . w) / |c^i|`: the mean weight of the dataset's supervised targets; 1 where it has none.
    """
    divisors = []
    for exposure in exposures:
        counts = table.count(exposure)
        weights = table.by_bucket(counts.size)
        divisors.append(float(counts @ weights / counts.sum()) if counts.sum() else 1.0)
    return divisors


@dataclass(frozen=True, kw_only=True)
class PartShare:
    """One dataset's part in what a mixture supervises."""

    before: float
    """Its share of the supervised targets that the trainer reads."""
    after: float
    """Its share of supervision under the weights."""


def tail_share_after(before: float, extra: float) -> float:
    """The tail's share of supervision, from its share of targets and the extra that `share_supervision` gives.

    p (1 + e) / (p (1 + e) + 1 - p): the mean weight of the tail's targets is 1 + e times that of the others.
    """
    return before * (1 + extra) / (1 + before * extra)


def share_supervision(
    parts: Sequence[Part], table: WeightTable, divisors: Sequence[float]
) -> tuple[list[PartShare], float]:
    """Each part's share of supervision before and after weighing, and the extra supervision that the tail really gets.

    The extra is the mean weight of the tail's targets over the mean weight of the others, minus 1, targets counted at
    the rates. With divisors of 1 and no clipping it is alpha; 0 where either side has no target.
    """
    rates = find_rates(parts)
    before, after = [], []
    tail, others = np.zeros(2), np.zeros(2)  # targets, supervision
    for part, rate, divisor in zip(parts, rates, divisors, strict=True):
        counts = table.count(part.exposure) * (rate / part.tokens if part.tokens else 0.0)
        supervision = counts * table.by_bucket(counts.size) / divisor
        before.append(counts.sum())
        after.append(supervision.sum())
        in_tail = bucket_edges(counts.size)[:-1] >= table.tail_start
        tail += counts[in_tail].sum(), supervision[in_tail].sum()
        others += counts[~in_tail].sum(), supervision[~in_tail].sum()
    extra = float((tail[1] / tail[0]) / (others[1] / others[0]) - 1) if tail[0] and others[1] else 0.0
    shares = [
        PartShare(before=share(own, sum(before)), after=share(weighed, sum(after)))
        for own, weighed in zip(before, after, strict=True)
    ]
    return shares, extra
