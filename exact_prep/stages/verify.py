"""One task of `verify`: the shards that one task of `pack` made, checked from their bytes.

A finding is a sentence that says what is wrong, where. No finding is an exception: the check goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import DatasetError, StorageError
from exact_prep.records.manifest import ExposureRecord
from exact_prep.shards import Shard, ShardBatch, opened
from exact_prep.stores.local import explained
from exact_prep.weighing.exposure import Exposure, measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.engines import Meter
    from exact_prep.records.manifest import ShardRecord


@dataclass(frozen=True, kw_only=True)
class VerifyTask:
    """What a worker needs to know."""

    directory: Path
    seq_len: int
    pad_id: int
    vocab_size: int
    """0 if it is not known."""
    bos_id: int | None
    """First token of every document, if any is."""
    eos_id: int | None
    """Last token of every document, if any is."""
    records: int
    """Records that the task read: document ids lie below."""
    documents: int
    """Documents that the task packed."""
    shards: tuple[ShardRecord, ...]
    edges: np.ndarray
    """Runs by left context that `loss_weights` holds, int32[K + 1]."""
    values: np.ndarray
    """Their float16 bit patterns, uint16[K]."""
    weights_xxh3: tuple[str | None, ...]
    """Checksum of each shard's weights; None where they are half-weighed and can be neither old nor new for sure."""
    quick: bool
    """Sizes and structure alone."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return f"{self.directory / self.shards[0].file} ..." if self.shards else str(self.directory)


@dataclass
class Verified:
    """What came out."""

    findings: list[str] = field(default_factory=list)
    exposure: Exposure = field(default_factory=Exposure)
    documents_cut: int = 0
    """Documents that lie in more than one segment."""
    longest_context: int = 0
    """Largest effective left context."""

    def record(self) -> ExposureRecord:
        """The exposure, as it is stored."""
        return ExposureRecord(counts=tuple(self.exposure.trimmed().tolist()), segments=self.exposure.segments)


def verify_shards(task: VerifyTask, meter: Meter) -> Verified:
    """Check the shards of one task."""
    verified = Verified()
    columns: list[np.ndarray] = []
    for record, checksum in zip(task.shards, task.weights_xxh3, strict=True):
        path = task.directory / record.file
        try:
            with explained("read", path):
                size = path.stat().st_size
            if size != record.bytes:
                verified.findings.append(f"{path}: {size:,} bytes, the manifest says {record.bytes:,}")
                continue
            shard = opened(path)
        except (StorageError, DatasetError) as error:
            verified.findings.append(str(error))
            continue
        verified.findings += counts_of(shard, record, task)
        if not task.quick:
            verified.findings += contents_of(shard, record, checksum, task)
        if not task.quick and not verified.findings:
            for batch in shard.batches:
                verified.exposure += measure(batch.seq_lengths)
                columns.append(segments_of(batch))
        meter.add(size)
    if not task.quick and not verified.findings:
        segments = np.concatenate(columns, axis=1) if columns else np.zeros((5, 0), np.int64)
        verified.findings += documents_of(segments, task)
        verified.longest_context = int(segments[2].max(initial=1)) - 1
        verified.documents_cut = int((np.unique(segments[0], return_counts=True)[1] > 1).sum())
    return verified


def counts_of(shard: Shard, record: ShardRecord, task: VerifyTask) -> Iterator[str]:
    """Findings about shape: row length and the counts of the manifest."""
    if shard.seq_len != task.seq_len:
        yield f"{shard.path}: rows of {shard.seq_len} tokens, the manifest says {task.seq_len}"
    rows = sum(batch.rows for batch in shard.batches)
    segments = sum(batch.seq_lengths.size for batch in shard.batches)
    tokens = sum(int(batch.seq_lengths.sum(dtype=np.int64)) for batch in shard.batches)
    for what, found, said in (
        ("rows", rows, record.rows),
        ("segments", segments, record.segments),
        ("tokens", tokens, record.tokens),
    ):
        if found != said:
            yield f"{shard.path}: {found:,} {what}, the manifest says {said:,}"


def contents_of(shard: Shard, record: ShardRecord, checksum: str | None, task: VerifyTask) -> Iterator[str]:
    """Findings about bytes: checksums, segment lengths, ids, padding and weights."""
    if shard.content_digest() != record.content_xxh3:
        yield f"{shard.path}: its bytes are not those that were written (checksum of all but loss_weights)"
    if checksum is not None and shard.weights_digest() != checksum:
        yield f"{shard.path}: its loss_weights are not those that were written (checksum)"
    if shard.seq_len != task.seq_len:
        return
    row = 0
    for batch in shard.batches:
        ends = np.concatenate([[0], np.cumsum(batch.seq_lengths, dtype=np.int64)])[batch.row_splits]
        used = np.diff(ends)
        if batch.seq_lengths.size and batch.seq_lengths.min() < 1:
            yield f"{shard.path}: rows {row} to {row + batch.rows - 1} hold a segment without tokens"
        for wrong in np.flatnonzero((used > task.seq_len) | (used < 1))[:1]:
            yield f"{shard.path}: row {row + wrong}: seq_lengths sum to {used[wrong]}, a row holds 1 to {task.seq_len}"
        outside = batch.input_ids < 0
        if task.vocab_size:
            outside |= batch.input_ids >= task.vocab_size
        if outside.any():
            at = np.argwhere(outside)[0]
            yield (
                f"{shard.path}: row {row + at[0]}, position {at[1]}: id {batch.input_ids[tuple(at)]} "
                f"is not in the vocabulary of {task.vocab_size}"
            )
        for r in np.flatnonzero(used < task.seq_len):
            if (batch.input_ids[r, used[r] :] != task.pad_id).any():
                yield f"{shard.path}: row {row + r}: padding is not the id {task.pad_id}"
                break
        row += batch.rows
    if checksum is not None:
        yield from weights_of(shard, task)


def weights_of(shard: Shard, task: VerifyTask) -> Iterator[str]:
    """The first position whose weight is not what its left context calls for."""
    for start, expected in shard.weights_by_left_context(task.edges, task.values):
        found = np.frombuffer(shard.memory[start : start + expected.nbytes], np.uint16).reshape(expected.shape)
        wrong = found != expected
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            row = row_at(shard, start) + int(at[0])
            yield (
                f"{shard.path}: row {row}, position {at[1]}: weight {found[at].view(np.float16)}, "
                f"its left context calls for {expected[at].view(np.float16)}"
            )
            return


def row_at(shard: Shard, position: int) -> int:
    """Number in the shard of the row whose weights start at a place in the file."""
    row = 0
    for batch in shard.batches:
        if batch.weights_start <= position < batch.weights_bytes.stop:
            return row + (position - batch.weights_start) // (2 * shard.seq_len)
        row += batch.rows
    return row


def segments_of(batch: ShardBatch) -> np.ndarray:
    """Document, offset, length, first and last id of each segment of sound rows, int64[5, S]."""
    lengths = batch.seq_lengths.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(batch.rows), batch.segments_per_row)
    at = row * batch.seq_len + starts - starts[batch.row_splits[:-1]][row]
    ids = batch.input_ids.reshape(-1)
    return np.stack([batch.doc_ids, batch.doc_offsets, lengths, ids[at], ids[at + lengths - 1]])


def documents_of(segments: np.ndarray, task: VerifyTask) -> Iterator[str]:
    """Findings about documents: they start at 0, have neither gap nor overlap, and BOS and EOS at their ends.

    `segments[5, S]` are of all shards of the task; see `segments_of`.
    """
    ids, offsets, lengths, begin, end = segments[:, np.lexsort((segments[1], segments[0]))]
    first, last = np.ones(ids.size, bool), np.ones(ids.size, bool)
    first[1:] = ids[1:] != ids[:-1]
    last[:-1] = first[1:]
    expected = np.zeros(ids.size, np.int64)
    expected[1:] = np.where(first[1:], 0, offsets[:-1] + lengths[:-1])
    for s in np.flatnonzero(offsets != expected)[:1]:
        kind = "missing" if offsets[s] > expected[s] else "repeated"
        low, high = sorted((int(expected[s]), int(offsets[s])))
        yield f"{task.name}: document {ids[s]}: tokens {low} to {high - 1} are {kind}"
    if ids.size and (ids[0] < 0 or ids[-1] >= task.records):
        yield f"{task.name}: document ids {ids[0]} to {ids[-1]}, the task read {task.records} records"
    if int(first.sum()) != task.documents:
        yield f"{task.name}: {int(first.sum())} documents, the manifest says {task.documents}"
    for name, wanted, edge, found in (
        ("begin with BOS", task.bos_id, first, begin),
        ("end with EOS", task.eos_id, last, end),
    ):
        if wanted is not None:
            for s in np.flatnonzero(edge & (found != wanted))[:1]:
                yield f"{task.name}: document {ids[s]} does not {name} ({wanted}) but with {found[s]}"
