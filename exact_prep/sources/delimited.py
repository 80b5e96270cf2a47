"""CSV and TSV in: one document per row; the first row names the columns.

By the standard library's reader in its strict mode. It is as fast as pyarrow's here (200 MB/s), which needs every row
to fit into a block and cannot say which row is bad.

A row with too few or too many fields is one bad document. Where the quotes of a row do not match, nobody can tell where
it ends: the line in which it begins is one bad document, and reading goes on with the next line. If that line was in
truth the inside of a quoted field, it has the wrong number of fields and is bad too, as a rule; where a file has one
column, or such lines happen to have as many delimiters as the header, they become documents. So every such row is
listed, and `--on-error stop`, the default, stops at it.
"""

from __future__ import annotations

import csv
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.batching import BATCH_BYTES, count_utf8_bytes, number_records, reject, reject_rest
from exact_prep.sources.jsonl import EXPLODED, TOO_LONG, group_lines
from exact_prep.sources.labels import BadLabel, label_field, spell_label, spell_own_id
from exact_prep.sources.streams import BLOCK, Damaged, split_suffix, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.batching import Part
    from exact_prep.sources.streams import Block

ROWS = 1 << 10
"""Rows per batch, at most."""

MAX_FIELD = 1 << 28
"""Characters in a field, at most: the reader holds 4 bytes for each. This stops it at a quote that is never closed."""


def read_csv(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a CSV or TSV file, read `block` bytes at once; see `Part` and `TextBatch`."""
    csv.field_size_limit(MAX_FIELD)
    lines = Lines(part, block or BLOCK)
    reader = csv.reader(lines, strict=True, **choose_dialect(part))
    rows = RowGatherer(part)
    try:
        while True:
            try:
                for row in reader:
                    rows.take(row, lines.end_row())
                    if rows.full():
                        yield rows.give(lines.share())
                break
            except csv.Error as error:
                rows.reject_row(explain_error(error), lines.skip_line())
                if rows.full():
                    yield rows.give(lines.share())
        yield rows.give(lines.share())
    except Damaged as damage:
        yield rows.give(lines.share())
        yield reject_rest(part, rows.count, damage, consumed=lines.consumed, size=part.file.bytes)


def choose_dialect(part: Part) -> dict[str, Any]:
    """How fields are separated and enclosed, for `csv.reader`."""
    options = part.options
    delimiter = options.csv_delimiter or ("\t" if split_suffix(part.file.path)[0] == ".tsv" else ",")
    if options.csv_quote is None:
        return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"delimiter": delimiter, "quotechar": options.csv_quote}


def explain_error(error: csv.Error) -> str:
    """Why a row cannot be read."""
    if "new-line character" in str(error):
        return "there is a carriage return (CR) outside of quotes, and other lines end in a newline (LF)"
    return f"its quotes do not match ({error}); see --csv-quote"


class Lines:
    """The lines of a file for `csv.reader`, and how much of the file they took.

    Wrong UTF-8 becomes lone surrogates here, which are found again in the fields that are read.
    """

    def __init__(self, part: Part, block: int) -> None:
        """Read in blocks of `block` bytes."""
        self.consumed = 0
        """Bytes of the file consumed so far."""
        self._reported = 0
        self._part = part
        self._line = 1
        """Line in which the present row begins."""
        self._row: list[str] = []
        """The lines of the present row."""
        self._again: deque[str] = deque()
        """Lines that were taken for a part of a row, and are read again."""
        self._lines = self._decode(block)

    def __iter__(self) -> Lines:
        """Itself: `csv.reader` goes on where it stopped after a row that it cannot read."""
        return self

    def __next__(self) -> str:
        """The next line with a newline, the last one too."""
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        return line

    def _decode(self, block: int) -> Iterator[str]:
        for group in group_lines(end_lines(whole_blocks(self._part.file, self._part.path, size=block))):
            self.consumed += group.consumed
            for line in group.records:
                if line is TOO_LONG or line is EXPLODED:
                    raise Damaged("its next line is longer than a document may be")
                yield bytes(line).decode(errors="surrogateescape") + "\n"

    def end_row(self) -> int:
        """The present row ends here; returns the line in which it began."""
        begin, self._line = self._line, self._line + len(self._row)
        self._row.clear()
        return begin

    def skip_line(self) -> int:
        """The present row cannot be read: only its first line is skipped; returns the number of that line."""
        begin, self._line = self._line, self._line + 1
        self._again.extendleft(reversed(self._row[1:]))
        self._row.clear()
        return begin

    def share(self) -> int:
        """Bytes consumed since the last call."""
        share, self._reported = self.consumed - self._reported, self.consumed
        return share


def end_lines(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks; if the first holds carriage returns and no newline, these end the lines, as on old Macs."""
    first = next(blocks)
    only_cr = b"\r" in first.data and b"\n" not in first.data
    for block in chain([first], blocks):
        yield block._replace(data=block.data.replace(b"\r", b"\n")) if only_cr else block


class RowGatherer:
    """Gathers the rows of one file into batches."""

    def __init__(self, part: Part) -> None:
        """Before the header."""
        self.count = 0
        """Rows taken so far, without the header."""
        self._part = part
        self._header: list[str] | None = None
        self._column = 0
        self._label_field = label_field(part.options)
        self._label_column: int | None = None
        self._id_field = part.options.id_field
        self._id_column: int | None = None
        self._clear()

    def take(self, row: list[str], line: int) -> None:
        """Take a row that begins in `line`; raises SourceError."""
        if self._header is None:
            self._take_header(row)
            return
        number, self.count = self.count, self.count + 1
        # Some writers mean a row of one empty field by an empty line, others no row at all.
        text = row[self._column] if len(row) == len(self._header) else "" if not row else None
        if text is None:
            self._reject(number, line, f"{len(row)} fields where the header has {len(self._header)}")
        elif not is_unicode(text):
            self._reject(number, line, f"column {self._header[self._column]!r} is not UTF-8")
        elif text:
            if not self._take_label(row, number, line):
                return
            self._texts.append(text)
            self._size += len(text)
        else:
            self._left_out.append(number)

    def _take_header(self, row: list[str]) -> None:
        names = self._part.options.text_field
        self._header = row
        name = next((name for name in names if name in row), " or ".join(names))
        self._column = pick_column(self._part, row, name, "--text-field")
        if self._label_field in row:
            self._label_column = pick_column(self._part, row, self._label_field, "--source-from")
        if self._id_field in row:
            self._id_column = pick_column(self._part, row, self._id_field, "--id-field")

    def reject_row(self, reason: str, line: int) -> None:
        """Skip a row that begins in `line` and cannot be read; raises Damaged if it is the header."""
        if self._header is None:
            raise Damaged(f"its header cannot be read: {reason}")
        self._reject(self.count, line, reason)
        self.count += 1

    def _take_label(self, row: list[str], number: int, line: int) -> bool:
        """Take the label and the id of a row, where they are wanted; False if the row is rejected for one of them."""
        label = own_id = None
        try:
            if self._label_field is not None:
                value = None if self._label_column is None else row[self._label_column]
                label = spell_label(value, f"column {self._label_field!r}")
            if self._id_field is not None:
                value = None if self._id_column is None else row[self._id_column]
                own_id = spell_own_id(value, f"column {self._id_field!r}")
        except BadLabel as reason:
            self._reject(number, line, str(reason))
            return False
        if label is not None:
            self._labels.append(label)
        if own_id is not None:
            self._own_ids.append(own_id)
        return True

    def _reject(self, number: int, line: int, reason: str) -> None:
        self._rejected.append(reject(self._part, number, f"{reason} (in line {line})"))
        self._left_out.append(number)

    def full(self) -> bool:
        """Whether there is enough for a batch."""
        return self._size >= BATCH_BYTES or self.count - self._first >= ROWS

    def give(self, consumed: int) -> TextBatch:
        """What was taken since the last batch, which took `consumed` bytes of the file."""
        batch = TextBatch(
            texts=self._texts,
            labels=None if self._label_field is None else self._labels,
            own_ids=None if self._id_field is None else self._own_ids,
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
        self._own_ids: list[str] = []
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
