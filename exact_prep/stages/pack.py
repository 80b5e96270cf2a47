"""One task of `pack`: slices of input files to shards, for every row length, and a TaskRecord, written last.

    read_task -> TextBatch -> Tokenizer -> TokenBatch -> Packer -> PackedBatch -> ShardWriter
    (a thread ahead)                                              (a thread behind)

Reading, encoding and writing overlap; what waits between them is bounded, so memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from exact_prep.errors import LedgerError
from exact_prep.packing import Packer
from exact_prep.records.manifest import (
    DocumentCounts,
    ExposureRecord,
    PackedCounts,
    ShardRecord,
    TaskRecord,
    TokenLedger,
)
from exact_prep.shards import ShardWriter
from exact_prep.sources import origins_of, read_task
from exact_prep.stages.limits import within_limits
from exact_prep.stores.local import TEMPORARY, explained, make_directory, publish, save, sync_file
from exact_prep.tokenization import Tokenizer
from exact_prep.weighing.exposure import Exposure, measure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from exact_prep.batches import PackedBatch, Rejected, TextBatch, TokenBatch
    from exact_prep.engines import Meter
    from exact_prep.records.manifest import InputFile, Slice, TokenizerRecord
    from exact_prep.records.options import PackOptions

SHARD_BYTES = 1 << 30
"""A task begins a new shard when the one it writes holds this much."""


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """What a worker needs to know."""

    index: int
    slices: tuple[Slice, ...]
    """Parts of `files`, in order."""
    files: tuple[InputFile, ...]
    """The files of this task alone."""
    options: PackOptions
    tokenizer: TokenizerRecord
    tokenizer_path: Path | None
    stdin: Path | None
    """Where standard input was put."""
    directory: Path
    """Where parts and the record go."""

    def origins(self, records: list[int]) -> list[tuple[str, str]]:
        """File and place of records of this task."""
        return origins_of(records, self.slices, self.files, self.options.source, stdin=self.stdin)

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        first, last = self.files[0].path, self.files[-1].path
        return f"task {self.index} ({first if first == last else f'{first} ... {last}'})"


def record_path(directory: Path, task: int) -> Path:
    """Where the record of a task is."""
    return directory / f"task-{task:05d}.json"


def rejected_path(directory: Path, task: int) -> Path:
    """Where the documents that a task set aside are listed."""
    return directory / f"rejected-{task:05d}.jsonl"


def part_path(directory: Path, seq_len: int, task: int, part: int) -> Path:
    """Where a shard waits until all tasks are done."""
    return directory / str(seq_len) / f"part-{task:05d}-{part:03d}.arrow"


def pack_task(task: PackTask, meter: Meter) -> None:
    """Make the shards of one task and save its record.

    Raises SourceError, TokenizerError, StorageError; LedgerError if tokens in and tokens out differ.
    """
    source = task.options.source
    tokenizer = Tokenizer(
        task.tokenizer_path,
        task.tokenizer,
        task.options.tokenizer,
        task=task.index,
        reject=source.on_error == "reject",
        name=lambda record: " ".join(task.origins([record])[0]),
    )
    with ExitStack() as stack:
        rejected = stack.enter_context(RejectedList(rejected_path(task.directory, task.index)))
        documents = Documents(rejected)
        parts = [stack.enter_context(Part(task, seq_len)) for seq_len in task.options.packing.seq_lens]
        reading = ahead(read_task(task.slices, task.files, source, stdin=task.stdin))
        for texts, batches in within_limits(reading, tokenizer.encode, source):
            documents.read(texts)
            for tokens in batches:
                documents.encoded(tokens)
                for part in parts:
                    part.add(tokens)
                meter.add(0, tokens.ids.size)
            meter.add(texts.bytes_read)
        if documents.nameless:
            rejected.add(placed(documents.nameless, task))
        record = TaskRecord(
            task=task.index,
            documents=documents.counts(),
            text_bytes=documents.text_bytes,
            parity_texts=tokenizer.parity_texts,
            parity_bytes=tokenizer.parity_bytes,
            packed={part.seq_len: part.finish(documents.ledger) for part in parts},
        )
        rejected.publish()
    save(record, record_path(task.directory, task.index))


class Documents:
    """What one task read and encoded, counted."""

    def __init__(self, rejected: RejectedList) -> None:
        """`rejected` takes the documents that are set aside."""
        self.text_bytes = 0
        self.ledger = TokenLedger()
        self.nameless: list[Rejected] = []
        """What the tokenizer set aside, in order, without file and place."""
        self._rejected = rejected
        self._records = self._empty = self._packed = 0

    def read(self, texts: TextBatch) -> None:
        """Count the records of a batch."""
        self._records += texts.read
        self._empty += texts.empty
        self.text_bytes += texts.text_bytes
        self._rejected.add(texts.rejected)

    def encoded(self, tokens: TokenBatch) -> None:
        """Count the tokens of a batch."""
        self._packed += tokens.documents
        self._empty += tokens.empty
        self.nameless += tokens.rejected
        self.ledger = TokenLedger(
            text_tokens=self.ledger.text_tokens + tokens.text_tokens,
            bos_tokens=self.ledger.bos_tokens + tokens.bos_tokens,
            eos_tokens=self.ledger.eos_tokens + tokens.eos_tokens,
        )

    def counts(self) -> DocumentCounts:
        """The counts; raises LedgerError if a record is unaccounted for."""
        counts = DocumentCounts(
            records=self._records, packed=self._packed, empty=self._empty, rejected=self._rejected.count
        )
        if counts.records != counts.packed + counts.empty + counts.rejected:
            raise LedgerError(f"records read and records accounted for differ, please report this: {counts!r}")
        return counts


class RejectedList:
    """The documents that one task sets aside, one JSON object per line: source, place, reason.

    Written as they come: a file of which every line is bad takes no more memory than any other.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        """Documents so far."""
        self._path = path
        self._temporary = path.with_suffix(TEMPORARY)
        self._file: TextIO | None = None

    def __enter__(self) -> RejectedList:
        """Nothing is written before there is something to say."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the file if it was not published."""
        if self._file:
            # On a full disk closing fails as well, and would hide why the task ends.
            with suppress(OSError):
                self._file.close()

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Append documents; raises StorageError."""
        if not rejected:
            return
        self.count += len(rejected)
        with explained("write", self._path):
            if self._file is None:
                self._file = self._temporary.open("w", encoding="utf-8", newline="\n")
            for item in rejected:
                line = {"source": item.source, "place": item.place, "reason": item.reason}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Publish the list unless it is empty; raises StorageError."""
        if self._file is None:
            return
        with explained("write", self._path):
            self._file.close()
        self._file = None
        sync_file(self._temporary)
        publish(self._temporary, self._path)


class Part:
    """What one task makes for one row length: a packer, a shard being written, the counts of both."""

    def __init__(self, task: PackTask, seq_len: int) -> None:
        packing = task.options.packing
        self.seq_len = seq_len
        self._task = task
        self._packer = Packer(
            packing=packing.packing,
            seq_len=seq_len,
            pad_id=task.tokenizer.pad_id,
            shuffle=None if packing.shuffle is None else (packing.shuffle, task.index),
        )
        self._shards: list[ShardRecord] = []
        self._writer: ShardWriter | None = None
        self._exposure = Exposure()
        self._longest = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        make_directory(task.directory / str(seq_len))

    def __enter__(self) -> Part:
        """Nothing to begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the thread, and of the shard if it was not finished."""
        self._thread.shutdown(cancel_futures=True)
        if self._writer:
            self._writer.abandon()

    def add(self, tokens: TokenBatch) -> None:
        """Pack a batch and write the rows that are settled by now."""
        self._write(self._packer.add(tokens))

    def finish(self, read: TokenLedger) -> PackedCounts:
        """Write what is left; returns the counts. `read` says which tokens came in. Raises LedgerError."""
        self._write(self._packer.finish())
        self._wait()
        self._close_shard()
        in_rows = sum(shard.tokens for shard in self._shards)
        rows = sum(shard.rows for shard in self._shards)
        ledger = read.model_copy(update={"row_tokens": in_rows, "padding": rows * self.seq_len - in_rows})
        if ledger.balance() or self._exposure.targets + self._exposure.segments != in_rows:
            raise LedgerError(f"tokens in and tokens out differ in {self._task.name}, please report this: {ledger!r}")
        counts = tuple(self._exposure.trimmed().tolist())
        return PackedCounts(
            ledger=ledger,
            exposure=ExposureRecord(counts=counts, segments=self._exposure.segments),
            documents_cut=self._packer.documents_cut,
            longest_context=self._longest,
            shards=tuple(self._shards),
        )

    def _write(self, batches: Iterable[PackedBatch]) -> None:
        for batch in batches:
            self._exposure += measure(batch.seq_lengths)
            self._longest = max(self._longest, int(batch.seq_lengths.max()) - 1)
            self._wait()
            self._writing = self._thread.submit(self._append, batch)

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()
            self._writing = None

    def _append(self, batch: PackedBatch) -> None:
        if self._writer and self._writer.bytes >= SHARD_BYTES:
            self._close_shard()
        if not self._writer:
            self._writer = ShardWriter(self._path().with_suffix(TEMPORARY), self.seq_len)
        self._writer.write(batch)

    def _close_shard(self) -> None:
        if self._writer:
            path = self._path()
            record = self._writer.close(file=path.name, task=self._task.index)
            publish(self._writer.path, path)
            self._shards.append(record)
            self._writer = None

    def _path(self) -> Path:
        return part_path(self._task.directory, self.seq_len, self._task.index, len(self._shards))


def ahead(batches: Iterator[TextBatch]) -> Iterator[TextBatch]:
    """The same batches, each read by a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def placed(nameless: list[Rejected], task: PackTask) -> list[Rejected]:
    """What the tokenizer set aside, with file and place: it knows the documents by their numbers alone."""
    origins = task.origins([item.record for item in nameless])
    return [replace(item, source=source, place=place) for item, (source, place) in zip(nameless, origins, strict=True)]
