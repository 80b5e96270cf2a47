"""Rows of a dataset in a store, by ranges: where the columns of each record batch lie is in the table of batches.

Two requests give a row (three with a stored column of weights), and the rows after it come with it: the more, the
longer rows are read in order. The next ones are asked for while these are used.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exact_prep.batches import Rows
from exact_prep.errors import DatasetError
from exact_prep.shards import find_fault

if TYPE_CHECKING:
    from concurrent.futures import Future

    from exact_prep.dataset import Dataset
    from exact_prep.records.work import BatchRecord
    from exact_prep.stores.objects import ObjectStore

FIRST_BYTES, LARGEST_BYTES = 1 << 18, 8 << 20
"""Bytes of ids that are asked for at once: of a row out of order, and of many in order, each time twice as many."""

BLOCKS_HELD = 16
"""Blocks of rows that are kept: 128 MiB of ids at most, 192 MiB with weights."""

HEADS_HELD = 256
"""Record batches whose segments are kept: some 100 KB each, for documents of a thousand tokens."""


class Head(NamedTuple):
    """The columns of a record batch that say where its segments are."""

    row_splits: np.ndarray
    columns: dict[str, np.ndarray]
    mask_splits: np.ndarray | None
    masked_runs: np.ndarray | None


class RangeReader:
    """Reads rows of a dataset by their numbers. Threads may share it; it is not sent to other processes."""

    def __init__(self, files: Dataset, *, etags: dict[str, str], weights: bool) -> None:
        """`etags` of the shards, as they were found; `weights`: the stored column is read too."""
        self._store: ObjectStore = files.store  # pyright: ignore[reportAttributeAccessIssue]
        self._seq_len = files.manifest.seq_len
        self._etags, self._weights = etags, weights
        self._batches: list[tuple[str, BatchRecord]] = [
            (shard.file, batch) for shard, own in zip(files.shards, files.batches(), strict=True) for batch in own
        ]
        self._first = np.cumsum([0, *(batch.rows for _, batch in self._batches)])
        if self._first[-1] != files.manifest.rows:
            raise DatasetError(
                f"{files.path}: the table of batches has {self._first[-1]:,} rows, the manifest says "
                f"{files.manifest.rows:,}; copy the dataset again"
            )
        self._heads: OrderedDict[int, Head] = OrderedDict()
        self._blocks: OrderedDict[int, Rows] = OrderedDict()
        """By number of their first row."""
        self._expected = -1
        """The row after the block that was made last."""
        self._count = 0
        """Rows of that block."""
        self._next: tuple[int, Future[Rows]] | None = None
        self._worker = ThreadPoolExecutor(1)

    def read(self, number: int) -> Rows:
        """One row; raises StorageError, DatasetError."""
        for first, block in reversed(list(self._blocks.items())):
            if first <= number < first + len(block):
                return block.slice(number - first, number - first + 1)
        waiting, follows = self._next, number == self._expected
        self._next = None
        if waiting is not None and waiting[0] == number:
            block = waiting[1].result()
        else:
            self._count = self._size(number, 0)
            block = self._load(number, self._count)
        self._blocks[number] = block
        while len(self._blocks) > BLOCKS_HELD:
            self._blocks.popitem(last=False)
        self._expected = after = number + len(block)
        if follows and after < self._first[-1]:
            self._count = count = self._size(after, self._count)
            self._next = after, self._worker.submit(self._load, after, count)
        return block.slice(0, 1)

    def _size(self, number: int, before: int) -> int:
        """Rows to ask for from `number` on, after a block of `before` rows that came in order; 0: out of order."""
        wanted = 4 * self._seq_len
        most, least = max(LARGEST_BYTES // wanted, 1), max(FIRST_BYTES // wanted, 1)
        return min(max(2 * before, least), most)

    def _load(self, number: int, count: int) -> Rows:
        """At most `count` rows from `number` on, of one record batch."""
        index = int(np.searchsorted(self._first, number, side="right")) - 1
        file, batch = self._batches[index]
        start = number - int(self._first[index])
        stop = min(start + count, batch.rows)
        head = self._head(index)
        splits = head.row_splits[start : stop + 1]
        segments = slice(int(splits[0]), int(splits[-1]))
        mask_splits = masked_runs = None
        if head.mask_splits is not None and head.masked_runs is not None:
            mask_splits = head.mask_splits[start : stop + 1]
            masked_runs = head.masked_runs[int(mask_splits[0]) : int(mask_splits[-1])]
            mask_splits = mask_splits - mask_splits[0]
        weights = None
        if self._weights and batch.loss_weights is not None:
            weights = self._matrix(file, batch.loss_weights, start, stop, np.dtype(np.float16))
        rows = Rows(
            input_ids=self._matrix(file, batch.input_ids, start, stop, np.dtype(np.int32)),
            row_splits=splits - splits[0],
            **{name: column[segments] for name, column in head.columns.items()},
            mask_splits=mask_splits,
            masked_runs=masked_runs,
            loss_weights=weights,
        )
        if fault := find_fault(rows) or find_long_row(rows):
            raise self._damaged(file, fault)
        return rows

    def _matrix(self, file: str, offset: int, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
        """Some rows of a column with a value per token, [R, L]."""
        row = self._seq_len * dtype.itemsize
        return np.frombuffer(self._bytes(file, offset + start * row, offset + stop * row), dtype).reshape(
            -1, self._seq_len
        )

    def _head(self, index: int) -> Head:
        """The segments of a record batch."""
        if (known := self._heads.get(index)) is not None:
            return known
        file, batch = self._batches[index]
        # They lie between the ids and the weights: one range holds them all.
        start = (batch.input_ids + 4 * self._seq_len * batch.rows) // 8 * 8
        sizes = {"seq_lengths": np.int32, "doc_ids": np.int64, "doc_offsets": np.int64, "sources": np.int16}
        ends = [getattr(batch, name) + np.dtype(kind).itemsize * batch.segments for name, kind in sizes.items()]
        ends.append(batch.row_splits + 4 * (batch.rows + 1))
        if batch.mask_splits is not None:
            ends.append(batch.mask_splits + 4 * (batch.rows + 1))
        data = self._bytes(file, start, max(ends))

        def column(offset: int, count: int, kind: type) -> np.ndarray:
            if not count:
                return np.empty(0, kind)
            if offset < start:
                raise self._damaged(file, "its columns are in another order")
            return np.frombuffer(data, kind, count, offset - start)

        splits = column(batch.row_splits, batch.rows + 1, np.int32)
        self._check_splits(file, splits, batch.segments)
        mask_splits = masked_runs = None
        if batch.mask_splits is not None and batch.masked_runs is not None:
            mask_splits = column(batch.mask_splits, batch.rows + 1, np.int32)
            count = int(mask_splits[-1])
            self._check_splits(file, mask_splits, count)
            runs = self._bytes(file, batch.masked_runs, batch.masked_runs + 4 * count)
            masked_runs = np.frombuffer(runs, np.int32)
        columns = {name: column(getattr(batch, name), batch.segments, kind) for name, kind in sizes.items()}
        self._heads[index] = head = Head(splits, columns, mask_splits, masked_runs)
        while len(self._heads) > HEADS_HELD:
            self._heads.popitem(last=False)
        return head

    def _check_splits(self, file: str, splits: np.ndarray, last: int) -> None:
        """Raise DatasetError for splits that would point elsewhere."""
        if splits[0] != 0 or splits[-1] != last or (np.diff(splits) < 0).any():
            raise self._damaged(file, "its rows do not have the segments that the table of batches says")

    def _bytes(self, file: str, start: int, stop: int) -> bytes:
        """A range of a shard as it was when the dataset was opened."""
        data = self._store.read_range(file, start, stop, etag=self._etags[file])
        if len(data) != stop - start:
            raise self._damaged(file, "it ends too early")
        return data

    def _damaged(self, file: str, fault: str) -> DatasetError:
        """The error for a shard that is not what its tables say."""
        return DatasetError(f"{self._store.url}/{file} is damaged: {fault}; run `exact-prep verify {self._store.url}`")


def find_long_row(rows: Rows) -> str:
    """What is wrong with the lengths of segments; empty if nothing is. Kernels rely on them."""
    if (rows.seq_lengths < 1).any():
        return "a segment without tokens"
    ends = np.concatenate([[0], np.cumsum(rows.seq_lengths, dtype=np.int64)])[rows.row_splits]
    return "segments that are longer than their row" if (np.diff(ends) > rows.seq_len).any() else ""
