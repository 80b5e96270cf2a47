"""What a page shows of a dataset beside its facts: counts to compute with, document lengths, and sampled rows.

The one place of `page` that opens files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.records import Count, Record
from exact_prep.records.manifest import ExposureRecord
from exact_prep.reports.facts import Facts, make_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from exact_prep.dataset import Dataset
    from exact_prep.records.weights import WeightsFile
    from exact_prep.reports.row import PieceFacts, RowFacts, SegmentFacts

STRIP = 100
"""Rows that are drawn as bars, at most."""

STRIP_SEGMENTS = 12_000
"""Segments of those rows, at most: 70 kB."""

TEXTS = 10
"""Rows that are shown as text, at most."""

PAGE_CHARACTERS = 240_000
"""Characters of text in a page, at most: its datasets share them."""

SEGMENTS = 24
"""Segments of a row that are shown as text, at most."""


class PartFacts(Record):
    """A dataset that the weights were, or would be, computed from."""

    id: str
    directory: str
    """Empty if it is not known."""
    tokens: Count
    rate: float | None
    """Null where there is one part alone."""
    counts: tuple[float, ...]
    firsts: Count


class SegmentBar(Record):
    """A segment of a row that is drawn as a bar."""

    tokens: Count
    source: int
    """Its place in the facts' sources."""
    cut: bool
    """Whether its document began in an earlier row."""


class ShownPiece(Record):
    """Some text of one weight."""

    text: str
    weight: float
    special: bool
    left_out: Count
    """Tokens of the piece that are not shown."""


class ShownSegment(Record):
    """A segment as text."""

    title: str
    """Its origin, length and place in its document."""
    pieces: tuple[ShownPiece, ...]


class ShownRow(Record):
    """A sampled row as text."""

    row: Count
    segments: tuple[ShownSegment, ...]
    segments_left_out: Count
    padding: Count


class PageDataset(Record):
    """One dataset of a page."""

    facts: Facts
    parts: tuple[PartFacts, ...]
    exposure: ExposureRecord
    source_exposures: tuple[ExposureRecord, ...]
    """In the order of the facts' sources."""
    length_documents: tuple[Count, ...]
    """Documents by length: place k counts those of 2**k to 2**(k + 1) - 1 tokens."""
    length_tokens: tuple[Count, ...]
    """And their tokens."""
    strip: tuple[tuple[Count, tuple[SegmentBar, ...]], ...]
    """Row number and segments of rows spread evenly over the dataset."""
    cut_places: tuple[Count, ...]
    """Of the strip's segments that continue a document: how many tokens of it came before, by power of two."""
    interior_eos: Count
    """EOS tokens in the strip's rows with tokens of the same segment after them."""
    texts: tuple[ShownRow, ...]
    texts_missing: str
    """Why there are none; empty if there are."""
    command: str
    """The options of `pack` that are not its defaults, as JSON."""


def load_page_datasets(
    directories: Sequence[Path], weights: Path | None = None, *, weights_from_elsewhere: bool = False
) -> list[PageDataset]:
    """What a page shows of some datasets, under their own weights or those in the file `weights`.

    Raises DatasetError, StorageError.
    """
    budget = PAGE_CHARACTERS // max(len(directories), 1)
    return [
        load_page_dataset(directory, weights, budget, elsewhere=weights_from_elsewhere) for directory in directories
    ]


def load_page_dataset(directory: Path, weights: Path | None, budget: int, *, elsewhere: bool) -> PageDataset:
    """What a page shows of one dataset; `budget` characters of text."""
    from exact_prep.dataset import open_dataset
    from exact_prep.reader.lookup import load_table_for
    from exact_prep.records import canonical_json

    dataset = open_dataset(directory)
    file = dataset.weights() if weights is None else load_table_for(weights, dataset, elsewhere=elsewhere).file
    sources, lengths = dataset.table("sources").to_pylist(), dataset.document_lengths()
    facts = make_facts(str(directory), dataset.manifest, file, sources, lengths)
    documents, tokens = fold_lengths(zip(lengths[1].tolist(), lengths[2].tolist(), strict=True))
    strip, cut_places, interior = sample_strip(dataset)
    texts, missing = sample_texts(dataset, file, weights, budget, elsewhere=elsewhere)
    return PageDataset(
        facts=facts,
        parts=list_page_parts(file, dataset, str(directory)),
        exposure=dataset.manifest.exposure,
        source_exposures=tuple(
            ExposureRecord(counts=row["counts"], segments=row["segments"], firsts=row["firsts"]) for row in sources
        ),
        length_documents=documents,
        length_tokens=tokens,
        strip=strip,
        cut_places=cut_places,
        interior_eos=interior,
        texts=texts,
        texts_missing=missing,
        command=canonical_json(dataset.manifest.options.model_dump(mode="json", exclude_defaults=True)).decode(),
    )


def list_page_parts(file: WeightsFile, dataset: Dataset, directory: str) -> tuple[PartFacts, ...]:
    """The datasets that the table follows from: those of the weights, or the corpus whose table was applied here."""
    if file.applied_from is not None and file.table is not None:
        counts = file.table.counts
        return (PartFacts(id=file.applied_from, directory="", tokens=0, rate=None, counts=counts, firsts=0),)
    own = {dataset.manifest.tree_hash, dataset.manifest.train_hash}
    return tuple(
        PartFacts(
            id=part.id,
            directory=directory if part.id in own else "",
            tokens=part.rows * file.seq_len,
            rate=part.rate if len(file.datasets) > 1 else None,
            counts=part.exposure.counts,
            firsts=part.exposure.firsts,
        )
        for part in file.datasets
    )


def fold_lengths(lengths: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Documents and their tokens by power of two, from (length in tokens, documents of that length)."""
    documents, tokens = [0] * 64, [0] * 64
    for length, count in lengths:
        place = max(length.bit_length() - 1, 0)
        documents[place] += count
        tokens[place] += length * count
    size = max((place + 1 for place in range(64) if documents[place]), default=0)
    return tuple(documents[:size]), tuple(tokens[:size])


def spread(rows: int, most: int) -> list[int]:
    """At most `most` row numbers, spread evenly over `rows`: the middle of each of as many equal parts."""
    taken = min(rows, most)
    return [(2 * place + 1) * rows // (2 * taken) for place in range(taken)]


def sample_strip(
    dataset: Dataset,
) -> tuple[tuple[tuple[int, tuple[SegmentBar, ...]], ...], tuple[int, ...], int]:
    """Sampled rows as bars; where their cuts fall, by power of two; EOS tokens inside their segments."""
    from exact_prep.reader.rows import open_one

    rows = open_one(dataset.path, weights=None, plain=True, weights_from_elsewhere=False)
    tasks, eos = dataset.table("tasks").column("sources").to_pylist(), dataset.manifest.tokenizer.eos_id
    first_rows = np.cumsum([0, *(shard.rows for shard in dataset.shards)])
    strip, cuts, interior, segments = [], [], 0, 0
    for number in spread(len(rows), STRIP):
        row = rows[number]
        segments += row.seq_lengths.size
        if segments > STRIP_SEGMENTS and strip:
            break
        shard = dataset.shards[int(np.searchsorted(first_rows, number, side="right")) - 1]
        labels = tasks[shard.task]
        lengths, offsets, sources = row.seq_lengths.tolist(), row.doc_offsets.tolist(), row.sources.tolist()
        strip.append(
            (
                number,
                tuple(
                    SegmentBar(tokens=length, source=labels[source], cut=offset > 0)
                    for length, offset, source in zip(lengths, offsets, sources, strict=True)
                ),
            )
        )
        cuts += [(offset, 1) for offset in offsets if offset]
        if eos is not None:
            inside = row.input_ids[: sum(lengths)] == eos
            inside[np.cumsum(row.seq_lengths) - 1] = False
            interior += int(inside.sum())
    return tuple(strip), fold_lengths(cuts)[0], interior


def sample_texts(
    dataset: Dataset, file: WeightsFile, weights: Path | None, budget: int, *, elsewhere: bool
) -> tuple[tuple[ShownRow, ...], str]:
    """Sampled rows as text, at most `budget` characters; and why there are none."""
    from exact_prep.reader.rows import open_one
    from exact_prep.reports.row import RowReader

    if not dataset.manifest.tokenizer.sha256:
        return (), "The corpus came as token ids, and no tokenizer was named: there is no text to show."
    if file.kind == "exact" and file.state != "complete":
        return (), "The dataset is weighed only in part; run exact-prep weigh again."
    plain = file.kind == "plain" and weights is None
    reader = RowReader(
        open_one(dataset.path, weights=None if plain else weights, plain=plain, weights_from_elsewhere=elsewhere)
    )
    numbers = spread(len(reader.dataset), TEXTS)
    return tuple(show_row(reader.load(number), budget // max(len(numbers), 1)) for number in numbers), ""


def show_row(row: RowFacts, budget: int) -> ShownRow:
    """A row as text: of each segment the beginning of every piece, so that each weight is seen."""
    shown = row.segments[:SEGMENTS]
    own = budget // max(len(shown), 1)
    return ShownRow(
        row=row.row,
        segments=tuple(show_segment(segment, own) for segment in shown),
        segments_left_out=len(row.segments) - len(shown),
        padding=row.padding,
    )


def show_segment(segment: SegmentFacts, budget: int) -> ShownSegment:
    """A segment as text: the beginning of each piece, in at most `budget` characters, special tokens whole."""
    origin = segment.origin
    place = " ".join(word for word in (origin.file, origin.place) if word) or origin.note
    named = f" ({origin.id})" if origin.id else ""
    begins = f", from token {segment.document_start:,} of its document" if segment.document_start else ""
    title = f"{origin.source}{named}: {place or f'record {origin.record:,}'}; {segment.tokens:,} tokens{begins}"
    texts = [piece for piece in segment.pieces if piece.special is None]
    each = max(budget // max(len(texts), 1), 24)
    return ShownSegment(title=title, pieces=tuple(show_piece(piece, each) for piece in segment.pieces))


def show_piece(piece: PieceFacts, most: int) -> ShownPiece:
    """The first `most` characters of a piece; what is left out is counted in tokens, by its part of the text."""
    if piece.special is not None:
        return ShownPiece(text=piece.special, weight=piece.weight, special=True, left_out=0)
    text = piece.text or ""
    left = 0 if len(text) <= most else max(round(piece.tokens * (1 - most / len(text))), 1)
    return ShownPiece(text=text[:most], weight=piece.weight, special=False, left_out=left)
