"""One task of `pack`: slices of input files to shards, for every row length, and a TaskRecord, written last.

    Inputs.read -> TextBatch -> Tokenizer -> TokenBatch -> Packer -> Rows -> ShardWriter
    (a thread ahead)                                          (a thread behind)

Reading, encoding and writing overlap; what waits between them is bounded, so memory does not grow with the corpus.
Shards get their final names at once. The record is the only completion marker: a task that is done again removes its
record first, then its shards.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from exact_prep.dataset import documents_name, shard_name
from exact_prep.errors import LedgerError
from exact_prep.packing import Packer
from exact_prep.records import encode
from exact_prep.records.work import PackedCounts, ShardRecord, SourceCounts, TaskRecord
from exact_prep.shards import ShardWriter
from exact_prep.sources import RecordPlaces, SourceLabels
from exact_prep.stages.content import ContentHash, hashed
from exact_prep.stages.documents import Documents, OwnIds, RejectedList
from exact_prep.stages.holdout import Holdout
from exact_prep.stages.lengths import LengthHistogram
from exact_prep.stages.limits import within_limits
from exact_prep.stages.masks import split_masks
from exact_prep.stores import open_store
from exact_prep.stores.local import remove
from exact_prep.tokenization import Tokenizer
from exact_prep.weighing.exposure import Exposure, measure_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from exact_prep.batches import Rows, TextBatch, TokenBatch
    from exact_prep.engines import Meter
    from exact_prep.records.manifest import TokenizerRecord, TokenLedger
    from exact_prep.records.options import PackOptions
    from exact_prep.records.work import Slice
    from exact_prep.sources import Inputs
    from exact_prep.stores import Store


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """What a worker needs to know."""

    index: int
    inputs: Inputs
    """The files of this task alone."""
    slices: tuple[Slice, ...]
    """Parts of them, in order."""
    key: str
    """16 hexadecimal digits that tell the task's slices apart from those of another plan; see `task_key`."""
    options: PackOptions
    tokenizer: TokenizerRecord
    tokenizer_path: Path | None
    shard_bytes: int
    """A new shard begins when the one being written holds this much."""
    work: str
    """Store of the records."""
    homes: dict[int, str]
    """Store of each dataset, by row length."""
    alone: bool = True
    """Whether nobody else can be at this task: the run holds the directory."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        if not self.slices:
            return f"task {self.index} (its files were removed)"
        first, last = self.inputs.files[0].path, self.inputs.files[-1].path
        return f"task {self.index} ({first if first == last else f'{first} ... {last}'})"


def task_key(inputs: Inputs, slices: Sequence[Slice]) -> str:
    """16 hexadecimal digits of xxh3 over the slices' paths, starts and stops."""
    hasher = xxhash.xxh3_64()
    for one in slices:
        hasher.update(f"{inputs.files[one.file].path}\0{one.start}\0{one.stop}\0".encode())
    return hasher.hexdigest()


def record_name(task: int, key: str) -> str:
    """Name of a task's record."""
    return f"task-{task:07d}-{key}.json"


def rejected_name(task: int, key: str) -> str:
    """Name of the list of documents that a task skipped."""
    return f"rejected-{task:07d}-{key}.jsonl"


def lengths_name(task: int, key: str) -> str:
    """Name of a task's part of the histogram of document lengths."""
    return f"lengths-{task:07d}-{key}.bin"


def held_name(task: int, key: str) -> str:
    """Name of the tokens that a task holds out."""
    return f"held-{task:07d}-{key}.arrow"


def held_lengths_name(checksum: str) -> str:
    """Name of the histogram of lengths of the validation documents, by its checksum."""
    return f"validation_lengths-{checksum}.bin"


def pack_task(task: PackTask, meter: Meter) -> tuple[str, ...]:
    """Make the shards of one task and save its record; returns the labels of its sources.

    Raises SourceError, TokenizerError, StorageError; LedgerError if tokens in and tokens out differ.
    """
    source, work = task.options.source, open_store(task.work)
    places = RecordPlaces(task.inputs, task.slices)
    if task.alone:
        discard_task(task.index, task.key, work, [open_store(url) for url in task.homes.values()])
    # Else another attempt may be about to finish, and what it wrote is what this one will write.
    tokenizer = Tokenizer(
        task.tokenizer_path,
        task.tokenizer,
        task.options.tokenizer,
        task=task.index,
        reject=source.on_error == "reject",
        name=places.name,
        masked=source.masked,
        eos_inside=source.documents == "rows",
    )
    with ExitStack() as stack:
        rejected = stack.enter_context(RejectedList(work.scratch(rejected_name(task.index, task.key))))
        labels, lengths, own_ids = SourceLabels(), LengthHistogram(), OwnIds()
        documents = Documents(rejected, places)
        parts = [stack.enter_context(Part(task, seq_len, labels)) for seq_len in task.options.packing.seq_lens]
        content, holdout = ContentHash(), None
        coming = ahead(hashed(task.inputs.read(task.slices, places), content))
        if task.options.validation is not None:
            path = work.scratch(held_name(task.index, task.key))
            holdout = stack.enter_context(Holdout(task.options.validation, task.tokenizer, path))
            coming = holdout.follow(coming)
        for texts, batches in within_limits(coming, tokenizer.encode, source):
            documents.read(texts)
            kept = texts if holdout is None else holdout.keep(texts)
            labels.add(kept)
            own_ids.add(kept)
            for encoded in batches:
                tokens = encoded if holdout is None else holdout.part(encoded)
                documents.encoded(tokens)
                lengths.add(tokens, labels)
                for part in parts:
                    part.add(tokens)
                meter.add(0, encoded.ids.size)
            meter.add(texts.bytes_read)
        packed = {part.seq_len: part.finish(documents.ledger, lengths) for part in parts}
        checksum = None if source.id_field is None else write_own_ids(task, own_ids)
        histogram = lengths.encode()
        work.write(lengths_name(task.index, task.key), histogram)
        if rejected.close():
            work.upload(rejected.path, rejected_name(task.index, task.key))
        held = None
        if holdout is not None:
            held = holdout.finish()
            documents.held_out, documents.text_bytes = held.documents, documents.text_bytes - held.text_bytes
            work.upload(holdout.path, held_name(task.index, task.key))
    record = TaskRecord(
        task=task.index,
        documents=documents.counts(),
        left_out=dict(sorted(documents.left_out.items())),
        content_xxh3=content.hexdigest(),
        text_bytes=documents.text_bytes,
        parity_texts=tokenizer.parity_texts,
        parity_bytes=tokenizer.parity_bytes,
        labels=tuple(labels.names),
        documents_xxh3=checksum,
        own_ids=own_ids.count,
        lengths_xxh3=xxhash.xxh3_128_hexdigest(histogram),
        held=held,
        packed=packed,
    )
    work.write(record_name(task.index, task.key), encode(record))
    return record.labels


def write_own_ids(task: PackTask, own_ids: OwnIds) -> str:
    """Write the table of documents into each dataset; returns its checksum."""
    data = own_ids.encode()
    for url in task.homes.values():
        open_store(url).write(documents_name(task.index), data)
    return xxhash.xxh3_128_hexdigest(data)


def discard_task(index: int, key: str, work: Store, homes: Iterable[Store]) -> None:
    """Remove what an earlier attempt left: the record first, then shards from the last to the first."""
    for name in (record_name, rejected_name, lengths_name, held_name):
        work.remove(name(index, key))
    for home in homes:
        home.remove(documents_name(index))
        count = 0
        while home.size(shard_name(index, count)) is not None:
            count += 1
        for part in reversed(range(count)):
            home.remove(shard_name(index, part))


class Part:
    """What one task makes for one row length: a packer, a shard being written, the counts of both."""

    def __init__(self, task: PackTask, seq_len: int, labels: SourceLabels) -> None:
        packing = task.options.packing
        self.seq_len = seq_len
        self._task, self._labels = task, labels
        self._home = open_store(task.homes[seq_len])
        self._packer = Packer(
            packing=packing.packing,
            seq_len=seq_len,
            pad_id=task.tokenizer.pad_id,
            shuffle=None if packing.shuffle is None else (packing.shuffle, task.index),
            window_tokens=packing.window_tokens,
            max_segments=packing.max_segments,
        )
        self._shards: list[ShardRecord] = []
        self._writer: ShardWriter | None = None
        self._exposures: list[Exposure] = []
        """By source."""
        self._tokens = np.zeros(0, np.int64)
        """By source."""
        self._longest = 0
        self._is_masked = task.options.source.masked
        self._masked = 0
        """Masked targets with left context >= 1."""
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Part:
        """Nothing to begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread, and abandon the shard if it was not finished."""
        self._thread.shutdown(cancel_futures=True)
        if self._writer:
            self._writer.abandon()

    def add(self, tokens: TokenBatch) -> None:
        """Pack a batch and write the rows that are settled by now."""
        self._write(self._packer.add(tokens))

    def finish(self, read: TokenLedger, lengths: LengthHistogram) -> PackedCounts:
        """Write what is left; returns the counts. `read` says which tokens came in. Raises LedgerError."""
        self._write(self._packer.finish())
        self._wait()
        self._close_shard()
        in_rows = sum(shard.tokens for shard in self._shards)
        rows = sum(shard.rows for shard in self._shards)
        ledger = read.model_copy(update={"row_tokens": in_rows, "padding": rows * self.seq_len - in_rows})
        exposure = sum(self._exposures, Exposure())
        counted = exposure.targets + exposure.segments + self._masked
        if ledger.balance() or counted != in_rows or int(self._tokens.sum()) != in_rows:
            raise LedgerError(f"tokens in and tokens out differ in {self._task.name}, please report this: {ledger!r}")
        if (found := lengths.tokens) != in_rows:
            raise LedgerError(
                f"documents of {found} tokens, {in_rows} in rows in {self._task.name}, please report this"
            )
        documents = lengths.count_documents(len(self._labels.names))
        self._grow(len(self._labels.names))
        return PackedCounts(
            ledger=ledger,
            exposure=exposure.to_record(),
            sources=tuple(
                SourceCounts(documents=count, tokens=tokens, exposure=own.to_record())
                for count, tokens, own in zip(documents, self._tokens.tolist(), self._exposures, strict=True)
            ),
            documents_cut=self._packer.documents_cut,
            longest_context=self._longest,
            shards=tuple(self._shards),
        )

    def _grow(self, sources: int) -> None:
        """Make room for the counts of new sources."""
        missing = sources - len(self._exposures)
        self._exposures += [Exposure() for _ in range(missing)]
        self._tokens = np.concatenate([self._tokens, np.zeros(missing, np.int64)])

    def _write(self, batches: Iterable[Rows]) -> None:
        for batch in batches:
            if self._is_masked:
                batch, masked = split_masks(batch)
                self._masked += masked
            rows = replace(batch, sources=self._labels.find(batch.doc_ids))
            self._grow(len(self._labels.names))
            for source, exposure in enumerate(measure_rows(rows, len(self._exposures))):
                if exposure.segments:
                    self._exposures[source] += exposure
            self._tokens += np.bincount(rows.sources, rows.seq_lengths, self._tokens.size).astype(np.int64)
            self._longest = max(self._longest, int(rows.seq_lengths.max()) - 1)
            self._wait()
            self._writing = self._thread.submit(self._append, rows)

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()
            self._writing = None

    def _append(self, rows: Rows) -> None:
        if self._writer and self._writer.bytes >= self._task.shard_bytes:
            self._close_shard()
        if not self._writer:
            scratch = self._home.scratch(self._shard_name())
            weights = self._task.options.loss_weights == "column"
            self._writer = ShardWriter(scratch, self.seq_len, masked=self._is_masked, weights=weights)
        self._writer.write(rows)

    def _close_shard(self) -> None:
        if self._writer:
            name = self._shard_name()
            record = self._writer.close(file=name, task=self._task.index)
            if self._task.alone or self._home.size(name) != record.bytes:
                self._home.upload(self._writer.path, name)
            else:
                # Another attempt at the same plan was quicker: its bytes are these, and may be weighed by now.
                remove(self._writer.path)
            self._shards.append(record)
            self._writer = None

    def _shard_name(self) -> str:
        return shard_name(self._task.index, len(self._shards))


def ahead(batches: Iterator[TextBatch]) -> Iterator[TextBatch]:
    """The same batches, each read by a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
