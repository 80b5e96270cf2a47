"""`lut`: the weight of a target by its position in its document, for trainers that carry `position_ids`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.reader.lookup import MeasuredWeights
    from exact_prep.reader.rows import PackedDataset


def write(
    dataset: PackedDataset | MeasuredWeights, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """lut.npy: float32[L + 1], `weight = lut[position_ids]`; rows of L + 1 tokens have the last position."""
    loaded = dataset.loaded_weights
    if loaded is None or loaded.file.options is None:
        raise ValueError("an export needs weights; the dataset was opened without")
    with explained("write", out / "lut.npy"):
        np.save(out / "lut.npy", loaded.lut)
    progress(dataset.seq_len)
    options = loaded.file.options
    return {
        "files": {"lut.npy": f"float32[{loaded.seq_len + 1}]"},
        "use": "weight of the target input_ids[t] = lut[position_ids[t]]; position_ids restart at each document",
        "mean_weight": loaded.mean_weight,
        "tail_start": loaded.table.tail_start,
        "alpha": options.alpha,
        "gamma": options.gamma,
        "supervise_first": options.supervise_first,
    }
