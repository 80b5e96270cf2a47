"""Parquet and Arrow IPC files in: one document per row, columns at a time. Rows count from 0, as pyarrow's do."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.columns import Rows, ids_of, is_long, long_texts_of, texts_of
from exact_prep.sources.documents import BATCH_BYTES, set_aside
from exact_prep.sources.streams import Damaged, check_unchanged
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow.parquet as pq

    from exact_prep.sources.documents import Part

ROWS = 1 << 11
"""Rows decoded at once, at most: where rows repeat a few long strings, a file says little of how much text it gives."""

BUFFER = 1 << 20
"""Bytes of a Parquet column that are read at once; larger gave no speed."""

ARROW_FILE_MAGIC = b"ARROW1"
"""How an Arrow IPC file begins; a stream begins otherwise."""

ARROW_FILE_HEAD = 8
"""Bytes before its first message: the magic word, padded."""

PACKED = b"exact_prep"
"""What the schema metadata of our own shards has, and nobody else's."""

BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""The type that has a string type's layout without its promise of UTF-8."""


class Columns(NamedTuple):
    """One column of a slice of a file."""

    first: int
    """Number of the slice's first row in the file."""
    share: int
    """Bytes of the file that the slice accounts for."""
    rows: Iterator[Rows]


@contextmanager
def reading(part: Part) -> Iterator[None]:
    """Turn what pyarrow raises for bytes it cannot read into Damaged.

    Raises StorageError for a failing device; SourceError if memory does not suffice, which is not the file's fault.
    """
    try:
        with explained("read", part.path):
            check_unchanged(part.file, part.path)
            try:
                yield
            except OSError as error:
                if error.errno is not None:
                    raise
                raise Damaged(f"pyarrow cannot read it: {error}") from error
    except MemoryError as error:
        raise SourceError(f"{part.name} needs more memory than there is ({error});\nuse fewer workers") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"pyarrow cannot read it: {error}") from error


def read_columns(part: Part, open_columns: Callable[[Part], Columns]) -> Iterator[TextBatch]:
    """The documents of a slice, batch by batch."""
    convert = texts_of if part.options.ids_field is None else ids_of
    columns = Columns(first=0, share=part.file.bytes, rows=iter(()))
    row = consumed = 0
    try:
        columns = open_columns(part)
        row = columns.first
        for rows in columns.rows:
            if part.options.ids_field is None and is_long(rows.column):
                yield from long_texts_of(part, rows, columns.first)
            else:
                yield convert(part, rows, columns.first)
            row += len(rows.column)
            consumed += rows.consumed
        yield TextBatch(records=np.empty(0, np.int64), bytes_read=columns.share - consumed)
    except Damaged as damage:
        rejected = set_aside(part, row - columns.first, f"row {row} on", str(damage))
        rest = columns.share - consumed
        yield TextBatch(records=np.empty(0, np.int64), read=1, rejected=(rejected,), bytes_read=rest)


def pick_column(part: Part, schema: pa.Schema) -> str:
    """The column asked for; raises SourceError unless it is there, once, and of a type that will do."""
    ids = part.options.ids_field is not None
    name = part.options.ids_field if part.options.ids_field is not None else part.options.text_field
    option = "--ids-field" if ids else "--text-field"
    if ids and PACKED in (schema.metadata or {}):
        raise SourceError(
            f"{part.name} is a shard that exact-prep packed: its rows are pieces of documents, and padding;\n"
            "pack the corpus that it was made of"
        )
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        problem = "there is no column" if not found else f"there are {len(found)} columns"
        try:
            there = ", ".join(map(repr, schema.names)) or "none"
        except UnicodeDecodeError as error:
            raise Damaged(f"the name of a column is not UTF-8 ({error.reason})") from error
        raise SourceError(f"{part.name}: {problem} {name!r};\nname one with {option}, there is: {there}")
    kind = schema.field(found[0]).type
    if not (is_ids(kind) if ids else is_text(kind)):
        wanted = "lists of integers" if ids else "text"
        raise SourceError(f"{part.name}: column {name!r} holds {kind}, not {wanted};\nname another with {option}")
    return name


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, or nothing but nulls."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


def is_ids(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of integers."""
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and types.is_integer(kind.value_type)


def open_parquet(part: Part) -> Columns:
    """The text or ids of some row groups of a Parquet file."""
    import pyarrow.parquet as pq

    with reading(part):
        # Pre-buffering, the default, keeps whole row groups until the file is closed; this keeps a page and a buffer.
        file = pq.ParquetFile(part.path, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True)
        name = pick_column(part, file.schema_arrow)
        edges = row_group_edges(file.metadata, part.file.bytes)
        start = part.slice.start
        stop = file.metadata.num_row_groups if part.slice.stop is None else part.slice.stop
        first = sum(file.metadata.row_group(group).num_rows for group in range(start))

    def rows() -> Iterator[Rows]:
        number = first
        leaf = next(i for i, path in enumerate(leaves(file.metadata)) if path == name or path.startswith(name + "."))
        with file:
            for group in range(start, stop):
                metadata = file.metadata.row_group(group)
                total, share = metadata.num_rows, int(edges[group + 1] - edges[group])
                at_once = rows_at_once(metadata.column(leaf).total_uncompressed_size, total)
                done = 0
                with reading(part):
                    batches = file.iter_batches(at_once, row_groups=[group], columns=[name], use_threads=False)
                while True:
                    with reading(part):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    before, done = share * done // total, done + batch.num_rows
                    yield Rows(batch.column(name), number, share * done // total - before)
                    number += batch.num_rows

    return Columns(first=first, share=int(edges[max(stop, 1)] - edges[start]), rows=rows())


def leaves(metadata: pq.FileMetaData) -> list[str]:
    """Paths of the columns as Parquet stores them."""
    return [metadata.schema.column(index).path for index in range(metadata.num_columns)]


def row_group_edges(metadata: pq.FileMetaData, size: int) -> np.ndarray:
    """Where row groups begin and end, were a file of `size` bytes nothing but them, int64[G + 1]."""
    weights = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    return shares(weights, size)


def shares(weights: list[int], size: int) -> np.ndarray:
    """Edges of parts in proportion to `weights[G]` that add up to `size`, int64[G + 1]; no part is one."""
    edges = np.concatenate([[0], np.cumsum(np.maximum(weights or [1], 1))])
    return (edges / float(edges[-1]) * size).astype(np.int64)


def unit_edges(part: Part) -> list[int]:
    """Where the row groups or record batches of a file begin and end, were it nothing but them, in bytes.

    A file that cannot be read, or has no index, is one unit: its reader will say so.
    """
    import pyarrow.parquet as pq

    try:
        with reading(part):
            if part.file.format == "parquet":
                return row_group_edges(pq.read_metadata(part.path), part.file.bytes).tolist()
            memory = pa.memory_map(str(part.path))
            if memory.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC:
                return shares([1] * pa.ipc.open_file(memory).num_record_batches, part.file.bytes).tolist()
    except Damaged:
        return [0, part.file.bytes]
    return [0, part.file.bytes]


def open_arrow(part: Part) -> Columns:
    """The text or ids of an Arrow IPC stream, or of some record batches of an Arrow IPC file (Feather is one)."""
    with reading(part):
        memory = pa.memory_map(str(part.path))
        if memory.read(len(ARROW_FILE_MAGIC)) != ARROW_FILE_MAGIC:
            memory.seek(0)
            return open_arrow_stream(part, memory)
        return open_arrow_file(part, memory)


def open_arrow_stream(part: Part, memory: pa.MemoryMappedFile) -> Columns:
    """The text or ids of an Arrow IPC stream, which has no index: it is read from its start."""
    schema = pa.ipc.open_stream(memory).schema
    name = pick_column(part, schema)
    memory.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)], use_threads=False)
    reader = pa.ipc.open_stream(memory, options=options)

    def batches() -> Iterator[tuple[pa.RecordBatch, int]]:
        position = 0
        while True:
            with reading(part):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            before, position = position, memory.tell()
            yield batch, position - before

    return Columns(first=0, share=part.file.bytes, rows=cut_batches(part, batches(), 0))


def open_arrow_file(part: Part, memory: pa.MemoryMappedFile) -> Columns:
    """The text or ids of record batches `slice.start` to `slice.stop` of an Arrow IPC file."""
    schema = pa.ipc.open_file(memory).schema
    name = pick_column(part, schema)
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)], use_threads=False)
    reader = pa.ipc.open_file(memory, options=options)
    start, stop = part.slice.start, reader.num_record_batches if part.slice.stop is None else part.slice.stop
    edges = shares([1] * reader.num_record_batches, part.file.bytes)
    first = rows_before(memory, reader, start)

    def batches() -> Iterator[tuple[pa.RecordBatch, int]]:
        for index in range(start, stop):
            with reading(part):
                batch = reader.get_batch(index)
            yield batch, int(edges[index + 1] - edges[index])

    return Columns(first=first, share=int(edges[max(stop, 1)] - edges[start]), rows=cut_batches(part, batches(), first))


def rows_before(memory: pa.MemoryMappedFile, reader: pa.RecordBatchFileReader, start: int) -> int:
    """Rows of the first `start` record batches; what rejected rows are numbered by.

    From the batches' headers alone, where they lie one behind the other as all writers put them: compressed batches
    would be decompressed by every task that begins behind them.
    """
    memory.seek(ARROW_FILE_HEAD)
    messages = pa.ipc.MessageReader.open_stream(memory)
    try:
        headers = (message for message in messages if message.type == "record batch")
        rows = [pa.ipc.read_record_batch(header, pa.schema([])).num_rows for header in islice(headers, start)]
    except (pa.ArrowException, OSError):
        rows = []
    return sum(rows) if len(rows) == start else sum(reader.get_batch(index).num_rows for index in range(start))


def cut_batches(part: Part, batches: Iterator[tuple[pa.RecordBatch, int]], first: int) -> Iterator[Rows]:
    """Record batches of one column in cuts of bounded size; their offsets are checked, strings are not."""
    for batch, share in batches:
        column, total = batch.column(0), batch.num_rows
        with reading(part):
            check_offsets(column)
        at_once = rows_at_once(column.nbytes, total)
        for low in range(0, total, at_once):
            high = min(low + at_once, total)
            yield Rows(column[low:high], first + low, share * high // total - share * low // total)
        first += total


def check_offsets(column: pa.Array) -> None:
    """Raise ArrowInvalid where offsets or indices point outside of their buffers: files are not to be trusted."""
    if isinstance(column, pa.DictionaryArray):
        column.indices.validate(full=True)
        check_offsets(column.dictionary)
    else:
        kind = BYTES_OF.get(column.type)
        (column if kind is None else column.view(kind)).validate(full=True)


def rows_at_once(size: int, rows: int) -> int:
    """Rows that hold about BATCH_BYTES, if `rows` of them hold `size` bytes."""
    return min(max(BATCH_BYTES * rows // max(size, 1), 1), ROWS)
