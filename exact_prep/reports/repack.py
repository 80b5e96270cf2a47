"""What rows would be like at another row length or packing, from the lengths of the documents alone.

Documents are taken in random order, within the tasks that share their sources. Concatenated rows of many documents need
no order: their exposure is a formula (`expect_concat`). Everything else is packed by the code that packs, on lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rows
from exact_prep.packing import PLANS, WINDOW_TOKENS, Pieces
from exact_prep.records.tables import read_numbers
from exact_prep.weighing.context import bucket_edges, find_bucket
from exact_prep.weighing.exposure import Exposure, measure_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.choices import Packing
    from exact_prep.dataset import Dataset
    from exact_prep.records.options import PackingOptions

EXACT_BELOW = 100_000
"""Concatenated rows of fewer documents are cut one by one: the formula knows no first row."""

SAMPLE = 1 << 20
"""Documents that are packed, at most; the rest of a larger corpus is taken to be like them."""

MOST_ORDERS = 16
"""Random orders whose mean is taken where documents are few."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Documents that share tasks, as a histogram of their lengths."""

    lengths: np.ndarray
    """Tokens of a document, BOS and EOS included, int64[N], ascending."""
    counts: np.ndarray
    """Documents of that length, int64[N]."""
    task_tokens: np.ndarray
    """Tokens of each task that packs them, int64[T], without padding."""

    @property
    def documents(self) -> int:
        """Documents in all."""
        return int(self.counts.sum())

    @property
    def tokens(self) -> int:
        """Tokens in all, without padding."""
        return int(self.task_tokens.sum())


@dataclass(frozen=True, kw_only=True)
class Repacked:
    """A corpus in other rows."""

    exposure: Exposure
    rows: int
    """Rows of padding alone included."""
    padding: int
    """Padding tokens."""
    cut: int
    """Documents that lie in more than one segment."""
    sample: Rows
    """Some of the rows: their segments, without tokens."""


def load_lengths(dataset: Dataset) -> list[Lengths]:
    """The document lengths of a dataset, apart for sources that no task packs together.

    Raises DatasetError, StorageError.
    """
    table, shards = dataset.table("document_lengths"), dataset.shards
    tasks = dataset.table("tasks").column("sources").to_pylist()
    tokens = np.bincount([shard.task for shard in shards], [shard.tokens for shard in shards], len(tasks))
    group = join_sources(tasks, dataset.manifest.sources)
    source, length, count = (read_numbers(table, name) for name in ("source", "length", "count"))
    task_group = np.array([group[labels[0]] if labels else -1 for labels in tasks])
    found = []
    for number in np.unique(group[source]).tolist():
        own = group[source] == number
        lengths, place = np.unique(length[own], return_inverse=True)
        counts = np.bincount(place, count[own], lengths.size).astype(np.int64)
        mine = tokens[task_group == number].astype(np.int64)
        found.append(Lengths(lengths=lengths, counts=counts, task_tokens=mine))
    return found


def join_sources(tasks: Sequence[Sequence[int]], sources: int) -> np.ndarray:
    """The group of each source, int64[sources]: sources in one task are in one group."""
    group = np.arange(sources)
    for labels in {tuple(sorted(labels)) for labels in tasks if labels}:
        members = group[list(labels)]
        group[np.isin(group, members)] = members.min()
    return group


def repack(parts: Sequence[Lengths], seq_len: int, packing: Packing, options: PackingOptions) -> Repacked:
    """The documents in rows of `seq_len` tokens; `options` are those of the dataset, for all that does not change."""
    done = [repack_part(part, seq_len, packing, options) for part in parts]
    rows = sum(one.rows for one in done)
    every = options.rows_multiple_of or 1
    alone = -rows % every
    return Repacked(
        exposure=sum((one.exposure for one in done), Exposure()),
        rows=rows + alone,
        padding=sum(one.padding for one in done) + alone * seq_len,
        cut=sum(one.cut for one in done),
        sample=join_rows([one.sample for one in done], [one.rows for one in done], seq_len),
    )


def repack_part(part: Lengths, seq_len: int, packing: Packing, options: PackingOptions) -> Repacked:
    """The same for documents that share tasks."""
    choose = np.random.default_rng(0)
    orders = 1
    if part.documents < EXACT_BELOW:
        orders = min(max(2 * EXACT_BELOW // max(part.documents, 1), 1), MOST_ORDERS)
    lengths, splits, cut = [], [], 0
    for _ in range(orders):
        for window in split_windows(part, draw_documents(part, choose), seq_len, packing, options):
            pieces = make_pieces(window)
            plan = PLANS[packing](pieces, seq_len, last=True, max_segments=options.max_segments)
            lengths.append(plan.segments.lengths.astype(np.int32))
            splits.append(plan.segments_per_row)
            cut += plan.cut
    sample = make_rows(np.concatenate(lengths), np.concatenate(splits), seq_len)
    scale = part.tokens / int(sample.seq_lengths.sum())
    rows = round(scale * len(sample))
    if packing == "concat" and options.max_segments is None:
        rows = int((-(-part.task_tokens // seq_len)).sum())
        if part.documents >= EXACT_BELOW:
            exposure, cut = expect_concat(part, seq_len)
            return Repacked(exposure=exposure, rows=rows, padding=rows * seq_len - part.tokens, cut=cut, sample=sample)
    rows = max(rows, -(-part.tokens // seq_len))
    return Repacked(
        exposure=scale_exposure(measure_lengths(sample.seq_lengths), scale),
        rows=rows,
        padding=rows * seq_len - part.tokens,
        cut=round(scale * cut),
        sample=sample,
    )


def expect_concat(part: Lengths, seq_len: int) -> tuple[Exposure, int]:
    """The exposure of documents laid end to end and cut at row edges, and how many are cut: what to expect.

    A document of n tokens whose place in the row is uniformly random has `(n + L - 2c - 1) / L` targets of context c,
    for c below n and L; it is cut with probability `min((n - 1) / L, 1)`.
    """
    n, h = part.lengths.astype(np.float64), part.counts.astype(np.float64)
    buckets = find_bucket(max(min(seq_len, int(part.lengths[-1])) - 1, 0)) + 1
    edges = bucket_edges(buckets).astype(np.float64)
    counts = np.zeros(buckets)
    for b in range(buckets):
        first = max(edges[b], 1.0)  # context 0 is the segments'
        stop = np.minimum(np.minimum(edges[b + 1], seq_len), n)
        contexts = np.maximum(stop - first, 0.0)
        counts[b] = h @ (contexts * (n + seq_len - 1 - (first + stop - 1)) / seq_len)
    segments = round(float(h @ (n + seq_len - 1)) / seq_len)
    exposure = Exposure(counts=np.rint(counts).astype(np.int64), segments=segments, firsts=segments)
    return exposure, round(float(h @ np.minimum((n - 1) / seq_len, 1.0)))


def draw_documents(part: Lengths, choose: np.random.Generator) -> np.ndarray:
    """Lengths of the documents in random order, int64[D]: all of them, or `SAMPLE` drawn without replacement."""
    counts = part.counts
    if part.documents > SAMPLE:
        counts = choose.multivariate_hypergeometric(counts, SAMPLE, method="marginals")
    return choose.permutation(np.repeat(part.lengths, counts))


def split_windows(
    part: Lengths, documents: np.ndarray, seq_len: int, packing: Packing, options: PackingOptions
) -> list[np.ndarray]:
    """The documents of each task, or of each window of it that best-fit looks at once."""
    starts = np.cumsum(documents) - documents
    ends = np.cumsum(part.task_tokens)
    task = np.minimum(np.searchsorted(ends, starts, side="right"), ends.size - 1)
    window = np.zeros(documents.size, np.int64)
    if packing == "best-fit":
        window = (starts - (ends - part.task_tokens)[task]) // (
            options.window_tokens or max(WINDOW_TOKENS, 64 * seq_len)
        )
    fresh = (np.diff(task) != 0) | (np.diff(window) != 0)
    return np.split(documents, np.flatnonzero(fresh) + 1)


def make_pieces(lengths: np.ndarray) -> Pieces:
    """Documents of these lengths as pieces without tokens."""
    return Pieces(
        ids=np.empty(0, np.int32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        doc_ids=np.arange(lengths.size),
        doc_offsets=np.zeros(lengths.size, np.int64),
    )


def make_rows(seq_lengths: np.ndarray, segments_per_row: np.ndarray, seq_len: int) -> Rows:
    """Rows of segments without tokens."""
    size = seq_lengths.size
    return Rows(
        input_ids=np.broadcast_to(np.int32(0), (segments_per_row.size, seq_len)),
        row_splits=np.concatenate([[0], np.cumsum(segments_per_row)]).astype(np.int32),
        seq_lengths=seq_lengths,
        doc_ids=np.zeros(size, np.int64),
        doc_offsets=np.zeros(size, np.int64),
        sources=np.zeros(size, np.int16),
    )


def join_rows(samples: Sequence[Rows], rows: Sequence[int], seq_len: int) -> Rows:
    """Samples as one, each with as many rows of it as are due to `rows[i]` rows of the corpus."""
    share = min(len(sample) / max(count, 1) for sample, count in zip(samples, rows, strict=True))
    kept = [
        sample.slice(0, min(max(round(share * count), 1), len(sample)))
        for sample, count in zip(samples, rows, strict=True)
    ]
    return make_rows(
        np.concatenate([one.seq_lengths for one in kept]),
        np.concatenate([np.diff(one.row_splits) for one in kept]),
        seq_len,
    )


def scale_exposure(exposure: Exposure, scale: float) -> Exposure:
    """The exposure of a corpus `scale` times as large, in whole targets."""
    segments = round(exposure.segments * scale)
    return Exposure(counts=np.rint(exposure.counts * scale).astype(np.int64), segments=segments, firsts=segments)
