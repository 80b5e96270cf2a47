"""The exact histogram of document lengths: how many documents of how many tokens each source has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.batches import TokenBatch
    from exact_prep.sources import SourceLabels

PENDING = 1 << 20
"""Documents that are kept apart before they are counted: 16 MB."""


class LengthHistogram:
    """Counts the documents of one task as their tokens come in. A document may come in several pieces."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all documents so far, finished or not."""
        self._counted = np.zeros((3, 0), np.int64)
        self._pending: list[np.ndarray] = []
        self._pending_size = 0
        self._open = 0
        """Tokens so far of a document that is not finished."""

    def add(self, batch: TokenBatch, labels: SourceLabels) -> None:
        """Count the documents that end in `batch`."""
        self.tokens += batch.ids.size
        if not batch.doc_ids.size:
            return
        # A piece ends its document unless another follows: in this batch, or in the next.
        lengths = batch.doc_offsets + np.diff(batch.offsets)
        last = np.ones(lengths.size, bool)
        last[:-1] = batch.doc_ids[1:] != batch.doc_ids[:-1]
        last[-1] = not batch.continues
        if not last.any():
            return
        sources = labels.find(batch.doc_ids[last]).astype(np.int64)
        self._pending.append(np.stack([sources, lengths[last], np.ones(sources.size, np.int64)]))
        self._pending_size += sources.size
        if self._pending_size >= PENDING:
            self._merge()

    def _merge(self) -> None:
        self._counted = sum_lengths([self._counted, *self._pending])
        self._pending, self._pending_size = [], 0

    def count_documents(self, sources: int) -> list[int]:
        """Documents of each of `sources` sources."""
        self._merge()
        return np.bincount(self._counted[0], self._counted[2], sources).astype(np.int64).tolist()

    def encode(self) -> bytes:
        """The histogram as bytes: source, length, count, each int64[N], little-endian."""
        self._merge()
        return self._counted.astype("<i8").tobytes()


def sum_lengths(parts: list[np.ndarray]) -> np.ndarray:
    """Histograms as one, int64[3, N]: source, length, count, sorted by source and length, each pair once."""
    source, length, count = np.concatenate(parts, axis=1)
    order = np.lexsort((length, source))
    source, length, count = source[order], length[order], count[order]
    fresh = np.ones(source.size, bool)
    fresh[1:] = (source[1:] != source[:-1]) | (length[1:] != length[:-1])
    first = np.flatnonzero(fresh)
    sums = np.add.reduceat(count, first) if first.size else count
    return np.stack([source[first], length[first], sums])


def decode_lengths(data: bytes, path: Path | str) -> np.ndarray:
    """The histogram in `data`, int64[3, N]; raises DatasetError."""
    if len(data) % 24:
        raise DatasetError(f"{path} is not a histogram of document lengths: {len(data)} bytes")
    return np.frombuffer(data, "<i8").astype(np.int64).reshape(3, -1)
