"""`sidecar`: a weight beside each token of files that others wrote, for trainers that cut them as they lie.

float16, aligned with the target, in a .npy file per token file. What the trainer does not read weighs 0. A trainer that
shuffles documents before it cuts, or draws crops, sees other contexts than any order of the file: it needs the table.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.kernels.contexts import fill_by_position
from exact_prep.layouts.foreign import load_layout
from exact_prep.layouts.npy import NpyWriter
from exact_prep.weighing.cuts import STREAMED, count_rows, row_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.layouts.foreign import Part
    from exact_prep.reader.lookup import LoadedWeights, MeasuredWeights
    from exact_prep.records.options import MeasureOptions

AT_ONCE = 1 << 23
"""Tokens that are weighed at once, about."""


def check_cut(options: MeasureOptions) -> None:
    """Raise UsageError for a trainer whose rows do not follow from where a token lies in its file."""
    if options.rows in ("shared", "crops") or (options.rows in STREAMED and options.order != "file"):
        raise UsageError(
            "a weight beside each token is wrong here: the trainer shuffles documents, or draws windows, before it "
            "cuts rows, so a token's context is not that of its place in the file. Use `export --to lut`, and look "
            "weights up by position in the trainer"
        )
    if not options.isolated:
        raise UsageError("documents are not kept apart, so the weight follows from the place in the row: use --to lut")


def write(
    dataset: MeasuredWeights, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """NAME.weights.npy for each token file, float16[tokens]; checks them against the exposure at the end."""
    measured, loaded = dataset.files.record, dataset.loaded_weights
    options = measured.options
    check_cut(options)
    layout = load_layout(options.layout)
    parts = layout.list_parts([part.path for part in measured.parts], options)
    counted: dict[int, int] = {}
    files = {}
    for number, part in enumerate(parts):
        name = f"{number:05d}-{part.path.name}.weights.npy"
        tokens = 0
        with ExitStack() as stack:
            writer = None
            total, blocks = weigh_part(layout, part, options, measured.seq_len, loaded)
            for bits in blocks:
                writer = writer or stack.enter_context(NpyWriter(out / name, np.float16, (total,)))
                writer.write(bits.view(np.float16))
                tokens += bits.size
                progress(bits.size)
                values, numbers = np.unique(bits, return_counts=True)
                for value, count in zip(values.tolist(), numbers.tolist(), strict=True):
                    counted[value] = counted.get(value, 0) + count
        if tokens != total:
            raise DatasetError(
                f"{part.path} has {total:,} tokens and {tokens:,} weights: it was changed; measure again"
            )
        files[name] = f"float16[{total}], weights of the tokens of {part.path}"
    check_counts(counted, loaded, dataset)
    return {"files": files, "use": "weight of the target at place t of the token file"}


def weigh_part(
    layout: Any, part: Part, options: MeasureOptions, seq_len: int, loaded: LoadedWeights
) -> tuple[int, Iterator[np.ndarray]]:
    """Tokens of a file, and their weights as float16 bit patterns, uint16[T] at a time."""
    if options.rows == "stored":
        total = sum(int(rows.row_lengths.sum()) for rows in layout.read_rows(part, options, lambda view: None))
        return total, weigh_stored(layout.read_rows(part, options, lambda view: None), seq_len, loaded)
    stream = layout.read_stream(part, options, lambda view: None)
    lengths = [chunk[chunk > 0] for chunk in stream.lengths]
    # Known once all lengths have been read.
    rest = sum(stream.dropped.values())
    return stream.tokens + rest, weigh_stream(lengths, stream.tokens, rest, options, seq_len, loaded)


def weigh_stored(batches: Any, seq_len: int, loaded: LoadedWeights) -> Iterator[np.ndarray]:
    """Weights of stored rows, end to end, padding included."""
    for rows in batches:
        sums = np.concatenate([[0], np.cumsum(rows.seq_lengths)])
        used = sums[rows.row_splits[1:]] - sums[rows.row_splits[:-1]]
        # Padding as segments of one token, which weigh nothing.
        out = np.zeros(int(rows.row_lengths.sum()), np.uint16)
        weights = fill(rows.seq_lengths, seq_len, loaded)
        starts = np.cumsum(rows.row_lengths) - rows.row_lengths
        places = np.repeat(starts - sums[rows.row_splits[:-1]], used) + np.arange(int(sums[-1]))
        out[places] = weights
        if rows.masked is not None:
            out[rows.masked] = 0
        yield out


def weigh_stream(
    lengths: list[np.ndarray], tokens: int, rest: int, options: MeasureOptions, seq_len: int, loaded: LoadedWeights
) -> Iterator[np.ndarray]:
    """Weights of documents that lie end to end, and zeros for what the trainer does not read."""
    width = row_width(options.rows, seq_len)
    limit = count_rows(options.rows, seq_len, tokens) * width if options.rows in STREAMED else tokens
    place = 0
    for chunk in lengths:
        sums = np.cumsum(chunk)
        for own in np.split(chunk, np.flatnonzero(np.diff(sums // AT_ONCE)) + 1):
            size = int(own.sum())
            ends = place + np.cumsum(own)
            if options.rows in STREAMED:
                edges = np.arange(-(-place // width) * width, place + size, width)
            else:
                # The multiples of L inside each document, from its own start.
                inside = (own - 1) // seq_len
                first = np.repeat(ends - own, inside)
                step = np.arange(int(inside.sum())) - np.repeat(np.cumsum(inside) - inside, inside) + 1
                edges = first + step * seq_len
            breaks = np.union1d(np.concatenate([[place], ends]), edges)
            weights = fill(np.diff(breaks), seq_len, loaded)
            if options.rows == "truncate":
                beyond = np.arange(size) - np.repeat(ends - own - place, own) >= seq_len
                weights[beyond] = 0
            weights[max(limit - place, 0) :] = 0
            yield weights
            place += size
    if rest:
        yield np.zeros(rest, np.uint16)


def fill(lengths: np.ndarray, seq_len: int, loaded: LoadedWeights) -> np.ndarray:
    """Weights of segments end to end, uint16[T]; context L weighs as L - 1."""
    edges, values = loaded.runs
    edges = edges.copy()
    edges[-1] = seq_len + 1
    out = np.empty((1, int(lengths.sum())), np.uint16)
    if out.size:
        fill_by_position(lengths.astype(np.int32), np.array([0, lengths.size], np.int32), edges, values, out)
    return out[0]


def check_counts(counted: dict[int, int], loaded: LoadedWeights, dataset: MeasuredWeights) -> None:
    """Raise DatasetError unless as many tokens have each weight as the exposure says."""
    expected: dict[int, int] = {}
    for value, count in loaded.count_weights(dataset.exposure).items():
        expected[value] = expected.get(value, 0) + count
    found = {value: count for value, count in counted.items() if value}
    if found != {value: count for value, count in expected.items() if value and count}:
        raise DatasetError(
            f"the weights of all tokens are not those that the exposure of {dataset.files.path} tells: the files were "
            "changed; measure again"
        )
