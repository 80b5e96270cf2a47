"""One task of `measure`: a file, or a group of files that is one stream, read once and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from exact_prep.errors import DatasetError
from exact_prep.layouts.foreign import BEYOND, TAIL, load_layout
from exact_prep.records.measured import MeasuredPart, PartCounts
from exact_prep.stores.local import save
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.cuts import STREAMED, Cutter, DocumentLengths
from exact_prep.weighing.exposure import Exposure, measure_lengths

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.engines import Meter
    from exact_prep.layouts.foreign import Part, StoredRows
    from exact_prep.records.options import MeasureOptions


@dataclass(frozen=True, kw_only=True)
class MeasureTask:
    """What a worker needs to know."""

    part: Part
    options: MeasureOptions
    key: str
    record: Path
    """Where the completion marker goes."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return str(self.part.path)


class _Watcher:
    """Hashes and counts what is read."""

    def __init__(self, meter: Meter) -> None:
        self.hash, self.bytes, self._meter = xxhash.xxh3_128(), 0, meter

    def __call__(self, data: memoryview) -> None:
        self.hash.update(data)
        self.bytes += data.nbytes
        self._meter.add(data.nbytes)


def measure_part(task: MeasureTask, meter: Meter) -> PartCounts:
    """Count one part and save its record; raises DatasetError, StorageError, UsageError."""
    watcher = _Watcher(meter)
    count = measure_stored if task.options.rows == "stored" else measure_stream
    counted = count(task, watcher, meter)
    part = counted.part.model_copy(update={"bytes": watcher.bytes, "xxh3": watcher.hash.hexdigest()})
    counted = counted.model_copy(update={"part": part})
    save(counted, task.record)
    return counted


def measure_stream(task: MeasureTask, watcher: _Watcher, meter: Meter) -> PartCounts:
    """Count documents that the trainer cuts into rows."""
    options, seq_len = task.options, task.options.seq_len or 0
    stream = load_layout(options.layout).read_stream(task.part, options, watcher)
    cutter = Cutter(options.rows, seq_len, stream.tokens)
    lengths = DocumentLengths.count(np.empty(0, np.int64), 2 * seq_len)
    documents = read = 0
    for chunk in stream.lengths:
        own = DocumentLengths.count(chunk, 2 * seq_len)
        lengths += own
        documents += own.documents
        read += int(chunk.sum())
        meter.add(0, int(chunk.sum()))
        if options.isolated:
            cutter.add(chunk)
    if read != stream.tokens and options.rows in STREAMED:
        raise DatasetError(
            f"{task.part.path}: its documents have {read:,} tokens, and {stream.tokens:,} are expected; it is damaged"
        )
    if not options.isolated:
        cutter.add(np.array([read]))
    unused = 0 if options.rows == "crops" else read - cutter.used
    dropped = dict(stream.dropped)
    if unused:
        dropped[BEYOND if options.rows == "truncate" else TAIL] = unused
    pieces = cutter.pieces
    return PartCounts(
        key=task.key,
        part=make_part(task, documents, read, cutter.rows),
        lengths=list_pairs(lengths.counts),
        long=lengths.long,
        long_tokens=lengths.long_tokens,
        longest=lengths.longest,
        pieces=list_pairs(pieces.counts),
        segments=pieces.segments,
        cut=pieces.cut,
        dropped=dropped,
    )


def measure_stored(task: MeasureTask, watcher: _Watcher, meter: Meter) -> PartCounts:
    """Count rows as they are stored."""
    options = task.options
    exposure, rows, segments, tokens, longest, longest_row = Exposure(), 0, 0, 0, 0, 0
    for batch in load_layout(options.layout).read_rows(task.part, options, watcher):
        widths = batch.row_lengths
        limit = None if options.seq_len is None else options.seq_len + 1
        if limit is not None and int(widths.max(initial=0)) > limit:
            row = rows + int(np.flatnonzero(widths > limit)[0])
            raise DatasetError(
                f"{task.part.path}, row {row:,} has {widths.max():,} tokens, more than --seq-len {options.seq_len:,}"
            )
        exposure += expose_rows(batch if options.isolated else merge_segments(batch))
        rows += widths.size
        segments += batch.seq_lengths.size
        tokens += int(batch.seq_lengths.sum())
        longest = max(longest, int(batch.seq_lengths.max(initial=0)))
        longest_row = max(longest_row, int(widths.max(initial=0)))
        meter.add(0, int(widths.sum()))
    return PartCounts(
        key=task.key,
        part=make_part(task, segments, tokens, rows),
        longest=longest_row if not options.isolated else longest,
        exposure=exposure.to_record(),
        longest_row=longest_row,
    )


def merge_segments(batch: StoredRows) -> StoredRows:
    """Rows whose documents see each other: one segment each."""
    sums = np.concatenate([[0], np.cumsum(batch.seq_lengths)])
    used = sums[batch.row_splits[1:]] - sums[batch.row_splits[:-1]]
    return batch._replace(seq_lengths=used[used > 0], row_splits=np.concatenate([[0], np.cumsum(used > 0)]))


def expose_rows(batch: StoredRows) -> Exposure:
    """The exposure of stored rows; masked targets are in no bucket."""
    whole = measure_lengths(batch.seq_lengths.astype(np.int32))
    if batch.masked is None or not batch.masked.any():
        return whole
    lengths, splits = batch.seq_lengths, batch.row_splits
    before = np.cumsum(lengths) - lengths
    first = np.concatenate([before, [lengths.sum()]])[splits[:-1]]
    row_starts = np.cumsum(batch.row_lengths) - batch.row_lengths
    row_of = np.repeat(np.arange(splits.size - 1), np.diff(splits))
    starts = row_starts[row_of] + before - first[row_of]
    contexts = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    masked = contexts[batch.masked[np.repeat(starts, lengths) + contexts]]
    counts = whole.counts.copy()
    edges = bucket_edges(counts.size)
    gone = np.searchsorted(edges, masked[masked > 0], side="right") - 1
    counts -= np.bincount(gone, minlength=counts.size)
    firsts = whole.firsts - int(np.count_nonzero(masked == 0))
    return Exposure(counts=counts, segments=whole.segments, firsts=firsts)


def make_part(task: MeasureTask, documents: int, tokens: int, rows: int) -> MeasuredPart:
    """The part's record, but for what was read of it."""
    return MeasuredPart(path=str(task.part.path), bytes=0, xxh3="0" * 32, documents=documents, tokens=tokens, rows=rows)


def list_pairs(counts: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The places of a histogram that are not 0, and their counts."""
    places = np.flatnonzero(counts)
    return tuple(zip(places.tolist(), counts[places].tolist(), strict=True))
