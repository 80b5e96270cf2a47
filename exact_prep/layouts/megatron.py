"""`megatron`: an IndexedDataset whose documents are rows and whose sequences are segments, and weights beside it.

The padding of a row, if any, is its last sequence: a row is always L tokens, so row r begins at token r * L of data.bin
and of data_loss_weights.bin. GPTDataset itself would cut rows again: examples/megatron_dataset.py serves them whole.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from exact_prep.errors import DatasetError
from exact_prep.reader.blocks import get_weights, read_blocks, read_segments
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
"""Megatron's numbers for the types of token ids."""
SMALL_VOCABULARY = 65500
"""Up to it Megatron stores ids as uint16."""


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """data.bin, data.idx, data_loss_weights.bin."""
    vocabulary = dataset.manifest.tokenizer.vocab_size
    dtype = np.dtype(np.uint16 if vocabulary and vocabulary < SMALL_VOCABULARY else np.int32)
    tokens, weights, index = out / "data.bin", out / "data_loss_weights.bin", out / "data.idx"
    with explained("write", out), tokens.open("wb") as ids, weights.open("wb") as beside:
        for block in read_blocks(dataset, align):
            narrow = block.input_ids.astype(dtype)
            if not np.array_equal(narrow, block.input_ids):
                raise DatasetError(f"{dataset.path} holds ids beyond its vocabulary of {vocabulary}; pack it again")
            ids.write(narrow.data.cast("B"))
            beside.write(np.ascontiguousarray(get_weights(block)).data.cast("B"))
            progress(block.input_ids.size)
    with explained("write", index), index.open("wb") as file:
        write_index(file, dataset, dtype)
    return {
        "files": {
            "data.bin": str(dtype),
            "data.idx": "rows as documents, segments as sequences",
            "data_loss_weights.bin": f"float16[{len(dataset)}, {dataset.seq_len}]",
        },
    }


def write_index(file: BinaryIO, dataset: PackedDataset, dtype: np.dtype) -> None:
    """The .idx file, in three passes over the lengths of segments: memory does not grow with the corpus."""
    header = struct.Struct("<9sQBQQ")
    file.write(bytes(header.size))
    sequences = start = 0
    for block in read_segments(dataset):
        own, _ = sequence_lengths(block)
        file.write(own.astype("<i4").tobytes())
        sequences += own.size
    for block in read_segments(dataset):
        own, _ = sequence_lengths(block)
        stops = start + np.cumsum(own, dtype=np.int64)
        file.write(((stops - own) * dtype.itemsize).astype("<i8").tobytes())
        start = int(stops[-1])
    rows = last = 0
    file.write(np.zeros(1, "<i8").tobytes())
    for block in read_segments(dataset):
        _, counts = sequence_lengths(block)
        file.write((last + np.cumsum(counts)).astype("<i8").tobytes())
        last += int(counts.sum())
        rows += counts.size
    file.seek(0)
    file.write(header.pack(MAGIC, VERSION, CODES[dtype], sequences, rows + 1))


def sequence_lengths(block: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of a block's segments with padding as the last of its row, and how many each row has."""
    used = np.diff(np.concatenate([[0], np.cumsum(block.seq_lengths, dtype=np.int64)])[block.row_splits])
    padding = block.input_ids.shape[1] - used
    padded = padding > 0
    with_padding = np.insert(block.seq_lengths, block.row_splits[1:][padded], padding[padded])
    return with_padding, np.diff(block.row_splits) + padded
