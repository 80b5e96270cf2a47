"""What readers share: the part they read, how a bad document is skipped, how batches are numbered and joined."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rejected, TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.places import count_records_before, describe_place, is_cut_by_bytes, join_place
from exact_prep.stores import is_object_url, split_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from exact_prep.records.options import SourceOptions
    from exact_prep.records.work import InputFile, Slice
    from exact_prep.sources.streams import Damaged, Place

BATCH_BYTES = 4 << 20
"""Bytes of text per batch, about: batches are joined until they have as much."""

BATCH_RECORDS = 1 << 14
"""Records per batch, at most, where they are small."""

BATCH_READ = 32 << 20
"""Bytes of input per batch, about, where input gives little text: this keeps progress bars moving."""

BATCH_PARTS = 1 << 14
"""Batches joined into one, at most: this bounds the memory of batches without records."""

MAX_DOCUMENT = 2 << 30
"""A JSON record or CSV line of more bytes is a bad document: it would have to be held in memory three times."""

MAX_ID = 1 << 31
"""Token ids are below this: they are int32 from here on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A slice of one file, with all that its reader needs to know."""

    file: InputFile
    slice: Slice
    options: SourceOptions
    spool: Path | None = None
    """Where standard input was written, if that is the file."""
    store_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """How to reach a store; may hold secrets."""

    @property
    def path(self) -> Place:
        """Where the bytes are. Made on demand: a corpus may be a million files."""
        if not is_object_url(self.file.path):
            return self.spool or Path(self.file.path)
        from exact_prep.stores.objects import ObjectPath, open_objects

        scheme, bucket, key = split_url(self.file.path)
        store = open_objects(f"{scheme}://{bucket}", self.store_options)
        return ObjectPath(store, key, self.file.bytes, self.file.etag)

    @property
    def name(self) -> str:
        """The file as messages call it."""
        if self.file.format == "hub":
            return f"{self.file.path} shard {self.slice.start}"
        return "stdin" if self.file.path == "-" else self.file.path


def reject(part: Part, record: int, reason: str, *, before: int | None = None, onward: bool = False) -> Rejected:
    """The entry of a bad document that is skipped; `record` counts from the slice's start.

    `before` are the records of the file before the slice, where the reader knows them. `onward`: nothing can be read
    from this document on. Raises SourceError instead under `on_error="stop"`.
    """
    stop = part.options.on_error == "stop"
    if before is None and (stop or not is_cut_by_bytes(part)):
        before = count_records_before(part)
    place = "" if before is None else describe_place(part.file.format, before + record) + " on" * onward
    if stop:
        where = join_place(part.name, place)
        raise SourceError(f"{where}: {reason};\nfix it, or skip such documents with --on-error reject")
    return Rejected(source=part.name, place=place, reason=reason, record=record)


def reject_rest(part: Part, record: int, damage: Damaged, *, consumed: int, size: int, before: int = 0) -> TextBatch:
    """The batch that accounts for what a damage makes unreadable: `consumed` bytes of `size` were read before it."""
    rest = max(size - consumed, 0)
    lost = [f"{damage.unfinished:,} bytes of the record that it cuts"] if damage.unfinished else []
    if rest:
        lost.append(f"the last {rest:,} of the file's {part.file.bytes:,} bytes")
    reason = f"{damage}; lost: {', and '.join(lost) or 'whatever came after it'}"
    rejected = reject(part, record, reason, before=before, onward=True)
    return TextBatch(records=np.empty(0, np.int64), read=1, rejected=(rejected,), bytes_read=size - consumed)


def number_records(first: int, read: int, left_out: Sequence[int]) -> np.ndarray:
    """Numbers of the documents among `read` records from `first` on, int64[D]; `left_out` are not documents."""
    places = np.arange(first, first + read, dtype=np.int64)
    return np.delete(places, np.asarray(left_out, np.int64) - first) if left_out else places


def count_utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts in UTF-8. ASCII texts are not encoded for it."""
    return sum([len(text) if text.isascii() else len(text.encode()) for text in texts])


def place_in_task(batch: TextBatch, first: int, label: str) -> TextBatch:
    """The batch of a slice as a batch of its task: `first` records come before the slice, `label` is the slice's."""
    if first == 0 and not label:
        return batch
    if first == 0:
        return replace(batch, label=label)
    rejected = tuple(replace(one, record=one.record + first) for one in batch.rejected)
    return replace(batch, records=batch.records + first, rejected=rejected, label=label)


def join_batches(batches: Iterable[TextBatch]) -> Iterator[TextBatch]:
    """Small batches made into larger ones, each with one label.

    A batch whose last document continues in the next one is the last of those it is joined to.
    """
    waiting: list[TextBatch] = []
    text = records = read = 0
    for batch in batches:
        if waiting and batch.label != waiting[0].label:
            yield concatenate(waiting)
            waiting = []
            text = records = read = 0
        waiting.append(batch)
        text += batch.text_bytes + (0 if batch.ids is None else batch.ids.nbytes)
        records += batch.read
        read += batch.bytes_read
        full = text >= BATCH_BYTES or records >= BATCH_RECORDS or read >= BATCH_READ or len(waiting) >= BATCH_PARTS
        if full or batch.continues:
            yield concatenate(waiting)
            waiting = []
            text = records = read = 0
    if waiting:
        yield concatenate(waiting)


def concatenate(batches: list[TextBatch]) -> TextBatch:
    """One batch from some that follow each other and have the same label; only the last document may continue."""
    if len(batches) == 1:
        return batches[0]
    ids = id_offsets = labels = own_ids = None
    columns = [(batch.ids, batch.id_offsets) for batch in batches if batch.ids is not None]
    if columns:
        ids = np.concatenate([column for column, _ in columns])
        lengths = np.concatenate([np.diff(offsets) for _, offsets in columns if offsets is not None])
        id_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # A batch without documents, such as one that only accounts for bytes, may have no list of labels.
    if any(batch.labels is not None for batch in batches):
        labels = [label for batch in batches for label in batch.labels or ()]
    if any(batch.own_ids is not None for batch in batches):
        own_ids = [own_id for batch in batches for own_id in batch.own_ids or ()]
    return TextBatch(
        texts=[text for batch in batches for text in batch.texts],
        ids=ids,
        id_offsets=id_offsets,
        labels=labels,
        own_ids=own_ids,
        label=batches[0].label,
        records=np.concatenate([batch.records for batch in batches]),
        continues=batches[-1].continues,
        read=sum(batch.read for batch in batches),
        empty=sum(batch.empty for batch in batches),
        rejected=tuple(one for batch in batches for one in batch.rejected),
        left_out=sum((Counter(batch.left_out) for batch in batches if batch.left_out), Counter()),
        bytes_read=sum(batch.bytes_read for batch in batches),
        text_bytes=sum(batch.text_bytes for batch in batches),
    )
