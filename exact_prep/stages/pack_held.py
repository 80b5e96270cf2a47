"""The last task of `pack --validation`: what all tasks held out, packed together, for every row length."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from exact_prep.records import encode
from exact_prep.records.work import TaskRecord
from exact_prep.sources import SourceLabels
from exact_prep.stages.documents import OwnIds
from exact_prep.stages.holdout import read_held
from exact_prep.stages.lengths import LengthHistogram
from exact_prep.stages.pack import PackTask, Part, discard_task, held_lengths_name, write_own_ids
from exact_prep.stores import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.engines import Meter
    from exact_prep.records.manifest import DocumentCounts, TokenLedger


@dataclass(frozen=True, kw_only=True)
class PackHeldTask:
    """What a worker needs to know."""

    pack: PackTask
    """Options, tokenizer and homes; it has no slices."""
    files: tuple[tuple[Path, int], ...]
    """What each task held out, and the number of its first record in the corpus."""
    documents: DocumentCounts
    left_out: dict[str, int]
    ledger: TokenLedger
    """Tokens in all files."""
    text_bytes: int
    record: str
    """Name of the task's record."""

    @property
    def name(self) -> str:
        """The task as a person would find it."""
        return "the validation documents"


def pack_held_task(task: PackHeldTask, meter: Meter) -> None:
    """Make the shards of the validation datasets, and the record, written last. Raises StorageError, LedgerError."""
    work = open_store(task.pack.work)
    work.remove(task.record)
    discard_task(task.pack.index, task.pack.key, work, [open_store(url) for url in task.pack.homes.values()])
    labels, lengths, own_ids = SourceLabels(), LengthHistogram(), OwnIds()
    with ExitStack() as stack:
        parts = [
            stack.enter_context(Part(task.pack, seq_len, labels)) for seq_len in task.pack.options.packing.seq_lens
        ]
        for path, first_record in task.files:
            for texts, tokens in read_held(path, first_record):
                labels.add(texts)
                own_ids.add(texts)
                lengths.add(tokens, labels)
                for part in parts:
                    part.add(tokens)
                meter.add(0, tokens.ids.size)
            meter.add(1)
        packed = {part.seq_len: part.finish(task.ledger, lengths) for part in parts}
    checksum = None if task.pack.options.source.id_field is None else write_own_ids(task.pack, own_ids)
    histogram = lengths.encode()
    checksum_lengths = xxhash.xxh3_128_hexdigest(histogram)
    work.write(held_lengths_name(checksum_lengths), histogram)
    record = TaskRecord(
        task=task.pack.index,
        documents=task.documents,
        content_xxh3=xxhash.xxh3_128_hexdigest(b""),
        left_out=task.left_out,
        text_bytes=task.text_bytes,
        parity_texts=0,
        parity_bytes=0,
        labels=tuple(labels.names),
        documents_xxh3=checksum,
        own_ids=own_ids.count,
        lengths_xxh3=checksum_lengths,
        packed=packed,
    )
    work.write(task.record, encode(record))
