"""Files of bare ids: what `olmo` and `datatrove` share to write them, and to see that EOS tells documents apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from exact_prep.batches import Rows
    from exact_prep.reader.rows import PackedDataset

LARGEST = {"uint16": 1 << 16, "uint32": 1 << 32}
"""Ids that do not fit."""


def choose_dtype(dataset: PackedDataset) -> np.dtype:
    """The smallest type that holds the vocabulary; uint32 where it is not known."""
    vocabulary = dataset.manifest.tokenizer.vocab_size
    return np.dtype("<u2" if 0 < vocabulary <= LARGEST["uint16"] else "<u4")


def narrow(ids: np.ndarray, dtype: np.dtype, dataset: PackedDataset) -> np.ndarray:
    """Ids in that type; raises DatasetError for one beyond the vocabulary."""
    narrowed = ids.astype(dtype)
    if not np.array_equal(narrowed, ids):
        raise DatasetError(f"{dataset.path} holds ids beyond its vocabulary; pack it again")
    return narrowed


def need_eos(dataset: PackedDataset, kind: str) -> int:
    """The EOS that documents end with; raises UsageError where none was appended."""
    eos_id = dataset.manifest.tokenizer.eos_id
    if eos_id is None:
        raise UsageError(
            f"readers of {kind} tell documents apart by EOS, and {dataset.path} was packed without; pack --eos"
        )
    return eos_id


def check_eos(rows: Rows, eos_id: int, dataset: PackedDataset, first: int) -> None:
    """Raise UsageError where EOS would tell other documents apart than the rows have; `first` rows came before.

    Each segment ends with its only EOS, but for one that is cut by the end of its row.
    """
    flat = rows.input_ids.reshape(-1)
    row = np.repeat(np.arange(len(rows)), np.diff(rows.row_splits))
    stops = row * rows.seq_len + rows.segment_starts() + rows.seq_lengths
    ends = np.zeros(flat.size + 1, bool)
    ends[stops] = True
    used = np.zeros(flat.size + 1, np.int64)
    np.add.at(used, stops - rows.seq_lengths, 1)
    np.add.at(used, stops, -1)
    found = (flat == eos_id) & (np.cumsum(used)[:-1] > 0)
    inside = np.flatnonzero(found & ~ends[1:])
    without = stops[(flat[stops - 1] != eos_id) & (stops % rows.seq_len != 0)]
    wrong = np.concatenate([inside, without])
    if wrong.size:
        where = first + int(wrong.min()) // rows.seq_len
        raise UsageError(
            f"{dataset.path}, row {where:,}: EOS (id {eos_id}) does not tell its documents apart: one holds it inside, "
            "or a piece ends without it before its row does; pack documents that hold EOS at their end alone"
        )
