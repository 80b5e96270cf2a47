"""`datatrove`: .ds files of ids with an .index of document ends, as datatrove tokenizes for nanotron.

The trainer reads each file in windows of L + 1 tokens that share nothing, and drops the rest. So our rows cannot stay:
documents are written end to end, without padding, and are measured again for the windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.bare_ids import choose_dtype, narrow
from exact_prep.layouts.foreign import (
    SAMPLES,
    Part,
    Stream,
    as_dtype,
    check_document_ends,
    check_ids,
    count_tokens,
    expand,
    file_size,
    need_eos,
    read_numbers,
    stream_by_eos,
)
from exact_prep.reader.blocks import read_blocks
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.layouts.foreign import Watch
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.records.options import MeasureOptions


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per .ds file; raises UsageError where an index is missing."""
    parts = []
    for path in expand(paths, ".ds"):
        read = path if options.documents == "eos" else index_path(path)
        if not read.is_file():
            raise UsageError(f"{read} does not exist; without this index use --documents eos")
        parts.append(Part(path, file_size(read), files=(path, read)))
    return parts


def index_path(path: Path) -> Path:
    """The index beside a file: its document ends, uint64."""
    return path.with_name(f"{path.name}.index")


def find_dtype(path: Path, options: MeasureOptions) -> np.dtype:
    """Type of the ids: as asked, or as the index says how many there are."""
    if options.dtype:
        return as_dtype(options.dtype)
    if not index_path(path).is_file() or not (count := file_size(index_path(path)) // 8):
        return np.dtype("<u2")
    tokens = int(np.fromfile(index_path(path), "<u8", 1, offset=8 * (count - 1))[0])
    return np.dtype("<u4" if tokens and file_size(path) == 4 * tokens else "<u2")


def read_stream(part: Part, options: MeasureOptions, watch: Watch) -> Stream:
    """The documents of one file."""
    path = part.path
    dtype = find_dtype(path, options)
    tokens = count_tokens(path, dtype)
    if options.documents == "eos":
        eos_id = need_eos(options)
        check_ids(path, dtype, 0, tokens, eos_id)
        return stream_by_eos(read_numbers(path, dtype, 0, tokens, watch), tokens, eos_id, keep_tail=True)
    index = index_path(path)
    size = file_size(index)
    last = int(np.fromfile(index, "<u8", 1, offset=size - 8)[0]) if size >= 8 else 0
    if size % 8 or last != tokens:
        raise DatasetError(
            f"{path} has {tokens:,} ids as {dtype}, its index ends at {last:,}: one of them is cut, or the ids have "
            "another type (--dtype)"
        )
    if options.eos_id is not None:
        check_sample(path, dtype, options.eos_id)
    return Stream(tokens=tokens, lengths=read_lengths(index, size // 8, watch))


def read_lengths(index: Path, documents: int, watch: Watch) -> Iterator[np.ndarray]:
    """Lengths of the documents; raises DatasetError where an end is before its start."""
    last = 0
    for ends in read_numbers(index, np.dtype("<u8"), 0, documents, watch):
        lengths = np.diff(ends.astype(np.int64), prepend=last)
        if int(lengths.min()) < 0:
            raise DatasetError(f"{index}: its ends are not in order: it is damaged")
        last = int(ends[-1])
        yield lengths


def check_sample(path: Path, dtype: np.dtype, eos_id: int) -> None:
    """Raise DatasetError where documents do not end with their only EOS."""
    with explained("read", path), path.open("rb") as file:
        ends = np.memmap(index_path(path), "<u8", "r")
        drawn = np.unique(np.random.default_rng(0).integers(0, ends.size, SAMPLES))
        starts = np.where(drawn > 0, ends[drawn - 1], 0).astype(np.int64)
        lengths = ends[drawn].astype(np.int64) - starts
        full = lengths > 0

        def read(start: int, length: int) -> np.ndarray:
            file.seek(start * dtype.itemsize)
            return np.frombuffer(file.read(length * dtype.itemsize), dtype)

        check_document_ends(read, starts[full], lengths[full], eos_id, path)


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """tokens.ds and tokens.ds.index; raises UsageError where pieces of a document do not follow each other."""
    dtype = choose_dtype(dataset)
    path = out / "tokens.ds"
    ends = DocumentEnds(dataset)
    with explained("write", path), path.open("wb") as ids, index_path(path).open("wb") as index:
        for block in read_blocks(dataset, align):
            used = np.diff(np.concatenate([[0], np.cumsum(block.seq_lengths, dtype=np.int64)])[block.row_splits])
            kept = np.arange(block.seq_len) < used[:, None]
            ids.write(narrow(block.input_ids[kept], dtype, dataset).data.cast("B"))
            index.write(ends.add(block).astype("<u8").tobytes())
            progress(block.input_ids.size)
        index.write(ends.close().astype("<u8").tobytes())
    return {"files": {path.name: dtype.name, index_path(path).name: "where documents end, uint64"}, "dtype": dtype.name}


class DocumentEnds:
    """Where documents end in the stream of their pieces."""

    def __init__(self, dataset: PackedDataset) -> None:
        self._dataset, self._place = dataset, 0
        self._expected = (-1, 0)
        """The document that is being written, and where its next piece begins in it."""

    def add(self, rows: Rows) -> np.ndarray:
        """The ends that the first pieces of `rows` show: of documents before the last one, int64[N]."""
        lengths = rows.seq_lengths.astype(np.int64)
        if not lengths.size:
            return np.empty(0, np.int64)
        starts = self._place + np.cumsum(lengths) - lengths
        begins = rows.doc_offsets == 0
        document = np.concatenate([[self._expected[0]], rows.doc_ids[:-1]])
        offset = np.concatenate([[self._expected[1]], (rows.doc_offsets + lengths)[:-1]])
        if (~begins & ((rows.doc_ids != document) | (rows.doc_offsets != offset))).any():
            raise UsageError(
                f"{self._dataset.path}: pieces of a document lie apart, so documents cannot be written end to end; "
                "pack with --packing concat and without --shuffle"
            )
        self._place += int(lengths.sum())
        self._expected = (int(rows.doc_ids[-1]), int(rows.doc_offsets[-1] + lengths[-1]))
        return starts[begins & (starts > 0)]

    def close(self) -> np.ndarray:
        """The end of the last document."""
        return np.array([self._place] if self._place else [], np.int64)
