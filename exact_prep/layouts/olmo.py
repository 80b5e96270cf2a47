"""`olmo`: OLMo's and dolma's .npy files, which are bare ids without NumPy's header.

OLMo-core's NumpyFSLDataset cuts each file into rows of L from its start and drops the rest; documents are told apart by
their EOS. Its NumpyPackedFSLDataset packs documents, which it finds in the .csv.gz beside a file: start and end of
each, made from EOS, so what follows the last EOS is dropped.

Ours are written row after row: NumpyFSLDataset with the same sequence_length serves them as they are.
"""

from __future__ import annotations

import gzip
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.bare_ids import check_eos, choose_dtype, narrow
from exact_prep.layouts.bare_ids import need_eos as need_own_eos
from exact_prep.layouts.foreign import (
    UNENDED,
    Part,
    Stream,
    check_ids,
    count_tokens,
    expand,
    file_size,
    need_dtype,
    need_eos,
    read_numbers,
    stream_by_eos,
)
from exact_prep.layouts.parquet import by_file
from exact_prep.reader.blocks import read_blocks
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.layouts.foreign import Watch
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.records.options import MeasureOptions

NUMPY = b"\x93NUMPY"


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per file; raises UsageError, DatasetError for NumPy's header, or a size that does not fit."""
    dtype = need_dtype(options)
    parts = []
    for path in expand(paths, ".npy"):
        count_tokens(path, dtype)
        with explained("read", path), path.open("rb") as file:
            if file.read(len(NUMPY)) == NUMPY:
                raise DatasetError(
                    f"{path} begins with NumPy's header, which OLMo would read as tokens; write it with tofile(), or "
                    "measure it as `tokens`"
                )
        read = path
        if options.documents == "index":
            read = index_path(path)
            if not read.is_file():
                raise UsageError(f"{read} does not exist; without this index use --documents eos")
        parts.append(Part(path, file_size(read), files=(path, read)))
    return parts


def index_path(path: Path) -> Path:
    """The index beside a file."""
    return path.with_suffix(".csv.gz")


def read_stream(part: Part, options: MeasureOptions, watch: Watch) -> Stream:
    """The documents of one file."""
    dtype, path = need_dtype(options), part.path
    tokens = count_tokens(path, dtype)
    if options.documents == "index":
        return read_index(path, tokens, watch)
    eos_id = need_eos(options)
    check_ids(path, dtype, 0, tokens, eos_id)
    ids = read_numbers(path, dtype, 0, tokens, watch)
    return stream_by_eos(ids, tokens, eos_id, keep_tail=options.rows == "disjoint")


def read_index(path: Path, tokens: int, watch: Watch) -> Stream:
    """The documents that the .csv.gz names; raises DatasetError where they do not follow each other."""
    index = index_path(path)
    with explained("read", index):
        data = index.read_bytes()
    watch(memoryview(data))
    try:
        table = np.array([line.split(b",")[:2] for line in gzip.decompress(data).splitlines()], np.int64).reshape(-1, 2)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{index} is not an index of documents (start,end,...): {error}") from error
    starts, ends = table[:, 0], table[:, 1]
    if not (np.array_equal(starts, np.concatenate([[0], ends[:-1]])[: starts.size]) and (ends > starts).all()):
        raise DatasetError(f"{index}: its documents do not follow each other; make it again")
    last = int(ends[-1]) if ends.size else 0
    if last > tokens:
        raise DatasetError(f"{index} goes to token {last:,}, {path} has {tokens:,}: it is cut, or --dtype is wrong")

    def walk() -> Iterator[np.ndarray]:
        yield ends - starts

    return Stream(tokens=last, lengths=walk(), dropped={UNENDED: tokens - last} if last < tokens else {})


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """part-00000.npy and so on: bare ids. Weights come by position: `export --to lut`, or examples/measured_data.py."""
    eos_id, dtype = need_own_eos(dataset, kind), choose_dtype(dataset)
    if dataset.manifest.ledger.padding and dataset.manifest.tokenizer.pad_id != eos_id:
        raise UsageError(
            f"{dataset.path} has padding that is not EOS, which OLMo-core would take for a document; pack with "
            f"--pad-token of the EOS token"
        )
    files: dict[str, str] = {}
    rows = 0
    for number, part in groupby(by_file(read_blocks(dataset, align)), itemgetter(0)):
        name = f"part-{number:05d}.npy"
        with explained("write", out / name), (out / name).open("wb") as file:
            for _, block in part:
                check_eos(block, eos_id, dataset, rows)
                file.write(narrow(block.input_ids, dtype, dataset).data.cast("B"))
                rows += len(block)
                progress(block.input_ids.size)
        files[name] = f"{dtype.name}, rows of {dataset.seq_len} ids end to end, without a header"
    return {"files": files, "dtype": dtype.name, "eos_id": eos_id}
