"""Corpora for the tests of sources: the same documents in every format, and what a task gives, put together again."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep.records.options import SourceOptions
from exact_prep.records.work import Slice
from exact_prep.sources import Inputs, find_inputs
from exact_prep.sources.formats import read_slice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exact_prep.batches import Rejected, TextBatch
    from exact_prep.sources.batching import Part

SEPARATOR = "<|endofdocument|>\n"


@dataclass
class Read:
    """What came out of some tasks."""

    documents: list[tuple[int, int, str]] = field(default_factory=list)
    """Task, record, text."""
    labels: dict[tuple[int, int], str] = field(default_factory=dict)
    """Source label by task and record."""
    ids: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """Task, record, token ids."""
    rejected: list[Rejected] = field(default_factory=list)
    records: int = 0
    empty: int = 0
    bytes_read: int = 0
    text_bytes: int = 0
    pieces: int = 0

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.documents]


def gather(batches: Iterable[TextBatch], task: int = 0, into: Read | None = None) -> Read:
    """Put batches together, and hold them to what TextBatch promises."""
    read = into or Read()
    begun = False
    for batch in batches:
        assert batch.records.dtype == "int64"
        assert batch.labels is None or len(batch.labels) == len(batch.records)
        for record, label in zip(
            batch.records.tolist(), batch.labels or [batch.label] * len(batch.records), strict=True
        ):
            assert read.labels.setdefault((task, record), label) == label
        if batch.ids is not None:
            assert batch.ids.dtype == "int32"
            assert batch.id_offsets is not None
            assert batch.id_offsets.dtype == "int64"
            assert len(batch.id_offsets) == len(batch.records) + 1
            assert batch.id_offsets[-1] == len(batch.ids)
            edges = batch.id_offsets.tolist()
            for record, low, high in zip(batch.records.tolist(), edges, edges[1:], strict=False):
                assert high > low
                read.ids.append((task, record, batch.ids[low:high].tolist()))
        else:
            assert len(batch.texts) == len(batch.records)
        for index, text in enumerate(batch.texts):
            record = int(batch.records[index])
            if begun and index == 0:
                before = read.documents.pop()
                assert before[:2] == (task, record)
                read.documents.append((task, record, before[2] + text))
            else:
                assert text
                read.documents.append((task, record, text))
        assert not begun or batch.texts or not (batch.read or batch.continues)
        if batch.texts:
            begun = batch.continues
        assert not batch.continues or batch.texts
        read.pieces += len(batch.texts)
        read.rejected += batch.rejected
        read.records += batch.read
        read.empty += batch.empty
        read.bytes_read += batch.bytes_read
        read.text_bytes += batch.text_bytes
    assert not begun
    return read


def read_all(inputs: Inputs, *, tasks: Sequence[Sequence[Slice]] | None = None) -> Read:
    """Read inputs by the tasks given, or as they are planned, and check that everything is accounted for."""
    read = Read()
    for number, slices in enumerate(tasks or inputs.plan_tasks()):
        gather(inputs.read(slices), number, read)
    assert read.records == len(read.documents) + len(read.ids) + read.empty + len(read.rejected)
    assert read.text_bytes == sum(len(text.encode()) for text in read.texts)
    assert read.bytes_read == sum(file.bytes for file in inputs.files)
    return read


def read_part(inputs: Inputs, one: Slice | None = None, *, block: int | None = None, **changed: object) -> Read:
    """Read a slice, by default the first file, with some options changed."""
    return gather(read_slice(make_part(inputs, one, **changed), block=block))


def make_part(inputs: Inputs, one: Slice | None = None, **changed: object) -> Part:
    """A slice, by default the first file, with some options changed."""
    options = inputs.options.model_copy(update=changed)
    return replace(inputs, options=options).part(one or Slice(file=0))


def read_inputs(*inputs: object, **options: object) -> Read:
    """Find, plan and read."""
    source = SourceOptions.model_validate(options)
    return read_all(find_inputs([str(one) for one in inputs], source))


def jsonl(documents: Sequence[str]) -> bytes:
    return "".join(
        json.dumps({"id": i, "text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(documents)
    ).encode()


def json_array(documents: Sequence[str]) -> bytes:
    rows = [{"meta": {"tags": ["]", "{", '"']}, "text": text} for text in documents]
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def json_objects(documents: Sequence[str]) -> bytes:
    return "\n".join(json.dumps({"text": text, "n": [1, {}]}, indent=2) for text in documents).encode()


def delimited(delimiter: str) -> Callable[[Sequence[str]], bytes]:
    def write(documents: Sequence[str]) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow(["id", "text", "more"])
        writer.writerows((i, text, 'say "x",\ny') for i, text in enumerate(documents))
        return out.getvalue().encode()

    return write


def separated(documents: Sequence[str]) -> bytes:
    return "".join(text + SEPARATOR for text in documents).encode()


def table(documents: Sequence[str], kind: pa.DataType | None = None) -> pa.Table:
    text = pa.array(documents, kind or pa.string())
    return pa.table({"id": pa.array(range(len(documents)), pa.int64()), "text": text})


def parquet(kind: pa.DataType | None = None, rows: int = 3) -> Callable[[Sequence[str]], bytes]:
    def write(documents: Sequence[str]) -> bytes:
        out = io.BytesIO()
        pq.write_table(table(documents, kind), out, row_group_size=rows)
        return out.getvalue()

    return write


def arrow(stream: bool, kind: pa.DataType | None = None, rows: int = 3) -> Callable[[Sequence[str]], bytes]:
    def write(documents: Sequence[str]) -> bytes:
        out = io.BytesIO()
        rows_of = table(documents, kind)
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, rows_of.schema) as writer:
            writer.write_table(rows_of, max_chunksize=rows)
        return out.getvalue()

    return write


def warc(documents: Sequence[str]) -> bytes:
    """Records of extracted text."""
    records = []
    for text in documents:
        data = text.encode()
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: {len(data)}\r\n\r\n"
        records.append(head.encode() + data + b"\r\n\r\n")
    return b"".join(records)


def tar(documents: Sequence[str]) -> bytes:
    """Samples of one .txt each."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, text in enumerate(documents):
            info = tarfile.TarInfo(f"{number:06d}.txt")
            info.size = len(data := text.encode())
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}

FORMATS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "a.jsonl": jsonl,
    "b.ndjson": jsonl,
    "c.json": json_array,
    "d.json": json_objects,
    "e.json": jsonl,
    "f.csv": delimited(","),
    "g.TSV": delimited("\t"),
    "h.txt": separated,
    "i.parquet": parquet(),
    "j.parquet": parquet(pa.large_string()),
    "k.parquet": parquet(pa.dictionary(pa.int32(), pa.string())),
    "l.arrow": arrow(stream=False),
    "m.arrow": arrow(stream=True),
    "n.feather": arrow(stream=False, kind=pa.string_view()),
    "o.arrow": arrow(stream=True, kind=pa.dictionary(pa.int8(), pa.large_string())),
    "p.warc": warc,
    "q.tar": tar,
}
"""A writer per format, by the name of the file it makes."""
