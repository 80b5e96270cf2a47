"""The records that flow from file to shard. Columns, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A document that was set aside."""

    source: str
    """Path of the file."""
    place: str
    """Where in the file: `line 12`, `row 7`."""
    reason: str
    record: int
    """The record's place in its task's input, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """Some documents of one task, in order: their texts, or their ids where the corpus is tokenized already."""

    texts: list[str] = field(default_factory=list)
    """One string per document; none is empty unless it ends a document begun in an earlier batch."""
    ids: np.ndarray | None = None
    """Token ids of all documents, int32[T], where the corpus is tokenized already."""
    id_offsets: np.ndarray | None = None
    """Where each document's ids start and end, int64[D + 1]."""
    records: np.ndarray
    """Each document's place in its task's input counted from 0, int64[D]."""
    continues: bool = False
    """Whether the last document goes on in the next batch."""
    read: int = 0
    """Records of the input that this batch accounts for, empty and rejected ones included."""
    empty: int = 0
    """Empty documents among them."""
    rejected: tuple[Rejected, ...] = ()
    bytes_read: int = 0
    """Bytes of the input files consumed for this batch, compressed where they are."""
    text_bytes: int = 0
    """Bytes of text decoded for this batch (UTF-8)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Some documents, or pieces of one, as ids with BOS and EOS in place."""

    ids: np.ndarray
    """Token ids of all pieces end to end, int32[T]."""
    offsets: np.ndarray
    """Where each piece starts and ends in `ids`, int64[D + 1]; no piece is empty."""
    doc_ids: np.ndarray
    """Each piece's document, int64[D]."""
    doc_offsets: np.ndarray
    """Where each piece starts inside its document, in tokens, int64[D]; 0 but for a document begun earlier."""
    continues: bool = False
    """Whether the last document goes on in the next batch."""
    text_tokens: int = 0
    """Tokens that came from text."""
    bos_tokens: int = 0
    eos_tokens: int = 0
    empty: int = 0
    """Documents that had text but gave no token; they get no BOS and no EOS."""
    documents: int = 0
    """Documents with tokens that end in this batch."""
    rejected: tuple[Rejected, ...] = ()
    """Documents left out; `source` is empty and `place` is `record N` until the stage knows better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """Rows, ready to be written."""

    input_ids: np.ndarray
    """Token ids, int32[R, L], the padding id after each row's last segment."""
    segments_per_row: np.ndarray
    """int32[R]."""
    seq_lengths: np.ndarray
    """Lengths of all segments, int32[S], row by row."""
    doc_ids: np.ndarray
    """int64[S]."""
    doc_offsets: np.ndarray
    """int64[S]."""
