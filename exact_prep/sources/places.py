"""Where a document is: `a.jsonl, line 12`. Every message and rejected.jsonl say it in these words, from here alone.

A place is the number of the record in its file, so it follows from the record's number in its task, and no reader
spells one. Lines, records, rows and documents count from 1; rows of columnar files from 0, as pyarrow's do (see
`Format.first_record`).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from exact_prep.sources.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.records.work import Slice
    from exact_prep.sources.batching import Part
    from exact_prep.sources.inputs import Inputs


def describe_place(name: str, number: int) -> str:
    """The place of record `number` of a file of the format `name`, counted from 0: `line 12`."""
    row = FORMATS[name]
    return f"{row.record} {row.first_record + number}"


def join_place(file: str, place: str) -> str:
    """A file and a place in it, as messages say it."""
    return f"{file}, {place}"


def count_records_before(part: Part) -> int:
    """Records of the file that come before the slice.

    Cheap for columnar files. For JSON lines it reads all that comes before the slice: acceptable when the run stops,
    not for each of many slices. Raises StorageError, Damaged.
    """
    start = part.slice.start
    unit = FORMATS[part.file.format].unit
    # A shard's number is in the name of the file.
    if start == 0 or unit == "shard":
        return 0
    if unit == "byte":
        from exact_prep.sources.streams import count_newlines

        # Every line but the first begins after a newline; one at start - 1 begins a line of this slice.
        return 1 + count_newlines(part.file, part.path, start - 1)
    if unit == "row group":
        from exact_prep.sources.parquet import count_rows_before_slice
    else:
        from exact_prep.sources.arrow import count_rows_before_slice
    return count_rows_before_slice(part)


class RecordPlaces:
    """File and place of any record of a task, by its number, while the task is read by `Inputs.read(..., places)`."""

    def __init__(self, inputs: Inputs, slices: Sequence[Slice]) -> None:
        """Before the first record is read."""
        self._inputs, self._slices = inputs, slices
        self._firsts: list[int] = []
        """Number of the first record of each slice that was begun."""
        self._before: dict[int, tuple[str, int]] = {}
        """By slice: the format that names its records, and how many records come before it."""

    def begin_slice(self, first: int) -> None:
        """The next slice begins with record `first`."""
        self._firsts.append(first)

    def find(self, record: int, *, exact: bool = True) -> tuple[str, str]:
        """(file, place) of a record that was read.

        The place is empty if it is not `exact` and counting would read the file again: see `rejected.jsonl` in
        `pipeline.publish`, which knows how many records the earlier tasks read.
        """
        index = bisect_right(self._firsts, record) - 1
        part = self._inputs.part(self._slices[index])
        if not exact and is_cut_by_bytes(part):
            return part.name, ""
        if index not in self._before:
            self._before[index] = name_format(part), count_records_before(part)
        name, before = self._before[index]
        return part.name, describe_place(name, before + record - self._firsts[index])

    def name(self, record: int) -> str:
        """A record that was read, as messages name it."""
        return join_place(*self.find(record))


def name_format(part: Part) -> str:
    """The format that names the records of a slice: a file named .jsonl may hold an array."""
    if part.file.format != "jsonl":
        return part.file.format
    from exact_prep.sources.jsonl import name_records

    return name_records(part)


def is_cut_by_bytes(part: Part) -> bool:
    """Whether nobody knows how many records come before this slice without reading them."""
    return part.slice.start > 0 and FORMATS[part.file.format].unit == "byte"
