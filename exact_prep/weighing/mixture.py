"""Several datasets read at fixed rates, as one exposure; and weights under which each keeps its share of supervision.

Rates p_i are shares of the tokens that the trainer reads, padding and masked ones included; N_i are the tokens of a
dataset's rows. The mixture's exposure is `c = (sum_i N_i) * sum_i p_i * c^i / N_i`. With p_i in proportion to N_i, the
default, it is the plain sum of counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import WeightsError
from exact_prep.weighing.exposure import Exposure

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
    """The rates with sum 1; None if none is given. Raises WeightsError."""
    given = [part.rate for part in parts if part.rate is not None]
    if not given:
        return None
    if len(given) < len(parts):
        raise WeightsError(f"{len(given)} rates for {len(parts)} datasets; give one for each, or none")
    if min(given) < 0 or not np.isfinite(sum(given)) or sum(given) == 0:
        raise WeightsError(f"rates {given} must be finite, not negative, and not all 0")
    return [rate / sum(given) for rate in given]


def keep_shares(exposures: Sequence[Exposure], table: WeightTable) -> list[float]:
    """What the weights of each dataset are divided by so that the mixture keeps its shares of supervision.

    `m_i = (c^i . w) / |c^i|`: the mean weight of the dataset's supervised targets; 1 where it has none.
    """
    divisors = []
    for exposure in exposures:
        options = table.options
        counts = exposure.within(options.window).supervised(supervise_first=options.supervise_first)
        weights = np.full(counts.size, 1 / table.scale)  # what `lut` gives to buckets beyond the table
        weights[: table.weights.size] = table.weights[: counts.size]
        divisors.append(float(counts @ weights / counts.sum()) if counts.sum() else 1.0)
    return divisors
