"""Exposure: how many supervised targets a corpus holds per bucket of effective left context.

A histogram over the whole corpus; shards, tasks, sources and machines merge by addition. Counts are int64, and float64
only where rates of a mixture make fractions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.choices import MAX_COUNT
from exact_prep.errors import DatasetError, LedgerError
from exact_prep.kernels.contexts import count_context_ranges, count_left_contexts
from exact_prep.records.manifest import ExposureRecord
from exact_prep.weighing.context import bucket_edges, find_bucket

if TYPE_CHECKING:
    from exact_prep.batches import Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposure:
    """Supervised targets per bucket, and how many segments they come from.

    Addition merges two exposures; equality compares the counts.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Targets with left context >= 1 that carry loss, per bucket, int64[B] (float64 in a mixture). Trailing zeros do
    not matter."""

    segments: int | float = 0
    """Segments, that is targets with left context 0."""

    firsts: int | float = 0
    """Segments whose first token may carry loss, as it does under `supervise_first`; all if nothing is masked."""

    @classmethod
    def from_record(cls, record: ExposureRecord) -> Exposure:
        """The exposure that a record stores."""
        return cls(counts=np.array(record.counts, np.int64), segments=record.segments, firsts=record.firsts)

    def to_record(self) -> ExposureRecord:
        """The exposure as it is stored."""
        return ExposureRecord(
            counts=tuple(self.trimmed().tolist()), segments=int(self.segments), firsts=int(self.firsts)
        )

    def __add__(self, other: Exposure) -> Exposure:
        """Merge two exposures; raises LedgerError if int64 does not hold the sum."""
        if self.targets + other.targets > MAX_COUNT:
            raise LedgerError(f"{self.targets + other.targets:,} targets are more than can be counted ({MAX_COUNT:,})")
        short, long = sorted((self.counts, other.counts), key=len)
        counts = long.copy()
        counts[: short.size] += short
        return Exposure(counts=counts, segments=self.segments + other.segments, firsts=self.firsts + other.firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exposure):
            return NotImplemented
        same = (self.segments, self.firsts) == (other.segments, other.firsts)
        return same and self.trimmed().tolist() == other.trimmed().tolist()

    __hash__ = None  # type: ignore[assignment]

    @property
    def targets(self) -> int | float:
        """Targets with left context >= 1 that carry loss."""
        return self.counts.sum().item()

    def trimmed(self) -> np.ndarray:
        """The counts without trailing empty buckets."""
        return np.trim_zeros(self.counts, "b")

    def supervised(self, *, supervise_first: bool = False) -> np.ndarray:
        """Supervised targets per bucket, int64[B]: the counts, and each segment's first token if that carries loss."""
        counts = self.counts.copy()
        if supervise_first and self.firsts:
            counts = np.zeros(1, counts.dtype) if counts.size == 0 else counts
            counts[0] += self.firsts
        return counts

    def within(self, window: int | None) -> Exposure:
        """The exposure under sliding-window attention of `window` tokens; None changes nothing.

        Contexts beyond the window are contexts of exactly the window, so buckets above its own are added to it.
        """
        if window is None or self.counts.size <= (last := find_bucket(window)):
            return self
        counts = self.counts[: last + 1].copy()
        counts[last] += self.counts[last + 1 :].sum()
        return Exposure(counts=counts, segments=self.segments, firsts=self.firsts)


def measure_lengths(lengths: np.ndarray) -> Exposure:
    """The exposure of segments of `lengths[S]` tokens, int32, each at least 1; nothing is masked."""
    return measure_groups(lengths, np.zeros(lengths.size, np.int16), 1)[0]


def measure_groups(lengths: np.ndarray, groups: np.ndarray, count: int) -> list[Exposure]:
    """The exposures of `count` groups of segments: s has `lengths[s]` tokens (int32) and is in `groups[s]` (int16)."""
    counts, segments = _count_groups(lengths, groups, count)
    return [
        Exposure(counts=own, segments=number, firsts=number)
        for own, number in zip(counts, segments.tolist(), strict=True)
    ]


def measure_rows(rows: Rows, sources: int) -> list[Exposure]:
    """The exposure of each of `sources` sources in some rows; masked targets are in no bucket."""
    if rows.mask_splits is None or rows.masked_runs is None or not rows.masked_runs.size:
        return measure_groups(rows.seq_lengths, rows.sources, sources)
    counts, segments = _count_groups(rows.seq_lengths, rows.sources, sources)
    starts, stops = rows.masked_runs[::2].astype(np.int64), rows.masked_runs[1::2].astype(np.int64)
    segment = find_segments(rows, starts)
    before = rows.segment_starts()[segment]
    masked = np.zeros_like(counts)
    edges = bucket_edges(counts.shape[1])
    count_context_ranges(starts - before, stops - before, rows.sources[segment], edges, masked)
    first = np.bincount(rows.sources[segment[starts == before]], minlength=sources)
    return [
        Exposure(counts=own, segments=number, firsts=number - gone)
        for own, number, gone in zip(counts - masked, segments.tolist(), first.tolist(), strict=True)
    ]


def find_segments(rows: Rows, starts: np.ndarray) -> np.ndarray:
    """The segment that each masked run of `rows` lies in, int64[M]; `starts[M]` are the runs' starts in their rows."""
    per_row = np.diff(rows.mask_splits) // 2 if rows.mask_splits is not None else np.zeros(len(rows), np.int64)
    row = np.repeat(np.arange(len(rows)), per_row)
    # Segments and runs on one axis: rows lie end to end, L tokens each.
    segment_row = np.repeat(np.arange(len(rows)), np.diff(rows.row_splits))
    places = segment_row * rows.seq_len + rows.segment_starts()
    return np.searchsorted(places, row * rows.seq_len + starts, side="right") - 1


def _count_groups(lengths: np.ndarray, groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets with left context >= 1, int64[G, B], and segments, int64[G], of each group.

    Raises DatasetError for a group that is not below `count`: the kernel does not check bounds.
    """
    if groups.size and not 0 <= groups.min() <= groups.max() < count:
        raise DatasetError(
            f"segments have sources {groups.min()} to {groups.max()}, known are 0 to {count - 1}; verify the dataset"
        )
    buckets = find_bucket(int(lengths.max()) - 1) + 1 if lengths.size else 0
    counts = np.zeros((count, buckets), np.int64)
    count_left_contexts(lengths, groups, bucket_edges(buckets), counts)
    return counts, np.bincount(groups, minlength=count)
