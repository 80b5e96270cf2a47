"""Laws of texts too long for a string: given in pieces they are the same text, in any spelling and any format."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc

import pyarrow as pa
import pytest
from corpora import arrow, jsonl, make_part, parquet, read_inputs
from hypothesis import given
from hypothesis import strategies as st

from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs, long_texts
from exact_prep.sources.formats import read_slice
from exact_prep.sources.long_texts import cut_json_text, cut_utf8, find_json_cut


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch):
    """What takes megabytes takes bytes here."""
    monkeypatch.setattr(long_texts, "PIECE", 64)
    for module in ("long_texts", "jsonl", "column_values"):
        monkeypatch.setattr(f"exact_prep.sources.{module}.LONG", 100)


TEXTS = st.text(st.sampled_from('ab \n\\"/u{}é東🙂\t\u2028\x00dcDC08'), max_size=600)


@given(text=TEXTS, ascii_only=st.booleans())
def test_pieces_of_json_are_the_text(text, ascii_only):
    record = json.dumps({"id": 1, "text": text, "more": [text]}, ensure_ascii=ascii_only).encode()
    found = cut_json_text(record, "text")
    if found is None:
        assert len(json.dumps(text, ensure_ascii=ascii_only).encode()) < 100
    else:
        pieces = list(found.pieces)
        assert "".join(pieces) == text
        assert all(pieces)


@given(TEXTS)
def test_pieces_of_utf8_are_the_text(text):
    found = cut_utf8(memoryview(text.encode()))
    assert ("".join(found) == text) if found is not None else len(text.encode()) < 100


@given(TEXTS)
def test_a_cut_never_parts_an_escape(text):
    for ascii_only in (True, False):
        data = json.dumps(text, ensure_ascii=ascii_only).encode()[1:-1]
        at = find_json_cut(data, len(data))
        assert json.loads(b'"%b"' % data[:at]) + json.loads(b'"%b"' % data[at:]) == text


@pytest.mark.parametrize(
    "record",
    [
        b'{"text": "' + b"x" * 200 + b"\\ud800" + b'"}',
        b'{"text": "' + b"x" * 200 + b"\xff" + b'"}',
        b'{"text": "' + b"x" * 200 + b"\\q" + b'"}',
        b'{"text": ["' + b"x" * 200 + b'"]}',
        b'{"other": "' + b"x" * 200 + b'"}',
        b'{"text": "' + b"x" * 200,
        b'["' + b"x" * 200 + b'"]',
    ],
)
def test_what_is_no_good_string_is_left_to_the_usual_way(record):
    assert cut_json_text(record, "text") is None


def mixed():
    choose = random.Random(5)
    words = ["word", "é", "東京", "🙂", '"', "\\", "\n", "\\u0041"]
    lengths = [3, 900, 5, 0, 1, 2000, 400, 0, 7, 50]
    return [" ".join(choose.choices(words, k=n)) for n in lengths]


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.jsonl", jsonl),
        ("a.jsonl.gz", lambda texts: gzip.compress(jsonl(texts))),
        ("b.jsonl", lambda texts: b"\xef\xbb\xbf" + jsonl(texts).replace(b"\n", b"\r\n").removesuffix(b"\r\n")),
        ("a.parquet", parquet()),
        ("a.arrow", arrow(stream=False)),
        ("b.arrow", arrow(stream=True, kind=pa.large_string())),
        ("c.arrow", arrow(stream=True, kind=pa.string_view())),
        ("d.arrow", arrow(stream=True, kind=pa.dictionary(pa.int8(), pa.string()))),
    ],
)
def test_every_reader_gives_long_documents_whole_and_in_order(name, encode, tmp_path):
    texts = mixed()
    (tmp_path / name).write_bytes(encode(texts))
    read = read_inputs(tmp_path / name)
    assert read.texts == [text for text in texts if text]
    assert read.empty == 2
    assert read.rejected == []


LONG_ONE, LONG_TWO = "one " * 50, "two\\ " * 60


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([("text", LONG_ONE), ("html", LONG_TWO)], LONG_ONE),
        ([("html", LONG_TWO), ("text", LONG_ONE)], LONG_ONE),
        ([("text", LONG_ONE), ("text", LONG_TWO)], LONG_TWO),
        ([("text", LONG_ONE), ("text", "a0")], None),
        ([("text", "b1"), ("a", LONG_ONE), ("b", LONG_TWO)], None),
        ([("a", {"text": LONG_ONE}), ("text", LONG_TWO)], LONG_TWO),
        ([("a", {"text": LONG_ONE})], None),
        ([("a", [LONG_ONE, '"text":"']), ("text", LONG_TWO), (LONG_ONE, "text")], LONG_TWO),
    ],
)
def test_of_several_long_strings_the_field_s_is_taken(pairs, text):
    record = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    found = cut_json_text(record.encode(), "text")
    assert (found if found is None else "".join(found.pieces)) == text


def test_a_long_key_is_no_field():
    record = json.dumps({LONG_ONE: LONG_TWO, "b0": 1}).encode()
    assert cut_json_text(record, "a0") is None
    assert cut_json_text(record, "b0") is None


def test_a_long_line_is_not_held(tmp_path, monkeypatch):
    monkeypatch.undo()
    lines = [b'{"text":"short"}', b'{"html":"' + b"<p>" * 10_000_000 + b'","text":"' + b"word " * 10_000_000 + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, lines[0]]))
    del lines
    options = SourceOptions()
    inputs = find_inputs([str(tmp_path)], options)
    tracemalloc.start()
    size = sum(len(text) for batch in read_slice(make_part(inputs)) for text in batch.texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 50_000_010
    assert peak < 48 << 20


def test_a_long_record_is_held_once_where_it_must_be(tmp_path, monkeypatch):
    monkeypatch.undo()
    record = b'\n {"text":"' + b"word " * 12_000_000 + b'"}'
    (tmp_path / "a.json").write_bytes(b"[" + record + b", {}]")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(record.strip(), 1))
    for name in ("a.json", "b.jsonl.gz"):
        options = SourceOptions(on_error="reject")
        inputs = find_inputs([str(tmp_path / name)], options)
        tracemalloc.start()
        size = sum(len(text) for batch in read_slice(make_part(inputs)) for text in batch.texts)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == 60_000_000
        assert peak < 90_000_000


def test_bad_long_documents_are_set_aside_whole(tmp_path):
    lines = [b'{"text": "' + b"word " * 100 + b'"}', b'{"text": "' + b"x" * 500 + b'\\ud800"}', b'{"text": "short"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    read = read_inputs(tmp_path / "a.jsonl", on_error="reject")
    assert read.texts == ["word " * 100, "short"]
    assert [(one.place, one.record) for one in read.rejected] == [("line 2", 1)]
    assert "lone surrogate" in read.rejected[0].reason
    column = pa.array([b"word " * 100, b"x" * 500 + b"\xff", b"short"]).view(pa.string())
    with (
        pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as writer,
    ):
        writer.write_table(pa.table({"text": column}))
    read = read_inputs(tmp_path / "b.arrow", on_error="reject")
    assert read.texts == ["word " * 100, "short"]
    assert [(one.place, one.record) for one in read.rejected] == [("row 1", 1)]


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_a_column_s_name_that_is_not_utf8_is_damage(name, tmp_path):
    """Found by fuzzing."""
    encode = parquet() if name == "a.parquet" else arrow(stream=True)
    data = encode(["one", "two"])
    (tmp_path / name).write_bytes(data.replace(b"text", b"te\xfft"))
    read = read_inputs(tmp_path / name, on_error="reject")
    assert read.texts == []
    assert "UTF-8" in read.rejected[0].reason or "utf-8" in read.rejected[0].reason


def test_an_index_beyond_its_dictionary_is_damage(tmp_path):
    """Found by fuzzing: pyarrow gives what lies behind the dictionary."""
    column = pa.DictionaryArray.from_arrays(pa.array([0, 5], pa.int8()), pa.array(["a", "b"]), safe=False)
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema([("text", column.type)])) as writer,
    ):
        writer.write_table(pa.table({"text": column}))
    read = read_inputs(tmp_path / "a.arrow", on_error="reject")
    assert read.texts == []
    assert "an index lies outside the dictionary of 2 values" in read.rejected[0].reason
