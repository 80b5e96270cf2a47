"""`row-weights`: how often to draw each row, for trainers that take no token weights at all.

Rows are drawn with probability proportional to the mean weight of their targets. That moves supervision between rows,
not inside them; the export says how far it went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.reader.blocks import find_positions, get_weights, read_blocks
from exact_prep.shards import fill_weights
from exact_prep.stores.local import explained
from exact_prep.weighing.weights import PLAIN_WEIGHT, share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """row_weights.npy, float64[R]; also the tail's share of supervision before, by row weights and by token weights."""
    loaded = dataset.loaded_weights
    if loaded is None:
        raise ValueError("an export needs weights; the dataset was opened without")
    plain, drawn, weighted = np.zeros(2), np.zeros(2), np.zeros(2)
    made = []
    for rows in read_blocks(dataset, "target"):
        supervised = find_supervised(rows, supervise_first=loaded.supervise_first)
        tail = supervised & (find_positions(rows) >= loaded.table.tail_start)
        weights = get_weights(rows).astype(np.float64)
        targets, in_tail = supervised.sum(1), tail.sum(1)
        sums = weights.sum(1)
        means = sums / np.maximum(targets, 1)
        made.append(means)
        plain += targets.sum(), in_tail.sum()
        drawn += (means * targets).sum(), (means * in_tail).sum()
        weighted += sums.sum(), weights[tail].sum()
        progress(rows.input_ids.size)
    rows = np.concatenate(made)
    with explained("write", out / "row_weights.npy"):
        np.save(out / "row_weights.npy", rows)
    shares = {"uniform": plain, "row_weights": drawn, "token_weights": weighted}
    return {
        "files": {"row_weights.npy": f"float64[{rows.size}]"},
        "use": "draw row r with probability row_weights[r] / sum(row_weights), with replacement; rows in file order",
        "tail_share_of_supervision": {name: share(tail, whole) for name, (whole, tail) in shares.items()},
    }


def find_supervised(rows: Rows, *, supervise_first: bool) -> np.ndarray:
    """Which targets carry loss, bool[R, L]: not padding, not masked, not a segment's first unless asked."""
    bits = np.empty(rows.input_ids.shape, np.uint16)
    values = np.array([PLAIN_WEIGHT if supervise_first else 0, PLAIN_WEIGHT], np.uint16)
    fill_weights(rows, np.array([0, 1, rows.seq_len], np.int32), values, bits)
    return bits > 0
