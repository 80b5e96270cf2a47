"""What flows from file to shard to trainer, as columns: texts, tokens of documents, rows of segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


MASKED = np.int32(-(2**31))
"""The bit of an id, until it is in a row, that says that its token carries no loss. Ids are below 2**31, so it is free:
whatever copies ids copies masks."""


IGNORED = -100
"""The label of a target without loss, as torch and Hugging Face spell it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A document that was skipped because it cannot be used."""

    source: str
    """Path of the file."""
    place: str
    """Where in the file: `line 12`, `row 7`. Empty where it follows from how many records earlier tasks read."""
    reason: str
    record: int
    """The record's place in its task's input, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """Some documents of one task, in order: their texts, or their ids where the corpus is tokenized already."""

    texts: list[str] = field(default_factory=list)
    """One string per document; none is empty unless it ends a document begun in an earlier batch."""
    ids: np.ndarray | None = None
    """Token ids of all documents, int32[T], where the corpus is tokenized already; see MASKED."""
    id_offsets: np.ndarray | None = None
    """Where each document's ids start and end, int64[D + 1]."""
    labels: list[str] | None = None
    """Source label of each document, D strings, where labels come from a field of the record; else None."""
    own_ids: list[str] | None = None
    """Each document's own id, D strings, empty where it has none; None if ids are not kept."""
    label: str = ""
    """Source label of all documents, where labels come from files; else empty."""
    records: np.ndarray
    """Each document's place in its task's input counted from 0, int64[D]."""
    continues: bool = False
    """Whether the last document goes on in the next batch."""
    read: int = 0
    """Records of the input that this batch accounts for, empty and rejected ones included."""
    empty: int = 0
    """Empty documents among them."""
    rejected: tuple[Rejected, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Records and members of archives that hold no text, by kind."""
    bytes_read: int = 0
    """Bytes of the input files consumed for this batch, compressed where they are."""
    text_bytes: int = 0
    """Bytes of text decoded for this batch (UTF-8)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """Some documents, or pieces of one, as ids with BOS and EOS in place."""

    ids: np.ndarray
    """Token ids of all pieces end to end, int32[T]; see MASKED."""
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
    """Documents left out; `source` and `place` are empty: the stage fills them in."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """R rows of L tokens and the S segments in them: the same columns from packing to shards to readers.

    The segments of row r are `row_splits[r]` to `row_splits[r + 1]`. What they leave of a row is padding.
    """

    input_ids: np.ndarray
    """Token ids, int32[R, L], the padding id after each row's last segment."""
    row_splits: np.ndarray
    """Where each row's segments start and end, int32[R + 1], from 0 to S."""
    seq_lengths: np.ndarray
    """Lengths of all segments in tokens, int32[S], row by row."""
    doc_ids: np.ndarray
    """Each segment's document, int64[S]: the record's place in its task's input."""
    doc_offsets: np.ndarray
    """Where each segment starts inside its document, in tokens, int64[S]."""
    sources: np.ndarray
    """Each segment's source, int16[S]: place in the label list of its task."""
    mask_splits: np.ndarray | None = None
    """Where each row's values of `masked_runs` start and end, int32[R + 1]; None: no target is masked."""
    masked_runs: np.ndarray | None = None
    """Start and stop in the row, in turn, of runs of targets without loss, int32[2M]: sorted, inside one segment."""
    loss_weights: np.ndarray | None = None
    """Weight of each target `input_ids[r, t]`, float16[R, L]; None where no weights are stored."""

    def __len__(self) -> int:
        """Rows."""
        return self.input_ids.shape[0]

    @property
    def seq_len(self) -> int:
        """Tokens per row, L."""
        return self.input_ids.shape[1]

    def slice(self, start: int, stop: int) -> Rows:
        """The rows [start, stop) as views; splits begin at 0 again."""
        splits = self.row_splits[start : stop + 1]
        segments = slice(int(splits[0]), int(splits[-1]))
        mask_splits = masked_runs = None
        if self.mask_splits is not None and self.masked_runs is not None:
            mask_splits = self.mask_splits[start : stop + 1]
            masked_runs = self.masked_runs[int(mask_splits[0]) : int(mask_splits[-1])]
            mask_splits = mask_splits - mask_splits[0]
        return Rows(
            input_ids=self.input_ids[start:stop],
            row_splits=splits - splits[0],
            seq_lengths=self.seq_lengths[segments],
            doc_ids=self.doc_ids[segments],
            doc_offsets=self.doc_offsets[segments],
            sources=self.sources[segments],
            mask_splits=mask_splits,
            masked_runs=masked_runs,
            loss_weights=None if self.loss_weights is None else self.loss_weights[start:stop],
        )

    def segment_starts(self) -> np.ndarray:
        """Where each segment starts in its row, in tokens, int64[S]."""
        ends = np.cumsum(self.seq_lengths, dtype=np.int64)
        starts = ends - self.seq_lengths
        per_row = np.diff(self.row_splits)
        first = np.concatenate([starts, [0]])[self.row_splits[:-1]]
        return starts - np.repeat(first, per_row)
