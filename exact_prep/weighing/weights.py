"""EXACT weights: from an exposure to a weight per bucket (float64), to a weight per position, to float16.

Everything is computed in float64 and cast once, in `float16_runs`; `audit_rounding` says what the cast did.
Source of the formulas: arXiv 2605.10544, section on effective-context exposure balancing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.choices import MAX_WEIGHT
from exact_prep.errors import WeightsError
from exact_prep.weighing.context import bucket_edges, edge_at_or_above, find_bucket, nearest_edges

if TYPE_CHECKING:
    from exact_prep.records.options import WeightOptions
    from exact_prep.weighing.exposure import Exposure

PLAIN_WEIGHT = np.float16(1).view(np.uint16)
"""Bit pattern of the weight that `pack` gives every supervised target."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightTable:
    """One weight per bucket, with the figures that justify it. Build it with `weight_table`."""

    options: WeightOptions
    """With `tail_from` set."""
    counts: np.ndarray
    """Supervised targets per bucket, int64[B]; float64[B] for a mixture."""
    weights: np.ndarray
    """Weight of a supervised target per bucket, float64[B], clipped and normalised as asked."""
    in_tail: np.ndarray
    """Whether the bucket is in the tail T, bool[B]."""
    scale: float
    """What all weights were divided by: 1, or their corpus mean under `normalize="mean"`."""
    extra: float
    """Extra supervision as computed, sum over T of q_b * (w_b - 1) before scaling: alpha minus what clipping took."""

    @property
    def tail_start(self) -> int:
        """The first bucket edge at or above tau, in tokens: where the tail really begins."""
        return edge_at_or_above(self.options.tail_from or 0)

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

    def count(self, exposure: Exposure) -> np.ndarray:
        """Supervised targets of an exposure per bucket, as these options count them; int64[B], float64 in a mixture."""
        return exposure.within(self.options.window).supervised(supervise_first=self.options.supervise_first)

    def by_bucket(self, buckets: int) -> np.ndarray:
        """Weight of a supervised target in each of the first `buckets` buckets, float64[buckets].

        Beyond the table, where its own corpus has no target, it is that of a target outside the tail.
        """
        weights = np.full(buckets, 1 / self.scale)
        known = self.weights[:buckets]
        weights[: known.size] = known
        return weights

    def lut(self, seq_len: int, *, divisor: float = 1.0) -> np.ndarray:
        """Weights by position in the segment, float64[seq_len]: `w = lut[position_ids]`.

        `divisor` is the dataset's own, where a mixture keeps its shares.
        """
        window = self.options.window
        edges = bucket_edges(self.weights.size)
        lut = np.full(seq_len, 1 / self.scale)
        for b, weight in enumerate(self.weights):
            lut[edges[b] : edges[b + 1]] = weight
        if window is not None and window < seq_len:
            lut[window:] = lut[window]
        lut /= divisor
        if seq_len and not self.options.supervise_first:
            lut[0] = 0.0
        return lut


def share(part: Any, whole: Any) -> float:
    """Part / whole as a float; 0 when there is no whole."""
    return float(part / whole) if whole else 0.0


def default_tail_from(seq_len: int, window: int | None = None) -> int:
    """The paper's tau for a stage of `seq_len` tokens, a quarter of it, at the first bucket edge from there on.

    A window that is shorter than the row takes its place.
    """
    return edge_at_or_above(min(seq_len, window or seq_len) // 4)


def resolve_options(options: WeightOptions, seq_len: int) -> WeightOptions:
    """The options for rows of `seq_len` tokens, with `tail_from` set."""
    if options.tail_from is not None:
        return options
    return replace(options, tail_from=default_tail_from(seq_len, options.window))


def check_tail_from(tail_from: int) -> None:
    """Raise WeightsError unless tau is a bucket edge: what a user types must be where the tail begins."""
    below, above = nearest_edges(tail_from)
    if below != above:
        raise WeightsError(
            f"--tail-from {tail_from} is not a bucket edge: the tail would begin at {above}; "
            f"use --tail-from {below} or --tail-from {above}"
        )


def weight_table(exposure: Exposure, options: WeightOptions) -> WeightTable:
    """The EXACT weight of every bucket of `exposure`, for options with `tail_from` set.

    q_b = c_b / sum_T c;  r_b = (q_b + eps)^-gamma;  w_b = 1 + alpha * r_b / sum_T(q r) in the tail, 1 elsewhere
    (arXiv 2605.10544). r_b / sum_T(q r) is computed from logarithms, so that no gamma is too large. An empty tail
    leaves every weight 1. Weights above `max_weight` are clipped, then all are divided by their corpus mean if
    `normalize="mean"`. Raises WeightsError without a `tail_from`.
    """
    if options.tail_from is None:
        raise WeightsError("tail_from is not set; it depends on the row length, see resolve_options")
    counts = exposure.within(options.window).supervised(supervise_first=options.supervise_first)
    in_tail = (bucket_edges(counts.size)[:-1] >= options.tail_from) & (counts > 0)
    weights = np.ones(counts.size)
    extra = 0.0
    if in_tail.any():
        q = counts[in_tail] / counts[in_tail].sum()
        with np.errstate(over="ignore"):
            weights[in_tail] += options.alpha * relative_rarity(q, options)
        weights = weights.clip(max=options.max_weight or MAX_WEIGHT)
        extra = float(q @ (weights[in_tail] - 1))
    scale = 1.0
    if options.normalize == "mean" and counts.sum():
        scale = float(counts @ weights / counts.sum())
        weights = weights / scale
    return WeightTable(options=options, counts=counts, weights=weights, in_tail=in_tail, scale=scale, extra=extra)


def relative_rarity(q: np.ndarray, options: WeightOptions) -> np.ndarray:
    """r_b / rbar of the tail's buckets, float64[T], from their shares q[T]; at most 1 / q_b whatever gamma is."""
    log_q = np.log(q + options.eps)
    r = np.exp(-options.gamma * (log_q - log_q.min()))
    return r / (q @ r)


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
    extra_float16: float
    """Extra supervision of the tail as stored: sum over T of q_b * float16(w_b) / float16(1 / scale) - 1."""
    extra_relative_error: float
    """Its difference to the extra before rounding, relative to that; 0 where there is no extra."""


def float16_runs(table: WeightTable, seq_len: int, *, divisor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The table as constant runs by position: edges[K + 1] int32 and values[K] uint16, float16 bit patterns.

    Neighbours of equal value are merged. Raises WeightsError if a weight rounds to infinity.
    """
    places = [[0, 1], bucket_edges(find_bucket(max(seq_len - 1, 0)) + 1), [table.options.window or 0]]
    places = np.unique(np.concatenate(places))
    starts = places[places < seq_len]
    with np.errstate(over="ignore"):
        values = table.lut(seq_len, divisor=divisor)[starts].astype(np.float16)
    if not np.isfinite(values).all():
        raise WeightsError(f"a weight is beyond float16 ({MAX_WEIGHT:.0f}); set --max-weight")
    bits = values.view(np.uint16)
    first = np.flatnonzero(np.concatenate([[True], bits[1:] != bits[:-1]]))
    edges = np.append(starts[first], seq_len).astype(np.int32)
    return edges, bits[first]


def plain_runs(seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain weights as runs by position, as `float16_runs`: 0 for a segment's first token, 1 for the others."""
    return np.array([0, 1, seq_len], np.int32), np.array([0, PLAIN_WEIGHT], np.uint16)


def audit_rounding(table: WeightTable) -> RoundingAudit:
    """Compare the table's float16 weights with its float64 ones, weighted by the corpus."""
    held = table.counts > 0
    exact, counts = table.weights[held], table.counts[held]
    rounded = exact.astype(np.float16).astype(np.float64)
    total = counts.sum()
    stored = 0.0
    if table.in_tail.any():
        tail = table.in_tail[held]
        q = counts[tail] / counts[tail].sum()
        base = float(np.float16(1 / table.scale))
        # A scale beyond float16 rounds the base to 0: nothing of the supervision is left to compare with.
        stored = float(q @ rounded[tail]) / base - 1 if base else 0.0
    return RoundingAudit(
        max_relative_error=float((np.abs(rounded - exact) / exact).max(initial=0.0)),
        mean_weight=share(counts @ exact, total) if total else 1.0,
        mean_weight_float16=share(counts @ rounded, total) if total else 1.0,
        zeros=int(counts[(rounded == 0) & (exact > 0)].sum()),
        extra_float16=stored,
        extra_relative_error=share(stored - table.extra, table.extra),
    )
