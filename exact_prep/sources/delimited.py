"""CSV and TSV in: one document per row; the first row names the columns.

By the standard library's reader in its strict mode. It is as fast as pyarrow's here (200 MB/s), which needs every row
to fit into a block and cannot say which row is bad. Where quotes do not match, nobody can tell where rows begin, so the
rest of the file is rejected; a row with too few or too many fields is one bad document.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.batching import BATCH_BYTES, count_utf8_bytes, number_records, reject
from exact_prep.sources.jsonl import TOO_LONG, group_lines
from exact_prep.sources.labels import BadLabel, label_field, spell_label
from exact_prep.sources.streams import BLOCK, Damaged, split_suffix, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.batching import Part

ROWS = 1 << 10
"""Rows per batch, at most."""

MAX_FIELD = 1 << 28
"""Characters in a field, at most: the reader holds 4 bytes for each. This stops it at a quote that is never closed."""


def read_csv(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a CSV or TSV file, read `block` bytes at once; see `Part` and `TextBatch`."""
    csv.field_size_limit(MAX_FIELD)
    lines = Lines(part, block or BLOCK)
    delimiter = "\t" if split_suffix(part.file.path)[0] == ".tsv" else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows = RowGatherer(part)
    try:
        for row in reader:
            rows.take(row, reader.line_num)
            if rows.full():
                yield rows.give(lines.share())
        yield rows.give(lines.share())
    except (Damaged, csv.Error) as damage:
        yield rows.give(lines.share())
        reason = str(damage) if isinstance(damage, Damaged) else f"its quotes do not match ({damage})"
        rejected = reject(part, rows.count, f"line {rows.line} on", reason)
        rest = part.file.bytes - lines.consumed
        yield TextBatch(records=np.empty(0, np.int64), read=1, rejected=(rejected,), bytes_read=rest)


class Lines:
    """The lines of a file for `csv.reader`, and how much of the file they took.

    Wrong UTF-8 becomes lone surrogates here, which are found again in the fields that are read.
    """

    def __init__(self, part: Part, block: int) -> None:
        """Read in blocks of `block` bytes."""
        self.consumed = 0
        """Bytes of the file consumed so far."""
        self._reported = 0
        self._groups = group_lines(whole_blocks(part.file, part.path, size=block))

    def __iter__(self) -> Iterator[str]:
        """The lines, each with a newline, the last one too."""
        for group in self._groups:
            self.consumed += group.consumed
            for line in group.records:
                if line is TOO_LONG:
                    raise Damaged("its next line is longer than a document may be")
                yield bytes(line).decode(errors="surrogateescape") + "\n"

    def share(self) -> int:
        """Bytes consumed since the last call."""
        share, self._reported = self.consumed - self._reported, self.consumed
        return share


class RowGatherer:
    """Gathers the rows of one file into batches."""

    def __init__(self, part: Part) -> None:
        """Before the header."""
        self.count = 0
        """Rows taken so far, without the header."""
        self.line = 1
        """Where the next row begins."""
        self._part = part
        self._header: list[str] | None = None
        self._column = 0
        self._label_field = label_field(part.options)
        self._label_column: int | None = None
        self._clear()

    def take(self, row: list[str], last_line: int) -> None:
        """Take a row that ends in line `last_line`; raises SourceError."""
        place, self.line = f"line {self.line}", last_line + 1
        if self._header is None:
            self._header = row
            self._column = pick_column(self._part, row, self._part.options.text_field, "--text-field")
            if self._label_field in row:
                self._label_column = pick_column(self._part, row, self._label_field, "--source-from")
            return
        number, self.count = self.count, self.count + 1
        # Some writers mean a row of one empty field by an empty line, others no row at all.
        text = row[self._column] if len(row) == len(self._header) else "" if not row else None
        if text is None:
            self._reject(number, place, f"{len(row)} fields where the header has {len(self._header)}")
        elif not is_unicode(text):
            self._reject(number, place, f"column {self._part.options.text_field!r} is not UTF-8")
        elif text:
            if self._label_field is not None and not self._take_label(row, number, place):
                return
            self._texts.append(text)
            self._size += len(text)
        else:
            self._left_out.append(number)

    def _take_label(self, row: list[str], number: int, place: str) -> bool:
        """Take the label of a row; False if the row is rejected for it."""
        value = None if self._label_column is None else row[self._label_column]
        try:
            self._labels.append(spell_label(value, f"column {self._label_field!r}"))
        except BadLabel as reason:
            self._reject(number, place, str(reason))
            return False
        return True

    def _reject(self, number: int, place: str, reason: str) -> None:
        self._rejected.append(reject(self._part, number, place, reason))
        self._left_out.append(number)

    def full(self) -> bool:
        """Whether there is enough for a batch."""
        return self._size >= BATCH_BYTES or self.count - self._first >= ROWS

    def give(self, consumed: int) -> TextBatch:
        """What was taken since the last batch, which took `consumed` bytes of the file."""
        batch = TextBatch(
            texts=self._texts,
            labels=None if self._label_field is None else self._labels,
            records=number_records(self._first, self.count - self._first, self._left_out),
            read=self.count - self._first,
            empty=len(self._left_out) - len(self._rejected),
            rejected=tuple(self._rejected),
            bytes_read=consumed,
            text_bytes=count_utf8_bytes(self._texts),
        )
        self._clear()
        return batch

    def _clear(self) -> None:
        self._first = self.count
        self._size = 0
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._left_out: list[int] = []
        self._rejected: list[Rejected] = []


def pick_column(part: Part, header: list[str], name: str, option: str) -> int:
    """Index of the column `name`, which `option` asks for; raises SourceError unless there is exactly one."""
    if (count := header.count(name)) != 1:
        problem = "there is no column" if not count else f"there are {count} columns"
        there = ", ".join(map(repr, header)) or "none"
        raise SourceError(f"{part.name}: {problem} {name!r};\nname one with {option}, there is: {there}")
    return header.index(name)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: it cannot hold lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
