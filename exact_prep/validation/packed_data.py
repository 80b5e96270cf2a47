"""Data from a dataset that exact-prep packed and weighed, read with exact-prep's own reader and loader.

Three parts that share no document or row: rows to measure on, rows for bases, rows for arms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

import exact_prep
from exact_prep.dataset import SPLITS, is_split_in_two
from exact_prep.errors import UsageError
from exact_prep.integrations.torch.data import Loader
from exact_prep.reader.blocks import read_segments
from exact_prep.reader.order import BatchPolicy
from exact_prep.shuffle import permutation
from exact_prep.validation.training_batches import COLLATE, Batch, join_rows, read_batch
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import default_tail_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.reader.rows import PackedDataset
    from exact_prep.weighing.weights import WeightTable

HELD_OUT_SEED = 4242
"""Draws the rows that are held out: they are the same for all arms and seeds."""


@dataclass(frozen=True, kw_only=True)
class CorpusStream:
    """Rows of a packed dataset in a seeded order, another one in each epoch."""

    rows: PackedDataset
    rows_per_step: int
    seed: int
    seq_len: int
    vocab_size: int
    exposure: Exposure
    table: WeightTable

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on; they never end."""
        policy = BatchPolicy(batch_size=self.rows_per_step, seed=self.seed)
        loader = Loader(self.rows, policy, collate=COLLATE, rank=0, world_size=1)
        loader.order.advance(first)
        for made in loader:
            yield join_rows(made)

    def count_distinct(self, rows: int) -> int:
        """How many different rows are among the first `rows`; a drawing is read whole."""
        return min(rows, len(np.unique(np.asarray(self.rows.rows))))

    def resample(self, tail_share: float, rows: int) -> CorpusStream:
        """Fresh rows drawn so that the tail has this share of supervised targets; raises UsageError."""
        return replace(self, rows=self.rows.resample(tail_share=tail_share, seed=self.seed, rows=rows))


@dataclass(frozen=True)
class ShortenedStream:
    """A stream with segments cut every `length` tokens: how a base sees a corpus that was packed into longer rows."""

    stream: CorpusStream
    length: int

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on; no context is longer than `length`."""
        for whole in self.stream.batches(first):
            rows = torch.arange(0, int(whole.edges[-1]) + 1, self.length)
            edges = torch.cat([whole.edges, rows]).unique()
            supervised = whole.supervised.clone()
            supervised[edges[:-1]] = False
            yield Batch(whole.ids, edges, supervised)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A packed dataset, divided."""

    held_out: list[Batch]
    """One row each."""
    base: PackedDataset
    arms: PackedDataset
    vocab_size: int
    exposure: Exposure
    table: WeightTable
    left_out: int
    """Rows that are in no part, because they hold some of a document that is held out."""

    def stream(self, rows: PackedDataset, tokens_per_step: int, seed: int) -> CorpusStream:
        """A stream of some of the rows; one row per step, if a row has more tokens than that."""
        return CorpusStream(
            rows=rows,
            rows_per_step=max(tokens_per_step // rows.seq_len, 1),
            seed=seed,
            seq_len=rows.seq_len,
            vocab_size=self.vocab_size,
            exposure=self.exposure,
            table=self.table,
        )


def open_corpus(
    directory: Path,
    weights: Path | None = None,
    *,
    weights_from_elsewhere: bool = False,
    held_out: int,
    held_out_from: Path | None = None,
    base_tokens: int = 0,
) -> Corpus:
    """Open a dataset with its own weights, or those in the file `weights`, and divide it.

    `held_out` rows are drawn: of the dataset `held_out_from`, of the validation rows of one that `pack --validation`
    divided, or of the dataset itself; then no training row has a document of theirs. Rows of `base_tokens` tokens, at
    most half of the others, are for bases. Raises DatasetError, and UsageError if the
    dataset is not weighed, has too few rows, or has no short contexts.
    """
    dataset = exact_prep.open(directory, weights=weights, weights_from_elsewhere=weights_from_elsewhere)
    loaded = dataset.loaded_weights
    if loaded is None:
        raise UsageError(f"{directory} is not weighed; run `exact-prep weigh {directory}`")
    if loaded.table.tail_start == 0:
        raise UsageError(
            f"in {directory} everything is tail, so there are no short contexts to compare with; run `exact-prep weigh "
            f"{directory} --tail-from {default_tail_from(dataset.seq_len)}`"
        )
    if held_out_from is None and is_split_in_two(directory):
        held_out_from = directory / SPLITS[1]
    if held_out_from is not None:
        others, rest = exact_prep.open(held_out_from, plain=True), np.arange(len(dataset))
        measured = others.select(np.sort(permutation(len(others), HELD_OUT_SEED, 0)[:held_out]))
    else:
        drawn, rest = hold_out(dataset, held_out)
        measured = dataset.select(drawn)
    if len(rest) < max(held_out, 2):
        raise UsageError(
            f"{directory} has {len(dataset)} rows; with {held_out} held out, {len(rest)} are left that share no "
            f"document with them, and {held_out} are needed; pack more text, or shorter rows"
        )
    order = rest[permutation(len(rest), HELD_OUT_SEED, 0)]
    used = min(-(-base_tokens // dataset.seq_len), len(rest) // 2)
    return Corpus(
        held_out=[read_batch([row]) for row in measured],
        base=dataset.select(order[:used]),
        arms=dataset.select(order[used:]),
        vocab_size=dataset.manifest.tokenizer.vocab_size or count_ids(dataset.path, dataset.manifest.tree_hash),
        exposure=Exposure.from_record(dataset.manifest.exposure),
        table=loaded.table,
        left_out=len(dataset) - len(rest) - (len(measured) if held_out_from is None else 0),
    )


def hold_out(dataset: PackedDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of `count` rows drawn by seed, and of all rows that hold no document of theirs, int64 each."""
    drawn = np.sort(permutation(len(dataset), HELD_OUT_SEED, 0)[:count])
    row, document = find_documents(dataset.path, dataset.manifest.tree_hash)
    held = np.unique(document[np.isin(row, drawn)])
    touched = np.unique(row[np.isin(document, held)])
    return drawn, np.setdiff1d(np.arange(len(dataset)), np.union1d(touched, drawn))


@lru_cache(maxsize=1)
def find_documents(directory: Path, tree_hash: str) -> tuple[np.ndarray, np.ndarray]:
    """The row and the document of every segment of a dataset, int64 each; reads no token, once per dataset."""
    dataset = exact_prep.open(directory, plain=True)
    rows, documents, first = [], [], 0
    tasks = np.repeat([shard.task for shard in dataset.files.shards], [shard.rows for shard in dataset.files.shards])
    for block in read_segments(dataset):
        own = first + np.repeat(np.arange(len(block)), np.diff(block.row_splits))
        rows.append(own)
        documents.append(np.stack([tasks[own], block.doc_ids]))
        first += len(block)
    _, place = np.unique(np.concatenate(documents, axis=1), axis=1, return_inverse=True)
    return np.concatenate(rows), place.reshape(-1)


@lru_cache
def count_ids(directory: Path, tree_hash: str) -> int:
    """Largest id + 1 of a dataset packed from ids without a tokenizer: reads all rows, once per dataset."""
    return 1 + max(int(row.input_ids.max()) for row in exact_prep.open(directory, plain=True))
