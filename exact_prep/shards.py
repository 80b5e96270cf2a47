"""The Arrow shard: its schema, the writer, and a mapped view of a written one. The only room that knows the columns.

A shard is an Arrow IPC stream without nulls, validity bitmaps or compression, so every column of every record batch
is a slice of the mapped file. `loss_weights` has its final size from the start: `weigh` overwrites values in place.

    input_ids     fixed_size_list<int32>[L]      padding = pad id
    seq_lengths   list<int32>                    lengths of the row's segments; the rest of the row is padding
    doc_ids       list<int64>                    per segment: the record's place in its task's input
    doc_offsets   list<int64>                    per segment: where it starts inside its document, in tokens
    loss_weights  fixed_size_list<float16>[L]    aligned with the target input_ids[t]
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from exact_prep.errors import DatasetError
from exact_prep.kernels.contexts import fill_by_left_context
from exact_prep.records.manifest import ALIGNMENT, FORMAT_VERSION, ShardRecord
from exact_prep.stores.local import digest, explained, mapped, read_blocks, sync_file
from exact_prep.zero_copy import arrow_view, numpy_view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.batches import PackedBatch

PLAIN_WEIGHT = np.float16(1).view(np.uint16)
"""What `pack` writes for every supervised target; the rest is 0."""

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

BLOCK_TOKENS = 1 << 17
"""Weights are made in blocks of this many (256 KB): they stay in the cache until they are written."""

COLUMNS = ("input_ids", "seq_lengths", "doc_ids", "doc_offsets", "loss_weights")


def features(seq_len: int) -> dict[str, Any]:
    """The Hugging Face `Features` of the schema, as `dataset_info.json` spells them."""

    def fixed(dtype: str) -> dict[str, Any]:
        return {"feature": {"dtype": dtype, "_type": "Value"}, "length": seq_len, "_type": "List"}

    def variable(dtype: str) -> dict[str, Any]:
        return {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "List"}

    return {
        "input_ids": fixed("int32"),
        "seq_lengths": variable("int32"),
        "doc_ids": variable("int64"),
        "doc_offsets": variable("int64"),
        "loss_weights": fixed("float16"),
    }


def schema(seq_len: int) -> pa.Schema:
    """The Arrow schema of rows of `seq_len` tokens; alignment and features are stated in its metadata."""
    fields = {
        "input_ids": pa.list_(pa.int32(), seq_len),
        "seq_lengths": pa.list_(pa.int32()),
        "doc_ids": pa.list_(pa.int64()),
        "doc_offsets": pa.list_(pa.int64()),
        "loss_weights": pa.list_(pa.float16(), seq_len),
    }
    metadata = {
        "exact_prep": json.dumps({"format_version": FORMAT_VERSION, "loss_weights_alignment": ALIGNMENT}),
        "huggingface": json.dumps({"info": {"features": features(seq_len)}}),
    }
    return pa.schema([pa.field(name, dtype) for name, dtype in fields.items()], metadata=metadata)


def runs_of_plain_weights(seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain weights as runs by left context: 0 for a segment's first token, 1 for the others."""
    return np.array([0, 1, seq_len], np.int32), np.array([0, PLAIN_WEIGHT], np.uint16)


def record_batch(batch: PackedBatch) -> pa.RecordBatch:
    """The Arrow form of a batch, plain weights included; `input_ids` is not copied."""
    rows, seq_len = batch.input_ids.shape
    weights = np.empty((rows, seq_len), np.uint16)
    fill_by_left_context(batch.seq_lengths, batch.segments_per_row, *runs_of_plain_weights(seq_len), weights)
    splits = np.zeros(rows + 1, np.int32)
    np.cumsum(batch.segments_per_row, out=splits[1:])

    def variable(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(arrow_view(splits), arrow_view(values))

    def fixed(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(arrow_view(values, dtype), seq_len)

    arrays = [
        fixed(batch.input_ids, pa.int32()),
        variable(batch.seq_lengths),
        variable(batch.doc_ids),
        variable(batch.doc_offsets),
        fixed(weights, pa.float16()),
    ]
    return pa.record_batch(arrays, schema=schema(seq_len))


class ShardWriter:
    """Writes one shard; `close` syncs it and returns its record. The caller publishes the file."""

    def __init__(self, path: Path, seq_len: int) -> None:
        self.path = path
        self.bytes = 0
        """Bytes of columns written so far."""
        self._counts = np.zeros(3, np.int64)
        with explained("write", path):
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_stream(self._sink, schema(seq_len))

    def write(self, batch: PackedBatch) -> None:
        """Append the rows of `batch` as one record batch; raises StorageError."""
        table = record_batch(batch)
        with explained("write", self.path):
            self._writer.write_batch(table)
        self.bytes += table.nbytes
        self._counts += (batch.input_ids.shape[0], batch.seq_lengths.size, batch.seq_lengths.sum(dtype=np.int64))

    def close(self, *, file: str, task: int) -> ShardRecord:
        """Finish and sync the file, and read it back for its checksums; raises StorageError."""
        with explained("write", self.path):
            self._writer.close()
            self._sink.close()
        sync_file(self.path)
        rows, segments, tokens = self._counts.tolist()
        shard = opened(self.path)
        return ShardRecord(
            file=file,
            task=task,
            rows=rows,
            segments=segments,
            tokens=tokens,
            bytes=shard.memory.nbytes,
            content_xxh3=shard.content_digest(),
            weights_xxh3=shard.weights_digest(),
        )

    def abandon(self) -> None:
        """Let go of the file without finishing it."""
        # On a full disk closing fails as well, and would hide why it is abandoned.
        with suppress(OSError):
            self._sink.close()


@dataclass(frozen=True)
class ShardBatch:
    """One record batch of a mapped shard, as NumPy views of the file: nothing is copied."""

    arrow: pa.RecordBatch
    weights_start: int
    """Where the values of `loss_weights` start in the file."""
    seq_len: int

    @property
    def rows(self) -> int:
        """Rows in the batch."""
        return self.arrow.num_rows

    @cached_property
    def input_ids(self) -> np.ndarray:
        """int32[R, L]."""
        return numpy_view(self.arrow.column(0).values).reshape(-1, self.seq_len)

    @cached_property
    def row_splits(self) -> np.ndarray:
        """Where each row's segments start and end in the batch's segments, int32[R + 1]."""
        return numpy_view(self.arrow.column(1).offsets)

    @cached_property
    def segments_per_row(self) -> np.ndarray:
        """int32[R]."""
        return np.diff(self.row_splits)

    @cached_property
    def seq_lengths(self) -> np.ndarray:
        """int32[S], row by row."""
        return numpy_view(self.arrow.column(1).values)

    @cached_property
    def doc_ids(self) -> np.ndarray:
        """int64[S]."""
        return numpy_view(self.arrow.column(2).values)

    @cached_property
    def doc_offsets(self) -> np.ndarray:
        """int64[S]."""
        return numpy_view(self.arrow.column(3).values)

    @cached_property
    def loss_weights(self) -> np.ndarray:
        """float16[R, L]."""
        return numpy_view(self.arrow.column(4).values).reshape(-1, self.seq_len)

    @property
    def weights_bytes(self) -> slice:
        """Where the values of `loss_weights` lie in the file."""
        return slice(self.weights_start, self.weights_start + 2 * self.rows * self.seq_len)


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory; the map lives as long as any view of it."""

    path: Path
    memory: memoryview
    """The whole file."""
    seq_len: int
    batches: tuple[ShardBatch, ...]

    def content_digest(self) -> str:
        """xxh3-128 of every byte but the values of `loss_weights`."""
        cuts = [batch.weights_bytes for batch in self.batches]
        starts = [0, *(cut.stop for cut in cuts)]
        stops = [*(cut.start for cut in cuts), self.memory.nbytes]
        return digest(read_blocks(self.path, map(slice, starts, stops)))

    def weights_digest(self) -> str:
        """xxh3-128 of the values of `loss_weights`."""
        return digest(read_blocks(self.path, (batch.weights_bytes for batch in self.batches)))

    def weights_by_left_context(self, edges: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """What `loss_weights` holds if it is made of runs by left context (`float16_runs`), block by block.

        Yields where a block starts in the file and its values uint16[R, L], in a buffer that the next block reuses.
        """
        step = max(BLOCK_TOKENS // self.seq_len, 1)
        buffer = np.empty((step, self.seq_len), np.uint16)
        for batch in self.batches:
            splits = batch.row_splits
            for row in range(0, batch.rows, step):
                per_row = batch.segments_per_row[row : row + step]
                lengths = batch.seq_lengths[splits[row] : splits[row + per_row.size]]
                block = buffer[: per_row.size]
                fill_by_left_context(lengths, per_row, edges, values, block)
                yield batch.weights_start + 2 * row * self.seq_len, block


def overwrite_weights(path: Path, edges: np.ndarray, values: np.ndarray) -> str:
    """Overwrite `loss_weights` of a shard in place with runs by left context, synced; returns their digest.

    Blocks are made in a buffer that stays in the cache, digested and written from there: half the CPU of filling a
    writable map, which faults on every page. Raises StorageError, DatasetError.
    """
    shard = opened(path)
    with explained("write", path), path.open("r+b", buffering=0) as file:

        def written() -> Iterator[memoryview]:
            for position, block in shard.weights_by_left_context(edges, values):
                file.seek(position)
                rest = block.data.cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                yield block.data

        checksum = digest(written())
        os.fsync(file.fileno())
    return checksum


def opened(path: Path) -> Shard:
    """Map a shard. Raises StorageError if the file cannot be mapped, DatasetError if it is not a whole shard."""
    memory = mapped(path)
    try:
        return Shard(path, memory, *_batches(path, pa.py_buffer(memory)))
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, IndexError, ValueError, KeyError, OverflowError) as error:
        raise DatasetError(f"{path} is not a whole exact-prep shard: {error}") from error


def _batches(path: Path, buffer: pa.Buffer) -> tuple[int, tuple[ShardBatch, ...]]:
    if buffer.size < 8 or bytes(memoryview(buffer)[-8:]) != END_OF_STREAM:
        raise DatasetError(f"{path} is not a whole exact-prep shard: it does not end as an Arrow stream does")
    with pa.ipc.open_stream(buffer) as stream:
        names, ids = tuple(stream.schema.names), stream.schema.field(0).type
        seq_len = ids.list_size if isinstance(ids, pa.FixedSizeListType) else 0
        if names != COLUMNS or stream.schema != schema(max(seq_len, 1)):
            raise DatasetError(f"{path} has not the columns of an exact-prep shard: {stream.schema.to_string()}")
        batches = []
        for batch in stream:
            batch.validate(full=True)
            if not _is_plain(batch, seq_len):
                raise DatasetError(f"{path} is not a whole exact-prep shard: nulls, or lists of unequal length")
            start = batch.column(4).values.buffers()[1].address - buffer.address
            # Elsewhere if the batch is compressed; `weigh` writes to this place.
            if not 0 <= start <= buffer.size - 2 * batch.num_rows * seq_len:
                raise DatasetError(
                    f"{path} is not a whole exact-prep shard: its weights are not in the file as they are"
                )
            batches.append(ShardBatch(batch, start, seq_len))
    return seq_len, tuple(batches)


def _is_plain(batch: pa.RecordBatch, seq_len: int) -> bool:
    """Whether columns have no nulls, rows are full, and the three lists are as long as each other in every row.

    Kernels rely on it: they do not check bounds.
    """
    columns = batch.columns
    splits = columns[1].offsets
    return (
        all(column.offset == 0 and column.null_count == column.values.null_count == 0 for column in columns)
        and all(len(columns[at].values) == batch.num_rows * seq_len for at in (0, 4))
        and all(lists.offsets.equals(splits) and len(lists.values) == splits[-1].as_py() for lists in columns[1:4])
        and splits[0].as_py() == 0
    )
