"""Training data from a dataset that exact-prep packed and weighed, read with exact-prep's own reader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

import exact_prep
from exact_prep.errors import UsageError
from exact_prep.validation.training_batches import Batch, make_batch
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import default_tail_from

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exact_prep.reader.rows import PackedDataset
    from exact_prep.weighing.weights import WeightTable


@dataclass
class CorpusStream:
    """The training rows of a packed dataset in a seeded order (without the held-out rows)."""

    rows: PackedDataset
    """Opened with plain weights: arms bring their own."""
    rows_per_step: int
    seq_len: int
    vocab_size: int
    exposure: Exposure
    table: WeightTable

    def batch(self, step: int) -> Batch:
        """The batch of a step; starts again at the first row after the last one."""
        first = step * self.rows_per_step
        return read_batch(self.rows, [(first + r) % len(self.rows) for r in range(self.rows_per_step)])


def read_batch(rows: PackedDataset, places: Iterable[int]) -> Batch:
    """Some rows of a dataset with plain weights as a batch; masked targets carry no loss."""
    chosen = [rows[place] for place in places]
    batch = make_batch([(row.input_ids, row.seq_lengths) for row in chosen])
    return replace(batch, supervised=torch.from_numpy(np.concatenate([row.loss_weights > 0 for row in chosen])))


@lru_cache
def count_ids(directory: Path, tree_hash: str) -> int:
    """Largest id + 1 of a dataset packed from ids without a tokenizer: reads all rows, once per dataset."""
    return 1 + max(int(row.input_ids.max()) for row in exact_prep.open(directory, plain=True))


def open_corpus(
    directory: Path,
    weights: Path | None = None,
    *,
    weights_from_elsewhere: bool = False,
    rows_per_step: int,
    held_out: int,
    seed: int,
) -> tuple[CorpusStream, list[Batch]]:
    """Open training stream and held-out batches, with the dataset's weights or those in the file `weights`.

    Raises DatasetError, and UsageError if the dataset is not weighed, has too few rows, or has no short contexts.
    """
    dataset = exact_prep.open(directory, weights=weights, weights_from_elsewhere=weights_from_elsewhere)
    if len(dataset) < 2 * held_out:
        raise UsageError(
            f"{directory} has {len(dataset)} rows, but {2 * held_out} are needed; pack more text, or shorter rows"
        )
    loaded = dataset.loaded_weights
    if loaded is None:
        raise UsageError(f"{directory} is not weighed; run `exact-prep weigh {directory}`")
    if loaded.table.tail_start == 0:
        raise UsageError(
            f"in {directory} everything is tail, so there are no short contexts to compare with; run `exact-prep weigh "
            f"{directory} --tail-from {default_tail_from(dataset.seq_len)}`"
        )
    plain = exact_prep.open(directory, plain=True)
    rest, last = plain[: len(plain) - held_out], plain[len(plain) - held_out :]
    stream = CorpusStream(
        rows=rest.shuffle(seed),
        rows_per_step=rows_per_step,
        seq_len=dataset.seq_len,
        vocab_size=dataset.manifest.tokenizer.vocab_size or count_ids(directory, dataset.manifest.tree_hash),
        exposure=Exposure.from_record(dataset.manifest.exposure),
        table=loaded.table,
    )
    return stream, [read_batch(last, [index]) for index in range(held_out)]
