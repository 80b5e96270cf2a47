"""The Arrow shard: its schema, the writer, and a mapped view of a written one. Only this file knows the columns.

A shard is an Arrow IPC stream without nulls, validity bitmaps or compression, so every column of every record batch
is a slice of the mapped file. `loss_weights` has its final size from the start: `weigh` overwrites values in place.

    input_ids     fixed_size_list<int32>[L]      padding = pad id
    seq_lengths   list<int32>                    lengths of the row's segments; the rest of the row is padding
    doc_ids       list<int64>                    per segment: the record's place in its task's input
    doc_offsets   list<int64>                    per segment: where it starts inside its document, in tokens
    sources       list<int16>                    per segment: place in the label list of its task
    masked_runs   list<int32>                    start and stop, in turn, of targets without loss; in masked datasets
    loss_weights  fixed_size_list<float16>[L]    aligned with the target input_ids[t]; not under `--loss-weights table`

Three checksums cover every byte: `content_xxh3` the splits and values of input_ids, seq_lengths, doc_ids, doc_offsets
and masked_runs, which are the same with and without weights; `weights_xxh3` the values of loss_weights; `rest_xxh3` all
other bytes. Columns that a later minor version adds are in the rest, and are ignored.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from exact_prep.batches import Rows
from exact_prep.errors import DatasetError
from exact_prep.kernels.contexts import clear_runs, fill_by_position
from exact_prep.records import ALIGNMENT, MAJOR
from exact_prep.records.work import BatchRecord, ShardRecord
from exact_prep.stores.local import digest, explained, map_file, read_blocks, sync_file
from exact_prep.weighing.exposure import find_segments
from exact_prep.weighing.weights import plain_runs
from exact_prep.zero_copy import as_arrow, as_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exact_prep.stores.paths import Home

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

BATCH_TOKENS = 1 << 22
"""Tokens per record batch: 16 MB of ids, 8 MB of weights. Few headers, and a store can rewrite weights by parts."""

BLOCK_TOKENS = 1 << 17
"""Weights are made in blocks of this many (256 KB): they stay in the cache until they are written."""

PER_SEGMENT = {"seq_lengths": pa.int32(), "doc_ids": pa.int64(), "doc_offsets": pa.int64(), "sources": pa.int16()}
"""The columns with a value per segment; they have equal splits."""


def column_types(seq_len: int, *, masked: bool, weights: bool) -> dict[str, pa.DataType]:
    """The columns in their order, with their Arrow types."""
    types: dict[str, pa.DataType] = {"input_ids": pa.list_(pa.int32(), seq_len)}
    types |= {name: pa.list_(dtype) for name, dtype in PER_SEGMENT.items()}
    if masked:
        types["masked_runs"] = pa.list_(pa.int32())
    if weights:
        types["loss_weights"] = pa.list_(pa.float16(), seq_len)
    return types


def features(seq_len: int, *, masked: bool, weights: bool) -> dict[str, Any]:
    """The Hugging Face `Features` of the schema, as `dataset_info.json` spells them."""
    spelled = {}
    for name, kind in column_types(seq_len, masked=masked, weights=weights).items():
        dtype = "float16" if kind.value_type == pa.float16() else str(kind.value_type)
        spelled[name] = {"feature": {"dtype": dtype, "_type": "Value"}, "_type": "List"}
        if isinstance(kind, pa.FixedSizeListType):
            spelled[name]["length"] = seq_len
    return spelled


def schema(seq_len: int, *, masked: bool = False, weights: bool = True) -> pa.Schema:
    """The Arrow schema of rows of `seq_len` tokens; alignment and features are stated in its metadata."""
    metadata = {
        "exact_prep": json.dumps({"format_version": MAJOR, "loss_weights_alignment": ALIGNMENT}),
        "huggingface": json.dumps({"info": {"features": features(seq_len, masked=masked, weights=weights)}}),
    }
    types = column_types(seq_len, masked=masked, weights=weights)
    return pa.schema([pa.field(name, dtype) for name, dtype in types.items()], metadata=metadata)


def record_batch(rows: Rows, weights: np.ndarray | None) -> pa.RecordBatch:
    """The Arrow form of rows; `weights[R, L]` are bit patterns, uint16. Nothing is copied."""
    seq_len = rows.seq_len

    def variable(values: np.ndarray, splits: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(as_arrow(splits), as_arrow(values))

    def fixed(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(as_arrow(values, dtype), seq_len)

    arrays = [fixed(rows.input_ids, pa.int32())]
    arrays += [variable(getattr(rows, name), rows.row_splits) for name in PER_SEGMENT]
    masked = rows.mask_splits is not None and rows.masked_runs is not None
    if rows.mask_splits is not None and rows.masked_runs is not None:
        arrays.append(variable(rows.masked_runs, rows.mask_splits))
    if weights is not None:
        arrays.append(fixed(weights, pa.float16()))
    return pa.record_batch(arrays, schema=schema(seq_len, masked=masked, weights=weights is not None))


class ShardWriter:
    """Writes one shard: rows in record batches of BATCH_TOKENS tokens, all but the last full.

    `close` syncs the file and returns its record. The caller publishes the file.
    """

    def __init__(self, path: Path, seq_len: int, *, masked: bool = False, weights: bool = True) -> None:
        self.path = path
        self.bytes = 0
        """Bytes of columns written so far."""
        self._masked, self._weights = masked, weights
        self._content, self._weights_hash = xxhash.xxh3_128(), xxhash.xxh3_128()
        self._counts = np.zeros(3, np.int64)
        self._ids = np.empty((max(BATCH_TOKENS // seq_len, 1), seq_len), np.int32)
        """Rows that wait for their record batch to be full; the buffers are used again and again."""
        self._bits = np.empty_like(self._ids, np.uint16) if weights else None
        self._waiting: list[Rows] = []
        """Their other columns."""
        self._filled = 0
        with explained("write", path):
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_stream(self._sink, schema(seq_len, masked=masked, weights=weights))

    def write(self, rows: Rows) -> None:
        """Append rows; raises StorageError."""
        done = 0
        while done < len(rows):
            part = rows.slice(done, done + len(self._ids) - self._filled)
            self._ids[self._filled : self._filled + len(part)] = part.input_ids
            # Without their ids, which are copied: views would keep the packer's arrays alive.
            self._waiting.append(replace(part, input_ids=self._ids[:0]))
            self._filled += len(part)
            done += len(part)
            if self._filled == len(self._ids):
                self._flush()

    def _flush(self) -> None:
        """Write the waiting rows as one record batch."""
        if not self._filled:
            return
        rows = join_rows(self._ids[: self._filled], self._waiting)
        weights = None
        if self._bits is not None:
            weights = self._bits[: self._filled]
            fill_weights(rows, *plain_runs(rows.seq_len), weights)
            self._weights_hash.update(weights.data)
        for part in content_parts(rows):
            self._content.update(part.data)
        batch = record_batch(rows, weights)
        with explained("write", self.path):
            self._writer.write_batch(batch)
        self.bytes += batch.nbytes
        self._counts += (len(rows), rows.seq_lengths.size, rows.seq_lengths.sum(dtype=np.int64))
        self._waiting, self._filled = [], 0

    def close(self, *, file: str, task: int) -> ShardRecord:
        """Finish and sync the file; its record. Raises StorageError.

        Content and weights were hashed as they were written; what Arrow put around them is read back.
        """
        self._flush()
        with explained("write", self.path):
            self._writer.close()
            self._sink.close()
        sync_file(self.path)
        rows, segments, tokens = self._counts.tolist()
        shard = open_shard(self.path)
        return ShardRecord(
            file=file,
            task=task,
            rows=rows,
            segments=segments,
            tokens=tokens,
            bytes=shard.memory.nbytes,
            content_xxh3=self._content.hexdigest(),
            rest_xxh3=shard.rest_digest(),
            weights_xxh3=self._weights_hash.hexdigest() if self._weights else None,
            batches=shard.places,
        )

    def abandon(self) -> None:
        """Close the file without finishing it, and remove it."""
        # On a full disk closing fails as well, and would hide why the file is abandoned.
        with suppress(OSError):
            self._sink.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def join_rows(input_ids: np.ndarray, parts: Sequence[Rows]) -> Rows:
    """The columns of `parts` end to end, over their joined `input_ids[R, L]`."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def splits(name: str) -> np.ndarray:
        sizes = np.concatenate([np.diff(getattr(part, name)) for part in parts])
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    masked = parts[0].mask_splits is not None
    return Rows(
        input_ids=input_ids,
        row_splits=splits("row_splits"),
        seq_lengths=joined("seq_lengths"),
        doc_ids=joined("doc_ids"),
        doc_offsets=joined("doc_offsets"),
        sources=joined("sources"),
        mask_splits=splits("mask_splits") if masked else None,
        masked_runs=joined("masked_runs") if masked else None,
    )


def fill_weights(rows: Rows, edges: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """Write to `out[R, L]` (uint16, bit patterns of float16) the weights of rows: lut by position, 0 where masked.

    `edges[K + 1]` and `values[K]` are runs by position, see `weighing.weights.float16_runs`.
    """
    fill_by_position(rows.seq_lengths, rows.row_splits, edges, values, out)
    if rows.mask_splits is not None and rows.masked_runs is not None:
        clear_runs(rows.masked_runs, rows.mask_splits, out)


def content_parts(rows: Rows) -> Iterator[np.ndarray]:
    """What `content_xxh3` covers of one record batch, in order: splits, then values, of every column."""
    yield np.ascontiguousarray(rows.input_ids)
    for name in ("seq_lengths", "doc_ids", "doc_offsets"):
        yield rows.row_splits
        yield getattr(rows, name)
    if rows.mask_splits is not None and rows.masked_runs is not None:
        yield rows.mask_splits
        yield rows.masked_runs


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory; the map lives as long as any view of it."""

    path: Home
    memory: memoryview
    """The whole file."""
    seq_len: int
    batches: tuple[Rows, ...]
    """Its record batches, as views of the file: nothing is copied."""
    places: tuple[BatchRecord, ...]
    """Where the buffers of each record batch lie in the file."""
    content: tuple[slice, ...]
    """The bytes that `content_xxh3` covers, in order."""
    has_weights: bool
    """Whether there is a column `loss_weights`."""

    @property
    def weights(self) -> tuple[slice, ...]:
        """Where the values of `loss_weights` lie in the file, batch by batch; empty if there is no such column."""
        size = 2 * self.seq_len
        return tuple(
            slice(place.loss_weights, place.loss_weights + place.rows * size)
            for place in self.places
            if place.loss_weights is not None
        )

    def content_digest(self) -> str:
        """xxh3-128 of splits and values of all columns but `sources` and `loss_weights`."""
        return digest(self._read(self.content))

    def weights_digest(self) -> str | None:
        """xxh3-128 of the values of `loss_weights`; None if there is no such column."""
        return digest(self._read(self.weights)) if self.has_weights else None

    def rest_digest(self) -> str:
        """xxh3-128 of every byte that the other two checksums leave out."""
        covered = sorted([*self.content, *self.weights], key=lambda part: (part.start, part.stop))
        starts = [0, *(part.stop for part in covered)]
        stops = [*(part.start for part in covered), self.memory.nbytes]
        return digest(self._read(map(slice, starts, stops)))

    def _read(self, ranges: Iterable[slice]) -> Iterator[memoryview]:
        """Some ranges of the file; of an object, from its copy."""
        if isinstance(self.path, Path):
            return read_blocks(self.path, ranges)
        return (self.memory[part] for part in ranges)

    def expected_weights(self, edges: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """What `loss_weights` holds if it is made of runs by position (`float16_runs`), block by block.

        Yields a block's first row in the shard, where it starts in the file, and its values uint16[R, L], in a buffer
        that the next block uses again. Nothing, if there is no such column.
        """
        step = max(BLOCK_TOKENS // self.seq_len, 1)
        buffer = np.empty((step, self.seq_len), np.uint16)
        first = 0
        for batch, place in zip(self.batches, self.places, strict=True):
            if place.loss_weights is not None:
                for row in range(0, len(batch), step):
                    part = batch.slice(row, row + step)
                    block = buffer[: len(part)]
                    fill_weights(part, edges, values, block)
                    yield first + row, place.loss_weights + 2 * row * self.seq_len, block
            first += len(batch)


def overwrite_weights(path: Path, edges: np.ndarray, values: np.ndarray) -> str:
    """Overwrite `loss_weights` of a shard in place with runs by position, synced; their digest.

    Blocks are made in a buffer that stays in the cache, digested and written from there: half the CPU of filling a
    writable map, which faults on every page. Raises StorageError, DatasetError.
    """
    shard = open_shard(path)
    with explained("write", path), path.open("r+b", buffering=0) as file:

        def written() -> Iterator[memoryview]:
            for _, position, block in shard.expected_weights(edges, values):
                file.seek(position)
                rest = block.data.cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
                yield block.data

        checksum = digest(written())
        os.fsync(file.fileno())
    return checksum


def open_shard(path: Home) -> Shard:
    """Map a shard. Raises StorageError if the file cannot be mapped, DatasetError if it is not a complete shard."""
    memory = map_file(path)
    try:
        return _read_stream(path, memory)
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, IndexError, ValueError, KeyError, OverflowError, TypeError) as error:
        raise DatasetError(f"{path} is not a complete exact-prep shard: {error}") from error


def _read_stream(path: Home, memory: memoryview) -> Shard:
    buffer = pa.py_buffer(memory)
    if buffer.size < 8 or bytes(memory[-8:]) != END_OF_STREAM:
        raise DatasetError(f"{path} is not a complete exact-prep shard: it does not end as an Arrow stream does")
    batches: list[Rows] = []
    places: list[BatchRecord] = []
    content: list[slice] = []
    with pa.ipc.open_stream(buffer) as stream:
        seq_len, names = _check_schema(path, stream.schema), stream.schema.names
        for batch in stream:
            batch.validate(full=True)
            columns = dict(zip(names, batch.columns, strict=True))
            if not _is_plain(columns, batch.num_rows, seq_len):
                raise DatasetError(f"{path} is not a complete exact-prep shard: nulls, or lists of unequal length")
            batches.append(_view(columns, seq_len))
            if fault := find_fault(batches[-1]):
                raise DatasetError(f"{path} is not a complete exact-prep shard: {fault}")
            place, parts = _place(columns, buffer, batches[-1])
            places.append(place)
            content += parts
    return Shard(path, memory, seq_len, tuple(batches), tuple(places), tuple(content), "loss_weights" in names)


def _check_schema(path: Home, found: pa.Schema) -> int:
    """The row length of a shard's schema; raises DatasetError for other columns or another format version."""
    metadata = json.loads((found.metadata or {}).get(b"exact_prep", b"null"))
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version is not None and version != MAJOR:
        raise DatasetError(f"{path} is a shard of format {version}, this exact-prep reads format {MAJOR}; pack again")
    seq_len = 0
    if found.names.count("input_ids") == 1 and isinstance(ids := found.field("input_ids").type, pa.FixedSizeListType):
        seq_len = ids.list_size
    wanted = column_types(max(seq_len, 1), masked="masked_runs" in found.names, weights="loss_weights" in found.names)
    known = {name: found.field(name).type for name in wanted if found.names.count(name) == 1}
    if known != wanted or version is None or metadata.get("loss_weights_alignment") != ALIGNMENT:
        raise DatasetError(f"{path} does not have the columns of an exact-prep shard: {found.to_string()}")
    return seq_len


def _is_plain(columns: dict[str, pa.Array], rows: int, seq_len: int) -> bool:
    """Whether columns have no nulls, rows are full, and the lists per segment are equally long in every row.

    Kernels rely on it: they do not check bounds.
    """
    splits = columns["seq_lengths"].offsets
    known = [columns[name] for name in ("input_ids", *PER_SEGMENT, "masked_runs", "loss_weights") if name in columns]
    whole = all(column.offset == 0 and column.null_count == column.values.null_count == 0 for column in known)
    full = all(len(columns[name].values) == rows * seq_len for name in ("input_ids", "loss_weights") if name in columns)
    lists = [columns[name] for name in PER_SEGMENT]
    equal = all(own.offsets.equals(splits) and len(own.values) == splits[-1].as_py() for own in lists)
    return whole and full and equal and splits[0].as_py() == 0


def find_fault(rows: Rows) -> str:
    """What is wrong with the sources and masked runs of rows; empty if nothing is. Kernels rely on both.

    Masked runs are pairs in order, each inside one segment. Two that touch are one run, unless a segment ends between
    them.
    """
    if rows.sources.size and rows.sources.min() < 0:
        return "a segment has a source below 0"
    if rows.mask_splits is None or rows.masked_runs is None:
        return ""
    splits, values = rows.mask_splits, rows.masked_runs
    if splits[0] != 0 or splits[-1] != values.size or (splits % 2).any() or (np.diff(splits) < 0).any():
        return "masked runs are not pairs of a start and a stop"
    if not values.size:
        return ""
    starts, stops = values[::2].astype(np.int64), values[1::2].astype(np.int64)
    if (starts >= stops).any() or values.min() < 0 or values.max() > rows.seq_len:
        return "a masked run is empty, or leaves its row"
    segment = find_segments(rows, starts)
    begins = rows.segment_starts()[segment]
    if (starts < begins).any() or (stops > begins + rows.seq_lengths[segment]).any():
        return "a masked run crosses the edge of a segment"
    row = np.repeat(np.arange(len(rows)), np.diff(splits) // 2)
    gap = np.where(row[1:] == row[:-1], starts[1:] - stops[:-1], 1)
    if (gap < 0).any() or ((gap == 0) & (segment[1:] == segment[:-1])).any():
        return "masked runs are not in order, or two that touch are not merged"
    return ""


def _view(columns: dict[str, pa.Array], seq_len: int) -> Rows:
    """A record batch as NumPy views of the file."""
    runs, weights = columns.get("masked_runs"), columns.get("loss_weights")
    return Rows(
        input_ids=as_numpy(columns["input_ids"].values).reshape(-1, seq_len),
        row_splits=as_numpy(columns["seq_lengths"].offsets),
        **{name: as_numpy(columns[name].values) for name in PER_SEGMENT},
        mask_splits=None if runs is None else as_numpy(runs.offsets),
        masked_runs=None if runs is None else as_numpy(runs.values),
        loss_weights=None if weights is None else as_numpy(weights.values).reshape(-1, seq_len),
    )


def _place(columns: dict[str, pa.Array], file: pa.Buffer, rows: Rows) -> tuple[BatchRecord, list[slice]]:
    """Where the buffers of a record batch lie in the file, and which of these bytes are content.

    Raises ValueError if one lies elsewhere, as it does in a compressed batch: `weigh` writes to these places.
    """

    def find(array: pa.Array, index: int, size: int) -> slice:
        data = array.buffers()[index]
        if not size or data is None:
            return slice(0, 0)
        start = data.address - file.address
        if not 0 <= start <= file.size - size:
            raise ValueError("its columns are not in the file as they are")
        return slice(start, start + size)

    def values(name: str) -> slice:
        own = columns[name].values
        return find(own, 1, len(own) * own.type.bit_width // 8)

    def splits(name: str) -> slice:
        return find(columns[name], 1, 4 * (len(rows) + 1))

    ids = values("input_ids")
    content = [ids]
    for name in ("seq_lengths", "doc_ids", "doc_offsets", *(["masked_runs"] if "masked_runs" in columns else [])):
        content += [splits(name), values(name)]
    masked = "masked_runs" in columns
    return BatchRecord(
        rows=len(rows),
        segments=rows.seq_lengths.size,
        input_ids=ids.start,
        row_splits=splits("seq_lengths").start,
        seq_lengths=values("seq_lengths").start,
        doc_ids=values("doc_ids").start,
        doc_offsets=values("doc_offsets").start,
        sources=values("sources").start,
        mask_splits=splits("masked_runs").start if masked else None,
        masked_runs=values("masked_runs").start if masked else None,
        loss_weights=values("loss_weights").start if "loss_weights" in columns else None,
    ), content
