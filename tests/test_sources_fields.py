"""Laws of fields: dotted names, candidates, lists of strings, bytes that are UTF-8; in JSON and in columns."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import read_inputs
from hypothesis import given
from hypothesis import strategies as st

from exact_prep.errors import SourceError
from exact_prep.records.options import SourceOptions
from exact_prep.sources.jsonl import REFUSALS, Unusable, decode_again, make_decoder

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["text", "a", "b", "a.b", "b.c", "a.b.c", "c"]


def look(values: Any, name: str) -> Any:
    """The oracle: an exact key, or any split of the name, shorter heads first. KeyError if there is none."""
    if not isinstance(values, dict):
        raise KeyError(name)
    if name in values:
        return values[name]
    parts = name.split(".")
    for cut in range(1, len(parts)):
        try:
            head = values[".".join(parts[:cut])]
            return look(head, ".".join(parts[cut:]))
        except KeyError:
            continue
    raise KeyError(name)


def take(values: dict[str, Any], names: list[str]) -> str | None:
    """The text of the first name that is there and not null; None for a bad record."""
    for name in names:
        try:
            value = look(values, name)
        except KeyError:
            continue
        if value is None:
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return "|".join(value)
        return value if isinstance(value, str) else None
    return None


VALUES = st.none() | st.sampled_from(["x", "y", ""]) | st.just(1) | st.lists(st.sampled_from(["p", "q"]), max_size=2)
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), VALUES | inner, max_size=3),
    max_leaves=6,
)


@given(OBJECTS, st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
def test_any_names_give_what_the_oracle_gives(record: dict[str, Any], names: list[str]) -> None:
    options = SourceOptions(text_field=tuple(names), join="|")
    data = json.dumps(record).encode()
    expected = take(record, names)
    try:
        slow = decode_again(data, options).value
    except Unusable:
        slow = None
    assert slow == expected
    fast = expected
    with suppress(*REFUSALS):  # whatever it refuses is decoded again
        fast = make_decoder(options)(data).value
    assert fast == expected


RECORDS = [
    {"meta": {"text": "one", "tags": ["x", "y"]}, "lang": {"code": "en"}},
    {"meta": {"text": "two", "tags": []}, "lang": {"code": "fr"}},
]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


def write_arrow(path: Path, records: list[dict[str, Any]]) -> None:
    rows = pa.Table.from_pylist(records)
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_table(rows)


def write_stream(path: Path, records: list[dict[str, Any]]) -> None:
    rows = pa.Table.from_pylist(records)
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows)


WRITERS = {"a.jsonl": write_jsonl, "b.parquet": write_parquet, "c.arrow": write_arrow, "d.arrow": write_stream}


@pytest.mark.parametrize("name", WRITERS)
def test_a_dotted_name_leads_inside(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, RECORDS)
    read = read_inputs(tmp_path, text_field="meta.text", source_from="field:lang.code")
    assert read.texts == ["one", "two"]
    assert list(read.labels.values()) == ["en", "fr"]
    read = read_inputs(tmp_path, text_field=("body", "meta.tags"), join=" + ")
    assert (read.texts, read.empty) == (["x + y"], 1)
    with pytest.raises(SourceError, match=r"(?s)'meta.title'.*--text-field.*'meta.text', 'meta.tags', 'lang.code'"):
        read_inputs(tmp_path, text_field="meta.title")


@pytest.mark.parametrize("name", WRITERS)
def test_an_exact_name_wins_and_nulls_are_bad(tmp_path: Path, name: str) -> None:
    records: list[dict[str, Any]] = [{"meta": {"text": "inner"}, "meta.text": "exact"}]
    WRITERS[name](tmp_path / name, records)
    assert read_inputs(tmp_path, text_field="meta.text").texts == ["exact"]
    records = [{"meta": {"text": "one"}}, {"meta": None}, {"meta": {"text": None}}, {"meta": {"text": "four"}}]
    WRITERS[name](tmp_path / name, records)
    read = read_inputs(tmp_path, text_field="meta.text", on_error="reject")
    assert [(record, text) for _, record, text in read.documents] == [(0, "one"), (3, "four")]
    assert [bad.record for bad in read.rejected] == [1, 2]


@pytest.mark.parametrize("name", WRITERS)
def test_ids_may_be_inside_too(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"enc": {"ids": [1, 2]}}, {"enc": {"ids": [3]}}])
    assert [ids for _, _, ids in read_inputs(tmp_path, ids_field="enc.ids").ids] == [[1, 2], [3]]


def test_candidates_are_tried_in_order(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "a.jsonl", [{"content": "c"}, {"text": "t", "content": "no"}, {"text": None, "content": "d"}]
    )
    write_parquet(tmp_path / "b.parquet", [{"content": "e", "more": 1}])
    (tmp_path / "c.csv").write_text("id,content\n1,f\n")
    assert read_inputs(tmp_path, text_field=("text", "content")).texts == ["c", "t", "d", "e", "f"]
    with pytest.raises(SourceError, match=r"(?s)'title' or 'body'.*--text-field"):
        read_inputs(tmp_path / "a.jsonl", text_field=("title", "body"))


@pytest.mark.parametrize("name", ["b.parquet", "c.arrow", "d.arrow"])
@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())], ids=str
)
def test_bytes_that_are_utf8_are_text(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    if name == "b.parquet" and pa.types.is_dictionary(kind):
        pytest.skip("pyarrow writes no dictionaries of bytes")
    values = ["first", None, "", "é".encode(), b"b\xff", b"last"]
    values = [value.encode() if isinstance(value, str) else value for value in values]
    column = pa.array(values, pa.binary())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    rows = pa.table({"text": column})
    if name == "b.parquet":
        pq.write_table(rows, tmp_path / name)
    else:
        with (pa.ipc.new_file if name == "c.arrow" else pa.ipc.new_stream)(tmp_path / name, rows.schema) as writer:
            writer.write_table(rows)
    read = read_inputs(tmp_path, on_error="reject")
    assert read.texts == ["first", "é", "last"]
    assert [bad.reason.split()[-1] for bad in read.rejected] == ["null", "UTF-8"]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)])
def test_lists_of_strings_are_joined(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array([["a", "b"], None, ["c", None]], kind)}), tmp_path / "a.parquet")
    read = read_inputs(tmp_path, on_error="reject")
    assert read.texts == ["a\nb"]
    assert [bad.reason for bad in read.rejected] == [
        "column 'text' is null",
        "column 'text' holds a list with a null in it",
    ]
