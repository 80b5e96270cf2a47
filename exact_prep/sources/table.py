"""CSV and TSV in: one document per row; the first row names the columns.

The standard library's reader, in its strict mode: as fast as pyarrow's here (200 MB/s), which wants every row to fit
into a block and cannot say which row is bad. Once quotes do not match, where rows begin is anyone's guess, so the rest
of the file is given up; a row with too few or too many fields is one bad document.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.documents import BATCH_BYTES, numbers, set_aside, utf8_bytes
from exact_prep.sources.jsonl import TOO_LONG, line_groups
from exact_prep.sources.streams import Damaged, split_suffix, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.documents import Part

ROWS = 1 << 10
"""Rows per batch, at most."""

MAX_FIELD = 1 << 28
"""Characters in a field, at most: the reader holds 4 bytes for each. It is what stops at a quote that never closes."""


def read_csv(part: Part, *, block: int) -> Iterator[TextBatch]:
    """The documents of a CSV or TSV file; see `Part` and `TextBatch`."""
    csv.field_size_limit(MAX_FIELD)
    lines = Lines(part, block)
    delimiter = "\t" if split_suffix(part.file.path)[0] == ".tsv" else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    table = Table(part)
    try:
        for row in reader:
            table.take(row, reader.line_num)
            if table.full():
                yield table.give(lines.share())
        yield table.give(lines.share())
    except (Damaged, csv.Error) as damage:
        yield table.give(lines.share())
        reason = str(damage) if isinstance(damage, Damaged) else f"its quotes do not match ({damage})"
        rejected = set_aside(part, table.rows, f"line {table.line} on", reason)
        rest = part.file.bytes - lines.consumed
        yield TextBatch(records=np.empty(0, np.int64), read=1, rejected=(rejected,), bytes_read=rest)


class Lines:
    """The lines of a file for `csv.reader`, and how much of the file they took.

    Wrong UTF-8 becomes lone surrogates here, to be found again in the field that is read.
    """

    def __init__(self, part: Part, block: int) -> None:
        """Read in blocks of `block` bytes."""
        self.consumed = 0
        """Bytes of the file consumed so far."""
        self._reported = 0
        self._groups = line_groups(whole_blocks(part.file, part.path, size=block))

    def __iter__(self) -> Iterator[str]:
        """The lines, each with a newline, the last one too."""
        for group in self._groups:
            self.consumed += group.consumed
            for line in group.records:
                if line is TOO_LONG:
                    raise Damaged("its next line is longer than a document may be")
                yield bytes(line).decode(errors="surrogateescape") + "\n"

    def share(self) -> int:
        """Bytes consumed since this was asked last."""
        share, self._reported = self.consumed - self._reported, self.consumed
        return share


class Table:
    """The rows of one file, gathered into batches."""

    def __init__(self, part: Part) -> None:
        """Before the header has come."""
        self.rows = 0
        """Rows taken so far, the header apart."""
        self.line = 1
        """Where the next row begins."""
        self._part = part
        self._header: list[str] | None = None
        self._column = 0
        self._clear()

    def take(self, row: list[str], last_line: int) -> None:
        """Take a row that ends in line `last_line`; raises SourceError."""
        place, self.line = f"line {self.line}", last_line + 1
        if self._header is None:
            self._header, self._column = row, pick_column(self._part, row)
            return
        number, self.rows = self.rows, self.rows + 1
        # A line without anything is a row of one empty field to some writers, and no row at all to others.
        text = row[self._column] if len(row) == len(self._header) else "" if not row else None
        if text is None:
            self._refuse(number, place, f"{len(row)} fields where the header has {len(self._header)}")
        elif not is_unicode(text):
            self._refuse(number, place, f"column {self._part.options.text_field!r} is not UTF-8")
        elif text:
            self._texts.append(text)
            self._size += len(text)
        else:
            self._left_out.append(number)

    def _refuse(self, number: int, place: str, reason: str) -> None:
        self._rejected.append(set_aside(self._part, number, place, reason))
        self._left_out.append(number)

    def full(self) -> bool:
        """Whether a batch is due."""
        return self._size >= BATCH_BYTES or self.rows - self._first >= ROWS

    def give(self, consumed: int) -> TextBatch:
        """What was taken since the last batch, which took `consumed` bytes of the file."""
        batch = TextBatch(
            texts=self._texts,
            records=numbers(self._first, self.rows - self._first, self._left_out),
            read=self.rows - self._first,
            empty=len(self._left_out) - len(self._rejected),
            rejected=tuple(self._rejected),
            bytes_read=consumed,
            text_bytes=utf8_bytes(self._texts),
        )
        self._clear()
        return batch

    def _clear(self) -> None:
        self._first = self.rows
        self._size = 0
        self._texts: list[str] = []
        self._left_out: list[int] = []
        self._rejected: list[Rejected] = []


def pick_column(part: Part, header: list[str]) -> int:
    """The column asked for; raises SourceError unless it is there, once."""
    name = part.options.text_field
    if (count := header.count(name)) != 1:
        problem = "there is no column" if not count else f"there are {count} columns"
        there = ", ".join(map(repr, header)) or "none"
        raise SourceError(f"{part.name}: {problem} {name!r};\nname one with --text-field, there is: {there}")
    return header.index(name)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: not if it has lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
