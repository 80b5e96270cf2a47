"""Laws of source labels: every document has the label that a slow oracle gives it, whatever the format."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Read, gather, read_all, read_inputs, read_part
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exact_prep.batches import TextBatch, TokenBatch
from exact_prep.errors import SourceError, UsageError
from exact_prep.records.options import SourceOptions, check_source_from
from exact_prep.sources import Inputs, RecordPlaces, SourceLabels, discovery, find_inputs, labels, long_texts
from exact_prep.stages.limits import within_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MISSING = object()
BAD = object()
FIELD = {"source_from": "field:where"}


def oracle(value: object) -> object:
    """The label that a field's value gives."""
    if value is MISSING or value is None or value == "":
        return "(none)"
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | float):
        text = json.dumps(value)
    else:
        return BAD
    try:
        text.encode()
    except UnicodeEncodeError:
        return BAD
    return text if len(text) <= 256 else BAD


def check(read: Read, texts: list[Any], values: list[object]) -> None:
    """Hold a read of one task to the oracle; a document without text is empty whatever its label."""
    expected = {(0, i): oracle(value) for i, value in enumerate(values) if texts[i]}
    assert read.labels == {key: label for key, label in expected.items() if label is not BAD}
    assert [bad.record for bad in read.rejected] == [record for (_, record), label in expected.items() if label is BAD]
    assert read.empty == sum(not text for text in texts)


LONG_LABEL = "x" * 257
TEXTS = ["one", "", "two", "three " * 40, "", "four", "five", "six", "seven " * 99, "eight", "nine", "ten"]
VALUES = ["web", "web", None, "é" * 256, LONG_LABEL, LONG_LABEL, "", "web", "books", "東京 🙂", MISSING, 'a,b\n"c"']
"""Values that all formats hold."""


def rows(texts: list[Any], values: list[object]) -> list[dict[str, Any]]:
    pairs = enumerate(zip(texts, values, strict=True))
    return [{"id": i, "text": text} | ({} if value is MISSING else {"where": value}) for i, (text, value) in pairs]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=row["id"] % 2 == 0) + "\n" for row in rows)
    path.write_bytes(lines.encode(errors="surrogatepass"))


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["where", "text"])
        writer.writerows([row.get("where") or "", row["text"]] for row in rows)


def columns(rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> pa.Table:
    values = pa.array([row.get("where") for row in rows], kind or pa.string())
    return pa.table({"where": values, "id": range(len(rows)), "text": [row["text"] for row in rows]})


def write_parquet(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> None:
    pq.write_table(columns(rows, kind), path, row_group_size=5)


def write_arrow(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> None:
    table = columns(rows, kind)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


def write_stream(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> None:
    table = columns(rows, kind)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


JSON: dict[str, Callable[..., None]] = {"a.jsonl": write_jsonl, "b.json": write_json}
COLUMNAR: dict[str, Callable[..., None]] = {"d.parquet": write_parquet, "e.arrow": write_arrow, "f.arrow": write_stream}
WRITERS = JSON | {"c.csv": write_csv} | COLUMNAR


@pytest.mark.parametrize("long", [1 << 24, 100], ids=["whole", "pieces"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_field_labels_its_record(tmp_path: Path, monkeypatch, name: str, long: int) -> None:
    monkeypatch.setattr(long_texts, "PIECE", 64)
    for module in ("long_texts", "jsonl", "column_values"):
        monkeypatch.setattr(f"exact_prep.sources.{module}.LONG", long)
    WRITERS[name](tmp_path / name, rows(TEXTS, VALUES))
    read = read_inputs(tmp_path, on_error="reject", **FIELD)
    check(read, TEXTS, VALUES)
    assert [bad.reason.removesuffix(" (in line 7)") for bad in read.rejected] == [
        f"{'field' if name in JSON else 'column'} 'where' has 257 characters; a source label has at most 256"
    ]
    with pytest.raises(SourceError, match=f"(?s){name}.* 'where' has 257 characters.*--on-error reject"):
        read_inputs(tmp_path, **FIELD)


@pytest.mark.parametrize("name", WRITERS)
def test_records_count_across_files(tmp_path: Path, name: str) -> None:
    for i in range(3):
        WRITERS[name](tmp_path / f"{i}{name}", rows(TEXTS[i:], VALUES[i:]))
    texts = [text for i in range(3) for text in TEXTS[i:]]
    check(read_inputs(tmp_path, on_error="reject", **FIELD), texts, [value for i in range(3) for value in VALUES[i:]])


@pytest.mark.parametrize("name", ["a.jsonl", "d.parquet", "e.arrow"])
def test_slices_change_no_label(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, rows(TEXTS, VALUES))
    inputs = find_inputs([str(tmp_path)], SourceOptions(on_error="reject", task_bytes=100, **FIELD))
    assert len(inputs.plan_tasks()) > 2
    read = read_all(inputs)
    good = [i for i, text in enumerate(TEXTS) if text and oracle(VALUES[i]) is not BAD]
    assert read.texts == [TEXTS[i] for i in good]
    assert [read.labels[task, record] for task, record, _ in read.documents] == [oracle(VALUES[i]) for i in good]


def test_the_shards_of_a_hub_dataset_have_labels(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train.parquet", rows(TEXTS, VALUES))
    named = f"hf://{tmp_path}/set:train"
    check(read_inputs(named, on_error="reject", **FIELD), TEXTS, VALUES)
    for source_from in ("input", "dir"):
        assert set(read_inputs(named, source_from=source_from).labels.values()) == {named}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**66)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["y" * 256, LONG_LABEL, "\ud800", "(none)", "1", 1, 1.0, -0.0, True])
)
ANY = st.just(MISSING) | SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)


@given(
    st.lists(st.tuples(st.sampled_from(["", "text", "longer " * 20]), ANY), max_size=8),
    st.sampled_from(["where", 'quo"ted', "text2"]),
    st.sampled_from([None, 5, 50]),
)
def test_any_json_value_is_a_label_or_a_reason(tmp_path_factory, pairs, field: str, block: int | None) -> None:
    texts, values = [text for text, _ in pairs], [value for _, value in pairs]
    made = [{field if key == "where" else key: value for key, value in row.items()} for row in rows(texts, values)]
    for name, write in JSON.items():
        path = tmp_path_factory.getbasetemp() / name
        write(path, made)
        inputs = find_inputs([str(path)], SourceOptions(on_error="reject", source_from=f"field:{field}"))
        check(read_part(inputs, block=block), texts, values)


@pytest.mark.parametrize("name", COLUMNAR)
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int8(), [1, None, -3, 4, 5, 6, 7]),
        (pa.uint64(), [2**64 - 1, None, 3, 4, 5, 6, 7]),
        (pa.float64(), [1.0, None, 0.1, 1e300, -0.0, 1e16, float("nan")]),
        (pa.bool_(), [True, None, False, True, True, False, None]),
        (pa.null(), [None] * 7),
        (pa.large_string(), ["a", None, "", "b", "a", LONG_LABEL, "é"]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", None, "", "b", "a", LONG_LABEL, "é"]),
        (pa.list_(pa.string()), [["a"], None, [], ["b"], None, None, ["c", None]]),
        (pa.struct([("a", pa.int8())]), [{"a": 1}, None, {"a": 2}, None, None, None, None]),
        (pa.timestamp("ns"), [2**62, None, 1, None, None, None, None]),
        (pa.binary(), [b"a", None, b"", None, None, None, None]),
    ],
    ids=str,
)
def test_columns_of_any_type_give_labels_or_reasons(tmp_path: Path, name: str, kind: pa.DataType, values: list) -> None:
    texts = ["a", "b", "c", "", "e", "f", "g"]
    COLUMNAR[name](tmp_path / name, rows(texts, values), kind)
    refused = [() if value is not None and kind == pa.timestamp("ns") else value for value in values]
    refused = [value.decode() if isinstance(value, bytes) else value for value in refused]
    check(read_inputs(tmp_path, on_error="reject", **FIELD), texts, refused)


@pytest.mark.parametrize("name", [*JSON, *COLUMNAR])
def test_token_ids_have_labels_too(tmp_path: Path, name: str) -> None:
    ids = [[1], [], [2, 3], [4], [5] * 9, [6], [], [7]]
    values = ["web", LONG_LABEL, LONG_LABEL, None, "é", "web", ["list"], MISSING]
    if name in COLUMNAR:
        values[6] = "in place of a list"
    made = rows(ids, values)
    WRITERS[name](tmp_path / name, made)
    read = read_inputs(tmp_path, ids_field="text", on_error="reject", **FIELD)
    check(read, ids, values)
    assert [tokens for _, _, tokens in read.ids] == [ids[i] for i in (0, 3, 4, 5, 7)]


@pytest.mark.parametrize("name", WRITERS)
def test_the_text_itself_may_be_the_label(tmp_path: Path, name: str) -> None:
    texts = ["one", "two", "one", LONG_LABEL]
    WRITERS[name](tmp_path / name, rows(texts, [None] * 4))
    read = read_inputs(tmp_path, on_error="reject", source_from="field:text")
    check(read, texts, list(texts))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_the_field_has_no_labels(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, rows(TEXTS, VALUES))
    read = read_inputs(tmp_path, source_from="field:other")
    assert set(read.labels.values()) == {"(none)"}


def test_a_field_of_wrong_utf8_is_a_bad_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text":"a","where":"w"}\n{"text":"b","where":"\xff"}\n{"text":"","where":"\xff"}\n'
    )
    (tmp_path / "b.csv").write_bytes(b"text,where\na,w\nb,\xff\n,\xff\n")
    column = pa.array([b"w", b"\xff", b"\xff"]).view(pa.string())
    write = pa.table({"where": column, "text": ["a", "b", ""]})
    with pa.ipc.new_file(tmp_path / "c.arrow", write.schema) as writer:
        writer.write_table(write)
    for path in sorted(tmp_path.iterdir()):
        read = read_inputs(path, on_error="reject", **FIELD)
        assert read.labels == {(0, 0): "w"}
        assert (read.rejected[0].record, read.empty) == (1, 1)
        assert read.rejected[0].reason.removesuffix(" (in line 3)").endswith("'where' is not UTF-8")


@pytest.mark.parametrize("name", ["c.csv", *COLUMNAR])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "where", "where"])
    if name == "c.csv":
        (tmp_path / name).write_text("text,where,where\na,b,c\n")
    elif name == "d.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with (pa.ipc.new_file if name == "e.arrow" else pa.ipc.new_stream)(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    assert read_inputs(tmp_path).texts == ["a"]
    with pytest.raises(SourceError, match=r"there are 2 columns 'where';\nname one with --source-from"):
        read_inputs(tmp_path, **FIELD)


@pytest.mark.parametrize(
    ("pairs", "label"),
    [
        ([("text", "long " * 50), ("where", "web")], "web"),
        ([("where", "b0"), ("text", "long " * 50)], "b0"),
        ([("html", "a0 " * 50), ("where", "a0"), ("text", "long " * 50)], "a0"),
        ([("where", "first"), ("text", "long " * 50), ("where", "\u00e9\n")], "é\n"),
        ([("text", "long " * 50)], "(none)"),
        ([("text", "long " * 50), ("where", 1.50)], "1.5"),
        ([("text", "long " * 50), ("more", {"where": "inside"})], "(none)"),
        ([("text", "long " * 50), ("where", "long " * 60)], BAD),
        ([("text", "long " * 50), ("where", ["a"])], BAD),
        ([("text", "long " * 50), ("where", ["long " * 60])], BAD),
        ([("text", "long " * 50), ("where", "\ud800")], BAD),
    ],
)
def test_a_text_given_in_pieces_has_its_label(tmp_path: Path, monkeypatch, pairs, label: object) -> None:
    monkeypatch.setattr(long_texts, "PIECE", 64)
    for module in ("long_texts", "jsonl"):
        monkeypatch.setattr(f"exact_prep.sources.{module}.LONG", 100)
    record = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    (tmp_path / "a.jsonl").write_text(record + "\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(record.encode()))
    for path in sorted(tmp_path.iterdir()):
        read = read_inputs(path, on_error="reject", **FIELD)
        assert read.labels == ({} if label is BAD else {(0, 0): label})
        assert (read.pieces > 1) == (label is not BAD)
        assert len(read.rejected) == (label is BAD)


class TestFiles:
    """Labels that go by file."""

    @pytest.fixture
    def corpus(self, tmp_path: Path, monkeypatch) -> None:
        """A file whose text is its own name, in six directories; the working directory is their root."""
        monkeypatch.chdir(tmp_path)
        for i, name in enumerate(["a.jsonl", "en/a.jsonl", "en/b.txt", "en/x/c.jsonl", "fr/d.csv", "fr/y/z/e.json"]):
            path = Path("data", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {".txt": str(path), ".csv": f"text\n{path}\n", ".json": json.dumps([{"text": str(path)}])}
            path.write_text(content.get(path.suffix, json.dumps({"text": str(path)}) + "\n" * i))

    def labels(self, inputs: Iterable[str], source_from: str) -> dict[str, str]:
        found = find_inputs([*inputs], SourceOptions(source_from=source_from))
        read = read_all(found)
        by_file = {os.path.relpath(file.path): file.source for file in found.files}
        assert by_file == {text: read.labels[task, record] for task, record, text in read.documents}
        return {text: read.labels[task, record] for task, record, text in read.documents}

    @pytest.mark.parametrize(
        ("inputs", "bases"),
        [
            (["data"], {"data": "data"}),
            (["data/"], {"data/": "data"}),
            (["./data/../data"], {"./data/../data": "data"}),
            (["data/en", "data/fr/d.csv"], {"data/en": "data/en", "data/fr/d.csv": "data/fr"}),
            (["data/*"], {"data/*": "data"}),
            (["./data/**/*.jsonl"], {"./data/**/*.jsonl": "data"}),
            (["data/e*/**", "data/fr/y"], {"data/e*/**": "data", "data/fr/y": "data/fr/y"}),
            (["*"], {"*": "."}),
            (["."], {".": "."}),
        ],
    )
    def test_every_file_has_the_label_of_its_argument_or_directory(self, corpus, inputs, bases) -> None:
        by_input, by_directory = self.labels(inputs, "input"), self.labels(inputs, "dir")
        assert by_input.keys() == by_directory.keys()
        for path, named in by_input.items():
            assert named in inputs
            assert Path(path).is_relative_to(bases[named])
            assert by_directory[path] == str(Path(path).parent.relative_to(bases[named]))
        assert set(by_input.values()) == set(inputs)

    def test_an_absolute_argument_changes_no_directory(self, corpus) -> None:
        absolute = self.labels([str(Path("data").absolute())], "dir")
        assert sorted(absolute.values()) == sorted(self.labels(["data"], "dir").values())
        globbed = self.labels([str(Path("data").absolute() / "*")], "dir")
        assert globbed == absolute

    def test_stdin_is_labelled_as_it_is_named(self, corpus, tmp_path: Path) -> None:
        spool = tmp_path / "spool"
        spool.write_text('{"text": "in", "where": "field"}\n')
        for source_from, label in (("input", "-"), ("dir", "-"), ("field:where", "field")):
            options = SourceOptions(source_from=source_from)
            assert read_all(find_inputs(["-"], options, stdin=spool)).labels == {(0, 0): label}

    def test_more_than_a_thousand_arguments_are_one_source(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(discovery, "MAX_SOURCES", 5)
        for i in range(6):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "a.txt").write_text(f"{i}/a.txt")
        monkeypatch.chdir(tmp_path)
        named = [str(path) for path in sorted(tmp_path.iterdir())]
        assert set(self.labels(named[:5], "input").values()) == set(named[:5])
        assert set(self.labels(named, "input").values()) == {"all"}
        assert set(self.labels(named, "dir").values()) == {"."}
        with pytest.raises(UsageError, match=r"sources by --source-from dir;\nchoose --source-from input"):
            find_inputs([str(tmp_path)], SourceOptions(source_from="dir"))

    def test_text_has_no_fields(self, corpus) -> None:
        with pytest.raises(UsageError, match=r"b.txt is text, which has no fields;\n.*in place of field:where"):
            find_inputs(["data"], SourceOptions.model_validate(FIELD))
        with pytest.raises(UsageError, match=r"stdin is text, which has no fields"):
            find_inputs(["-"], SourceOptions(input_format="text", **FIELD))

    def test_a_task_sent_alone_reads_the_same(self, corpus) -> None:
        inputs = find_inputs(["data/fr", "data/en"], SourceOptions(task_bytes=1, source_from="dir"))
        for slices in inputs.plan_tasks():
            alone, renumbered = inputs.only(slices)
            assert len(alone.files) == 1
            assert renumbered[0].file == 0
            assert gather(alone.read(renumbered)) == gather(inputs.read(slices))
            places = [RecordPlaces(alone, renumbered), RecordPlaces(inputs, slices)]
            for one in places:
                one.begin_slice(0)
            assert places[0].find(0) == places[1].find(0)
            assert places[0].find(0)[0] == inputs.files[slices[0].file].path


@pytest.mark.parametrize("wrong", ["", "inputs", "field", "field:", "Field:x", " input"])
def test_other_words_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"write input, dir or field:NAME"):
        check_source_from(wrong)
    with pytest.raises(ValidationError, match=r"write input, dir or field:NAME"):
        SourceOptions(source_from=wrong)
    for right in ("input", "dir", "field:x", "field:field:", "field: \n"):
        assert SourceOptions.model_validate_json(json.dumps({"source_from": right})).source_from == right


def encode(batch: TextBatch) -> Iterator[TokenBatch]:
    """One token per document."""
    offsets = np.arange(batch.records.size + 1)
    done = batch.records.size - batch.continues
    yield TokenBatch(ids=offsets[:-1], offsets=offsets, doc_ids=batch.records, doc_offsets=offsets, documents=done)


@pytest.mark.parametrize("name", WRITERS)
def test_a_quick_look_keeps_labels(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(long_texts, "PIECE", 64)
    for module in ("long_texts", "jsonl", "column_values"):
        monkeypatch.setattr(f"exact_prep.sources.{module}.LONG", 100)
    WRITERS[name](tmp_path / name, rows(TEXTS, VALUES))
    for source_from in ("input", "field:where"):
        inputs = find_inputs([str(tmp_path)], SourceOptions(on_error="reject", source_from=source_from))
        whole = gather(inputs.read(inputs.plan_tasks()[0]))
        for most in range(1, 11):
            options = SourceOptions(limit_docs=most)
            batches = within_limits(inputs.read(inputs.plan_tasks()[0]), encode, options)
            seen = gather(batch for batch, _ in batches)
            assert seen.labels == dict(itertools.islice(whole.labels.items(), most))


class TestLookup:
    """Labels of a task, by record number."""

    @given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 3), st.integers(0, 2)), max_size=30))
    def test_runs_of_a_label(self, slices) -> None:
        found, expected, first = SourceLabels(), {}, 0
        for label, documents, gap in slices:
            records = first + gap + np.arange(documents)
            first += gap + documents
            found.add(TextBatch(records=records, label=label))
            expected |= dict.fromkeys(records.tolist(), label)
        self.compare(found, expected)

    @given(st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 3000))), max_size=8))
    def test_labels_of_records(self, batches) -> None:
        found, expected, last = SourceLabels(), {}, -1
        for batch in batches:
            records = last + np.cumsum([0, *(step for _, step in batch)])[1:]
            names = [label for label, _ in batch]
            found.add(TextBatch(records=records, labels=names))
            expected |= dict(zip(records.tolist(), names, strict=True))
            last = int(records[-1]) if batch else last
        self.compare(found, expected)

    def compare(self, found: SourceLabels, expected: dict[int, str]) -> None:
        records = np.array([*expected], np.int64)
        np.random.default_rng(0).shuffle(records)
        indices = found.find(records)
        assert indices.dtype == np.int16
        assert [found.names[index] for index in indices] == [expected[record] for record in records.tolist()]
        assert found.names == list(dict.fromkeys(expected.values()))

    def test_a_piece_of_a_document_has_its_label(self) -> None:
        found = SourceLabels()
        for record, label in ((0, "a"), (1, "b"), (1, "b"), (1, "b"), (2, "a")):
            found.add(TextBatch(records=np.array([record]), labels=[label]))
        assert found.find(np.array([1, 1, 2, 0])).tolist() == [1, 1, 0, 0]

    def test_the_1001st_label_is_refused(self) -> None:
        for constant in (True, False):
            found = SourceLabels()
            for i in range(1000):
                found.add(TextBatch(records=np.array([i]), **self.label(constant, i)))
            found.add(TextBatch(records=np.array([1000]), **self.label(constant, 5)))
            assert found.find(np.array([999, 1000])).tolist() == [999, 5]
            with pytest.raises(UsageError, match=r"more than 1,000 sources in one task.*;\nchoose --source-from input"):
                found.add(TextBatch(records=np.array([1001]), **self.label(constant, 1000)))

    def label(self, constant: bool, number: int) -> dict[str, Any]:
        return {"label": str(number)} if constant else {"labels": [str(number)]}


def test_labels_cost_nothing_where_they_are_constant(tmp_path: Path, monkeypatch) -> None:
    """No label is looked at, record by record, unless labels come from a field."""
    for name in ("a.jsonl", "c.csv", "d.parquet"):
        WRITERS[name](tmp_path / name, rows(TEXTS, VALUES))

    def fail(*_: object) -> str:
        raise AssertionError

    for module in ("jsonl", "delimited", "column_values"):
        monkeypatch.setattr(f"exact_prep.sources.{module}.spell_label", fail)
    monkeypatch.setattr(labels, "spell_label", fail)
    assert isinstance(find_inputs([str(tmp_path)], SourceOptions()), Inputs)
    assert len(read_inputs(tmp_path).documents) == 30
