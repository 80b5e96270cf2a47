"""One task of `verify`: the shards that one task of `pack` made, checked from their bytes.

A finding is a sentence that says what is wrong, where. No finding is an exception: the check goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from exact_prep.errors import DatasetError, StorageError
from exact_prep.records.tables import decode_documents
from exact_prep.shards import Shard, open_shard
from exact_prep.stages.lengths import sum_lengths
from exact_prep.stores.local import explained
from exact_prep.weighing.exposure import Exposure, measure_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rows
    from exact_prep.engines import Meter
    from exact_prep.records.work import ShardRecord
    from exact_prep.stores.paths import Home


@dataclass(frozen=True, kw_only=True)
class VerifyTask:
    """What a worker needs to know."""

    directory: Home
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
    own_ids: Home | None
    """The table of documents' own ids, if there is one."""
    own_ids_xxh3: str
    padding_rows: int
    """Rows without a segment, which complete the dataset: its last shards alone may hold some."""
    sources: int
    """Labels of the task: values of `sources` lie below."""
    masked: bool
    weights: bool
    """Whether there are columns of masked runs and of weights."""
    shards: tuple[ShardRecord, ...]
    edges: np.ndarray
    """Runs by position that `loss_weights` holds, int32[K + 1]."""
    values: np.ndarray
    """Their float16 bit patterns, uint16[K]."""
    weights_xxh3: tuple[str | None, ...]
    """Checksum of each shard's weights; None where they are half-weighed, or not stored."""
    quick: bool
    """Sizes and structure alone."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return f"{self.directory / self.shards[0].file} ..." if self.shards else str(self.directory)


@dataclass
class Verified:
    """What was found and counted."""

    findings: list[str] = field(default_factory=list)
    exposures: list[Exposure] = field(default_factory=list)
    """By source of the task."""
    tokens: list[int] = field(default_factory=list)
    """By source of the task."""
    documents: list[int] = field(default_factory=list)
    """By source of the task."""
    lengths: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.int64))
    """Histogram of document lengths, int64[3, N]: source of the task, length, count."""
    documents_cut: int = 0
    """Documents that lie in more than one segment."""
    longest_context: int = 0
    """Largest effective left context."""


def verify_shards(task: VerifyTask, meter: Meter) -> Verified:
    """Check the shards of one task."""
    verified = Verified(exposures=[Exposure() for _ in range(task.sources)])
    columns: list[np.ndarray] = []
    empty = 0
    for record, checksum in zip(task.shards, task.weights_xxh3, strict=True):
        path = task.directory / record.file
        try:
            with explained("read", path):
                size = path.stat().st_size
            if size != record.bytes:
                verified.findings.append(f"{path}: {size:,} bytes, the table of shards says {record.bytes:,}")
                continue
            shard = open_shard(path)
        except (StorageError, DatasetError) as error:
            verified.findings.append(str(error))
            continue
        verified.findings += check_counts(shard, record, task)
        if not task.quick:
            verified.findings += check_contents(shard, record, checksum, task)
        if not task.quick and not verified.findings:
            for batch in shard.batches:
                for source, exposure in enumerate(measure_rows(batch, task.sources)):
                    verified.exposures[source] += exposure
                columns.append(list_segments(batch))
                empty += int((np.diff(batch.row_splits) == 0).sum())
        meter.add(size)
    if not task.quick and not verified.findings:
        segments = np.concatenate(columns, axis=1) if columns else np.zeros((6, 0), np.int64)
        segments = segments[:, np.lexsort((segments[1], segments[0]))]
        if empty != task.padding_rows:
            text = f"{empty:,} rows without a segment, the manifest says {task.padding_rows:,}"
            verified.findings.append(f"{task.name}: {text}")
        verified.findings += check_documents(segments, task)
        verified.findings += check_own_ids(segments[0], task)
        count_documents(segments, verified, task)
    return verified


def check_own_ids(doc_ids: np.ndarray, task: VerifyTask) -> Iterator[str]:
    """Findings about the table of documents' own ids; `doc_ids[S]` are the documents of all segments."""
    if task.own_ids is None:
        return
    try:
        with explained("read", task.own_ids):
            data = task.own_ids.read_bytes()
        if xxhash.xxh3_128_hexdigest(data) != task.own_ids_xxh3:
            yield f"{task.own_ids} is not the file that was written (checksum)"
            return
        known = decode_documents(data, task.own_ids)
    except (DatasetError, StorageError) as error:
        yield str(error)
        return
    missing = [doc_id for doc_id in np.unique(doc_ids).tolist() if doc_id not in known]
    if missing:
        yield f"{task.own_ids}: there is no document {missing[0]}, which is in the task's rows"


def check_counts(shard: Shard, record: ShardRecord, task: VerifyTask) -> Iterator[str]:
    """Findings about shape: row length, columns, counts, and where the record batches lie."""
    if shard.seq_len != task.seq_len:
        yield f"{shard.path}: rows of {shard.seq_len} tokens, the manifest says {task.seq_len}"
    for batch in shard.batches[:1]:
        if (batch.mask_splits is not None) != task.masked or (batch.loss_weights is not None) != task.weights:
            yield f"{shard.path}: its columns are not those that the manifest calls for"
    rows = sum(len(batch) for batch in shard.batches)
    segments = sum(batch.seq_lengths.size for batch in shard.batches)
    tokens = sum(int(batch.seq_lengths.sum(dtype=np.int64)) for batch in shard.batches)
    for what, found, said in (
        ("rows", rows, record.rows),
        ("segments", segments, record.segments),
        ("tokens", tokens, record.tokens),
    ):
        if found != said:
            yield f"{shard.path}: {found:,} {what}, the table of shards says {said:,}"
    if shard.places != record.batches:
        yield f"{shard.path}: its record batches do not lie where the table of batches says"


def check_contents(shard: Shard, record: ShardRecord, checksum: str | None, task: VerifyTask) -> Iterator[str]:
    """Findings about bytes: checksums, segment lengths, ids, sources, padding and weights."""
    if shard.content_digest() != record.content_xxh3:
        yield f"{shard.path}: its tokens or segments are not those that were written (checksum of the content)"
    if shard.rest_digest() != record.rest_xxh3:
        yield f"{shard.path}: its headers or sources are not those that were written (checksum of the rest)"
    if checksum is not None and shard.weights_digest() != checksum:
        yield f"{shard.path}: its loss_weights are not those that were written (checksum)"
    if shard.seq_len != task.seq_len:
        return
    row = 0
    for batch in shard.batches:
        yield from check_rows(shard, batch, row, task)
        row += len(batch)
    if checksum is not None:
        yield from check_weights(shard, task)


def check_rows(shard: Shard, batch: Rows, row: int, task: VerifyTask) -> Iterator[str]:
    """Findings about the rows of one record batch; `row` is the number of its first row."""
    ends = np.concatenate([[0], np.cumsum(batch.seq_lengths, dtype=np.int64)])[batch.row_splits]
    used = np.diff(ends)
    if batch.seq_lengths.size and batch.seq_lengths.min() < 1:
        yield f"{shard.path}: rows {row} to {row + len(batch) - 1} hold a segment without tokens"
    for wrong in np.flatnonzero((used > task.seq_len) | (used < (0 if task.padding_rows else 1)))[:1]:
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
    if batch.sources.size and not 0 <= batch.sources.min() <= batch.sources.max() < task.sources:
        yield f"{shard.path}: rows {row} to {row + len(batch) - 1}: a source beyond the {task.sources} of its task"


def check_weights(shard: Shard, task: VerifyTask) -> Iterator[str]:
    """The first position whose weight is not what its context calls for."""
    for row, start, expected in shard.expected_weights(task.edges, task.values):
        found = np.frombuffer(shard.memory[start : start + expected.nbytes], np.uint16).reshape(expected.shape)
        wrong = found != expected
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            yield (
                f"{shard.path}: row {row + int(at[0])}, position {at[1]}: weight {found[at].view(np.float16)}, "
                f"its context calls for {expected[at].view(np.float16)}"
            )
            return


def list_segments(batch: Rows) -> np.ndarray:
    """Document, offset, length, first and last id, and source of each segment of correct rows, int64[6, S]."""
    lengths = batch.seq_lengths.astype(np.int64)
    row = np.repeat(np.arange(len(batch)), np.diff(batch.row_splits))
    at = row * batch.seq_len + batch.segment_starts()
    ids = batch.input_ids.reshape(-1)
    return np.stack([batch.doc_ids, batch.doc_offsets, lengths, ids[at], ids[at + lengths - 1], batch.sources])


def mark_documents(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which segments begin and which end a document, bool[S] each; `ids[S]` are sorted."""
    first, last = np.ones(ids.size, bool), np.ones(ids.size, bool)
    first[1:] = ids[1:] != ids[:-1]
    last[:-1] = first[1:]
    return first, last


def check_documents(segments: np.ndarray, task: VerifyTask) -> Iterator[str]:
    """Findings about documents: they start at 0, have no gap or overlap, one source, and BOS and EOS at their ends.

    `segments[6, S]` are of all shards of the task, sorted by document and offset; see `list_segments`.
    """
    ids, offsets, lengths, begin, end, sources = segments
    first, last = mark_documents(ids)
    expected = np.zeros(ids.size, np.int64)
    expected[1:] = np.where(first[1:], 0, offsets[:-1] + lengths[:-1])
    for s in np.flatnonzero(offsets != expected)[:1]:
        kind = "missing" if offsets[s] > expected[s] else "repeated"
        low, high = sorted((int(expected[s]), int(offsets[s])))
        yield f"{task.name}: document {ids[s]}: tokens {low} to {high - 1} are {kind}"
    if ids.size and (ids[0] < 0 or ids[-1] >= task.records):
        yield f"{task.name}: document ids {ids[0]} to {ids[-1]}, the task read {task.records} records"
    if int(first.sum()) != task.documents:
        yield f"{task.name}: {int(first.sum())} documents, the table of tasks says {task.documents}"
    for s in np.flatnonzero(~first[1:] & (sources[1:] != sources[:-1]))[:1]:
        yield f"{task.name}: document {ids[s]} has segments of two sources"
    for name, wanted, edge, found in (
        ("begin with BOS", task.bos_id, first, begin),
        ("end with EOS", task.eos_id, last, end),
    ):
        if wanted is not None:
            for s in np.flatnonzero(edge & (found != wanted))[:1]:
                yield f"{task.name}: document {ids[s]} does not {name} ({wanted}) but with {found[s]}"


def count_documents(segments: np.ndarray, verified: Verified, task: VerifyTask) -> None:
    """Count what is compared with the manifest and its tables: documents, tokens and lengths by source."""
    ids, offsets, lengths, _, _, sources = segments
    first, last = mark_documents(ids)
    verified.longest_context = int(lengths.max(initial=1)) - 1
    verified.documents_cut = int((~first & last).sum())
    verified.tokens = np.bincount(sources, lengths, task.sources).astype(np.int64).tolist()
    verified.documents = np.bincount(sources[first], minlength=task.sources).tolist()
    whole = np.stack([sources[last], (offsets + lengths)[last], np.ones(int(last.sum()), np.int64)])
    verified.lengths = sum_lengths([whole])
