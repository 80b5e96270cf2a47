"""All rows of a dataset in the order of the files, with their weights, in blocks of bounded size.

Shards are compared with their checksums first: nothing damaged gets through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import table_name
from exact_prep.errors import DatasetError
from exact_prep.reader.columns import align_weights
from exact_prep.records.tables import decode_weights
from exact_prep.shards import Shard, open_shard
from exact_prep.stores.local import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset

BLOCK_TOKENS = 1 << 20


def read_blocks(dataset: PackedDataset, align: Align) -> Iterator[Rows]:
    """All rows with weights float16[R, L], aligned as asked; raises DatasetError for a shard that is damaged."""
    checksums = load_checksums(dataset)
    for record in dataset.files.shards:
        shard = open_shard(dataset.path / record.file)
        found = (shard.content_digest(), shard.rest_digest())
        changed = found != (record.content_xxh3, record.rest_xxh3)
        if changed or (dataset.has_stored_weights and shard.weights_digest() != checksums.get(record.file)):
            raise DatasetError(f"{shard.path} is damaged; see `exact-prep verify {dataset.path}`")
        for rows in split_shard(shard):
            rows = dataset.with_weights(rows)
            yield replace(rows, loss_weights=align_weights(get_weights(rows), align))


def get_weights(rows: Rows) -> np.ndarray:
    """The weights of rows that have them, float16[R, L]; raises DatasetError."""
    if rows.loss_weights is None:
        raise DatasetError("a shard has no column loss_weights, its manifest says so; see `exact-prep verify`")
    return rows.loss_weights


def load_checksums(dataset: PackedDataset) -> dict[str, str]:
    """Checksums of the stored weights, by shard; empty if weights are computed. Raises DatasetError."""
    if not dataset.has_stored_weights or dataset.loaded_weights is None:
        return {}
    name = table_name("weights")
    if dataset.files.store.size(name) is None:
        raise DatasetError(f"{dataset.path / name} is missing; run `exact-prep weigh {dataset.path}` again")
    data = dataset.files.store.read(name)
    if digest([data]) != dataset.loaded_weights.file.weights_xxh3:
        raise DatasetError(f"{dataset.path / name} is damaged; run `exact-prep weigh {dataset.path}` again")
    return decode_weights(data, dataset.path / name)


def split_shard(shard: Shard) -> Iterator[Rows]:
    """The rows of one shard, as they are stored."""
    step = max(BLOCK_TOKENS // shard.seq_len, 1)
    for batch in shard.batches:
        for first in range(0, len(batch), step):
            yield batch.slice(first, first + step)


def read_segments(dataset: PackedDataset) -> Iterator[Rows]:
    """As `read_blocks`, unchecked and without weights, for passes over segments: pages of tokens are not read."""
    for record in dataset.files.shards:
        yield from split_shard(open_shard(dataset.path / record.file))


def find_positions(rows: Rows) -> np.ndarray:
    """Each token's place in its segment, int32[R, L]; 0 for padding."""
    made = np.zeros(rows.input_ids.shape, np.int32)
    row = np.repeat(np.arange(len(rows)), np.diff(rows.row_splits))
    starts = row * rows.seq_len + rows.segment_starts()
    stops = np.cumsum(rows.seq_lengths, dtype=np.int64)
    inside = np.arange(stops[-1] if stops.size else 0) - np.repeat(stops - rows.seq_lengths, rows.seq_lengths)
    made.reshape(-1)[np.repeat(starts, rows.seq_lengths) + inside] = inside
    return made
