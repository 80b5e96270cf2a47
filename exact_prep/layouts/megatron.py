"""`megatron`: an IndexedDataset whose documents are rows and whose sequences are segments, and weights beside it.

The padding of a row, if any, is its last sequence: a row is always L tokens, so row r begins at token r * L of data.bin
and of data_loss_weights.bin. GPTDataset itself would cut rows again: examples/megatron_dataset.py serves them whole.

To be measured, an IndexedDataset is a stream of sequences, which Megatron calls documents too; its .idx alone is read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.foreign import (
    OTHER_SPLIT,
    SAMPLES,
    Part,
    Stream,
    as_bytes,
    check_document_ends,
    check_ids,
    file_size,
    need_eos,
    read_numbers,
    stream_by_eos,
)
from exact_prep.reader.blocks import get_weights, read_blocks, read_segments
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.layouts.foreign import Watch
    from exact_prep.reader.rows import PackedDataset
    from exact_prep.records.options import MeasureOptions

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
"""Megatron's numbers for the types of token ids."""
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
SMALL_VOCABULARY = 65500
"""Up to it Megatron stores ids as uint16."""
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, type of ids, sequences, entries of the list of documents."""


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """data.bin, data.idx, data_loss_weights.bin."""
    vocabulary = dataset.manifest.tokenizer.vocab_size
    dtype = np.dtype(np.uint16 if vocabulary and vocabulary < SMALL_VOCABULARY else np.int32)
    tokens, weights, index = out / "data.bin", out / "data_loss_weights.bin", out / "data.idx"
    with explained("write", out), tokens.open("wb") as ids, weights.open("wb") as beside:
        for block in read_blocks(dataset, align):
            narrow = block.input_ids.astype(dtype)
            if not np.array_equal(narrow, block.input_ids):
                raise DatasetError(f"{dataset.path} holds ids beyond its vocabulary of {vocabulary}; pack it again")
            ids.write(narrow.data.cast("B"))
            beside.write(np.ascontiguousarray(get_weights(block)).data.cast("B"))
            progress(block.input_ids.size)
    with explained("write", index), index.open("wb") as file:
        write_index(file, dataset, dtype)
    return {
        "files": {
            "data.bin": str(dtype),
            "data.idx": "rows as documents, segments as sequences",
            "data_loss_weights.bin": f"float16[{len(dataset)}, {dataset.seq_len}]",
        },
    }


def write_index(file: BinaryIO, dataset: PackedDataset, dtype: np.dtype) -> None:
    """The .idx file, in three passes over the lengths of segments: memory does not grow with the corpus."""
    file.write(bytes(HEADER.size))
    sequences = start = 0
    for block in read_segments(dataset):
        own, _ = sequence_lengths(block)
        file.write(own.astype("<i4").tobytes())
        sequences += own.size
    for block in read_segments(dataset):
        own, _ = sequence_lengths(block)
        stops = start + np.cumsum(own, dtype=np.int64)
        file.write(((stops - own) * dtype.itemsize).astype("<i8").tobytes())
        start = int(stops[-1])
    rows = last = 0
    file.write(np.zeros(1, "<i8").tobytes())
    for block in read_segments(dataset):
        _, counts = sequence_lengths(block)
        file.write((last + np.cumsum(counts)).astype("<i8").tobytes())
        last += int(counts.sum())
        rows += counts.size
    file.seek(0)
    file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], sequences, rows + 1))


def sequence_lengths(block: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of a block's segments with padding as the last of its row, and how many each row has."""
    used = np.diff(np.concatenate([[0], np.cumsum(block.seq_lengths, dtype=np.int64)])[block.row_splits])
    padding = block.input_ids.shape[1] - used
    padded = padding > 0
    with_padding = np.insert(block.seq_lengths, block.row_splits[1:][padded], padding[padded])
    return with_padding, np.diff(block.row_splits) + padded


class Header(NamedTuple):
    """What the .idx file says first."""

    dtype: np.dtype
    sequences: int


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per prefix; raises UsageError, DatasetError for an index that is none, or does not fit its .bin."""
    parts = []
    for name in paths:
        prefix = Path(name.removesuffix(".idx").removesuffix(".bin")).absolute()
        for path in (bin_path(prefix), idx_path(prefix)):
            if not path.is_file():
                raise UsageError(f"{path} does not exist; name the path of a .bin and .idx without its suffix")
        header = read_header(idx_path(prefix))
        start, stop = find_split(header.sequences, options.split)
        read = 4 * header.sequences
        if options.documents == "eos":
            read += file_size(bin_path(prefix))
        parts.append(Part(prefix, read, start, stop, (idx_path(prefix), bin_path(prefix))))
    if len({part.path for part in parts}) < len(parts):
        raise UsageError("the same prefix is named twice; name it once")
    if options.order == "cache" and len(parts) > 1:
        raise UsageError("--order cache:DIR is the order of one dataset; name one prefix")
    return parts


def idx_path(prefix: Path) -> Path:
    """The index."""
    return prefix.with_name(f"{prefix.name}.idx")


def bin_path(prefix: Path) -> Path:
    """The tokens."""
    return prefix.with_name(f"{prefix.name}.bin")


def read_header(path: Path) -> Header:
    """The header of an .idx file, checked against its size; raises DatasetError."""
    with explained("read", path), path.open("rb") as file:
        data = file.read(HEADER.size)
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DatasetError(f"{path} is not an .idx file of Megatron (MMIDIDX); name the prefix of an IndexedDataset")
    _, version, code, sequences, documents = HEADER.unpack(data)
    if version != VERSION or code not in TYPES or np.dtype(TYPES[code]).kind == "f":
        raise DatasetError(f"{path} has version {version} and ids of type {code}, which exact-prep does not know")
    expected = HEADER.size + 12 * sequences + 8 * documents
    # Multimodal datasets have a byte per sequence at the end.
    if (size := file_size(path)) not in (expected, expected + sequences):
        raise DatasetError(f"{path} has {size:,} bytes, its header says {expected:,}: it is cut; make it again")
    return Header(np.dtype(TYPES[code]), sequences)


def find_split(sequences: int, split: Sequence[float] | None) -> tuple[int, int]:
    """The sequences of the train split, as Megatron rounds them."""
    if split is None:
        return 0, sequences
    return 0, round(split[0] / sum(split) * sequences)


def read_stream(part: Part, options: MeasureOptions, watch: Watch) -> Stream:
    """The sequences of the train split, in file order or in the order that Megatron kept."""
    index, path = idx_path(part.path), bin_path(part.path)
    header = read_header(index)
    sequences = header.sequences if part.stop is None else part.stop
    tokens, whole = sum_lengths(index, header.sequences, sequences)
    if (size := file_size(path)) != whole * header.dtype.itemsize:
        raise DatasetError(
            f"{path} has {size:,} bytes, its index says {whole * header.dtype.itemsize:,}: it is cut, or belongs to "
            "another index"
        )
    dropped = {OTHER_SPLIT: whole - tokens} if tokens < whole else {}
    if options.documents == "eos":
        eos_id = need_eos(options)
        check_ids(path, header.dtype, 0, tokens, eos_id)
        stream = stream_by_eos(read_numbers(path, header.dtype, 0, tokens, watch), tokens, eos_id, keep_tail=True)
        stream.dropped |= dropped
        return stream
    if options.eos_id is not None:
        check_sample(part.path, header, sequences, options.eos_id)
    lengths = read_numbers(index, np.dtype("<i4"), HEADER.size, sequences, watch)
    if options.order != "cache":
        return Stream(tokens=tokens, lengths=(chunk.astype(np.int64) for chunk in lengths), dropped=dropped)
    own = np.concatenate([*lengths, np.empty(0, np.int32)])
    order = load_order(Path(options.cache or ""), sequences, watch)
    return Stream(
        tokens=sum(int(own[places].sum(dtype=np.int64)) for places in order),
        lengths=(own[places].astype(np.int64) for places in order),
        dropped=dropped,
    )


def sum_lengths(index: Path, sequences: int, own: int) -> tuple[int, int]:
    """Tokens of the first `own` sequences, and of all; raises DatasetError for a length below 0."""
    sums = np.zeros(2, np.int64)
    done = 0
    for chunk in read_numbers(index, np.dtype("<i4"), HEADER.size, sequences, lambda view: None):
        if int(chunk.min()) < 0:
            raise DatasetError(f"{index} has a sequence of {chunk.min()} tokens: it is damaged")
        sums += chunk[: max(own - done, 0)].sum(dtype=np.int64), chunk.sum(dtype=np.int64)
        done += chunk.size
    return int(sums[0]), int(sums[1])


def check_sample(prefix: Path, header: Header, sequences: int, eos_id: int) -> None:
    """Raise DatasetError where sequences do not end with their only EOS."""
    index, path, dtype = idx_path(prefix), bin_path(prefix), header.dtype
    with explained("read", index):
        lengths = np.memmap(index, "<i4", "r", HEADER.size, (header.sequences,)) if header.sequences else np.empty(0)
        places = (
            np.memmap(index, "<i8", "r", HEADER.size + 4 * header.sequences, lengths.shape) if lengths.size else lengths
        )
    drawn = (
        np.unique(np.random.default_rng(0).integers(0, max(sequences, 1), SAMPLES)) if sequences else np.empty(0, int)
    )
    drawn = drawn[lengths[drawn] > 0]
    with explained("read", path), path.open("rb") as file:

        def read(start: int, length: int) -> np.ndarray:
            file.seek(start)
            return np.frombuffer(file.read(length * dtype.itemsize), dtype)

        check_document_ends(read, places[drawn], lengths[drawn], eos_id, path)


def load_order(cache: Path, sequences: int, watch: Watch) -> list[np.ndarray]:
    """The sequences in the order in which Megatron lays them end to end, int32[N] at a time."""
    found = sorted(cache.glob("*-document_index.npy"))
    train = [path for path in found if "-train-" in path.name] or found
    if len(train) != 1:
        listed = ", ".join(path.name for path in train) or "none"
        raise UsageError(
            f"--order cache:{cache}: one file *-document_index.npy of the train split is needed there, and there are: "
            f"{listed}; name a directory that holds one"
        )
    with explained("read", train[0]):
        order = np.load(train[0], mmap_mode="r")
    if order.size and not (0 <= int(order.min()) <= int(order.max()) < sequences):
        raise DatasetError(
            f"{train[0]} names sequences up to {order.max():,}, and there are {sequences:,}: it belongs to "
            "another dataset"
        )
    chunks = [np.ascontiguousarray(order[start : start + (1 << 20)]) for start in range(0, order.size, 1 << 20)]
    for chunk in chunks:
        watch(as_bytes(chunk))
    return chunks
