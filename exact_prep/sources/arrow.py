"""Arrow IPC in: one document per row. Files (Feather is one) are cut by record batches, streams are not cut."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from exact_prep.sources.column_values import (
    BINARY_TWINS,
    Opened,
    Rows,
    count_rows_at_once,
    pick_columns,
    read_columns,
    reading,
    split_in_proportion,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import TextBatch
    from exact_prep.sources.batching import Part

FILE_MAGIC = b"ARROW1"
"""How an Arrow IPC file begins; a stream begins otherwise."""

FILE_HEAD = 8
"""Bytes of a file before its first message: the magic word, padded."""


def read_arrow(part: Part, _block: int | None = None) -> Iterator[TextBatch]:
    """The documents of a stream, or of some record batches of a file; see `Part` and `TextBatch`."""
    return read_columns(part, open_stream_or_file)


def open_stream_or_file(part: Part) -> Opened:
    """An Arrow IPC stream, or some record batches of an Arrow IPC file."""
    with reading(part):
        memory = pa.memory_map(str(part.path))
        if memory.read(len(FILE_MAGIC)) != FILE_MAGIC:
            memory.seek(0)
            return open_stream(part, memory)
        return open_file(part, memory)


def open_stream(part: Part, memory: pa.MemoryMappedFile) -> Opened:
    """An Arrow IPC stream, which has no index and is read from its start."""
    schema = pa.ipc.open_stream(memory).schema
    columns = pick_columns(part, schema)
    memory.seek(0)
    reader = pa.ipc.open_stream(memory, options=select_fields(schema, columns.tops()))

    def rows() -> Iterator[Rows]:
        row = position = 0
        while True:
            with reading(part):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            before, position = position, memory.tell()
            yield columns.rows(batch, row, position - before)
            row += batch.num_rows

    return Opened(first=0, share=part.file.bytes, rows=cut_rows(part, rows()))


def open_file(part: Part, memory: pa.MemoryMappedFile) -> Opened:
    """Record batches `slice.start` to `slice.stop` of an Arrow IPC file."""
    schema = pa.ipc.open_file(memory).schema
    columns = pick_columns(part, schema)
    reader = pa.ipc.open_file(memory, options=select_fields(schema, columns.tops()))
    start, stop = part.slice.start, reader.num_record_batches if part.slice.stop is None else part.slice.stop
    edges = split_in_proportion([1] * reader.num_record_batches, part.file.bytes)
    first = count_rows_before(memory, reader, start)

    def rows() -> Iterator[Rows]:
        row = first
        for index in range(start, stop):
            with reading(part):
                batch = reader.get_batch(index)
            yield columns.rows(batch, row, int(edges[index + 1] - edges[index]))
            row += batch.num_rows

    return Opened(first=first, share=int(edges[max(stop, 1)] - edges[start]), rows=cut_rows(part, rows()))


def select_fields(schema: pa.Schema, names: list[str]) -> pa.ipc.IpcReadOptions:
    """Options that read these columns alone."""
    indices = [schema.get_field_index(name) for name in names]
    return pa.ipc.IpcReadOptions(included_fields=indices, use_threads=False)


def count_rows_before(memory: pa.MemoryMappedFile, reader: pa.RecordBatchFileReader, start: int) -> int:
    """Rows of the first `start` record batches: what rejected rows are numbered by.

    From the headers of the batches alone, if these follow each other as all writers put them. Otherwise every task
    that begins behind them would decompress them.
    """
    memory.seek(FILE_HEAD)
    messages = pa.ipc.MessageReader.open_stream(memory)
    try:
        headers = (message for message in messages if message.type == "record batch")
        rows = [pa.ipc.read_record_batch(header, pa.schema([])).num_rows for header in islice(headers, start)]
    except (pa.ArrowException, OSError):
        rows = []
    return sum(rows) if len(rows) == start else sum(reader.get_batch(index).num_rows for index in range(start))


def count_rows_before_slice(part: Part) -> int:
    """Rows of a file before the slice; raises Damaged."""
    with reading(part):
        memory = pa.memory_map(str(part.path))
        if memory.read(len(FILE_MAGIC)) != FILE_MAGIC:
            return 0
        return count_rows_before(memory, pa.ipc.open_file(memory), part.slice.start)


def cut_rows(part: Part, batches: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows in runs of bounded size. Checks offsets, but not strings."""
    for rows in batches:
        total, share = len(rows.column), rows.consumed
        columns = [column for column in (rows.column, rows.labels, rows.own_ids, rows.masks) if column is not None]
        with reading(part):
            for column in columns:
                check_offsets(column)
        at_once = count_rows_at_once(sum(column.nbytes for column in columns), total)
        for low in range(0, total, at_once):
            high = min(low + at_once, total)
            yield rows.cut(low, high, share * high // total - share * low // total)


def check_offsets(column: pa.Array) -> None:
    """Raise ArrowInvalid where offsets or indices point outside of their buffers: files are not trusted."""
    if isinstance(column, pa.DictionaryArray):
        column.indices.validate(full=True)
        check_offsets(column.dictionary)
    else:
        kind = BINARY_TWINS.get(column.type)
        (column if kind is None else column.view(kind)).validate(full=True)


def find_record_batch_edges(part: Part) -> list[int]:
    """Where the record batches of a file begin and end, as if it held nothing else, in bytes; raises Damaged.

    A stream, which has no index, is one.
    """
    with reading(part):
        memory = pa.memory_map(str(part.path))
        if memory.read(len(FILE_MAGIC)) != FILE_MAGIC:
            return [0, part.file.bytes]
        count = pa.ipc.open_file(memory).num_record_batches
    return split_in_proportion([1] * count, part.file.bytes).tolist()
