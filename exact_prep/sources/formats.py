"""The table of input formats: one row per format. Whatever depends on a format is said here and read from here.

Nothing is imported that takes time: the names in `choices` (for `--help`) are held equal to this table by a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.batches import TextBatch
    from exact_prep.choices import FileFormat
    from exact_prep.sources.batching import Part

Unit = Literal["", "byte", "row group", "record batch", "shard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How files of one format are read."""

    name: FileFormat
    suffixes: tuple[str, ...] = ()
    """Lower case. A hub dataset has no suffix: it is named with `hf://`."""
    reader: str
    """`module:function` in this folder. The function takes a Part and a block size and yields TextBatches."""
    record: str
    """What one record is called in a message."""
    first_record: int = 1
    """Number of a file's first record in a message. Rows of columnar files count from 0, as pyarrow's do."""
    unit: Unit = ""
    """What a file is cut by, and what `Slice.start` and `Slice.stop` count. Empty: a file is never cut."""
    compressible: bool = False
    """Whether files may be compressed from outside: see `streams.CODECS`. A compressed file is never cut."""
    has_fields: bool = True
    """Whether a record has named fields or columns."""
    has_ids: bool = True
    """Whether a record can hold token ids."""

    @property
    def is_columnar(self) -> bool:
        """Whether the least that can be read is a column of a row group or record batch."""
        return self.unit in ("row group", "record batch")


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        # A record is a file, or the text between two separators.
        # No .md: the README beside a corpus is not part of it.
        Format(
            name="text",
            suffixes=(".txt", ".text"),
            reader="text:read_text",
            record="document",
            compressible=True,
            has_fields=False,
            has_ids=False,
        ),
        Format(
            name="jsonl",
            suffixes=(".jsonl", ".ndjson"),
            reader="jsonl:read_jsonl",
            record="line",
            unit="byte",
            compressible=True,
        ),
        # A record is an element of the array, or one of the objects that follow each other.
        Format(
            name="json",
            suffixes=(".json",),
            reader="json_array:read_json",
            record="record",
            compressible=True,
        ),
        Format(
            name="csv",
            suffixes=(".csv", ".tsv"),
            reader="delimited:read_csv",
            record="row",
            compressible=True,
            has_ids=False,
        ),
        Format(
            name="parquet",
            suffixes=(".parquet",),
            reader="parquet:read_parquet",
            record="row",
            first_record=0,
            unit="row group",
        ),
        # IPC files and streams. Datasets that Hugging Face saved to disk are found by their state.json.
        Format(
            name="arrow",
            suffixes=(".arrow", ".feather"),
            reader="arrow:read_arrow",
            record="row",
            first_record=0,
            unit="record batch",
        ),
        # A record is one of the archive; those without text are counted as empty, by kind.
        Format(
            name="warc",
            suffixes=(".warc", ".wet"),
            reader="warc:read_warc",
            record="record",
            compressible=True,
            has_ids=False,
        ),
        # A record is a sample: the members of one name.
        Format(
            name="tar",
            suffixes=(".tar", ".tgz"),
            reader="webdataset:read_tar",
            record="sample",
            compressible=True,
        ),
        Format(
            name="hub",
            reader="hub:read_hub",
            record="row",
            first_record=0,
            unit="shard",
        ),
    )
}
"""Formats by name."""

BY_SUFFIX: dict[str, Format] = {suffix: row for row in FORMATS.values() for suffix in row.suffixes}
"""Formats by the suffix of a file, lower case."""


def read_slice(part: Part, *, block: int | None = None) -> Iterator[TextBatch]:
    """The documents of one slice, in batches as its reader gives them; `block` bytes are read at once.

    Records count from the start of the slice. Raises SourceError and StorageError; see `Inputs.read`.
    """
    module, function = FORMATS[part.file.format].reader.split(":")
    reader: Callable[[Part, int | None], Iterator[TextBatch]]
    reader = getattr(import_module(f"exact_prep.sources.{module}"), function)
    return reader(part, block)
