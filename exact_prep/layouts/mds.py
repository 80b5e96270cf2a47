"""`mds`: MosaicML streaming shards, written by its own MDSWriter. Needs `mosaicml-streaming`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.reader.blocks import get_weights, read_blocks
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """A sample a row: input_ids, loss_weights, seq_lengths, as arrays."""
    try:
        from streaming import MDSWriter  # pyright: ignore[reportMissingImports]  (an environment of its own)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not go with its torch
        raise UsageError(f"--to mds needs mosaicml-streaming (pip install 'exact-prep[mds]'): {error}") from None
    seq_len = dataset.seq_len
    columns = {
        "input_ids": f"ndarray:int32:{seq_len}",
        "loss_weights": f"ndarray:float16:{seq_len}",
        "seq_lengths": "ndarray:int32",
    }
    # The writer's own directory must be new.
    with explained("write", out), MDSWriter(columns=columns, out=str(out / "mds"), hashes=["xxh128"]) as writer:
        for block in read_blocks(dataset, align):
            for row, lengths in enumerate(np.split(block.seq_lengths, block.row_splits[1:-1])):
                writer.write(
                    {
                        "input_ids": block.input_ids[row],
                        "loss_weights": get_weights(block)[row],
                        "seq_lengths": lengths,
                    }
                )
            progress(block.input_ids.size)
    return {"columns": columns, "directory": "mds"}
