"""A dataset that exact-prep packed and weighed as training data, through its reader alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import exact_prep
from exact_prep.errors import UsageError
from exact_prep.validation.batches import Batch, batch_of
from exact_prep.weighing.files import exposure_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from exact_prep.reader.rows import PackedDataset
    from exact_prep.weighing.exposure import Exposure
    from exact_prep.weighing.weights import WeightTable


@dataclass
class CorpusStream:
    """Rows of a packed dataset in a seeded order; the last ones are held out."""

    rows: PackedDataset
    rows_per_step: int
    seq_len: int
    vocab_size: int
    exposure: Exposure
    table: WeightTable

    def batch(self, step: int) -> Batch:
        """The batch of a step; rows come again when all were seen."""
        first = step * self.rows_per_step
        return batch_of([arrays(self.rows, (first + r) % len(self.rows)) for r in range(self.rows_per_step)])


def arrays(rows: PackedDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and segment lengths of a row."""
    row = rows[index]
    return row.input_ids, row.seq_lengths


@lru_cache
def ids_in(directory: Path, tree_hash: str) -> int:
    """Largest id + 1 of a dataset that was packed from ids and knows no tokenizer: all its rows are read, once."""
    return 1 + max(int(row.input_ids.max()) for row in exact_prep.open(directory))


def open_corpus(directory: Path, *, rows_per_step: int, held_out: int, seed: int) -> tuple[CorpusStream, list[Batch]]:
    """Training stream and held-out batches; raises UsageError if rows or short contexts are lacking, DatasetError."""
    dataset = exact_prep.open(directory)
    if len(dataset) < 2 * held_out:
        raise UsageError(f"{directory} has {len(dataset)} rows, {2 * held_out} are needed; pack more, or shorter rows")
    loaded = dataset.loaded_weights
    if loaded is None:
        raise UsageError(f"{directory} is not weighed; run `exact-prep weigh {directory}`")
    if loaded.file.tail_start == 0:
        raise UsageError(
            f"in {directory} everything is tail, and there is no short context to compare with; run `exact-prep weigh "
            f"{directory} --tail-from {dataset.seq_len // 4}`"
        )
    rest, last = dataset[: len(dataset) - held_out], dataset[len(dataset) - held_out :]
    stream = CorpusStream(
        rows=rest.shuffle(seed),
        rows_per_step=rows_per_step,
        seq_len=dataset.seq_len,
        vocab_size=dataset.manifest.tokenizer.vocab_size or ids_in(directory, dataset.manifest.tree_hash),
        exposure=exposure_of(dataset.manifest.exposure),
        table=loaded.table,
    )
    return stream, [batch_of([arrays(last, index)]) for index in range(held_out)]
