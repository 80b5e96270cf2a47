"""The Parquet tables of a dataset: what grows with the corpus. Encoded and decoded here; no file is opened.

inputs            one row per input file
tasks             one row per task: its slices of the inputs, its documents, its sources
shards            one row per shard: counts and checksums
batches           one row per record batch: where it and its buffers lie in the shard
sources           one row per source, sorted by label: documents, tokens, exposure
document_lengths  source, length in tokens, number of documents of that length
weights           checksum of `loss_weights` per shard; replaced by `weigh`
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from exact_prep.errors import DatasetError
from exact_prep.records import list_faults
from exact_prep.records.work import BatchRecord, InputFile, ShardRecord, Slice
from exact_prep.zero_copy import as_arrow, as_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from exact_prep.records.manifest import DocumentCounts

TEXT, COUNT, LIST = pa.string(), pa.int64(), pa.list_(pa.int64())

BUFFERS = (
    "input_ids",
    "row_splits",
    "seq_lengths",
    "doc_ids",
    "doc_offsets",
    "sources",
    "mask_splits",
    "masked_runs",
    "loss_weights",
)
"""Offsets of a record batch's buffers in its shard, in bytes; -1 where there is no such column."""

SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "inputs": {"path": TEXT, "bytes": COUNT, "format": TEXT, "source": TEXT},
    "tasks": {
        "first_record": COUNT,
        "records": COUNT,
        "packed": COUNT,
        "empty": COUNT,
        "rejected": COUNT,
        "held_out": COUNT,
        "files": LIST,
        "starts": LIST,
        "stops": LIST,
        "sources": LIST,
        "documents_xxh3": TEXT,
    },
    "shards": {
        "file": TEXT,
        "task": COUNT,
        "rows": COUNT,
        "segments": COUNT,
        "tokens": COUNT,
        "bytes": COUNT,
        "content_xxh3": TEXT,
        "rest_xxh3": TEXT,
    },
    "batches": {"shard": COUNT, "first_row": COUNT, "rows": COUNT, "segments": COUNT} | dict.fromkeys(BUFFERS, COUNT),
    "sources": {
        "label": TEXT,
        "documents": COUNT,
        "tokens": COUNT,
        "segments": COUNT,
        "firsts": COUNT,
        "counts": LIST,
    },
    "document_lengths": {"source": COUNT, "length": COUNT, "count": COUNT},
    "weights": {"file": TEXT, "weights_xxh3": TEXT},
}
"""Columns of each table. `stops` is -1 for the end of a file; `sources` of a task are rows of the table of sources;
`documents_xxh3` is empty where documents' own ids are not kept."""

DOCUMENTS = {"doc_id": COUNT, "id": TEXT}
"""A task's documents with their own ids, sorted by `doc_id`: the record's place in the task's input."""

PLANNED_INPUTS = SCHEMAS["inputs"] | {"modified_ns": COUNT, "etag": TEXT}
PLANNED_TASKS = {"files": LIST, "starts": LIST, "stops": LIST}
"""The same while a run is incomplete."""


def encode_table(schema: Mapping[str, pa.DataType], columns: Mapping[str, Any]) -> bytes:
    """A table as Parquet; `columns` are lists or NumPy arrays. The bytes depend on the values and on pyarrow alone."""
    arrays = [encode_column(columns[name], dtype) for name, dtype in schema.items()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, names=list(schema)), sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()


def encode_column(values: Any, dtype: pa.DataType) -> pa.Array:
    """A column of strings, counts or lists of counts. Not by `pyarrow.array`, which imports pandas for a list."""
    if dtype == TEXT:
        builder: Any = pa.lib.StringBuilder()  # pyright: ignore[reportAttributeAccessIssue]
        builder.append_values(values)
        return builder.finish()
    if dtype == LIST:
        splits = np.concatenate([[0], np.cumsum([len(own) for own in values])]).astype(np.int32)
        flat = np.array([value for own in values for value in own], np.int64)
        return pa.ListArray.from_arrays(as_arrow(splits), as_arrow(flat))
    return as_arrow(np.asarray(values, np.int64))


def decode_table(schema: Mapping[str, pa.DataType], data: bytes, path: object) -> pa.Table:
    """The columns of `schema` in a Parquet file; raises DatasetError. Columns that it does not name are ignored."""
    with readable(path):
        # Not by `read_table`, which imports pyarrow.dataset (1 s).
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(schema), use_threads=False)
        table = table.select(list(schema)).cast(pa.schema(list(schema.items()))).combine_chunks()
        if empty := [name for name in schema if has_nulls(table.column(name))]:
            raise ValueError(f"column {empty[0]} has nulls")
        return table


@contextmanager
def readable(path: object) -> Iterator[None]:
    """Turn what damaged or foreign tables raise into a DatasetError that names `path`."""
    try:
        yield
    except DatasetError:
        raise
    except ValidationError as error:
        faults = list_faults(error)
        raise DatasetError(
            f"{path} is not a table of an exact-prep dataset: {faults}; restore it, or pack again"
        ) from error
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a table of an exact-prep dataset: {error}; restore it, or pack again"
        ) from error


def has_nulls(column: pa.ChunkedArray) -> bool:
    """Whether a value, or a value in a list, is null."""
    return bool(column.null_count) or (
        column.type == LIST and any(chunk.flatten().null_count for chunk in column.chunks)
    )


def read_numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of counts, int64."""
    column = table.column(name)
    return as_numpy(column.chunk(0)) if column.num_chunks else np.empty(0, np.int64)


def encode_inputs(files: Sequence[InputFile], *, planned: bool = False) -> bytes:
    """The table of inputs; `planned` keeps modification times and ETags."""
    columns: dict[str, Any] = {
        "path": [file.path for file in files],
        "bytes": [file.bytes for file in files],
        "format": [file.format for file in files],
        "source": [file.source for file in files],
        "modified_ns": [file.modified_ns for file in files],
        "etag": [file.etag for file in files],
    }
    return encode_table(PLANNED_INPUTS if planned else SCHEMAS["inputs"], columns)


def decode_inputs(data: bytes, path: object, *, planned: bool = False) -> tuple[InputFile, ...]:
    """The inputs in a table; raises DatasetError."""
    table = decode_table(PLANNED_INPUTS if planned else SCHEMAS["inputs"], data, path)
    with readable(path):
        return tuple(InputFile.model_validate(row) for row in table.to_pylist())


def split_slices(tasks: Iterable[Sequence[Slice]]) -> dict[str, list[list[int]]]:
    """The slices of tasks as columns: files, starts, stops."""
    tasks = list(tasks)
    return {
        "files": [[one.file for one in task] for task in tasks],
        "starts": [[one.start for one in task] for task in tasks],
        "stops": [[-1 if one.stop is None else one.stop for one in task] for task in tasks],
    }


def join_slices(row: Mapping[str, Any]) -> tuple[Slice, ...]:
    """The slices in a row of a table of tasks."""
    places = zip(row["files"], row["starts"], row["stops"], strict=True)
    return tuple(Slice(file=file, start=start, stop=None if stop < 0 else stop) for file, start, stop in places)


def encode_plan_tasks(tasks: Iterable[Sequence[Slice]]) -> bytes:
    """The table of tasks of a run that is incomplete."""
    return encode_table(PLANNED_TASKS, split_slices(tasks))


def decode_plan_tasks(data: bytes, path: object) -> tuple[tuple[Slice, ...], ...]:
    """The tasks of a run that is incomplete; raises DatasetError."""
    table = decode_table(PLANNED_TASKS, data, path)
    with readable(path):
        return tuple(join_slices(row) for row in table.to_pylist())


def encode_tasks(
    slices: Sequence[Sequence[Slice]],
    documents: Sequence[DocumentCounts],
    sources: Sequence[Sequence[int]],
    checksums: Sequence[str],
) -> bytes:
    """The table of finished tasks; `sources` are rows of the table of sources, in the order of the task's labels.

    `checksums` are those of the tables of documents' own ids, empty where there are none.
    """
    records = [counts.records for counts in documents]
    columns: dict[str, Any] = {
        "first_record": np.concatenate([[0], np.cumsum(records, dtype=np.int64)])[:-1].astype(np.int64),
        "records": records,
        "packed": [counts.packed for counts in documents],
        "empty": [counts.empty for counts in documents],
        "rejected": [counts.rejected for counts in documents],
        "held_out": [counts.held_out for counts in documents],
        "sources": sources,
        "documents_xxh3": checksums,
        **split_slices(slices),
    }
    return encode_table(SCHEMAS["tasks"], columns)


def encode_shards(shards: Sequence[ShardRecord]) -> bytes:
    """The table of shards."""
    return encode_table(
        SCHEMAS["shards"], {name: [getattr(shard, name) for shard in shards] for name in SCHEMAS["shards"]}
    )


def encode_batches(shards: Sequence[ShardRecord]) -> bytes:
    """The table of record batches of all shards."""
    places: dict[str, list[Any]] = {name: [] for name in SCHEMAS["batches"]}
    for number, shard in enumerate(shards):
        first = 0
        for batch in shard.batches:
            places["shard"].append(number)
            places["first_row"].append(first)
            for name in ("rows", "segments", *BUFFERS):
                offset = getattr(batch, name)
                places[name].append(-1 if offset is None else offset)
            first += batch.rows
    return encode_table(SCHEMAS["batches"], places)


def decode_shards(data: bytes, path: object) -> tuple[ShardRecord, ...]:
    """The shards in a table, without their record batches, which are many; raises DatasetError."""
    table = decode_table(SCHEMAS["shards"], data, path)
    with readable(path):
        return tuple(ShardRecord(**row, weights_xxh3=None, batches=()) for row in table.to_pylist())


def decode_batches(data: bytes, shards: int, path: object) -> list[tuple[BatchRecord, ...]]:
    """The record batches of each of `shards` shards; raises DatasetError."""
    places: list[list[BatchRecord]] = [[] for _ in range(shards)]
    table = decode_table(SCHEMAS["batches"], data, path)
    with readable(path):
        for row in table.to_pylist():
            if not 0 <= row["shard"] < shards:
                raise ValueError(f"a record batch of shard {row['shard']}, there are {shards}")
            found = {name: row[name] for name in ("rows", "segments", *BUFFERS) if row[name] >= 0}
            places[row["shard"]].append(BatchRecord(**found))
    return [tuple(own) for own in places]


def decode_documents(data: bytes, path: object) -> dict[int, str]:
    """The own ids of a task's documents, by `doc_id`, in its order; raises DatasetError."""
    table = decode_table(DOCUMENTS, data, path)
    with readable(path):
        found = dict(zip(table.column("doc_id").to_pylist(), table.column("id").to_pylist(), strict=True))
        if len(found) != table.num_rows or list(found) != sorted(found):
            raise ValueError("doc_id is not ascending")
    return found


def encode_weights(checksums: Mapping[str, str]) -> bytes:
    """The table of the checksums of `loss_weights`, by shard."""
    return encode_table(SCHEMAS["weights"], {"file": list(checksums), "weights_xxh3": list(checksums.values())})


def decode_weights(data: bytes, path: object) -> dict[str, str]:
    """Checksums of `loss_weights`, by shard; raises DatasetError."""
    table = decode_table(SCHEMAS["weights"], data, path)
    with readable(path):
        return dict(zip(table.column("file").to_pylist(), table.column("weights_xxh3").to_pylist(), strict=True))
