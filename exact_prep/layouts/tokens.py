"""`tokens`: bare ids in .bin or .npy files, as nanoGPT and many own loops have them. Read only.

A .npy file with NumPy's header says the type of its ids itself. Documents are told apart by their EOS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import DatasetError
from exact_prep.layouts.foreign import (
    Part,
    Stream,
    check_ids,
    expand,
    file_size,
    need_dtype,
    need_eos,
    read_numbers,
    stream_by_eos,
)
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exact_prep.layouts.foreign import Watch
    from exact_prep.records.options import MeasureOptions

NUMPY = b"\x93NUMPY"


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per file; raises UsageError."""
    need_eos(options)
    parts = [Part(path, file_size(path)) for path in expand(paths, ".bin")]
    for part in parts:
        find_ids(part.path, options)
    return parts


def find_ids(path: Path, options: MeasureOptions) -> tuple[np.dtype, int, int]:
    """Type of the ids of a file, the byte where they begin, and how many there are; raises UsageError, DatasetError."""
    with explained("read", path), path.open("rb") as file:
        start, count = 0, None
        if file.read(len(NUMPY)) == NUMPY:
            file.seek(0)
            try:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
            except ValueError as error:
                raise DatasetError(f"{path} is not a .npy file that NumPy reads: {error}") from error
            if dtype.kind not in "iu" or len(shape) != 1 or fortran:
                raise DatasetError(f"{path} holds {dtype} of shape {shape}; a vector of ids is needed")
            start, count = file.tell(), shape[0]
        else:
            dtype = need_dtype(options)
    size = file_size(path) - start
    if size % dtype.itemsize or (count is not None and size != count * dtype.itemsize):
        raise DatasetError(
            f"{path} has {size:,} bytes of ids, which does not fit {dtype}: it is cut, or --dtype is wrong"
        )
    return dtype, start, size // dtype.itemsize


def read_stream(part: Part, options: MeasureOptions, watch: Watch) -> Stream:
    """The documents of one file."""
    dtype, start, tokens = find_ids(part.path, options)
    eos_id = need_eos(options)
    check_ids(part.path, dtype, start, tokens, eos_id)
    ids = read_numbers(part.path, dtype, start, tokens, watch)
    return stream_by_eos(ids, tokens, eos_id, keep_tail=True)
