"""`lut`: the weight of a target by its position in its document. `row-weights`: how often to draw each row.

Row weights are for trainers that take no token weights at all: rows drawn with probability proportional to the mean
weight of their targets. That moves supervision between rows, not inside them; the export says how far it went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.layouts.blocks import blocks
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.layouts.blocks import Block
    from exact_prep.reader.lookup import LoadedWeights
    from exact_prep.reader.rows import PackedDataset


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """lut.npy or row_weights.npy."""
    loaded = dataset.loaded_weights
    assert loaded is not None
    return write_lut(loaded, out) if kind == "lut" else write_row_weights(dataset, loaded, out, progress)


def write_lut(loaded: LoadedWeights, out: Path) -> dict[str, Any]:
    """float32[L], `weight = lut[position_ids]`."""
    with explained("write", out / "lut.npy"):
        np.save(out / "lut.npy", loaded.lut)
    file = loaded.file
    return {
        "files": {"lut.npy": f"float32[{loaded.seq_len}]"},
        "use": "weight of the target input_ids[t] = lut[position_ids[t]]; position_ids restart at each document",
        "mean_weight": loaded.mean_weight,
        "tail_start": file.tail_start,
        "alpha": file.alpha,
        "gamma": file.gamma,
        "supervise_first": file.supervise_first,
    }


def write_row_weights(
    dataset: PackedDataset, loaded: LoadedWeights, out: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    """float64[R], and the tail's share of supervision before, by drawing rows, and by token weights."""
    plain, drawn, weighted = np.zeros(2), np.zeros(2), np.zeros(2)
    made = []
    for block in blocks(dataset, "target"):
        targets, tail = targets_of(block, loaded)
        weights = block.loss_weights.astype(np.float64)
        sums = weights.sum(1)
        means = sums / np.maximum(targets, 1)
        made.append(means)
        plain += targets.sum(), tail.sum()
        drawn += (means * targets).sum(), (means * tail).sum()
        weighted += sums.sum(), tail_weight(block, loaded).sum()
        progress(block.input_ids.size)
    rows = np.concatenate(made)
    with explained("write", out / "row_weights.npy"):
        np.save(out / "row_weights.npy", rows)
    shares = {"uniform": plain, "row_weights": drawn, "token_weights": weighted}
    return {
        "files": {"row_weights.npy": f"float64[{rows.size}]"},
        "use": "draw row r with probability row_weights[r] / sum(row_weights), with replacement; rows in file order",
        "tail_share_of_supervision": {name: float(tail / whole) for name, (whole, tail) in shares.items()},
    }


def targets_of(block: Block, loaded: LoadedWeights) -> tuple[np.ndarray, np.ndarray]:
    """Supervised targets per row, and those of the tail, int64[R]."""
    first = 0 if loaded.file.supervise_first else 1
    starts = block.row_splits[:-1]
    return (
        np.add.reduceat(np.maximum(block.seq_lengths - first, 0), starts, dtype=np.int64),
        np.add.reduceat(np.maximum(block.seq_lengths - max(loaded.file.tail_start, first), 0), starts, dtype=np.int64),
    )


def tail_weight(block: Block, loaded: LoadedWeights) -> np.ndarray:
    """Sum of the weights of the tail's targets per row, float64[R]."""
    start = max(loaded.file.tail_start, 0 if loaded.file.supervise_first else 1)
    sums = np.concatenate([[0.0], np.cumsum(loaded.lut, dtype=np.float64)])
    tails = sums[np.maximum(block.seq_lengths, start)] - sums[min(start, loaded.seq_len)]
    return np.add.reduceat(tails, block.row_splits[:-1])
