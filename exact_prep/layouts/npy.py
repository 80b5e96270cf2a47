"""`numpy`: a .npy file per column, for `numpy.load(..., mmap_mode="r")`.

Written front to back, never through a map: a full disk is an error then, not a signal.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.reader.blocks import find_positions, get_weights, read_blocks
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset


class NpyWriter:
    """Writes an array of known shape piece by piece; use it as a context manager."""

    def __init__(self, path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        self.path, self._dtype = path, np.dtype(dtype)
        with explained("write", path):
            self._file = path.open("wb")
            header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, values: np.ndarray) -> None:
        """Append values; raises StorageError."""
        with explained("write", self.path):
            self._file.write(np.ascontiguousarray(values, self._dtype).data.cast("B"))

    def __enter__(self) -> NpyWriter:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        with explained("write", self.path):
            self._file.close()


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """input_ids, loss_weights, position_ids [R, L]; segments: seq_lengths and doc_ids [S] with row_splits [R + 1]."""
    rows, seq_len = len(dataset), dataset.seq_len
    segments = sum(shard.segments for shard in dataset.files.shards)
    columns: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "input_ids": (np.int32, (rows, seq_len)),
        "loss_weights": (np.float16, (rows, seq_len)),
        "position_ids": (np.int32, (rows, seq_len)),
        "seq_lengths": (np.int32, (segments,)),
        "doc_ids": (np.int64, (segments,)),
        "row_splits": (np.int64, (rows + 1,)),
    }
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(NpyWriter(out / f"{name}.npy", dtype, shape))
            for name, (dtype, shape) in columns.items()
        }
        done = 0
        files["row_splits"].write(np.zeros(1))
        for block in read_blocks(dataset, align):
            files["input_ids"].write(block.input_ids)
            files["loss_weights"].write(get_weights(block))
            files["position_ids"].write(find_positions(block))
            files["seq_lengths"].write(block.seq_lengths)
            files["doc_ids"].write(block.doc_ids)
            files["row_splits"].write(done + block.row_splits[1:].astype(np.int64))
            done += block.seq_lengths.size
            progress(block.input_ids.size)
    return {"files": {f"{name}.npy": f"{dtype.__name__}{list(shape)}" for name, (dtype, shape) in columns.items()}}
