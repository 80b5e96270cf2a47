"""What readers share: the part they read, how a bad document is set aside, how batches are numbered and joined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rejected, TextBatch
from exact_prep.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exact_prep.records.manifest import InputFile, Slice
    from exact_prep.records.options import SourceOptions

BATCH_BYTES = 4 << 20
"""Text per batch, about: batches are joined up to here and not beyond."""

BATCH_RECORDS = 1 << 14
"""Records per batch, at most, where they are small."""

BATCH_READ = 32 << 20
"""Input per batch, about, where it gives little text: it keeps progress bars moving."""

BATCH_PARTS = 1 << 14
"""Batches joined into one, at most: it bounds the memory of batches that account for nothing."""

MAX_DOCUMENT = 2 << 30
"""A JSON record or CSV line of more bytes is a bad one: it would have to be held in memory three times."""

MAX_ID = 1 << 31
"""Token ids are below this: they are int32 from here on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A slice of one file, with all that its reader needs to know."""

    file: InputFile
    slice: Slice
    options: SourceOptions
    spool: Path | None = None
    """Where standard input was put, if that is the file."""

    @property
    def path(self) -> Path:
        """Where the bytes are. Made when it is asked for: a corpus may be a million files."""
        return self.spool or Path(self.file.path)

    @property
    def name(self) -> str:
        """The file as messages call it."""
        if self.file.format == "hub":
            return f"{self.file.path} shard {self.slice.start}"
        return "stdin" if self.file.path == "-" else self.file.path


def set_aside(part: Part, record: int, place: str, reason: str) -> Rejected:
    """A bad document's record under `--on-error reject`, else SourceError; `record` counts from the slice's start."""
    if part.options.on_error == "stop":
        where = f":{place[5:]}" if place.startswith("line ") else f", {place}"
        raise SourceError(f"{part.name}{where}: {reason};\nmend it, or set such documents aside with --on-error reject")
    return Rejected(source=part.name, place=place, reason=reason, record=record)


def numbers(first: int, read: int, left_out: Sequence[int]) -> np.ndarray:
    """Places of the documents among `read` records from `first` on, int64[D]; `left_out` are not documents."""
    places = np.arange(first, first + read, dtype=np.int64)
    return np.delete(places, np.asarray(left_out, np.int64) - first) if left_out else places


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of the texts in UTF-8; ASCII needs no encoding to know."""
    return sum([len(text) if text.isascii() else len(text.encode()) for text in texts])


def shifted(batch: TextBatch, by: int) -> TextBatch:
    """The batch with its records counted from `by` earlier on."""
    if by == 0:
        return batch
    rejected = tuple(replace(one, record=one.record + by) for one in batch.rejected)
    return replace(batch, records=batch.records + by, rejected=rejected)


def joined(batches: Iterable[TextBatch]) -> Iterator[TextBatch]:
    """Small batches made into larger ones; a batch whose last document goes on ends the one it is joined to."""
    waiting: list[TextBatch] = []
    text = records = read = 0
    for batch in batches:
        waiting.append(batch)
        text += batch.text_bytes + (0 if batch.ids is None else batch.ids.nbytes)
        records += batch.read
        read += batch.bytes_read
        full = text >= BATCH_BYTES or records >= BATCH_RECORDS or read >= BATCH_READ or len(waiting) >= BATCH_PARTS
        if full or batch.continues:
            yield concatenated(waiting)
            waiting = []
            text = records = read = 0
    if waiting:
        yield concatenated(waiting)


def concatenated(batches: list[TextBatch]) -> TextBatch:
    """One batch from some that follow each other; all but the last are whole."""
    if len(batches) == 1:
        return batches[0]
    ids = id_offsets = None
    columns = [(batch.ids, batch.id_offsets) for batch in batches if batch.ids is not None]
    if columns:
        ids = np.concatenate([column for column, _ in columns])
        lengths = np.concatenate([np.diff(offsets) for _, offsets in columns if offsets is not None])
        id_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TextBatch(
        texts=[text for batch in batches for text in batch.texts],
        ids=ids,
        id_offsets=id_offsets,
        records=np.concatenate([batch.records for batch in batches]),
        continues=batches[-1].continues,
        read=sum(batch.read for batch in batches),
        empty=sum(batch.empty for batch in batches),
        rejected=tuple(one for batch in batches for one in batch.rejected),
        bytes_read=sum(batch.bytes_read for batch in batches),
        text_bytes=sum(batch.text_bytes for batch in batches),
    )
