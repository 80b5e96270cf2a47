"""Documents in: from files, directories, globs, stdin and Hugging Face datasets to batches of texts or token ids.

    find_inputs    what the user named -> files in order                        discovery
    plan_tasks     files -> slices that are read together                       slices
    read_task      slices -> TextBatch after TextBatch                          jsonl, array, text, table, columnar, hub
    sample_texts   a few texts from all over the corpus, for a check            samples

| format  | files                                  | a record is           | compressed | cut into slices by |
|---------|----------------------------------------|-----------------------|------------|--------------------|
| text    | .txt .text                             | a file, or what lies between separators | yes | -    |
| jsonl   | .jsonl .ndjson                         | a line                | yes        | bytes              |
| json    | .json                                  | an element of the array, or one of the objects in a row | yes | - |
| csv     | .csv .tsv                              | a row                 | yes        | -                  |
| parquet | .parquet                               | a row                 | -          | row groups         |
| arrow   | .arrow .feather, datasets on disk      | a row                 | -          | record batches     |
| hub     | hf://NAME[/CONFIG][:SPLIT]             | a row                 | -          | shards             |

Compressed: .gz .zst .bz2 .xz. Every record is a document, empty, or bad; a bad one stops the run or is set aside, with
its file, its place and the reason. Nothing is imported here that takes time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exact_prep.records.manifest import InputFile, Slice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from exact_prep.batches import TextBatch
    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.documents import Part


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the inputs are."""

    files: tuple[InputFile, ...]
    """In the order in which they are read: by absolute path."""
    left_out: dict[str, int]
    """Files in directories and globs that are not read, by suffix; `hidden` for names that begin with a dot."""


def find_inputs(inputs: Sequence[str], options: SourceOptions, *, apart_from: Path | None = None) -> Found:
    """Files, directories, globs, `-` and `hf://` names as files in order; raises UsageError or StorageError.

    The same set of files gives the same result however it is named. `-` is listed with 0 bytes. What lies below
    `apart_from`, where the output goes, is no input: found on the way it is passed over, named it is an error.
    """
    from exact_prep.sources.discovery import find

    files, left_out = find(inputs, options, apart_from)
    return Found(files=files, left_out=left_out)


def plan_tasks(
    files: Sequence[InputFile], options: SourceOptions, *, stdin: Path | None = None
) -> tuple[tuple[Slice, ...], ...]:
    """Slices that are read together, task by task, every byte of every file in exactly one.

    Tasks have about 1/512 of the corpus, at least 32 MiB and at most 512 MiB where files can be cut. `stdin` is where
    the input `-` was spooled. Raises StorageError, or SourceError if a file has changed.
    """
    from exact_prep.sources.slices import plan

    return plan([part(index, files, options, stdin) for index in range(len(files))])


def read_task(
    slices: Sequence[Slice], files: Sequence[InputFile], options: SourceOptions, *, stdin: Path | None = None
) -> Iterator[TextBatch]:
    """The documents of a task in order, in batches of about 4 MiB; see TextBatch.

    Raises SourceError for a bad document under `on_error="stop"`, for a missing field or column of a whole file, and
    for a file that has changed since it was found; StorageError for one that cannot be read.
    """
    from exact_prep.sources.documents import joined, shifted

    def batches() -> Iterator[TextBatch]:
        first = 0
        for one in slices:
            count = 0
            for batch in read_slice(part(one.file, files, options, stdin, one)):
                yield shifted(batch, first)
                count += batch.read
            first += count

    yield from joined(batches())


def origins_of(
    records: Sequence[int],
    slices: Sequence[Slice],
    files: Sequence[InputFile],
    options: SourceOptions,
    *,
    stdin: Path | None = None,
) -> list[tuple[str, str]]:
    """(file, place) of some records of a task, by their numbers, ascending: `("a.jsonl", "line 12")`.

    The task is read again for it: meant for a message, or a few documents set aside.
    """
    from exact_prep.sources.origins import origins

    tolerant = options.model_copy(update={"on_error": "reject"})
    return origins(records, (part(one.file, files, tolerant, stdin, one) for one in slices), read_slice)


def sample_texts(
    files: Sequence[InputFile], options: SourceOptions, *, budget: int = 1 << 20, stdin: Path | None = None
) -> list[str]:
    """Some texts from all over the corpus, about `budget` bytes; none where the corpus came as ids.

    Bad documents are passed over (the run reports them), and so are files that cannot be read.
    """
    from exact_prep.sources.samples import sample

    return sample([part(index, files, options, stdin) for index in range(len(files))], budget)


def part(
    index: int, files: Sequence[InputFile], options: SourceOptions, stdin: Path | None, one: Slice | None = None
) -> Part:
    """A slice of a file, by default all of it, with all that its reader needs to know."""
    from exact_prep.sources.documents import Part

    file = files[index]
    if file.path != "-":
        return Part(file=file, slice=one or Slice(file=index), options=options)
    if stdin is None:
        raise ValueError("one input is stdin, and where it was spooled is not given")
    file = file.model_copy(update={"bytes": stdin.stat().st_size})
    return Part(file=file, slice=one or Slice(file=index), options=options, spool=stdin)


def read_slice(part: Part, *, block: int | None = None) -> Iterator[TextBatch]:
    """The documents of one slice, in batches as its format gives them; `block` bytes are read at once."""
    from exact_prep.sources.streams import BLOCK

    match part.file.format:
        case "text":
            from exact_prep.sources.text import PIECE, read_text

            return read_text(part, block=block or PIECE)
        case "jsonl":
            from exact_prep.sources.jsonl import read_jsonl

            return read_jsonl(part, block=block or BLOCK)
        case "json":
            from exact_prep.sources.array import read_json

            return read_json(part, block=block or BLOCK)
        case "csv":
            from exact_prep.sources.table import read_csv

            return read_csv(part, block=block or BLOCK)
        case "parquet":
            from exact_prep.sources.columnar import open_parquet, read_columns

            return read_columns(part, open_parquet)
        case "arrow":
            from exact_prep.sources.columnar import open_arrow, read_columns

            return read_columns(part, open_arrow)
        case "hub":
            from exact_prep.sources.columnar import read_columns
            from exact_prep.sources.hub import open_hub

            return read_columns(part, open_hub)
