"""EXACT weights: from an exposure to a table by bucket (float64), to a lookup table by left context, to float16.

Everything is computed in float64 and cast once, in `float16_lut`; the cast is audited. No files here.
Source of the formulas: arXiv 2605.10544, section on effective-context exposure balancing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import WeightsError
from exact_prep.weighing.exposure import Exposure, bucket_edges, bucket_of

if TYPE_CHECKING:
    from exact_prep.choices import Normalize

FLOAT16_MAX = 65504.0
"""The largest finite float16; weights are stored as float16, so no weight exceeds it."""


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """What the user asks of the weights. The defaults are the paper's, `eps` and `supervise_first` are ours."""

    tail_from: int
    """tau, in tokens: buckets whose lower edge is at least this are the tail."""
    alpha: float = 0.15
    """Extra supervision of the tail: sum over T of q_b * (w_b - 1)."""
    gamma: float = 0.5
    """Exponent of the inverse bucket frequency; 0 spreads the extra evenly over tail targets."""
    eps: float = 1e-6
    """Added to a bucket's share before it is inverted."""
    max_weight: float | None = None
    """Upper limit of a weight; None means the largest finite float16."""
    supervise_first: bool = False
    """Whether the first token of a segment (left context 0) carries loss."""
    normalize: Normalize = "none"
    """`mean` divides all weights by their corpus mean over supervised targets."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; raises WeightsError."""
        for name in ("alpha", "gamma", "eps"):
            value = getattr(self, name)
            if not np.isfinite(value) or value < 0:
                raise WeightsError(f"{name} must be a finite number >= 0, not {value!r}")
        if self.eps == 0:
            raise WeightsError("eps must be > 0: it keeps the inverse of a bucket's share finite")
        if not 0 <= self.tail_from < 2**31:
            raise WeightsError(f"tail_from must lie in [0, 2**31) tokens, not {self.tail_from!r}")
        if self.max_weight is not None and not 1 <= self.max_weight <= FLOAT16_MAX:
            raise WeightsError(f"max_weight must lie in [1, {FLOAT16_MAX:.0f}] (float16), not {self.max_weight!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightTable:
    """One weight per bucket, with the figures that justify it. Build it with `weight_table`."""

    options: WeightOptions
    counts: np.ndarray
    """Supervised targets per bucket, int64[B]."""
    weights: np.ndarray
    """Weight of a supervised target per bucket, float64[B], clipped and normalised as asked."""
    in_tail: np.ndarray
    """Whether the bucket is in the tail T, bool[B]."""
    scale: float
    """What all weights were divided by: 1, or their corpus mean under `normalize="mean"`."""
    extra: float
    """Extra supervision as it came out, sum over T of q_b * (w_b - 1) before scaling: alpha less what clipping took."""

    @property
    def tail_start(self) -> int:
        """The first bucket edge at or above tau, in tokens: where the tail really begins."""
        tau = self.options.tail_from
        return 0 if tau == 0 else max(1 << (tau - 1).bit_length(), 8)

    @property
    def tail_share(self) -> float:
        """The tail's share of supervised targets: its supervision before weighting."""
        return share(self.counts[self.in_tail].sum(), self.counts.sum())

    @property
    def weighted_tail_share(self) -> float:
        """The tail's share of supervision after weighting."""
        supervision = self.counts * self.weights
        return share(supervision[self.in_tail].sum(), supervision.sum())

    @property
    def mean_weight(self) -> float:
        """Mean weight over supervised targets of the corpus; 1 for an empty one."""
        return share((self.counts * self.weights).sum(), self.counts.sum()) if self.counts.sum() else 1.0

    def lut(self, seq_len: int) -> np.ndarray:
        """Weights by effective left context, float64[seq_len]: `w = lut[position_ids]`."""
        edges = bucket_edges(self.weights.size)
        lut = np.full(seq_len, 1 / self.scale)
        for b, weight in enumerate(self.weights):
            lut[edges[b] : edges[b + 1]] = weight
        if seq_len and not self.options.supervise_first:
            lut[0] = 0.0
        return lut


def share(part: Any, whole: Any) -> float:
    """Part / whole as a float; 0 when there is no whole."""
    return float(part / whole) if whole else 0.0


def weight_table(exposure: Exposure, options: WeightOptions) -> WeightTable:
    """The EXACT weight of every bucket of `exposure`.

    q_b = c_b / sum_T c;  r_b = (q_b + eps)^-gamma;  w_b = 1 + alpha * r_b / sum_T(q r) in the tail, 1 elsewhere
    (arXiv 2605.10544). An empty tail leaves every weight 1. Weights above `max_weight` are clipped, then all are
    divided by their corpus mean if `normalize="mean"`. Raises WeightsError if they are not finite.
    """
    counts = exposure.supervised(supervise_first=options.supervise_first)
    edges = bucket_edges(counts.size)
    in_tail = (edges[:-1] >= options.tail_from) & (counts > 0)
    weights = np.ones(counts.size)
    extra = 0.0
    if in_tail.any():
        q = counts[in_tail] / counts[in_tail].sum()
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            r = (q + options.eps) ** -options.gamma
            weights[in_tail] += options.alpha * r / (q @ r)
        if not np.isfinite(weights).all():
            raise WeightsError(
                f"with alpha {options.alpha:g}, gamma {options.gamma:g} and eps {options.eps:g} the weights are beyond "
                "floating point; lower gamma or alpha"
            )
        weights = weights.clip(max=options.max_weight or FLOAT16_MAX)
        extra = float(q @ (weights[in_tail] - 1))
    scale = 1.0
    if options.normalize == "mean" and counts.sum():
        scale = float(counts @ weights / counts.sum())
        weights = weights / scale
    return WeightTable(options=options, counts=counts, weights=weights, in_tail=in_tail, scale=scale, extra=extra)


def default_tail_from(seq_len: int) -> int:
    """The paper's tau for a stage of `seq_len` tokens: a quarter of it."""
    return max(seq_len // 4, 1)


@dataclass(frozen=True, kw_only=True)
class RoundingAudit:
    """What rounding to float16 did to the weights, over the whole corpus."""

    max_relative_error: float
    """Largest |float16(w) - w| / w over buckets that hold targets."""
    mean_weight: float
    """Mean weight over supervised targets before rounding."""
    mean_weight_float16: float
    """The same after rounding."""
    zeros: int
    """Targets whose positive weight rounded to zero."""


def float16_runs(table: WeightTable, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The table as constant runs by left context: edges[K + 1] int32 and values[K] uint16, float16 bit patterns.

    Neighbours of equal value are merged. Raises WeightsError if a weight rounds to infinity.
    """
    lut_at = np.unique(np.concatenate([[0, 1], bucket_edges(bucket_of(max(seq_len - 1, 0)) + 1)]))
    starts = lut_at[lut_at < seq_len]
    values = table.lut(seq_len)[starts].astype(np.float16)
    if not np.isfinite(values).all():
        raise WeightsError(f"a weight is beyond float16 ({FLOAT16_MAX:.0f}); set --max-weight")
    bits = values.view(np.uint16)
    first = np.flatnonzero(np.concatenate([[True], bits[1:] != bits[:-1]]))
    edges = np.append(starts[first], seq_len).astype(np.int32)
    return edges, bits[first]


def audit_rounding(table: WeightTable) -> RoundingAudit:
    """Compare the table's float16 weights with its float64 ones, weighted by the corpus."""
    held = table.counts > 0
    exact, counts = table.weights[held], table.counts[held]
    rounded = exact.astype(np.float16).astype(np.float64)
    total = counts.sum()
    return RoundingAudit(
        max_relative_error=float((np.abs(rounded - exact) / exact).max(initial=0.0)),
        mean_weight=share(counts @ exact, total) if total else 1.0,
        mean_weight_float16=share(counts @ rounded, total) if total else 1.0,
        zeros=int(counts[(rounded == 0) & (exact > 0)].sum()),
    )
