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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from exact_prep.errors import DatasetError
from exact_prep.kernels.contexts import fill_by_left_context
from exact_prep.manifest import ALIGNMENT, FORMAT_VERSION, ShardRecord
from exact_prep.storage import digest, explained, mapped, sync_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.batches import PackedBatch

PLAIN_WEIGHT = np.float16(1).view(np.uint16)
"""What `pack` writes for every supervised target; the rest is 0."""

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
        return pa.ListArray.from_arrays(pa.array(splits), pa.array(values))

    def fixed(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
        flat = pa.Array.from_buffers(dtype, values.size, [None, pa.py_buffer(values)])
        return pa.FixedSizeListArray.from_arrays(flat, seq_len)

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
        with opened(self.path) as shard:
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
        return self.arrow.column(0).values.to_numpy(zero_copy_only=True).reshape(-1, self.seq_len)

    @cached_property
    def row_splits(self) -> np.ndarray:
        """Where each row's segments start and end in the batch's segments, int32[R + 1]."""
        return self.arrow.column(1).offsets.to_numpy(zero_copy_only=True)

    @cached_property
    def segments_per_row(self) -> np.ndarray:
        """int32[R]."""
        return np.diff(self.row_splits)

    @cached_property
    def seq_lengths(self) -> np.ndarray:
        """int32[S], row by row."""
        return self.arrow.column(1).values.to_numpy(zero_copy_only=True)

    @cached_property
    def doc_ids(self) -> np.ndarray:
        """int64[S]."""
        return self.arrow.column(2).values.to_numpy(zero_copy_only=True)

    @cached_property
    def doc_offsets(self) -> np.ndarray:
        """int64[S]."""
        return self.arrow.column(3).values.to_numpy(zero_copy_only=True)

    @cached_property
    def loss_weights(self) -> np.ndarray:
        """float16[R, L]."""
        return self.arrow.column(4).values.to_numpy(zero_copy_only=True).reshape(-1, self.seq_len)

    @property
    def weights_bytes(self) -> slice:
        """Where the values of `loss_weights` lie in the file."""
        return slice(self.weights_start, self.weights_start + 2 * self.rows * self.seq_len)


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory; views stay valid while it is open."""

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
        return digest(*(self.memory[start:stop] for start, stop in zip(starts, stops, strict=True)))

    def weights_digest(self) -> str:
        """xxh3-128 of the values of `loss_weights`."""
        return digest(*(self.memory[batch.weights_bytes] for batch in self.batches))

    def fill_weights(self, edges: np.ndarray, values: np.ndarray) -> str:
        """Overwrite `loss_weights` in place with runs by left context (`float16_runs`); returns their digest.

        The shard must be open for writing.
        """
        for batch in self.batches:
            out = np.frombuffer(self.memory[batch.weights_bytes], np.uint16).reshape(-1, self.seq_len)
            fill_by_left_context(batch.seq_lengths, batch.segments_per_row, edges, values, out)
        return self.weights_digest()


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[Shard]:
    """Map a shard; `writable` allows `fill_weights` and syncs on leaving.

    Raises StorageError if the file cannot be mapped, DatasetError if it is not a whole shard.
    """
    with mapped(path, writable=writable) as memory:
        try:
            shard = Shard(path, memory, *_batches(path, pa.py_buffer(memory)))
        except DatasetError:
            raise
        except (pa.ArrowException, OSError, IndexError, ValueError, KeyError) as error:
            raise DatasetError(f"{path} is not a whole exact-prep shard: {error}") from error
        yield shard


def _batches(path: Path, buffer: pa.Buffer) -> tuple[int, tuple[ShardBatch, ...]]:
    with pa.ipc.open_stream(buffer) as stream:
        names, ids = tuple(stream.schema.names), stream.schema.field(0).type
        seq_len = ids.list_size if isinstance(ids, pa.FixedSizeListType) else 0
        if names != COLUMNS or stream.schema != schema(max(seq_len, 1)):
            raise DatasetError(f"{path} has not the columns of an exact-prep shard: {stream.schema.to_string()}")
        batches = []
        for batch in stream:
            weights = batch.column(4).values
            batches.append(ShardBatch(batch, weights.buffers()[1].address - buffer.address, seq_len))
    return seq_len, tuple(batches)
