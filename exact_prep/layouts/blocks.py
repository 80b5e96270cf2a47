"""Rows of a dataset in blocks of bounded size, in the order of the files. Nothing damaged gets through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep import shards
from exact_prep.errors import DatasetError
from exact_prep.reader.columns import align_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset

BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True)
class Block:
    """R rows of L tokens, S segments in all."""

    input_ids: np.ndarray
    """int32[R, L]."""
    loss_weights: np.ndarray
    """float16[R, L], aligned as asked."""
    seq_lengths: np.ndarray
    """int32[S]."""
    row_splits: np.ndarray
    """Where each row's segments start and end, int32[R + 1], from 0 to S."""
    doc_ids: np.ndarray
    """int64[S]."""
    doc_offsets: np.ndarray
    """int64[S]."""


def blocks(dataset: PackedDataset, align: Align) -> Iterator[Block]:
    """All rows of a weighed dataset; raises DatasetError for a shard that is not what it was."""
    assert dataset.loaded_weights is not None
    weights = {shard.file: shard.weights_xxh3 for shard in dataset.loaded_weights.file.shards}
    for record in dataset.manifest.shards:
        shard = shards.opened(dataset.path / record.file)
        found = (shard.content_digest(), shard.weights_digest())
        if found != (record.content_xxh3, weights.get(record.file)):
            raise DatasetError(f"{shard.path} is damaged; see `exact-prep verify {dataset.path}`")
        yield from shard_blocks(shard, align)


def shard_blocks(shard: shards.Shard, align: Align) -> Iterator[Block]:
    """The rows of one shard."""
    step = max(BLOCK_TOKENS // shard.seq_len, 1)
    for batch in shard.batches:
        for first in range(0, batch.rows, step):
            splits = batch.row_splits[first : first + step + 1]
            segments = slice(int(splits[0]), int(splits[-1]))
            yield Block(
                input_ids=batch.input_ids[first : first + step],
                loss_weights=align_weights(batch.loss_weights[first : first + step], align),
                seq_lengths=batch.seq_lengths[segments],
                row_splits=splits - splits[0],
                doc_ids=batch.doc_ids[segments],
                doc_offsets=batch.doc_offsets[segments],
            )


def lengths(dataset: PackedDataset) -> Iterator[Block]:
    """As `blocks`, unchecked, for passes over segments alone: the pages of tokens and weights are not read."""
    for record in dataset.manifest.shards:
        yield from shard_blocks(shards.opened(dataset.path / record.file), "target")


def positions(block: Block) -> np.ndarray:
    """Each token's place in its segment, int32[R, L]; 0 for padding."""
    rows, seq_len = block.input_ids.shape
    made = np.zeros((rows, seq_len), np.int32)
    starts = np.cumsum(block.seq_lengths) - block.seq_lengths
    # Where a segment starts in its row: its place among all tokens, less that of the row's first segment.
    per_row = np.diff(block.row_splits)
    starts -= np.repeat(starts[block.row_splits[:-1]], per_row)
    starts += np.repeat(np.arange(rows) * seq_len, per_row)
    places = np.repeat(starts, block.seq_lengths) + (inside := within(block.seq_lengths))
    made.reshape(-1)[places] = inside
    return made


def within(seq_lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... inside each segment, end to end, int64[T]."""
    stops = np.cumsum(seq_lengths, dtype=np.int64)
    return np.arange(stops[-1] if stops.size else 0) - np.repeat(stops - seq_lengths, seq_lengths)
