"""Rows that a trainer cuts for itself: their exposure, from the lengths of documents alone.

A trainer lays documents end to end and cuts the stream, or cuts each document by itself. In `cut` rows of L tokens:

    disjoint   rows of L tokens
    shared     windows of L + 1 tokens, inputs `[:-1]`, labels `[1:]`, each shares its last token with the next
    windows    windows of L + 1 tokens that share nothing
    crops      windows of L + 1 tokens that begin anywhere, drawn at random
    fragment   each document by itself, at multiples of L from its own start, the pieces packed into rows of L
    truncate   the first L tokens of each document, packed into rows of L
    stored     rows as they are; nothing is cut

In windows of L + 1 tokens a target may have context L. It counts as L - 1: alone in a bucket of its own it would get a
weight of 20 and more.

`Pieces` are exact, for documents in the order that the trainer reads. `expect` needs no order: the place of a document
in its row is taken to be uniformly random, as it is when the trainer shuffles documents or draws crops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.kernels.cuts import cut_stream
from exact_prep.weighing.context import bucket_edges, find_bucket
from exact_prep.weighing.exposure import Exposure

if TYPE_CHECKING:
    from exact_prep.choices import RowCut

SHARED: frozenset[RowCut] = frozenset({"shared", "crops"})
"""Windows whose last token is the first of the next."""

STREAMED: frozenset[RowCut] = frozenset({"disjoint", "shared", "windows", "crops"})
"""Cuts of documents laid end to end: a piece depends on what comes before."""


def row_width(cut: RowCut, seq_len: int) -> int:
    """From how many tokens to how many the next row begins."""
    return seq_len + 1 if cut == "windows" else seq_len


def count_rows(cut: RowCut, seq_len: int, tokens: int) -> int:
    """Whole rows that a stream of `tokens` tokens gives; the rest of it is dropped."""
    return max(tokens - (cut in SHARED), 0) // row_width(cut, seq_len)


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentLengths:
    """How many documents have how many tokens. Addition merges; documents longer than `cap` are summed up."""

    counts: np.ndarray
    """Documents of n tokens, int64[cap + 1]."""
    long: int = 0
    """Documents of more than `cap` tokens."""
    long_tokens: int = 0
    """Their tokens."""
    longest: int = 0
    """Tokens of the longest document."""

    @classmethod
    def count(cls, lengths: np.ndarray, cap: int) -> DocumentLengths:
        """Documents of `lengths[D]` tokens, int64."""
        counts = np.bincount(np.minimum(lengths, cap + 1), minlength=cap + 2).astype(np.int64, copy=False)
        long = int(counts[cap + 1])
        return cls(
            counts=counts[: cap + 1],
            long=long,
            long_tokens=int(lengths[lengths > cap].sum()) if long else 0,
            longest=int(lengths.max(initial=0)),
        )

    def __add__(self, other: DocumentLengths) -> DocumentLengths:
        """Merge two of the same cap."""
        return DocumentLengths(
            counts=self.counts + other.counts,
            long=self.long + other.long,
            long_tokens=self.long_tokens + other.long_tokens,
            longest=max(self.longest, other.longest),
        )

    @property
    def documents(self) -> int:
        """Documents in all; those without a token are none."""
        return int(self.counts[1:].sum()) + self.long

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.counts @ np.arange(self.counts.size)) + self.long_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """The pieces of documents that rows hold. Addition merges."""

    counts: np.ndarray
    """Pieces with the contexts 1 to n, each once, int64[L + 2]."""
    segments: int = 0
    """Targets with context 0."""
    cut: int = 0
    """Documents in more than one piece."""

    def __add__(self, other: Pieces) -> Pieces:
        """Merge the pieces of rows of the same length."""
        return Pieces(
            counts=self.counts + other.counts, segments=self.segments + other.segments, cut=self.cut + other.cut
        )

    def expose(self, seq_len: int) -> Exposure:
        """Their exposure; context L counts as L - 1."""
        last = int(self.counts.nonzero()[0].max(initial=0))
        edges = clamped_edges(min(last, seq_len - 1), seq_len)
        # at_least[c]: pieces that hold the context c, for c from 1 on.
        at_least = self.counts[::-1].cumsum()[::-1].copy()
        at_least[0] = 0
        sums = np.concatenate([[0], np.cumsum(at_least)])
        stops = np.minimum(edges, sums.size - 1)
        return Exposure(counts=np.diff(sums[stops]), segments=self.segments, firsts=self.segments)

    @property
    def longest(self) -> int:
        """The largest context, before context L counts as L - 1."""
        return int(self.counts.nonzero()[0].max(initial=0))


@dataclass(eq=False)
class Cutter:
    """Cuts documents as they come: the rows of one stream."""

    cut: RowCut
    seq_len: int
    tokens: int
    """Tokens of the whole stream."""
    rows: int = field(init=False)
    """Whole rows of the stream; documents that are cut each by itself: rows that hold as many tokens, at least."""
    _state: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    _counts: np.ndarray = field(init=False)
    _tokens: int = 0

    def __post_init__(self) -> None:
        self._counts = np.zeros(self.seq_len + 2, np.int64)
        self.rows = count_rows(self.cut, self.seq_len, self.tokens) if self.cut in STREAMED else 0

    def add(self, lengths: np.ndarray) -> None:
        """The next documents, `lengths[D]` tokens each, int64."""
        lengths = lengths[lengths > 0]
        if self.cut == "truncate":
            lengths = np.minimum(lengths, self.seq_len)
        if self.cut in STREAMED:
            shared, width = int(self.cut in SHARED), row_width(self.cut, self.seq_len)
            limit = self.rows * width + shared if self.rows else 0
            cut_stream(lengths, width, shared, limit, self._state, self._counts)
            return
        whole, rest = lengths // self.seq_len, lengths % self.seq_len
        self._counts[self.seq_len - 1] += whole.sum()
        self._counts[: self.seq_len] += np.bincount(rest[rest > 0] - 1, minlength=self.seq_len)
        self._state[2] += whole.sum() + np.count_nonzero(rest)
        self._state[3] += np.count_nonzero(lengths > self.seq_len)
        self._tokens += int(lengths.sum())
        self.rows = -(-self._tokens // self.seq_len)

    @property
    def used(self) -> int:
        """Tokens of the stream that are in rows."""
        if self.cut not in STREAMED:
            return self._tokens
        return self.rows * row_width(self.cut, self.seq_len) + (self.cut in SHARED) if self.rows else 0

    @property
    def pieces(self) -> Pieces:
        """What rows hold so far."""
        _, inside, at_edges, cut = self._state.tolist()
        # The first token of a window of L + 1 is an input alone; in rows of L tokens it has a label, of no use.
        segments = inside if self.cut in ("windows", "shared", "crops") else inside + at_edges
        return Pieces(counts=self._counts, segments=segments, cut=cut)


def expect(lengths: DocumentLengths, cut: RowCut, seq_len: int) -> Exposure:
    """The exposure to expect of a `cut` where the place of a document in its row is uniformly random.

    A document of n tokens has `(n + W - 1 - 2c + s) / W` targets of context c < n, for rows that begin every W tokens
    (`row_width`) and share s of them. Counts are rounded per bucket. `lengths` has a cap of L + 1 at least.
    """
    width, shared = row_width(cut, seq_len), int(cut in SHARED)
    most = width - 1 + shared
    longest = min(lengths.longest - 1, most)
    n = np.arange(lengths.counts.size)
    edges = clamped_edges(min(max(longest, 0), seq_len - 1), seq_len)
    counts = np.zeros(edges.size - 1)
    for b, (low, high) in enumerate(zip(np.maximum(edges[:-1], 1), edges[1:], strict=True)):
        counts[b] = _expect_range(n, lengths.counts, int(low), int(high), width + shared, most) / width
        if lengths.long:
            stop = min(int(high), most + 1)
            held = max(stop - int(low), 0)
            counts[b] += held * (lengths.long_tokens + lengths.long * (width + shared - low - stop)) / width
    documents, tokens = lengths.documents, lengths.tokens
    firsts = documents if shared else documents * seq_len / width
    if cut == "disjoint":
        firsts = (tokens + (seq_len - 1) * documents) / seq_len
    return Exposure(counts=np.rint(counts).astype(np.int64), segments=round(firsts), firsts=round(firsts))


def _expect_range(n: np.ndarray, counts: np.ndarray, low: int, high: int, whole: int, most: int) -> float:
    """Targets with contexts in [low, high), times W; `whole` is W + s, `most` the largest context."""
    stop = np.minimum(min(high, most + 1), n)
    held = np.maximum(stop - low, 0)
    return float(counts @ (held * (n + whole - 1 - (low + stop - 1)).astype(np.float64)))


def clamped_edges(longest: int, seq_len: int) -> np.ndarray:
    """Edges of the buckets up to the context `longest`, int64[B + 1]; the bucket of L - 1 holds the context L too."""
    edges = bucket_edges(find_bucket(max(longest, 0)) + 1)
    if longest >= seq_len - 1:
        edges[-1] = max(edges[-1], seq_len + 1)
    return edges
