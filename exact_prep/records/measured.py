"""exposure.json: what `measure` found in data that others packed or tokenized. Their tokens stay where they are."""

from __future__ import annotations

from exact_prep.records import FORMAT_VERSION, Count, Digest, FormatVersion, Record, RowLength, Seal
from exact_prep.records.manifest import ExposureRecord
from exact_prep.records.options import MeasureOptions
from exact_prep.records.weights import WeighedDataset


class MeasuredPart(Record):
    """One file, or one group of files that is read as one stream of documents."""

    path: str
    """Absolute."""
    bytes: Count
    """Bytes that were read: of an index where there is one, else of the tokens."""
    xxh3: Digest
    """xxh3-128 of those bytes."""
    documents: Count
    tokens: Count
    """Tokens of the documents."""
    rows: Count


class PartCounts(Record):
    """What one part holds: the completion marker of a task of `measure`. Histograms are pairs of value and count."""

    format_version: FormatVersion = FORMAT_VERSION
    key: str
    """Of the options and of the file as it was: a record of another file, or of other options, counts for nothing."""
    part: MeasuredPart
    lengths: tuple[tuple[Count, Count], ...] = ()
    """Documents of n tokens, up to twice the row."""
    long: Count = 0
    """Documents of more tokens."""
    long_tokens: Count = 0
    longest: Count = 0
    """Tokens of the longest document."""
    pieces: tuple[tuple[Count, Count], ...] = ()
    """Pieces that hold the contexts 1 to n."""
    segments: Count = 0
    cut: Count = 0
    exposure: ExposureRecord | None = None
    """Of rows as they are stored."""
    longest_row: Count = 0
    """Tokens of the longest stored row, padding included."""
    dropped: dict[str, Count] = {}
    """Tokens that the trainer will not read, by reason."""


class MeasuredExposure(Record):
    """The exposure of a corpus that exact-prep did not pack."""

    format_version: FormatVersion = FORMAT_VERSION
    tool_version: str
    seq_len: RowLength
    options: MeasureOptions
    """How rows are cut, how documents are told apart, and in which order they are read."""
    exposure: ExposureRecord
    estimated: bool
    """Whether the counts are expected ones, for a random order, and not those of one order."""
    rows: Count
    """Rows that one pass over the data gives."""
    documents: Count
    documents_cut: Count | None
    """Documents in more than one row; null where only the expected counts are known."""
    tokens: Count
    dropped: dict[str, Count] = {}
    """Tokens that the trainer will not read, by reason."""
    longest_context: Count
    """Largest effective left context."""
    fingerprint: Digest
    """xxh3-128 of the options and of what was read: equal for equal data and options, wherever they lie."""
    parts: tuple[MeasuredPart, ...]
    checksum: Seal = ""
    """sha256 of this file with an empty checksum: a change by hand is found."""

    @property
    def described(self) -> WeighedDataset:
        """The data as weights.json names them; whose tokenizer made the ids is not known."""
        return WeighedDataset(id=self.fingerprint, rows=self.rows, tokenizer="", exposure=self.exposure)
