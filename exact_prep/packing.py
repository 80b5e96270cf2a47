"""Packs documents into rows: `concat` and `best-fit`. Every token of every document goes into exactly one row.

A packer takes pieces (documents, or parts of a document that is too long for memory) and returns rows in batches. It
first plans segments, then copies tokens. A plan consists of columns, so that shuffling rows means reordering a plan.

    concat     documents end to end, cut at row edges; only the last row of a task is padded, or rows that hold as
               many segments as a row may
    best-fit   documents longer than a row give full rows and a remainder; remainders and short documents are packed
               by best-fit decreasing over a bounded window; rows are in corpus order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rows, TokenBatch
from exact_prep.kernels.best_fit import best_fit
from exact_prep.kernels.rows import find_row_edges, gather
from exact_prep.shuffle import permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.choices import Packing

WINDOW_TOKENS = 1 << 24
"""Best-fit packing and shuffling work on this many tokens at once (64 MB of ids), or on 64 rows if that is more."""

BATCH_TOKENS = 1 << 21
"""Tokens in rows that are handed out at once: 8 MB of ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Documents, or parts of documents, in one array of ids; columns of equal length P."""

    ids: np.ndarray
    """int32[T]."""
    starts: np.ndarray
    """Where each piece starts in `ids`, int64[P]."""
    lengths: np.ndarray
    """Tokens of each piece, at least 1, int64[P]."""
    doc_ids: np.ndarray
    """int64[P]."""
    doc_offsets: np.ndarray
    """Where each piece starts inside its document, int64[P]."""
    continues: bool = False
    """Whether the last piece's document continues after it."""

    def take(self, index: np.ndarray) -> Pieces:
        """The pieces in the order of `index`, over the same ids."""
        return Pieces(
            ids=self.ids,
            starts=self.starts[index],
            lengths=self.lengths[index],
            doc_ids=self.doc_ids[index],
            doc_offsets=self.doc_offsets[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """Rows as a list of segments; each segment is a piece that lies in one row."""

    segments: Pieces
    segments_per_row: np.ndarray
    """int32[R]."""
    cut: int
    """The number of documents cut; each is counted once, with its first segment."""
    rest: Pieces | None = None
    """Pieces that wait for more tokens."""


def make_pieces(batch: TokenBatch) -> Pieces:
    """The pieces of a token batch."""
    return Pieces(
        ids=batch.ids,
        starts=batch.offsets[:-1],
        lengths=np.diff(batch.offsets),
        doc_ids=batch.doc_ids,
        doc_offsets=batch.doc_offsets,
        continues=batch.continues,
    )


def join(parts: list[Pieces]) -> Pieces:
    """Join parts, whose pieces lie end to end, into one `Pieces` with one array of ids.

    A piece that continues the document of the piece before it becomes part of that piece.
    """
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    doc_ids = np.concatenate([part.doc_ids for part in parts])
    doc_offsets = np.concatenate([part.doc_offsets for part in parts])
    fresh = np.ones(lengths.size, bool)
    fresh[1:] = (doc_ids[1:] != doc_ids[:-1]) | (doc_offsets[1:] != doc_offsets[:-1] + lengths[:-1])
    first = np.flatnonzero(fresh)
    return Pieces(
        ids=np.concatenate([part.ids for part in parts]),
        starts=(np.cumsum(lengths) - lengths)[first],
        lengths=np.add.reduceat(lengths, first),
        doc_ids=doc_ids[first],
        doc_offsets=doc_offsets[first],
        continues=parts[-1].continues,
    )


def compact(segments: Pieces, index: np.ndarray, *, continues: bool) -> Pieces:
    """Copy the segments at `index` into a new array of ids, end to end."""
    chosen = segments.take(index)
    lengths = chosen.lengths.astype(np.int32)
    ids = np.empty(int(chosen.lengths.sum()), np.int32)
    gather(chosen.ids, chosen.starts, lengths, np.array([0, index.size], np.int32), ids.size, 0, ids)
    return Pieces(
        ids=ids,
        starts=np.cumsum(chosen.lengths) - chosen.lengths,
        lengths=chosen.lengths,
        doc_ids=chosen.doc_ids,
        doc_offsets=chosen.doc_offsets,
        continues=continues,
    )


def cut(pieces: Pieces, edges: np.ndarray, ends: np.ndarray) -> tuple[Pieces, np.ndarray]:
    """Lay the pieces end to end and cut them at the token positions `edges`.

    `ends[P]` are the pieces' ends in that stream, in tokens. Returns the segments, and for each whether its document
    continues after it, bool[S].
    """
    stops = np.union1d(ends, edges)
    starts = np.concatenate([[0], stops[:-1]])
    piece = np.searchsorted(ends, starts, side="right")
    inside = starts - (ends[piece] - pieces.lengths[piece])
    unfinished = stops < ends[piece]
    if pieces.continues and unfinished.size:
        unfinished[-1] = True
    segments = Pieces(
        ids=pieces.ids,
        starts=pieces.starts[piece] + inside,
        lengths=stops - starts,
        doc_ids=pieces.doc_ids[piece],
        doc_offsets=pieces.doc_offsets[piece] + inside,
    )
    return segments, unfinished


def plan_concat(pieces: Pieces, seq_len: int, *, last: bool, max_segments: int | None = None) -> RowPlan:
    """Lay the pieces end to end and cut them at row edges; an incomplete row waits for more unless this is the last."""
    ends = np.cumsum(pieces.lengths)
    edges = find_edges(pieces.lengths, seq_len, max_segments)
    segments, unfinished = cut(pieces, edges, ends)
    row = np.searchsorted(edges, np.cumsum(segments.lengths))
    settled = row.size if last else int(np.searchsorted(row, edges.size))
    firsts = unfinished[:settled] & (segments.doc_offsets[:settled] == 0)
    rest = None
    if settled < row.size:
        rest = compact(segments, np.arange(settled, row.size), continues=pieces.continues)
    return RowPlan(
        segments=segments.take(np.arange(settled)),
        segments_per_row=np.bincount(row[:settled]).astype(np.int32),
        cut=int(firsts.sum()),
        rest=rest,
    )


def find_edges(lengths: np.ndarray, seq_len: int, max_segments: int | None) -> np.ndarray:
    """Where complete rows end if pieces of `lengths[P]` tokens are laid end to end, int64[R], in tokens."""
    total = int(lengths.sum())
    if max_segments is None:
        return np.arange(seq_len, total + 1, seq_len)
    edges = np.empty(lengths.size + total // seq_len, np.int64)
    return edges[: find_row_edges(lengths, seq_len, max_segments, edges)]


def plan_best_fit(pieces: Pieces, seq_len: int, *, last: bool, max_segments: int | None = None) -> RowPlan:
    """Cut full rows from pieces longer than a row; pack the rest by best-fit decreasing, rows in corpus order.

    If the last document continues, its full rows are cut here and its remainder waits.
    """
    ends = np.cumsum(pieces.lengths)
    full = pieces.lengths // seq_len - (pieces.lengths % seq_len == 0)
    piece = np.repeat(np.arange(full.size), full)
    number = np.arange(piece.size) - np.repeat(np.cumsum(full) - full, full)
    edges = (ends - pieces.lengths)[piece] + (number + 1) * seq_len
    segments, unfinished = cut(pieces, edges, ends)
    rest = None
    if pieces.continues and not last:
        tail = segments.lengths.size - 1
        rest = compact(segments, np.array([tail]), continues=True)
        segments, unfinished = segments.take(np.arange(tail)), unfinished[:-1]
    bin_of = pack_best_fit(segments.lengths.astype(np.int32), seq_len, max_segments)
    # Rows in the order of their first document, segments inside a row in corpus order.
    _, first, row = np.unique(bin_of, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    row = rank[row]
    return RowPlan(
        segments=segments.take(np.argsort(row, kind="stable")),
        segments_per_row=np.bincount(row).astype(np.int32),
        cut=int((unfinished & (segments.doc_offsets == 0)).sum()),
        rest=rest,
    )


def pack_best_fit(lengths: np.ndarray, capacity: int, most: int | None = None) -> np.ndarray:
    """The bin of each item by best-fit decreasing, int32[N].

    `lengths[N]` are int32 in [1, capacity]; items of equal length are packed in their order. A bin takes at most `most`
    items, or as many as fit.
    """
    bin_of = np.empty(lengths.size, np.int32)
    order = np.argsort(-lengths, kind="stable")
    newest = np.full(capacity + 1, -1, np.int32)
    older = np.empty(lengths.size, np.int32)
    held = np.zeros(lengths.size, np.int32)
    occupied = np.zeros((capacity >> 6) + 1, np.uint64)
    best_fit(lengths, order, capacity, most or lengths.size, bin_of, newest, older, held, occupied)
    return bin_of


PLANS: dict[Packing, Callable[..., RowPlan]] = {"concat": plan_concat, "best-fit": plan_best_fit}


class Packer:
    """Packs the token batches of one task into rows of `seq_len` tokens.

    The windows depend only on the token batches, so the same task always gives the same rows.
    """

    def __init__(
        self,
        *,
        packing: Packing,
        seq_len: int,
        pad_id: int,
        shuffle: tuple[int, int] | None = None,
        window_tokens: int | None = None,
        max_segments: int | None = None,
    ) -> None:
        """`shuffle` is (seed, task index); best-fit and shuffling look at `window_tokens` at once.

        A row holds at most `max_segments` segments; None: as many as fit.
        """
        self.documents_cut = 0
        self._plan = PLANS[packing]
        self._max_segments = max_segments
        self._seq_len = seq_len
        self._pad_id = pad_id
        self._shuffle = shuffle
        self._windows = 0
        look_ahead = packing == "best-fit" or shuffle is not None
        self.window_tokens = (window_tokens or max(WINDOW_TOKENS, 64 * seq_len)) if look_ahead else 1
        """Tokens that are gathered before rows are planned."""
        self._waiting: list[Pieces] = []
        self._tokens = 0

    def add(self, batch: TokenBatch) -> Iterator[Rows]:
        """Add the tokens of `batch`; yields the rows that are complete."""
        if batch.ids.size:
            self._waiting.append(make_pieces(batch))
            self._tokens += batch.ids.size
        # Shuffling needs whole documents, so a window waits for the end of its last document.
        if self._tokens >= self.window_tokens and not (self._shuffle and batch.continues):
            yield from self._settle(last=False)

    def finish(self) -> Iterator[Rows]:
        """Yield the remaining rows."""
        if self._waiting:
            yield from self._settle(last=True)

    def _settle(self, *, last: bool) -> Iterator[Rows]:
        pieces = join(self._waiting)
        if self._shuffle:
            pieces = pieces.take(permutation(pieces.starts.size, *self._shuffle, self._windows, 0))
        plan = self._plan(pieces, self._seq_len, last=last, max_segments=self._max_segments)
        self.documents_cut += plan.cut
        self._waiting = [plan.rest] if plan.rest is not None else []
        self._tokens = int(plan.rest.lengths.sum()) if plan.rest is not None else 0
        if self._shuffle:
            plan = reorder_rows(plan, permutation(plan.segments_per_row.size, *self._shuffle, self._windows, 1))
        self._windows += 1
        yield from self._rows(plan)

    def _rows(self, plan: RowPlan) -> Iterator[Rows]:
        segments = plan.segments
        splits = np.concatenate([[0], np.cumsum(plan.segments_per_row)]).astype(np.int32)
        step = max(BATCH_TOKENS // self._seq_len, 1)
        for row in range(0, plan.segments_per_row.size, step):
            own = splits[row : row + step + 1]
            here = slice(int(own[0]), int(own[-1]))
            own = own - own[0]
            lengths = segments.lengths[here].astype(np.int32)
            ids = np.empty((own.size - 1, self._seq_len), np.int32)
            gather(segments.ids, segments.starts[here], lengths, own, self._seq_len, self._pad_id, ids.reshape(-1))
            yield Rows(
                input_ids=ids,
                row_splits=own,
                seq_lengths=lengths,
                doc_ids=segments.doc_ids[here],
                doc_offsets=segments.doc_offsets[here],
                sources=np.zeros(lengths.size, np.int16),
            )


def reorder_rows(plan: RowPlan, order: np.ndarray) -> RowPlan:
    """The same plan with its rows in the given `order`."""
    stops = np.cumsum(plan.segments_per_row, dtype=np.int64)
    per_row = plan.segments_per_row[order]
    starts = (stops - plan.segments_per_row)[order]
    index = np.repeat(starts - (np.cumsum(per_row) - per_row), per_row) + np.arange(int(per_row.sum()))
    return RowPlan(segments=plan.segments.take(index), segments_per_row=per_row, cut=plan.cut, rest=plan.rest)
