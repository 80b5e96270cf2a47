"""Data from a dataset that exact-prep packed and weighed, read with exact-prep's own reader and loader.

Parts that share no document or row: rows to measure on, rows to tune the learning rate on, rows for bases and for arms.
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
    """What everything is measured on, one row each."""
    tuning: list[Batch]
    """What the learning rate is tuned on, one row each; empty unless asked for."""
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
    tune: bool = False,
    base_tokens: int = 0,
    trains: bool = True,
) -> Corpus:
    """Open a dataset with its own weights, or those in the file `weights`, and divide it.

    `held_out` rows are drawn: of the dataset `held_out_from`, of the validation rows of one that `pack --validation`
    divided, or of the dataset itself; then no training row has a document of theirs. With `tune`, as many others are
    drawn in the same way for the learning rate. Rows of `base_tokens` tokens, at most half of what is left, are for
    bases. Raises DatasetError, and UsageError if the dataset is not weighed, has no short contexts, or, where something
    `trains`, too few rows.
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
    others = dataset if held_out_from is None else exact_prep.open(held_out_from, plain=True)
    drawn, tuned, rest = hold_out(others, held_out, tune=tune)
    if tune and not len(tuned):
        raise UsageError(
            f"{others.path} has no row to tune the learning rate on that shares no document with the {len(drawn)} that "
            "are measured; give --lr, a smaller --held-out, or pack more text"
        )
    taken = len(drawn) + len(tuned) if held_out_from is None else 0
    if held_out_from is not None:
        rest = np.arange(len(dataset))
    if trains and len(rest) < max(taken, 2):
        raise UsageError(
            f"{directory} has {len(dataset)} rows; with {taken} held out, {len(rest)} are left that share no document "
            f"with them, and {max(taken, 2)} are needed; give a smaller --held-out, pack more text, or shorter rows"
        )
    order = rest[permutation(len(rest), HELD_OUT_SEED, 0)]
    used = min(-(-base_tokens // dataset.seq_len), len(rest) // 2)
    return Corpus(
        held_out=[read_batch([row]) for row in others.select(drawn)],
        tuning=[read_batch([row]) for row in others.select(tuned)],
        base=dataset.select(order[:used]),
        arms=dataset.select(order[used:]),
        vocab_size=dataset.manifest.tokenizer.vocab_size or count_ids(dataset.path, dataset.manifest.tree_hash),
        exposure=Exposure.from_record(dataset.manifest.exposure),
        table=loaded.table,
        left_out=len(dataset) - len(rest) - taken,
    )


def hold_out(dataset: PackedDataset, count: int, *, tune: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of `count` rows drawn by seed, of as many to tune on, and of the rest, int64 each, ascending.

    No two of the three share a document. With `tune`, at most half of all rows are measured; without, none are to tune.
    """
    row, document = find_documents(dataset.path, dataset.manifest.tree_hash)

    def leave_out(places: np.ndarray, taken: np.ndarray) -> np.ndarray:
        touched = row[np.isin(document, document[np.isin(row, taken)])]
        return places[~np.isin(places, touched) & ~np.isin(places, taken)]

    order = permutation(len(dataset), HELD_OUT_SEED, 0)
    count = min(count, max(len(dataset) // 2, 1)) if tune else count
    drawn = order[:count]
    rest = leave_out(order, drawn)
    tuned = rest[:count] if tune else rest[:0]
    return np.sort(drawn), np.sort(tuned), np.sort(leave_out(rest, tuned))


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
