"""Which row to show: by number, by document, by text, or at random. Each says in words how the row was chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.reader.blocks import read_segments, split_shard
from exact_prep.shards import open_shard
from exact_prep.shuffle import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rows
    from exact_prep.reports.row import RowReader

NAMED = 10
"""Matches or rows that a message names, at most."""


class Chosen(NamedTuple):
    """A row, and how it was chosen."""

    row: int
    said: str


def choose_random(reader: RowReader, seed: int) -> Chosen:
    """A row that depends on the seed alone, not one of padding alone; raises UsageError if there is none."""
    rows = len(reader.dataset) - reader.dataset.manifest.padding_rows
    if not rows:
        raise UsageError(f"{reader.dataset.path} has no rows with text; pack documents that are not empty")
    row = int(permutation(rows, seed)[0])
    return Chosen(row, f"chosen at random with seed {seed}; --row, --doc and --find choose another")


def choose_text(reader: RowReader, needle: str) -> Chosen:
    """The first row with a segment that holds `needle`; raises UsageError if there is none. Reads all rows."""
    path, decoder = reader.dataset.path, reader.decoder
    if decoder is None:
        raise UsageError(f"{path} was packed from ids without a tokenizer, so there is no text to find; use --row")
    if not needle:
        raise UsageError("--find '' is in every row; give the text to look for")
    first, found = 0, list[int]()
    for rows in read_segments(reader.dataset):
        segments, owners = split_rows(rows)
        texts = decoder.decode_all(segments)
        held = {owner for text, owner in zip(texts, owners, strict=True) if needle in text}
        found += [first + row for row in sorted(held)]
        first += len(rows)
    if not found:
        raise UsageError(
            f"no segment of the {first:,} rows of {path} holds {needle!r}; case and spaces count, and "
            "rows cut documents: try fewer words"
        )
    return Chosen(found[0], f"{describe_rows(found)} {needle!r}")


def describe_rows(found: list[int]) -> str:
    """How many rows hold what was looked for, and which come after the one that is shown."""
    if len(found) == 1:
        return "the one row that holds"
    others = ", ".join(f"{row:,}" for row in found[1 : NAMED + 1]) + ", ..." * (len(found) > NAMED + 1)
    return f"the first of {len(found):,} rows (others: {others}) that hold"


def split_rows(rows: Rows) -> tuple[list[list[int]], list[int]]:
    """The ids of each segment, and the row of each."""
    owners = np.repeat(np.arange(len(rows)), np.diff(rows.row_splits)).tolist()
    starts = rows.segment_starts().tolist()
    places = zip(owners, starts, rows.seq_lengths.tolist(), strict=True)
    return [rows.input_ids[row, start : start + length].tolist() for row, start, length in places], owners


def choose_document(reader: RowReader, name: str) -> Chosen:
    """The first row that holds a document: by its own id, by TASK:RECORD, or by RECORD where one task has it.

    Raises UsageError if no document has that name, or several have it.
    """
    path = reader.dataset.path
    wanted = find_own_ids(reader, name) or find_numbers(reader, name)
    held: dict[tuple[int, int], list[int]] = {}
    for task, row, documents in read_documents(reader, wanted):
        for record in set(documents) & wanted[task]:
            held.setdefault((task, record), []).append(row)
    if not held:
        kept = reader.dataset.manifest.options.source.id_field is not None
        ids = "its ids are those of --id-field" if kept else "it keeps no ids of documents (pack --id-field)"
        raise UsageError(
            f"no row of {path} holds a document {name!r}; {ids}, and TASK:RECORD names any document: see the output of "
            "--row N"
        )
    if len(held) > 1:
        origins = [
            f"{task}:{record} ({', '.join(filter(None, reader.origins.find(task, [record])[record]))})"
            for task, record in list(held)[:NAMED]
        ]
        more = f" and {len(held) - NAMED:,} more" if len(held) > NAMED else ""
        raise UsageError(
            f"{len(held):,} documents of {path} are named {name!r}; choose one with --doc TASK:RECORD: "
            f"{'; '.join(origins)}{more}"
        )
    [rows] = held.values()
    return Chosen(
        rows[0], f"{describe_rows(rows)} document {name!r}".replace(" hold document", " hold a part of document")
    )


def find_own_ids(reader: RowReader, name: str) -> dict[int, set[int]]:
    """The documents whose own id is `name`, by task."""
    if reader.dataset.manifest.options.source.id_field is None or not name:
        return {}
    found: dict[int, set[int]] = {}
    for task in range(reader.dataset.files.table("tasks").num_rows):
        records = {record for record, own in reader.dataset.files.document_ids(task).items() if own == name}
        if records:
            found[task] = records
    return found


def find_numbers(reader: RowReader, name: str) -> dict[int, set[int]]:
    """The documents that a number, or two, may name, by task; they need not exist."""
    if not (match := re.fullmatch(r"(?:(\d{1,18}):)?(\d{1,18})", name, re.ASCII)):
        return {}
    record = int(match[2])
    tasks = range(reader.dataset.files.table("tasks").num_rows) if match[1] is None else [int(match[1])]
    return {task: {record} for task in tasks}


def read_documents(reader: RowReader, wanted: dict[int, set[int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Task, number and documents of each row that holds a wanted document."""
    for number, record in enumerate(reader.dataset.files.shards):
        if record.task not in wanted:
            continue
        first = int(reader.first_rows[number])
        for rows in split_shard(open_shard(reader.dataset.path / record.file)):
            hits = np.flatnonzero(np.isin(rows.doc_ids, list(wanted[record.task])))
            for row in np.unique(np.searchsorted(rows.row_splits, hits, side="right") - 1).tolist():
                inside = slice(int(rows.row_splits[row]), int(rows.row_splits[row + 1]))
                yield record.task, first + row, rows.doc_ids[inside].tolist()
            first += len(rows)
