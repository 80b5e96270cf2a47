"""Tokens that others wrote: what `measure` asks of a layout, and what layouts share to read them.

A layout has two functions. `list_parts(path, options)` finds the files behind what the user named, and looks at
headers and sizes alone. Then, for layouts whose trainer cuts rows for itself,

    read_stream(part, options, watch)   documents in stored order, as lengths

and for those that store rows

    read_rows(part, options, watch)     rows as segments, without tokens

`watch` is shown every byte that is read: it counts and hashes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import glob, has_magic
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exact_prep.choices import DocumentsBy, MeasuredLayout, RowCut, TokenType
    from exact_prep.records.options import MeasureOptions

    Watch = Callable[[memoryview], None]

CHUNK = 1 << 20
"""Numbers that are read at once."""

SAMPLES = 1000
"""Documents of a part that are looked at, to see whether documents end where its index says."""

TAIL = "after the last row"
UNENDED = "after the last EOS"
BEYOND = "beyond the row"
OTHER_SPLIT = "in other splits"
"""Reasons why a trainer does not read a token."""


class Part(NamedTuple):
    """One stream of documents, or one file of rows."""

    path: Path
    bytes: int
    """That will be read."""
    start: int = 0
    stop: int | None = None
    """Documents [start, stop) of the part are measured; None: to its end."""
    files: tuple[Path, ...] = ()
    """What it consists of, if not of `path` alone."""


@dataclass(kw_only=True)
class Stream:
    """Documents laid end to end, as a trainer finds them."""

    tokens: int
    """Of all documents: the sum of their lengths."""
    lengths: Iterator[np.ndarray]
    """Their lengths in order, int64[D] at a time."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Tokens beside them that the trainer does not read, by reason; whole once `lengths` has ended."""


class StoredRows(NamedTuple):
    """Some rows as they are stored: their segments, without tokens."""

    seq_lengths: np.ndarray
    """Tokens of each segment, int64[S], row by row."""
    row_splits: np.ndarray
    """Where each row's segments start and end, int64[R + 1]; segments begin where their row does, padding follows."""
    row_lengths: np.ndarray
    """Tokens of each row, padding included, int64[R]."""
    masked: np.ndarray | None = None
    """Whether a token carries no loss, bool[T], rows end to end; None: all carry it."""


class Foreign(NamedTuple):
    """What `measure` can do with a layout."""

    module: str
    rows: tuple[RowCut, ...]
    """How its trainers cut rows, the usual way first."""
    documents: tuple[DocumentsBy, ...]
    """By what documents can be told apart, the usual way first."""


FOREIGN: dict[MeasuredLayout, Foreign] = {
    "megatron": Foreign("megatron", ("shared",), ("index", "eos")),
    "huggingface": Foreign(
        "huggingface", ("stored",), ("seq_lengths", "position_ids", "attention_mask", "eos", "rows")
    ),
    "olmo": Foreign("olmo", ("disjoint", "fragment", "truncate"), ("eos", "index")),
    "datatrove": Foreign("datatrove", ("windows",), ("index", "eos")),
    "litdata": Foreign("litdata", ("disjoint",), ("index",)),
    "mds": Foreign("mds", ("stored",), ("eos", "seq_lengths", "rows")),
    "tokens": Foreign("tokens", ("crops", "disjoint", "shared", "windows"), ("eos",)),
}


def load_layout(layout: MeasuredLayout) -> Any:
    """The module that reads a layout."""
    return import_module(f"exact_prep.layouts.{FOREIGN[layout].module}")


def expand(paths: Sequence[str], suffix: str) -> list[Path]:
    """The files behind some arguments: files, directories of files with a suffix, patterns; absolute, in name order.

    Raises UsageError where there is none.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            own = sorted(one for one in path.rglob(f"*{suffix}") if one.is_file())
            if not own:
                raise UsageError(f"{path} holds no file *{suffix}; name the directory or the files of the tokens")
        elif path.exists():
            own = [path]
        elif has_magic(name):
            own = sorted(Path(one) for one in glob(name, recursive=True))  # noqa: PTH207 - a path with a pattern
            if not own:
                raise UsageError(f"no file matches {name}")
        else:
            raise UsageError(f"{path} does not exist; check the path")
        found += [one.absolute() for one in own]
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise UsageError(f"{twice} is named twice; name it once")
    return found


def file_size(path: Path) -> int:
    """Bytes of a file; raises StorageError."""
    with explained("read", path):
        return path.stat().st_size


def count_tokens(path: Path, dtype: np.dtype) -> int:
    """Tokens of a file of bare ids; raises DatasetError if its size does not fit the type."""
    size = file_size(path)
    if size % dtype.itemsize:
        raise DatasetError(
            f"{path} has {size:,} bytes, no multiple of {dtype.itemsize}: it is cut, or its ids are not {dtype}; "
            "give their type with --dtype"
        )
    return size // dtype.itemsize


def read_numbers(
    path: Path, dtype: np.dtype, start: int, count: int, watch: Watch, chunk: int = CHUNK
) -> Iterator[np.ndarray]:
    """Yield `count` numbers from the byte `start` of a file on, some at a time; raises DatasetError where it ends."""
    with explained("read", path), path.open("rb", buffering=0) as file:
        file.seek(start)
        left = count
        while left:
            numbers = np.empty(min(left, chunk), dtype)
            view = numbers.data.cast("B")
            done = 0
            while done < len(view):
                read = file.readinto(view[done:])
                if not read:
                    raise DatasetError(f"{path} ends early: it is cut; make it again")
                done += read
            watch(view)
            left -= numbers.size
            yield numbers


def split_at_eos(ids: Iterator[np.ndarray], eos_id: int, ends: list[int]) -> Iterator[np.ndarray]:
    """Yield the lengths of documents that end with EOS, int64[D] per chunk of `ids`; each holds its EOS.

    `ends` receives the tokens after the last EOS.
    """
    place = last = 0
    for chunk in ids:
        found = np.flatnonzero(chunk == eos_id) + (place + 1)
        if found.size:
            yield np.diff(found, prepend=last)
            last = int(found[-1])
        place += chunk.size
    ends.append(place - last)


def stream_by_eos(ids: Iterator[np.ndarray], tokens: int, eos_id: int, *, keep_tail: bool) -> Stream:
    """A stream of `tokens` ids whose documents end with EOS.

    What follows the last EOS is a document too, or, unless `keep_tail`, dropped.
    """
    stream = Stream(tokens=tokens, lengths=iter(()))

    def walk() -> Iterator[np.ndarray]:
        ends: list[int] = []
        yield from split_at_eos(ids, eos_id, ends)
        if ends[0] and keep_tail:
            yield np.array(ends)
        elif ends[0]:
            stream.tokens -= ends[0]
            stream.dropped[UNENDED] = ends[0]

    stream.lengths = walk()
    return stream


def as_bytes(values: np.ndarray) -> memoryview:
    """The bytes of an array."""
    return np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")


def find_segments(breaks: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, int64[S], and row splits, int64[R + 1], of segments that begin at `breaks` and where rows do.

    `breaks` are places in the tokens of all rows, ascending; rows are `offsets[R + 1]`.
    """
    starts = np.union1d(breaks, offsets[:-1][np.diff(offsets) > 0])
    lengths = np.diff(np.append(starts, offsets[-1]))
    return lengths, np.searchsorted(starts, offsets)


def need_eos(options: MeasureOptions) -> int:
    """The EOS id; raises UsageError if it was not given."""
    if options.eos_id is None:
        raise UsageError("documents are told apart by their EOS token here: give its id with --eos")
    return options.eos_id


def need_dtype(options: MeasureOptions) -> np.dtype:
    """The type of ids in files that do not say it; raises UsageError if it was not given."""
    if options.dtype is None:
        raise UsageError(f"files of {options.layout} do not say what type their ids have; give it with --dtype")
    return as_dtype(options.dtype)


def as_dtype(name: TokenType) -> np.dtype:
    """The NumPy type of ids, little-endian."""
    return np.dtype(name).newbyteorder("<")


def check_ids(path: Path, dtype: np.dtype, start: int, tokens: int, eos_id: int | None) -> None:
    """Raise DatasetError where ids read as `dtype` cannot be ids, or EOS is never met: the type or the id is wrong.

    Looks at up to a million ids, at the start and in the middle.
    """
    if not tokens:
        return
    half = min(tokens, CHUNK) // 2 + 1
    places = sorted({0, max(tokens // 2 - half // 2, 0)})
    sample = np.concatenate(
        [
            chunk
            for place in places
            for chunk in read_numbers(
                path, dtype, start + place * dtype.itemsize, min(half, tokens - place), lambda view: None
            )
        ]
    )
    remedy = "give the right one with --dtype"
    if int(sample.min()) < 0 or int(sample.max()) >= 1 << 22:
        raise DatasetError(
            f"{path} holds ids from {sample.min():,} to {sample.max():,} as {dtype}, beyond any vocabulary: its ids "
            f"have another type; {remedy}"
        )
    wide = sample[: sample.size // 2 * 2].reshape(-1, 2)
    if dtype.itemsize == 2 and len(wide) > 1000 and (wide[:, 1] < 16).mean() > 0.99 > (wide[:, 0] < 16).mean():
        raise DatasetError(f"{path}: every second id is below 16 as {dtype}: its ids are of 4 bytes; {remedy}")
    if eos_id is not None and sample.size > 1 << 17 and not (sample == eos_id).any():
        raise DatasetError(
            f"{path}: the EOS id {eos_id} is not among {sample.size:,} ids that were looked at; give the right --eos, "
            "or the right --dtype"
        )


def check_document_ends(
    read: Callable[[int, int], np.ndarray], starts: np.ndarray, lengths: np.ndarray, eos_id: int, name: Path
) -> None:
    """Raise DatasetError where documents, as an index tells them, do not end with their only EOS.

    `starts[D]`, `lengths[D]` are documents that were drawn; `read(start, length)` gives their ids.
    """
    inside = without = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        found = np.flatnonzero(read(start, length) == eos_id)
        without += not (found.size and found[-1] == length - 1)
        inside += bool(found.size) and int(found[0]) < length - 1
    if without or inside:
        raise DatasetError(
            f"{name}: of {starts.size:,} documents that were looked at, {without:,} do not end with EOS (id {eos_id}) "
            f"and {inside:,} hold it inside, so an index and EOS tell other documents apart; where the trainer goes by "
            "EOS use --documents eos, else leave --eos out"
        )
