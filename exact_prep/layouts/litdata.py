"""`litdata`: chunks of litData with a TokensLoader. Read only: an item is a document, chunk headers tell the lengths.

The trainer reads blocks of L tokens from each chunk by itself, and drops what is left at a chunk's end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.foreign import Part, Stream, file_size, read_numbers
from exact_prep.stores.local import explained, read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exact_prep.layouts.foreign import Watch
    from exact_prep.records.options import MeasureOptions

INDEX = "index.json"


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per chunk, in the order of the index; raises UsageError, DatasetError."""
    from pathlib import Path

    parts = []
    for name in paths:
        directory = Path(name).absolute()
        if not (directory / INDEX).is_file():
            raise UsageError(f"{directory / INDEX} does not exist; name the directory of a litData dataset")
        chunks = read_index(directory)["chunks"]
        parts += [Part(directory / chunk["filename"], 4 * (chunk["chunk_size"] + 2)) for chunk in chunks]
    if not parts:
        raise DatasetError(f"{', '.join(paths)}: no chunk is listed")
    return parts


def read_index(directory: Path) -> dict[str, Any]:
    """index.json, checked as far as it is used; raises DatasetError."""
    path = directory / INDEX
    try:
        index = json.loads(read_bytes(path))
        formats = index["config"]["data_format"]
        for chunk in index["chunks"]:
            if not (isinstance(chunk["filename"], str) and isinstance(chunk["chunk_size"], int)):
                raise KeyError("filename")
            if chunk.get("dim") is None:
                raise DatasetError(f"{path}: its chunks have no `dim`, so they were not written for a TokensLoader")
        if index["config"].get("compression"):
            raise DatasetError(f"{path}: its chunks are compressed, which a TokensLoader cannot read either")
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not the index of a litData dataset: {error}") from error
    if len(formats) != 1:
        raise DatasetError(f"{path}: items have {len(formats)} columns; ids alone can be measured")
    return index


def read_stream(part: Part, options: MeasureOptions, watch: Watch) -> Stream:
    """The documents of one chunk, from its header; raises DatasetError where it does not fit the chunk."""
    path = part.path
    index = read_index(path.parent)
    chunk = next(one for one in index["chunks"] if one["filename"] == path.name)
    with explained("read", path):
        (items,) = (int(numbers[0]) for numbers in read_numbers(path, np.dtype("<u4"), 0, 1, watch))
        offsets = np.concatenate(list(read_numbers(path, np.dtype("<u4"), 4, items + 1, watch))).astype(np.int64)
    tokens = int(chunk["dim"])
    width, rest = divmod(int(offsets[-1] - offsets[0]), tokens) if tokens else (1, int(offsets[-1] - offsets[0]))
    lengths = np.diff(offsets)
    if (
        items != chunk["chunk_size"]
        or rest
        or file_size(path) != offsets[-1]
        or width not in (1, 2, 4, 8)
        or (lengths % width).any()
        or (lengths < 0).any()
    ):
        raise DatasetError(
            f"{path} does not fit {INDEX} (items, tokens, or its size): it is cut or damaged; make it again"
        )
    return Stream(tokens=tokens, lengths=iter([lengths // width]))
