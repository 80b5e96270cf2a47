"""Columns of text or of token ids as batches; what is empty, null or not UTF-8 is accounted for. Reads no file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from exact_prep.batches import TextBatch
from exact_prep.sources.documents import MAX_ID, numbers, set_aside, utf8_bytes
from exact_prep.sources.long_texts import LONG, batches_of, utf8_pieces
from exact_prep.sources.streams import Damaged
from exact_prep.zero_copy import numpy_view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.documents import Part


class Rows(NamedTuple):
    """Some rows of a file."""

    column: pa.Array
    """The column asked for."""
    first: int
    """Number of the first row in the file."""
    consumed: int
    """Bytes of the file that these rows account for."""


def texts_of(part: Part, rows: Rows, origin: int) -> TextBatch:
    """The strings of a column; records count from row `origin`."""
    values = strings(rows.column)
    left_out: list[int] = []
    rejected: list[Rejected] = []
    if not all(values) or not all(type(value) is str for value in values):
        for row, value in enumerate(values, rows.first):
            if value.__class__ is str and value:
                continue
            left_out.append(row - origin)
            if value != "":
                reason = f"column {part.options.text_field!r} is " + ("null" if value is None else "not UTF-8")
                rejected.append(set_aside(part, row - origin, f"row {row}", reason))
        values = [value for value in values if value.__class__ is str and value]
    return TextBatch(
        texts=values,
        records=numbers(rows.first - origin, len(rows.column), left_out),
        read=len(rows.column),
        empty=len(left_out) - len(rejected),
        rejected=tuple(rejected),
        bytes_read=rows.consumed,
        text_bytes=utf8_bytes(values),
    )


def is_long(column: pa.Array) -> bool:
    """Whether a value may be too long to become a string: sizes alone tell, and cost nothing to look at."""
    if not len(column) or pa.types.is_dictionary(column.type):
        return False
    if pa.types.is_string_view(column.type):
        # Rows share buffers, which `nbytes` counts whole for any of them.
        return int(string_views(column)[:, 0].sum(dtype=np.int64)) >= LONG
    return column.nbytes >= LONG


def string_views(column: pa.Array) -> np.ndarray:
    """Size, prefix, buffer and place in it of every value of a column of string views, int32[D, 4]."""
    return np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)[column.offset :][: len(column)]


def long_value(column: pa.Array) -> memoryview | None:
    """The bytes of a column's one value, where they lie: a scalar would be a copy; None if it is null or short."""
    if column.null_count:
        return None
    _, places, *data = column.buffers()
    if pa.types.is_string_view(column.type):
        size, _, buffer, start = string_views(column)[0].tolist()
    else:
        edges = np.frombuffer(places, np.int64 if pa.types.is_large_string(column.type) else np.int32)
        buffer, (start, stop) = 0, edges[column.offset :][:2].tolist()
        size = stop - start
    return memoryview(data[buffer])[start : start + size] if size >= LONG else None


def long_texts_of(part: Part, rows: Rows, origin: int) -> Iterator[TextBatch]:
    """As `texts_of`, a row a batch, and rows that are long in pieces."""
    share = rows.consumed
    for row in range(len(rows.column)):
        one = Rows(rows.column.slice(row, 1), rows.first + row, share)
        value = long_value(one.column)
        pieces = None if value is None else utf8_pieces(value)
        batches = iter([texts_of(part, one, origin)]) if pieces is None else batches_of(pieces, one.first - origin)
        for batch in batches:
            yield replace(batch, bytes_read=share)
            share = 0


def strings(column: pa.Array) -> list[Any]:
    """A column's values as str; None where there is none, bytes where they are not UTF-8."""
    if isinstance(column, pa.DictionaryArray):
        indices, size = column.indices.to_pylist(), len(column.dictionary)
        if not all(index is None or 0 <= index < size for index in indices):
            raise Damaged(f"an index lies outside the dictionary of {size} values")
        values = {index: strings(column.dictionary.slice(index, 1))[0] for index in {*indices} - {None}}
        return [None if index is None else values[index] for index in indices]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def decoded(value: bytes | None) -> str | bytes | None:
    """The bytes as a string, or as they are if they are not UTF-8."""
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def ids_of(part: Part, rows: Rows, origin: int) -> TextBatch:
    """The token ids of a column of lists; records count from row `origin`."""
    column = rows.column
    null = column.is_null().to_numpy(zero_copy_only=False)
    lengths = list_lengths(column, null)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = column.flatten()
    values = flat.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = flat.is_null().to_numpy(zero_copy_only=False) | (values < 0) | (values >= MAX_ID)
    bad = null.copy()
    bad[np.searchsorted(offsets, np.flatnonzero(wrong), side="right") - 1] = True
    rejected = tuple(
        set_aside(
            part,
            rows.first - origin + row,
            f"row {rows.first + row}",
            f"column {part.options.ids_field!r} "
            + ("is null" if null[row] else "holds a null or an id beyond [0, 2**31)"),
        )
        for row in np.flatnonzero(bad).tolist()
    )
    kept = ~bad & (lengths > 0)
    return TextBatch(
        ids=values[np.repeat(kept, lengths)].astype(np.int32),
        id_offsets=np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64),
        records=rows.first - origin + np.flatnonzero(kept),
        read=len(column),
        empty=int((~bad & (lengths == 0)).sum()),
        rejected=rejected,
        bytes_read=rows.consumed,
    )


def list_lengths(column: pa.Array, null: np.ndarray) -> np.ndarray:
    """Values per list, int64[D]; 0 for a null, whose values `flatten` leaves out."""
    if pa.types.is_fixed_size_list(column.type):
        return np.where(null, 0, column.type.list_size)
    return np.where(null, 0, np.diff(numpy_view(column.offsets)))
