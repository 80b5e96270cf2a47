"""What the renderings of a row share: which parts of a text are shown, and in which words origins are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exact_prep.sources.places import join_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.reports.row import OriginFacts, PieceFacts, RowFacts, SegmentFacts

MOST = 600
"""Characters of a piece that are shown; more are cut in the middle."""

AROUND = 120
"""Characters shown around a match."""


class Part(NamedTuple):
    """A stretch of a piece's text, as the document has it."""

    text: str
    matches: bool = False
    """Whether it is what was looked for."""
    left_out: int = 0
    """Characters that are left out here; the text is then empty."""


def spell(piece: PieceFacts) -> str:
    """A piece's text, or its ids."""
    return " ".join(map(str, piece.ids or ())) if piece.text is None else piece.text


def cut_pieces(segment: SegmentFacts, needle: str, *, whole: bool) -> Iterator[tuple[PieceFacts, list[Part]]]:
    """The pieces of a segment, each with the parts of its text to show; `needle` is marked, across pieces too."""
    joined = "".join(piece.text or "" for piece in segment.pieces)
    found, at = list[tuple[int, int]](), joined.find(needle) if needle else -1
    while at >= 0:
        found.append((at, at + len(needle)))
        at = joined.find(needle, at + len(needle))
    start = 0
    for piece in segment.pieces:
        text = spell(piece)
        stop = start + len(text)
        inside = [(max(one, start) - start, min(end, stop) - start) for one, end in found if one < stop and end > start]
        yield piece, cut_text(text, inside, whole=whole)
        start = stop


def cut_text(text: str, marked: Sequence[tuple[int, int]], *, whole: bool) -> list[Part]:
    """The parts of a text to show: its start, its end, and what is around the first marks."""
    kept = [(0, len(text))]
    if len(text) > MOST and not whole:
        kept = [(0, MOST // 2), (len(text) - MOST // 2, len(text))]
        kept += [(max(start - AROUND, 0), min(stop + AROUND, len(text))) for start, stop in marked[:3]]
    parts, shown = list[Part](), 0
    for start, stop in sorted(kept):
        if start > shown:
            parts.append(Part("", left_out=start - shown))
        if stop > max(start, shown):
            parts += mark(text, max(start, shown), stop, marked)
            shown = stop
    return parts


def mark(text: str, start: int, stop: int, marked: Sequence[tuple[int, int]]) -> Iterator[Part]:
    """The text from `start` to `stop`, parted at the marks."""
    for one, end in marked:
        low, high = max(one, start), min(end, stop)
        if low < high:
            if low > start:
                yield Part(text[start:low])
            yield Part(text[low:high], matches=True)
            start = high
    if start < stop:
        yield Part(text[start:stop])


def describe_origin(origin: OriginFacts) -> list[str]:
    """Source, place and id of a document, in words; the source only where the file does not say it."""
    named = join_place(origin.file, origin.place) if origin.place else origin.file
    words = [] if origin.file.startswith(origin.source) else [origin.source]
    words += [named] if named else []
    words += [origin.note] if origin.note else []
    words += [f"id {origin.id}"] if origin.id else []
    return [*words, f"--doc {origin.task}:{origin.record}"]


def describe_extent(segment: SegmentFacts) -> str:
    """How long a segment is, and where it begins in its document."""
    cut = f", from token {segment.document_start:,} of its document on" if segment.document_start else ""
    return f"{segment.tokens:,} token{'s' * (segment.tokens != 1)}{cut}"


def describe_row(facts: RowFacts) -> list[str]:
    """What a row is, and what its weights are."""
    padding = f", {facts.padding:,} of padding" if facts.padding else ""
    segments = f"{len(facts.segments):,} segment{'s' * (len(facts.segments) != 1)}"
    lines = [f"{facts.seq_len:,} tokens in {segments}{padding}; {facts.shard}"]
    if not facts.weighed:
        return [*lines, "not weighed: every supervised target has weight 1; run `exact-prep weigh`"]
    window = f" within a window of {facts.window:,}" if facts.window else ""
    tail = f"the tail begins at context {facts.tail_start:,}{window}"
    return [*lines, f"weights add up to {facts.weight_sum:,.6g} over {facts.supervised:,} supervised targets; {tail}"]


def shade(weight: float, facts: RowFacts) -> float:
    """How strong a weight is shaded: 0 at the row's smallest weight that is not 0 (and below), 1 at its largest."""
    weights = {piece.weight for segment in facts.segments for piece in segment.pieces if piece.weight}
    low, high = min(weights, default=0.0), max(weights, default=0.0)
    return max(weight - low, 0.0) / (high - low) if high > low else 0.0
