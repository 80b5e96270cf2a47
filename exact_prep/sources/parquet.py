"""Parquet files in: one document per row, a file cut by row groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep.sources.column_values import (
    Opened,
    count_rows_at_once,
    pick_columns,
    read_columns,
    reading,
    split_in_proportion,
)
from exact_prep.sources.streams import Damaged, open_raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from exact_prep.batches import TextBatch
    from exact_prep.sources.batching import Part
    from exact_prep.sources.column_values import Rows

FOOTER_TAIL = 8
"""Bytes at the end of a file: the footer's length and the magic word."""

BUFFER = 1 << 20
"""Bytes of a column that are read at once; larger gave no speed."""

OBJECT_BUFFER = 8 << 20
"""The same in a store, where each read is a request."""


def read_parquet(part: Part, _block: int | None = None) -> Iterator[TextBatch]:
    """The documents of some row groups; see `Part` and `TextBatch`."""
    return read_columns(part, open_row_groups)


def open_row_groups(part: Part) -> Opened:
    """Row groups `slice.start` to `slice.stop` of a file."""
    with reading(part):
        # Pre-buffering, the default, keeps whole row groups until the file is closed; this keeps a page and a buffer.
        buffer = BUFFER if isinstance(part.path, Path) else OBJECT_BUFFER
        source = open_parquet(part)
        file = pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer, page_checksum_verification=True)
        columns = pick_columns(part, file.schema_arrow)
        check_encryption(part, file, columns.names())
        edges = measure_row_groups(file.metadata, part.file.bytes)
        start = part.slice.start
        stop = file.metadata.num_row_groups if part.slice.stop is None else part.slice.stop
        first = sum(file.metadata.row_group(group).num_rows for group in range(start))

    def rows() -> Iterator[Rows]:
        number = first
        names = columns.names()
        leaves = [find_leaf(file.metadata, name) for name in names]
        with file:
            for group in range(start, stop):
                metadata = file.metadata.row_group(group)
                total, share = metadata.num_rows, int(edges[group + 1] - edges[group])
                size = sum(metadata.column(leaf).total_uncompressed_size for leaf in leaves)
                at_once = count_rows_at_once(size, total)
                done = 0
                with reading(part):
                    batches = file.iter_batches(at_once, row_groups=[group], columns=names, use_threads=False)
                while True:
                    with reading(part):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    before, done = share * done // total, done + batch.num_rows
                    yield columns.rows(batch, number, share * done // total - before)
                    number += batch.num_rows

    return Opened(first=first, share=int(edges[max(stop, 1)] - edges[start]), rows=rows())


def check_encryption(part: Part, file: pq.ParquetFile, names: list[str]) -> None:
    """Raise Damaged for a column that is encrypted: pyarrow ends the process when it is asked for the column's size.

    A footer in plain text that speaks of encrypted columns is signed: it is longer than what it says of itself.
    """
    with open_raw(part.path, ahead=False) as raw:
        raw.seek(-FOOTER_TAIL, os.SEEK_END)
        length = int.from_bytes(raw.read(4), "little")
    if length == file.metadata.serialized_size:
        return
    for name in names:
        try:
            for group in range(file.metadata.num_row_groups):
                next(file.iter_batches(1, row_groups=[group], columns=[name], use_threads=False), None)
        except (OSError, pa.ArrowException) as error:
            if "decrypt" in str(error).lower():
                raise Damaged(f"column {name!r} is encrypted: decrypt the file, or name another column") from error
            raise


def count_rows_before_slice(part: Part) -> int:
    """Rows of a file before the slice; raises Damaged."""
    with reading(part):
        metadata = read_footer(part)
        return sum(metadata.row_group(group).num_rows for group in range(part.slice.start))


def open_parquet(part: Part) -> Any:
    """What pyarrow opens: the path, or a file that asks a store for the ranges that are needed and no others."""
    return part.path if isinstance(part.path, Path) else open_raw(part.path, ahead=False)


def read_footer(part: Part) -> pq.FileMetaData:
    """What the file says of its row groups."""
    return pq.read_metadata(open_parquet(part))


def find_leaf(metadata: pq.FileMetaData, name: str) -> int:
    """Index of the first column, as Parquet stores columns, that belongs to the column `name`."""
    paths = (metadata.schema.column(index).path for index in range(metadata.num_columns))
    return next(index for index, path in enumerate(paths) if path == name or path.startswith(name + "."))


def measure_row_groups(metadata: pq.FileMetaData, size: int) -> np.ndarray:
    """Where row groups begin and end, as if a file of `size` bytes held nothing else, int64[G + 1]."""
    weights = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    return split_in_proportion(weights, size)


def find_row_group_edges(part: Part) -> list[int]:
    """The same, read from the file's footer; raises Damaged."""
    with reading(part):
        return measure_row_groups(read_footer(part), part.file.bytes).tolist()
