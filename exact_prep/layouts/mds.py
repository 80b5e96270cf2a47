"""`mds`: MosaicML streaming shards. Written by its own MDSWriter (needs `mosaicml-streaming`), read without it.

A shard is the number of its samples, where each begins (uint32), and the samples. A sample is the sizes of its columns
that have no fixed one, then the columns. Documents of a row are told apart by EOS, or by a column seq_lengths, which
our own export has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.foreign import Part, StoredRows, as_dtype, find_segments, need_eos
from exact_prep.reader.blocks import get_weights, read_blocks
from exact_prep.stores.local import explained, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exact_prep.choices import Align
    from exact_prep.layouts.foreign import Watch
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.records.options import MeasureOptions

INDEX, LENGTHS = "index.json", "seq_lengths"
TOKENS = ("tokens", "input_ids")
TYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
"""Streaming's numbers of integer types, where a sample says its own."""
ROWS = 1024
"""Rows that are split at once."""


class Column(NamedTuple):
    """Where the ids of a sample are, and what they are."""

    before: tuple[int | None, ...]
    """Sizes of the columns before it, in bytes; None: the sample says it."""
    own: int | None
    after: tuple[int | None, ...]
    dtype: np.dtype | None
    """None: the sample says it."""
    shaped: bool
    """Whether the sample says the shape."""


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per shard, in the order of the index; raises UsageError, DatasetError."""
    parts: list[Part] = []
    for name in paths:
        directory = Path(name).absolute()
        if not (directory / INDEX).is_file():
            raise UsageError(f"{directory / INDEX} does not exist; name the directory of one split of an MDS dataset")
        for shard in read_index(directory)["shards"]:
            path = directory / shard["raw_data"]["basename"]
            if not path.is_file() and shard.get("zip_data"):
                raise UsageError(
                    f"{directory}: its shards are compressed ({shard['compression']}); read them once with "
                    "StreamingDataset(local=..., keep_zip=True), which writes the raw ones beside them"
                )
            if not path.is_file() or path.stat().st_size != shard["raw_data"]["bytes"]:
                raise DatasetError(
                    f"{path} is missing, or has another size than {INDEX} says: it is cut; make it again"
                )
            find_ids(shard, options, path)
            parts.append(Part(path, shard["raw_data"]["bytes"]))
    if len({part.path for part in parts}) < len(parts):
        raise UsageError("the same directory is named twice; name it once")
    return parts


def read_index(directory: Path) -> dict[str, Any]:
    """index.json, checked as far as it is used; raises DatasetError."""
    path = directory / INDEX
    try:
        index = json.loads(read_bytes(path))
        for shard in index["shards"]:
            if shard["format"] != "mds" or shard["version"] != 2:
                raise DatasetError(f"{path}: shards have format {shard['format']} {shard['version']}; mds 2 is read")
            _ = shard["raw_data"]["basename"], shard["raw_data"]["bytes"], shard["column_encodings"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is not the index of an MDS dataset: {error!r}") from error
    return index


def find_ids(shard: dict[str, Any], options: MeasureOptions, path: Path) -> Column:
    """The column of ids; raises UsageError if there is none, or if it is not of integers."""
    names = shard["column_names"]
    chosen = next((name for name in ([options.ids_field] if options.ids_field else TOKENS) if name in names), None)
    if chosen is None:
        raise UsageError(f"{path} has the columns {', '.join(names)}; name the token ids with --ids-field")
    return find_column(shard, chosen, options, path)


def find_column(shard: dict[str, Any], chosen: str, options: MeasureOptions, path: Path) -> Column:
    """A column of integers; raises UsageError if it is not there, or of something else."""
    names = shard["column_names"]
    if chosen not in names:
        raise UsageError(f"{path} has no column {chosen}, only: {', '.join(names)}")
    place = names.index(chosen)
    sizes = shard["column_sizes"]
    kind, *arguments = shard["column_encodings"][place].split(":")
    if kind == "bytes":
        dtype, shaped = as_dtype(options.dtype or "int64"), False
    elif kind == "ndarray":
        dtype, shaped = (np.dtype(arguments[0]).newbyteorder("<") if arguments else None), len(arguments) < 2
    else:
        raise UsageError(f"{path}: the column {chosen} is {kind}; ids are ndarray or bytes")
    if dtype is not None and dtype.kind not in "iu":
        raise UsageError(f"{path}: the column {chosen} holds {dtype}; ids are integers")
    return Column(tuple(sizes[:place]), sizes[place], tuple(sizes[place + 1 :]), dtype, shaped)


def read_rows(part: Part, options: MeasureOptions, watch: Watch) -> Iterator[StoredRows]:
    """The rows of one shard; raises DatasetError for a shard that does not fit its index."""
    shard = next(one for one in read_index(part.path.parent)["shards"] if one["raw_data"]["basename"] == part.path.name)
    column = find_ids(shard, options, part.path)
    beside = find_column(shard, LENGTHS, options, part.path) if options.documents == LENGTHS else None
    with explained("read", part.path):
        data = np.memmap(part.path, np.uint8, "r") if part.bytes else np.empty(0, np.uint8)
    watch(data.data)
    count = int(data[:4].view("<u4")[0]) if data.size >= 4 else 0
    offsets = data[4 : 4 * (count + 2)].view("<u4")
    if (
        count != shard["samples"]
        or offsets.size != count + 1
        or offsets[-1] != data.size
        or (np.diff(offsets) < 0).any()
    ):
        raise DatasetError(f"{part.path} does not fit {INDEX}: it is cut or damaged; make it again")
    for first in range(0, count, ROWS):
        samples = [data[offsets[row] : offsets[row + 1]] for row in range(first, min(first + ROWS, count))]
        rows = [read_numbers(one, column, part.path, first + row) for row, one in enumerate(samples)]
        widths = np.array([ids.size for ids in rows], np.int64)
        if beside is not None:
            own = [read_numbers(one, beside, part.path, first + row) for row, one in enumerate(samples)]
            yield join_lengths(own, widths, part.path, first)
            continue
        ends = np.concatenate([[0], np.cumsum(widths)])
        breaks = np.empty(0, np.int64)
        if options.documents == "eos":
            breaks = np.flatnonzero(np.concatenate(rows) == need_eos(options)) + 1
        elif options.eos_id is not None:
            check_rows(rows, options.eos_id, part.path, first)
        segments, splits = find_segments(breaks[breaks < ends[-1]], ends)
        yield StoredRows(segments, splits, widths)


def join_lengths(own: Sequence[np.ndarray], widths: np.ndarray, path: Path, first: int) -> StoredRows:
    """Rows whose segments have the lengths `own`; raises DatasetError where they do not fit."""
    sums = np.array([lengths.sum() for lengths in own], np.int64)
    wrong = [row for row, lengths in enumerate(own) if sums[row] > widths[row] or lengths.min(initial=1) < 1]
    if wrong:
        row = wrong[0]
        raise DatasetError(
            f"{path}, row {first + row:,}: seq_lengths {own[row].tolist()[:8]} do not fit its {widths[row]} tokens"
        )
    splits = np.concatenate([[0], np.cumsum([lengths.size for lengths in own])])
    return StoredRows(np.concatenate(own).astype(np.int64), splits, widths)


def read_numbers(sample: np.ndarray, column: Column, path: Path, row: int) -> np.ndarray:
    """A column of one sample; raises DatasetError where its bytes do not fit."""
    head = 4 * sum(size is None for size in (*column.before, column.own, *column.after))
    said = iter(sample[:head].view("<u4").tolist())
    sizes = [next(said) if size is None else size for size in (*column.before, column.own)]
    start = head + sum(sizes[:-1])
    data, dtype = sample[start : start + sizes[-1]], column.dtype
    place = 0
    if dtype is None:
        if data.size < 1 or int(data[0]) not in TYPES:
            raise DatasetError(
                f"{path}, row {row:,}: its ids are of type {data[:1].tolist()}, which is no integer type"
            )
        dtype, place = np.dtype(TYPES[int(data[0])]), 1
    if column.shaped:
        dimensions, width = int(data[place]) >> 2, 1 << (int(data[place]) & 3)
        if dimensions != 1:
            raise DatasetError(f"{path}, row {row:,}: its ids have {dimensions} dimensions; a vector is needed")
        place += 1 + width
    if (data.size - place) % dtype.itemsize or data.size != sizes[-1]:
        raise DatasetError(f"{path}, row {row:,}: {data.size - place:,} bytes do not fit ids of {dtype}; see --dtype")
    return np.frombuffer(data[place:].tobytes(), dtype)


def check_rows(rows: Sequence[np.ndarray], eos_id: int, path: Path, first: int) -> None:
    """Raise DatasetError where a row that is one document holds EOS before its end."""
    for row, ids in enumerate(rows):
        if (ids[:-1] == eos_id).any():
            raise DatasetError(
                f"{path}, row {first + row:,}: the EOS id {eos_id} is inside a row, so it may hold several documents; "
                "use --documents eos if the trainer goes by EOS, else leave --eos out"
            )


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """A sample a row: input_ids, loss_weights, seq_lengths, as arrays."""
    try:
        from streaming import MDSWriter  # pyright: ignore[reportMissingImports]  (an environment of its own)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not go with its torch
        raise UsageError(f"--to mds needs mosaicml-streaming (pip install 'exact-prep[mds]'): {error}") from None
    seq_len = dataset.seq_len
    columns = {
        "input_ids": f"ndarray:int32:{seq_len}",
        "loss_weights": f"ndarray:float16:{seq_len}",
        "seq_lengths": "ndarray:int32",
    }
    # The writer's own directory must be new.
    with explained("write", out), MDSWriter(columns=columns, out=str(out / "mds"), hashes=["xxh128"]) as writer:
        for block in read_blocks(dataset, align):
            for row, lengths in enumerate(np.split(block.seq_lengths, block.row_splits[1:-1])):
                writer.write(
                    {
                        "input_ids": block.input_ids[row],
                        "loss_weights": get_weights(block)[row],
                        "seq_lengths": lengths,
                    }
                )
            progress(block.input_ids.size)
    return {"columns": columns, "directory": "mds"}
