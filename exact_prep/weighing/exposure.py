"""Exposure: how many supervised targets a corpus holds per bucket of effective left context.

A histogram over the whole corpus; shards, tasks and machines merge by addition. No weights and no files here.
Source: "Where Does Long-Context Supervision Actually Go?", arXiv 2605.10544.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exact_prep.errors import LedgerError
from exact_prep.kernels.contexts import count_left_contexts

MOST_TARGETS = 2**63 - 1
"""What the counters, int64, hold together."""

FIRST_EDGE = 8
"""Upper edge of bucket 0, [0, 7]; every later bucket is twice as wide as all before it."""


def bucket_of(left_context: int) -> int:
    """The bucket that an effective left context falls into: 0 for [0, 7], 1 for [8, 15], 2 for [16, 31], ..."""
    return max(left_context.bit_length() - FIRST_EDGE.bit_length() + 1, 0)


def bucket_edges(buckets: int) -> np.ndarray:
    """Edges[buckets + 1] of the first `buckets` buckets, int64, in tokens: 0, 8, 16, 32, ...

    Bucket b is the half-open interval [edges[b], edges[b + 1]).
    """
    edges = np.int64(FIRST_EDGE) << np.arange(-1, buckets, dtype=np.int64).clip(0)
    edges[0] = 0
    return edges


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposure:
    """Supervised targets per bucket, and how many segments they come from.

    Addition merges two exposures; equality compares the counts.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Targets with left context >= 1 per bucket, int64[B]; no trailing zeros are needed or forbidden."""

    segments: int = 0
    """Segments, that is targets with left context 0; supervised only under `supervise_first`."""

    def __add__(self, other: Exposure) -> Exposure:
        """Merge two exposures; raises LedgerError if int64 does not hold the sum."""
        if self.targets + other.targets > MOST_TARGETS:
            raise LedgerError(
                f"{self.targets + other.targets:,} targets are more than can be counted ({MOST_TARGETS:,})"
            )
        short, long = sorted((self.counts, other.counts), key=len)
        counts = long.copy()
        counts[: short.size] += short
        return Exposure(counts=counts, segments=self.segments + other.segments)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exposure):
            return NotImplemented
        return self.segments == other.segments and self.trimmed().tolist() == other.trimmed().tolist()

    __hash__ = None  # type: ignore[assignment]

    @property
    def targets(self) -> int:
        """Targets with left context >= 1."""
        return int(self.counts.sum())

    def trimmed(self) -> np.ndarray:
        """The counts without trailing empty buckets."""
        return np.trim_zeros(self.counts, "b")

    def supervised(self, *, supervise_first: bool = False) -> np.ndarray:
        """Supervised targets per bucket, int64[B]: the counts, with each segment's first token if that carries loss."""
        counts = self.counts.copy()
        if supervise_first and self.segments:
            counts = np.zeros(1, np.int64) if counts.size == 0 else counts
            counts[0] += self.segments
        return counts


def measure(lengths: np.ndarray) -> Exposure:
    """The exposure of segments of `lengths[S]` tokens, int32, every one at least 1."""
    buckets = bucket_of(int(lengths.max()) - 1) + 1 if lengths.size else 0
    counts = np.zeros(buckets, np.int64)
    count_left_contexts(lengths, bucket_edges(buckets), counts)
    return Exposure(counts=counts, segments=int(lengths.size))
