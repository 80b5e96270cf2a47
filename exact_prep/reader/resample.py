"""Draws rows so that the tail has a given share of supervised targets: an alternative to weighing them, or beside it.

A row is drawn in proportion to its mean weight under EXACT's weights with some alpha; alpha is chosen so that the share
comes out. That moves supervision between rows, never inside one, and costs unique tokens: rows of short documents are
left out, rows of long ones repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.reader.blocks import read_segments
from exact_prep.records.options import WeightOptions
from exact_prep.shuffle import mix, permutation
from exact_prep.weighing.context import bucket_edges, find_bucket
from exact_prep.weighing.exposure import Exposure, find_segments
from exact_prep.weighing.weights import resolve_options, weight_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from exact_prep.batches import Rows
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.weighing.weights import WeightTable

STEPS = 200
"""Halvings of the interval of alpha: more than float64 can tell apart."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What drawing rows did."""

    tail_share: float
    """The tail's share of the supervised targets that were drawn."""
    tail_share_before: float
    """And of all rows, each read once."""
    alpha: float
    """Of the weights whose means the rows were drawn by."""
    distinct_rows: int
    """Rows that were drawn at least once."""
    repeats: float
    """How often a row that was drawn comes, on average: what it costs in unique tokens."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Of each row, in the order of the dataset: float64[R]."""

    targets: np.ndarray
    """Supervised targets."""
    tail: np.ndarray
    """Those in the tail."""
    gains: np.ndarray
    """What alpha 1 adds to the row's sum of weights."""


def draw_rows(dataset: PackedDataset, *, tail_share: float, seed: int, rows: int | None) -> tuple[np.ndarray, Drawing]:
    """Places of `rows` rows of a dataset, as many as it has if None, int64[rows]; and what that did.

    Raises UsageError if no drawing reaches the share.
    """
    count = len(dataset) if rows is None else rows
    if seed < 0 or count < 1:
        raise UsageError(f"seed is {seed}, rows {count}; a seed is at least 0, rows at least 1")
    return choose_rows(count_rows(dataset, make_table(dataset)), dataset.path, tail_share, seed=seed, rows=count)


def choose_rows(
    counts: RowCounts, name: object, tail_share: float, *, seed: int, rows: int
) -> tuple[np.ndarray, Drawing]:
    """The same from the counts of the rows; `name` says in errors whose they are."""
    means = counts.gains / np.maximum(counts.targets, 1)

    def share(alpha: float) -> float:
        drawn = 1 + alpha * means
        whole = drawn @ counts.targets
        return float(drawn @ counts.tail / whole) if whole else 0.0

    low, high = share(0), share(1e12)
    if not low <= tail_share < high:
        raise UsageError(
            f"tail_share {tail_share:g}: drawing rows of {name} gives the tail {low:.4f} of supervised "
            f"targets, each row once, to {high:.4f}, at most"
        )
    alpha = find_alpha(lambda value: share(value) - tail_share)
    places = draw_evenly(1 + alpha * means, rows, seed)
    kept = np.unique(places).size
    whole = counts.targets[places].sum()
    drawing = Drawing(
        tail_share=float(counts.tail[places].sum() / whole) if whole else 0.0,
        tail_share_before=low,
        alpha=alpha,
        distinct_rows=kept,
        repeats=rows / kept,
    )
    return places, drawing


def find_alpha(excess: Callable[[float], float]) -> float:
    """Where a function that grows crosses 0, in [0, 1e12]."""
    low, high = 0.0, 1e12
    for _ in range(STEPS):
        middle = (low + high) / 2 if low else high / 2 if high <= 2 else high**0.5
        if excess(middle) < 0:
            low = middle
        else:
            high = middle
    return high if excess(0.0) < 0 else 0.0


def draw_evenly(weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` places in proportion to `weights[R]`, int64[count]: each comes as often as it should, within one."""
    offset = float(mix(np.array([seed], np.uint64))[0]) / 2**64
    edges = np.floor(np.cumsum(weights) / weights.sum() * count + offset).astype(np.int64)
    edges[-1] = count  # against rounding
    times = np.diff(np.concatenate([[0], np.clip(edges, 0, count)]))
    return np.repeat(np.arange(weights.size), times)[permutation(count, seed, 0)]


def count_rows(dataset: PackedDataset, table: WeightTable) -> RowCounts:
    """Targets of every row of a dataset, and gains by a table of alpha 1; reads segments, no token."""
    found = [count_block(rows, table) for rows in read_segments(dataset)]
    order = np.asarray(dataset.rows)
    targets, tail, gains = (
        np.concatenate([getattr(one, name) for one in found])[order] for name in ("targets", "tail", "gains")
    )
    return RowCounts(targets=targets, tail=tail, gains=gains)


def make_table(dataset: PackedDataset) -> WeightTable:
    """The weights of alpha 1 under the dataset's own options, or the default ones if it was opened plain."""
    loaded = dataset.loaded_weights
    options = loaded.table.options if loaded else resolve_options(WeightOptions(), dataset.seq_len)
    return weigh_for_drawing(Exposure.from_record(dataset.manifest.exposure), options)


def weigh_for_drawing(exposure: Exposure, options: WeightOptions) -> WeightTable:
    """The weights of alpha 1, whose means rows are drawn by, under options with `tail_from` set."""
    return weight_table(exposure, replace(options, alpha=1.0, max_weight=None, normalize="none", keep_mixture=False))


def count_block(rows: Rows, table: WeightTable) -> RowCounts:
    """Targets of some rows, and gains by a table of alpha 1."""
    row = np.repeat(np.arange(len(rows)), np.diff(rows.row_splits))
    starts, stops = np.zeros(rows.seq_lengths.size, np.int64), rows.seq_lengths.astype(np.int64)
    owner, signs = row, np.ones(row.size)
    if rows.mask_splits is not None and rows.masked_runs is not None and rows.masked_runs.size:
        begins = rows.masked_runs[::2].astype(np.int64)
        segment = find_segments(rows, begins)
        base = rows.segment_starts()[segment]
        starts = np.concatenate([starts, begins - base])
        stops = np.concatenate([stops, rows.masked_runs[1::2] - base])
        owner, signs = np.concatenate([row, row[segment]]), np.concatenate([signs, -np.ones(segment.size)])
    first = 0 if table.options.supervise_first else 1
    window = table.options.window
    last = find_bucket(window) if window is not None else table.weights.size

    def count(low: int, high: float) -> np.ndarray:
        inside = np.minimum(stops, high) - np.maximum(starts, max(low, first))
        return np.bincount(owner, signs * np.maximum(inside, 0), len(rows))

    edges = bucket_edges(table.weights.size).tolist()
    tail, gains = np.zeros(len(rows)), np.zeros(len(rows))
    for b in np.flatnonzero(table.in_tail).tolist():
        here = count(edges[b], np.inf if b == last else edges[b + 1])
        tail += here
        gains += here * (table.weights[b] - 1)
    return RowCounts(targets=count(0, np.inf), tail=tail, gains=gains)
