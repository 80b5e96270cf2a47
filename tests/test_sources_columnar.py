"""Laws of Parquet and Arrow files: types, nulls, bad strings, ids; and of how files become tasks."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from corpora import make_part, read_all, read_inputs

from exact_prep.errors import SourceError, UsageError
from exact_prep.records.options import SourceOptions
from exact_prep.records.work import InputFile, Slice
from exact_prep.sources import Inputs, find_inputs, slices
from exact_prep.sources.arrow import count_rows_before
from exact_prep.sources.formats import read_slice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_parquet(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path, row_group_size=4, store_schema=True)


def write_arrow(path: Path, rows: pa.Table) -> None:
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=4)


def write_stream(path: Path, rows: pa.Table) -> None:
    with pa.ipc.new_stream(path, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows, max_chunksize=4)


BYTES = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string(), pa.binary_view(): pa.string_view()}

WRITERS: dict[str, Callable[[Path, pa.Table], None]] = {
    "a.parquet": write_parquet,
    "b.arrow": write_arrow,
    "c.arrow": write_stream,
}


def unsafe(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Bytes that call themselves strings."""
    array = pa.array(values, {v: k for k, v in BYTES.items()}[kind])
    return pa.Array.from_buffers(kind, len(array), array.buffers(), array.null_count)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(WRITERS, [pa.string(), pa.large_string()]),
        *itertools.product(["b.arrow", "c.arrow"], ["dictionary", pa.string_view()]),
    ],
)
def test_rows_that_hold_no_text_are_bad_one_by_one(tmp_path: Path, name: str, kind: Any) -> None:
    values = [b"first", None, b"", "é".encode(), b"b\xff", b"x", b"y", b"y", None, b"last"]
    column = unsafe(values, pa.string() if kind == "dictionary" else kind)
    if kind == "dictionary":
        column = pa.DictionaryArray.from_arrays(pa.array([0, None, 2, 3, 4, 5, 6, 6, 1, 9], pa.int8()), column)
    WRITERS[name](tmp_path / name, pa.table({"more": range(10), "text": column}))
    with pytest.raises(SourceError, match=rf"{name}, row 1: column 'text' is null;\nfix"):
        read_inputs(tmp_path)
    read = read_inputs(tmp_path, on_error="reject")
    assert [(record, text) for _, record, text in read.documents] == [
        (0, "first"),
        (3, "é"),
        (5, "x"),
        (6, "y"),
        (7, "y"),
        (9, "last"),
    ]
    assert [(bad.record, bad.place, bad.reason.split()[-1]) for bad in read.rejected] == [
        (1, "row 1", "null"),
        (4, "row 4", "UTF-8"),
        (8, "row 8", "null"),
    ]
    assert read.empty == 1


def test_a_dictionary_of_bad_strings_is_damage_to_pyarrow(tmp_path: Path) -> None:
    values = unsafe([b"first", b"b\xff"], pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array([0, None, 0, 0, 0, 1], pa.int8()), values)
    write_parquet(tmp_path / "a.parquet", pa.table({"text": column}))
    read = read_inputs(tmp_path, on_error="reject")
    size = f"{(tmp_path / 'a.parquet').stat().st_size:,}"
    assert [(bad.place, bad.reason) for bad in read.rejected] == [
        ("row 0 on", f"pyarrow cannot read it: Invalid UTF8 payload; lost: the last {size} of the file's {size} bytes")
    ]


@pytest.mark.parametrize("name", ["a.parquet", "b.arrow"])
def test_a_slice_names_rows_by_their_place_in_the_file(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pa.table({"text": ["a"] * 9 + [None]}))
    options = SourceOptions(on_error="reject")
    inputs = find_inputs([str(tmp_path)], options)
    tasks = [[Slice(file=0, start=0, stop=1)], [Slice(file=0, start=1, stop=3)]]
    read = read_all(inputs, tasks=tasks)
    assert [(bad.record, bad.place) for bad in read.rejected] == [(5, "row 9")]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_rows_before_a_slice_are_counted_by_headers(tmp_path: Path, compression: str | None) -> None:
    """Of batches of any size, with dictionaries and other columns between them."""
    sizes = [3, 1, 0, 700, 2, 5]
    kinds = pa.array(["x", "y"])
    batches = [
        pa.record_batch(
            {
                "text": pa.array(["a"] * size, pa.string()),
                "kind": pa.DictionaryArray.from_arrays(pa.array([1] * size, pa.int32()), kinds),
            }
        )
        for size in sizes
    ]
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(tmp_path / "a.arrow", batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write(batch)
    memory = pa.memory_map(str(tmp_path / "a.arrow"))
    reader = pa.ipc.open_file(memory)
    for start in range(reader.num_record_batches + 1):
        assert count_rows_before(memory, reader, start) == sum(sizes[:start])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": pa.array([1, 2])}, "column 'text' holds int64, not text"),
        ({"text": pa.array([[1]])}, r"column 'text' holds list<.*>, not text"),
        ({"text": pa.array([{"a": "b"}])}, r"column 'text' holds struct<a: string>, not text"),
        (
            {"meta": pa.array([{"body": "b", "id": 1}])},
            "there is no column 'text';\nname one with --text-field, there is: 'meta.body', 'meta.id'",
        ),
        ({"text.raw": pa.array(["a"])}, "there is no column 'text';\nname one with --text-field, there is: 'text.raw'"),
    ],
)
def test_a_column_of_no_text_is_refused(tmp_path: Path, name: str, columns: dict[str, pa.Array], message: str) -> None:
    WRITERS[name](tmp_path / name, pa.table(columns))
    for on_error in ("stop", "reject"):
        with pytest.raises(SourceError, match=f"{name}: {message}"):
            read_inputs(tmp_path, on_error=on_error)


@pytest.mark.parametrize("name", WRITERS)
def test_columns_of_like_names_are_told_apart(tmp_path: Path, name: str) -> None:
    rows = pa.table({"text.raw": ["no"], "text": ["yes"], "texts": ["no"], "a": [{"text": "no"}]})
    WRITERS[name](tmp_path / name, rows)
    assert read_inputs(tmp_path).texts == ["yes"]
    assert read_inputs(tmp_path, text_field="text.raw").texts == ["no"]


@pytest.mark.parametrize("write", [pq.write_table, pa.feather.write_feather], ids=["parquet", "arrow"])
def test_large_batches_are_cut_and_nothing_is_lost(tmp_path: Path, write: Callable[[pa.Table, Path], None]) -> None:
    texts = [f"{i}" * (i % 50) for i in range(10_000)]
    ids = [list(range(i % 7)) for i in range(10_000)]
    path = tmp_path / f"a.{'parquet' if write is pq.write_table else 'feather'}"
    write(pa.table({"text": texts, "ids": ids}), path)
    read = read_inputs(path)
    assert [(record, text) for _, record, text in read.documents] == [(i, t) for i, t in enumerate(texts) if t]
    read = read_inputs(path, ids_field="ids")
    assert [(record, values) for _, record, values in read.ids] == [(i, v) for i, v in enumerate(ids) if v]


@pytest.mark.parametrize("name", WRITERS)
def test_only_nulls_are_only_bad_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pa.table({"text": pa.nulls(5)}))
    assert len(read_inputs(tmp_path, on_error="reject").rejected) == 5


IDS = [[1, 2, 3], None, [], [2**31 - 1, 0], [5, None], [-1], [7, 2**31], [9], [4], [8]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.uint64()), pa.list_(pa.int16())]
)
@pytest.mark.parametrize("name", WRITERS)
def test_ids_come_from_lists_of_integers(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    limit = np.iinfo(kind.value_type.to_pandas_dtype())
    rows = [None if row is None else [v if v is None or limit.min <= v <= limit.max else 1 for v in row] for row in IDS]
    expected = [(i, row) for i, row in enumerate(rows) if row and all(v is not None and 0 <= v < 2**31 for v in row)]
    WRITERS[name](tmp_path / name, pa.table({"ids": pa.array(rows, kind), "text": [None] * 10}))
    read = read_inputs(tmp_path, ids_field="ids", on_error="reject")
    assert [(record, ids) for _, record, ids in read.ids] == expected
    assert (read.records, read.empty) == (10, 1)
    with pytest.raises(SourceError, match=f"{name}, row 1: column 'ids' is null"):
        read_inputs(tmp_path, ids_field="ids")


@pytest.mark.parametrize("name", WRITERS)
def test_ids_of_fixed_size_lists(tmp_path: Path, name: str) -> None:
    rows = pa.array([[1, 2], None, [3, 4], [5, -6]], pa.list_(pa.int32(), 2))
    WRITERS[name](tmp_path / name, pa.table({"ids": rows}))
    read = read_inputs(tmp_path, ids_field="ids", on_error="reject")
    assert [(record, ids) for _, record, ids in read.ids] == [(0, [1, 2]), (2, [3, 4])]
    assert [bad.record for bad in read.rejected] == [1, 3]


def test_a_page_that_fails_its_checksum_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 3}), path, compression="none", write_page_checksum=True)
    assert read_inputs(path).texts == ["some text"] * 3
    path.write_bytes(path.read_bytes().replace(b"some text", b"same text", 1))
    with pytest.raises(SourceError, match=r"a.parquet, row 0 on: pyarrow cannot read it: .*checksum"):
        read_inputs(path)


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    text = os.urandom(2500).hex()
    pq.write_table(
        pa.table({"text": [text + str(i) for i in range(10_000)]}), tmp_path / "a.parquet", compression="none"
    )
    before = pa.total_allocated_bytes()
    inputs = find_inputs([str(tmp_path)], SourceOptions())
    peak = 0
    for batch in inputs.read(inputs.plan_tasks()[0]):
        assert batch.text_bytes < 10 << 20
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 25 << 20


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_some_rows_cost_what_they_hold_not_what_all_of_them_share(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [f"{i} " + "word " * 2000 for i in range(3000)]
    rows = pa.table({"text": pa.array(texts, kind)})
    with pa.ipc.new_file(tmp_path / "a.arrow", rows.schema) as writer:
        writer.write_table(rows)
    del rows
    inputs = find_inputs([str(tmp_path)], SourceOptions())
    batches = rest = 0
    tracemalloc.start()
    for batch in read_slice(make_part(inputs)):
        assert batch.texts == texts[rest : rest + len(batch.texts)]
        batches, rest = batches + 1, rest + len(batch.texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rest == len(texts)
    assert batches < 20
    assert peak < 15 << 20


def test_offsets_that_lead_outside_are_damage(tmp_path: Path) -> None:
    wild = pa.py_buffer(np.array([0, 1_000_000, 5], np.int32))
    column = pa.Array.from_buffers(pa.string(), 2, [None, wild, pa.py_buffer(b"hello")])
    write_arrow(tmp_path / "a.arrow", pa.table({"text": column}))
    with pytest.raises(SourceError, match=r"a.arrow, row 0 on: pyarrow cannot read it: .*[Oo]ffset"):
        read_inputs(tmp_path)


def plan(*files: InputFile, **options: Any) -> tuple[tuple[Slice, ...], ...]:
    return Inputs(files=files, options=SourceOptions.model_validate(options)).plan_tasks()


class TestTasks:
    """Files become tasks by size alone."""

    @pytest.fixture(autouse=True)
    def small_tasks(self, monkeypatch) -> None:
        monkeypatch.setattr(slices, "SMALLEST_TASK", 1000)
        monkeypatch.setattr(slices, "LARGEST_TASK", 5000)

    def test_all_bytes_are_in_one_slice_each(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        documents = [os.urandom(int(size)).hex() for size in rng.integers(1, 300, 400)]
        lines = "".join(f'{{"text":"{text}"}}\n' for text in documents)
        (tmp_path / "a.jsonl").write_text(lines)
        for i in range(30):
            (tmp_path / f"b{i:02d}.txt").write_text(documents[i])
        write_parquet(tmp_path / "c.parquet", pa.table({"text": documents}))
        write_arrow(tmp_path / "d.arrow", pa.table({"text": documents}))
        write_stream(tmp_path / "e.arrow", pa.table({"text": documents}))
        inputs = find_inputs([str(tmp_path)], SourceOptions())
        tasks = inputs.plan_tasks()
        ranges: dict[int, list[tuple[int, int | None]]] = {}
        for task in tasks:
            for one in task:
                ranges.setdefault(one.file, []).append((one.start, one.stop))
        assert sorted(ranges) == list(range(len(inputs.files)))
        for parts in ranges.values():
            assert parts[0][0] == 0
            assert all(low[1] == high[0] for low, high in itertools.pairwise(parts))
        assert ranges[0][-1][1] == inputs.files[0].bytes
        assert len(ranges[0]) > 10
        assert len(ranges[31]) > 10
        assert len(ranges[32]) > 10
        assert ranges[33] == [(0, None)]
        assert 1 < len([task for task in tasks if 1 <= task[0].file <= 30]) < 30
        assert read_all(inputs).texts == documents + documents[:30] + documents * 3

    def test_compressed_files_count_fourfold_and_are_not_cut(self) -> None:
        files = [InputFile(path=f"{i}.jsonl.gz", bytes=900, format="jsonl") for i in range(8)]
        tasks = plan(*files)
        assert [[one.file for one in task] for task in tasks] == [[i] for i in range(8)]
        small = [file.model_copy(update={"bytes": 100}) for file in files]
        assert [len(task) for task in plan(*small)] == [2, 2, 2, 2]

    def test_no_task_has_more_files_than_the_limit(self, monkeypatch) -> None:
        monkeypatch.setattr(slices, "FILES_PER_TASK", 3)
        files = [InputFile(path=f"{i}.txt", bytes=0, format="text") for i in range(8)]
        assert [len(task) for task in plan(*files)] == [3, 3, 2]

    def test_the_size_of_tasks_follows_the_corpus(self, monkeypatch) -> None:
        monkeypatch.undo()
        sizes = (
            (1, 32 << 20),
            (64, 128 << 20),
            (1000, 512 << 20),
            (3750, 512 << 20),
            (1_000_000, -(-(10**6 << 30) // 7500)),
        )
        for gigabytes, expected in sizes:
            size = gigabytes << 30
            [*tasks] = plan(InputFile(path="a.jsonl", bytes=size, format="jsonl"))
            longest = max((task[0].stop or 0) - task[0].start for task in tasks)
            assert expected * 0.9 < longest <= expected

    @pytest.mark.parametrize("bulk", [700, 1001, 1500, 2999, 90_000])
    @pytest.mark.parametrize("small", [0, 1, 400])
    def test_no_corpus_makes_more_tasks_than_the_limit(self, monkeypatch, bulk: int, small: int) -> None:
        """Not even where small files come between files that are just large enough to be cut in two."""
        monkeypatch.undo()
        files = []
        for i in range(7500 * 1000 // (small + bulk)):  # the corpus has 7,500 times 1000 MiB
            files.append(InputFile(path=f"{i}.jsonl", bytes=bulk << 20, format="jsonl"))
            files.append(InputFile(path=f"{i}.txt", bytes=small << 20, format="text"))
        tasks = plan(*files)
        assert 3_000 < len(tasks) <= 15_000
        sizes = [sum((one.stop or files[one.file].bytes) - one.start for one in task) for task in tasks]
        assert sum(sizes) == sum(file.bytes for file in files)

    @pytest.mark.parametrize("size", [1, 10, 1000, 31_000])
    def test_a_task_size_that_makes_too_many_tasks_is_refused_with_one_that_works(self, size: int) -> None:
        files = [InputFile(path=f"{i}.jsonl", bytes=1 << 30, format="jsonl") for i in range(2)]
        files += [InputFile(path=f"{i}.txt", bytes=1000, format="text") for i in range(100)]
        with pytest.raises(UsageError, match=rf"--task-size {size} makes more than 32,000 tasks .*;\n") as error:
            plan(*files, task_bytes=size)
        works = int(str(error.value).rsplit(" ", 1)[1])
        assert 1000 < len(plan(*files, task_bytes=works)) <= 32_000
        fits = (2 << 30) // 31_990
        assert 31_900 < len(plan(*files, task_bytes=fits)) <= 32_000

    def test_many_small_files_are_refused_too(self) -> None:
        files = [InputFile(path=f"{i}.txt", bytes=10, format="text") for i in range(40_000)]
        with pytest.raises(UsageError, match=r"such as --task-size 50$"):
            plan(*files, task_bytes=1)
        assert len(plan(*files, task_bytes=50)) == 8000


class TestSamples:
    """A few texts from everywhere, by small reads."""

    def test_they_come_from_all_over(self, tmp_path: Path) -> None:
        for name in "abc":
            lines = (f'{{"text":"{name}{i} {"x" * 3000}"}}\n' for i in range(2000))
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        write_parquet(tmp_path / "d.parquet", pa.table({"text": [f"d{i} {'x' * 3000}" for i in range(2000)]}))
        (tmp_path / "e.txt").write_text("".join(f"e{i} {'é' * 2000}\n" for i in range(2000)))
        texts = find_inputs([str(tmp_path)], SourceOptions()).sample_texts(budget=100_000)
        assert 30_000 < sum(len(text.encode()) for text in texts) <= 100_000
        assert {text[0] for text in texts} >= set("abcd")
        assert len({text.split()[0] for text in texts if text[0] == "a"}) > 4

    def test_bad_documents_and_files_are_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text":"good"}\nbad\n{"text":"\xff"}\n')
        (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
        (tmp_path / "c.parquet").write_bytes(b"no parquet")
        (tmp_path / "d.txt").write_bytes(b"bytes \xff text")
        (tmp_path / "e.csv").write_bytes(b"no\ncolumn\n")
        (tmp_path / "f.json").write_bytes(b"no")
        inputs = find_inputs([str(tmp_path)], SourceOptions())
        (tmp_path / "f.json").unlink()
        assert sorted(inputs.sample_texts()) == ["bytes  text", "good"]

    def test_reads_are_few_and_small(self, tmp_path: Path) -> None:
        """A file of 100 GB, all but its start a hole: one line of zeros that ends nowhere near."""
        path = tmp_path / "a.jsonl"
        with path.open("wb") as out:
            out.write(b'{"text":"start"}\n')
            out.truncate(100 << 30)
        texts = find_inputs([str(path)], SourceOptions()).sample_texts()
        assert texts == []

    def test_a_corpus_of_ids_has_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"ids":[1]}\n')
        options = SourceOptions(ids_field="ids")
        assert find_inputs([str(tmp_path)], options).sample_texts() == []


def test_rows_that_exact_prep_packed_are_no_corpus_of_ids(tmp_path):
    from written_dataset import documents, write_dataset

    packed = write_dataset(tmp_path / "packed", documents(20, 40), seq_len=64)
    with pytest.raises(SourceError, match="padding;\npack the corpus that it was made from"):
        read_inputs(packed, ids_field="input_ids")
