"""A packed dataset as a `datasets.Dataset`, for trainers that accept only that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.reader.columns import position_ids
from exact_prep.reader.rows import PackedDataset, open  # noqa: A004

if TYPE_CHECKING:
    from os import PathLike

    import datasets


def hugging_face_dataset(path: str | PathLike[str] | PackedDataset) -> datasets.Dataset:
    """The dataset in `path` as a `datasets.Dataset` over the mapped shards, for trainers that accept only that (TRL).

    Rows are NumPy arrays; `loss_weights` is float32. An opened dataset keeps its order of rows and its weights: plain
    ones, a table given to `exact_prep.open`, and those of a dataset that stores none are computed as rows are read.
    Raises DatasetError as `exact_prep.open` does.
    """
    from datasets import Dataset, concatenate_datasets

    dataset = path if isinstance(path, PackedDataset) else open(path)
    parts = [Dataset.from_file(str(dataset.path / record.file)) for record in dataset.files.shards]
    whole = concatenate_datasets(parts)
    rows = dataset.rows
    if not (isinstance(rows, range) and rows == range(len(whole))):
        whole = whole.select(rows)
    if dataset.has_stored_weights:
        return whole.with_format("numpy")
    if "loss_weights" in whole.column_names:
        whole = whole.remove_columns("loss_weights")  # other weights, which a view of some columns would show
    return whole.with_transform(ComputedWeights(*dataset.runs, dataset.seq_len, masked=dataset.manifest.masked))


class ComputedWeights:
    """Gives rows of a `datasets.Dataset` weights from a table."""

    def __init__(self, edges: np.ndarray, bits: np.ndarray, seq_len: int, *, masked: bool) -> None:
        """The table as runs by position: `edges[K + 1]`, float16 bit patterns `bits[K]`."""
        self._lut = np.repeat(bits.view(np.float16).astype(np.float32), np.diff(edges))
        self._seq_len = seq_len
        self._needed = {"seq_lengths", "masked_runs"} if masked else {"seq_lengths"}

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[np.ndarray]]:
        """The columns of some rows as arrays, with loss_weights float32[L]; without, if a column they need is not read.

        The collator refuses rows without weights.
        """
        columns = {name: [np.asarray(value) for value in values] for name, values in batch.items()}
        if not self._needed <= columns.keys():
            return columns
        columns["loss_weights"] = [self._weigh(lengths) for lengths in columns["seq_lengths"]]
        if "masked_runs" in columns:
            for weights, runs in zip(columns["loss_weights"], columns["masked_runs"], strict=True):
                for start, stop in runs.astype(np.int64).reshape(-1, 2).tolist():
                    weights[start:stop] = 0
        return columns

    def _weigh(self, lengths: np.ndarray) -> np.ndarray:
        weights = self._lut[position_ids(lengths, self._seq_len)]
        weights[int(lengths.sum()) :] = 0
        return weights
