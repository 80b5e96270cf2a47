"""Laws of JSON lines and JSON files, against `json.loads` line by line."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from corpora import Read, make_part, read_all, read_inputs, read_part
from corpora import json_array as make_json_array
from hypothesis import assume, given
from hypothesis import strategies as st

from exact_prep.errors import SourceError
from exact_prep.records.options import SourceOptions
from exact_prep.records.work import Slice
from exact_prep.signatures import recognise
from exact_prep.sources import find_inputs, json_array, jsonl
from exact_prep.sources.jsonl import holds_lines
from exact_prep.sources.places import count_records_before
from exact_prep.sources.streams import PlainStream

if TYPE_CHECKING:
    from pathlib import Path

REJECT = SourceOptions(on_error="reject")
SEED = (
    b'\xef\xbb\xbf{"id":1,"text":"a\\n\\u00e9\xc3\xa9","x":[1,2.5e3,null,true,{"k":"v\\"w\\\\"}],"y":NaN}\r\n'
    b'{"text":"","a":-0.1}\n\n  \n {"a":"\\ud83d\\ude00","text":"t"}\n{"text":"\xff"}\n{"text":"\\ud800"}\n'
    b'{"a":"\xff","b":"\\ud800","text":"kept"}\n{"text":1}\n{"text":null}\n{}\n[]\nnull\n{"text":1,"text":"twice"}'
)
"""Lines good and bad, to be broken further."""


def oracle(content: bytes) -> list[str | None]:
    """The text of each line, "" for a blank one, None for a bad one."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [text_of(line) for line in (lines if lines[-1] else lines[:-1])]


def text_of(line: bytes) -> str | None:
    if not line.strip(b" \t\r"):
        return ""
    try:
        text = json.loads(line.decode(errors="surrogateescape"))["text"]
        return text if isinstance(text, str) and text.encode() is not None else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def matches(read: Read, expected: list[str | None]) -> None:
    assert [(record, text) for _, record, text in read.documents] == [(i, t) for i, t in enumerate(expected) if t]
    assert [one.record for one in read.rejected] == [i for i, text in enumerate(expected) if text is None]
    assert (read.records, read.empty) == (len(expected), expected.count(""))


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    content = bytearray(SEED * draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, len(content)))
        until = at + draw(st.integers(0, 3))
        content[at:until] = draw(
            st.sampled_from([*b'{}[]",:\\u0d8e+-. NatI\xff\xc3\xe2\x00\n\r']).map(lambda b: bytes([b]))
        )
    return bytes(content)


@given(broken() | st.binary(max_size=200))
def test_any_bytes_give_what_json_gives_line_by_line(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    inputs = find_inputs([str(path)], REJECT)
    expected = oracle(content)
    assume(recognise(content) is None)
    if not holds_lines(content):
        assert expected[0] is None  # else there is a document to lose
        return
    whole = read_all(inputs)
    matches(whole, expected)
    assert [one.place for one in whole.rejected] == [f"line {one.record + 1}" for one in whole.rejected]
    for block in (4, 7, 50):
        matches(read_part(inputs, block=block), expected)
    if None in expected:
        with pytest.raises(SourceError, match=f"any.jsonl, line {expected.index(None) + 1}: "):
            read_all(replace(inputs, options=SourceOptions()))


@given(broken(), st.lists(st.integers(0, 1000), max_size=8), st.integers(4, 60))
def test_any_slicing_gives_the_same_lines(tmp_path_factory, content: bytes, cuts: list[int], block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "sliced.jsonl"
    path.write_bytes(content)
    inputs = find_inputs([str(path)], REJECT)
    assume(recognise(content) is None and holds_lines(content))
    edges = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    first = 0
    texts: list[str | None] = []
    for low, high in itertools.pairwise(edges):
        one = Slice(file=0, start=low, stop=high)
        read = read_part(inputs, one, block=block)
        assert read.bytes_read == high - low
        lines: list[str | None] = [""] * read.records
        for _, record, text in read.documents:
            lines[record] = text
        for bad in read.rejected:
            lines[bad.record] = None
            # Later slices do not know how many lines come before them: the run does when it ends.
            assert bad.place == ("" if low else f"line {bad.record + 1}")
            line = count_records_before(make_part(inputs, one)) + bad.record
            assert text_of(content.split(b"\n")[line]) is None
        texts += lines
        first += read.records
    assert texts == oracle(content)


def test_an_error_in_a_later_slice_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"ok"}\n\n' * 50 + b'{"text":1}\n')
    inputs = find_inputs([str(path)], SourceOptions())
    with pytest.raises(
        SourceError, match=r"a.jsonl, line 101: field 'text' is a number, not a string or an array of strings;\nfix"
    ):
        read_all(inputs, tasks=[[Slice(file=0, start=300)]])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"text": "a', r"not JSON \(Unterminated string starting at character 9\)"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b"[1]", "an array, not an object"),
        (b"null", "null, not an object"),
        (b'{"body": "a", "id": 1}', "field 'text' is missing; name one with --text-field, there is: 'body', 'id'"),
        (b'{"text": null}', "field 'text' is null, not a string"),
        (b'{"text": ["a", null]}', "field 'text' is an array, not a string or an array of strings"),
        (b'{"meta": {"text": "a", "x": 1}}', "field 'text' is missing; .*--text-field.*'meta.text', 'meta.x'"),
        (b'{"text": "a\xffb"}', "field 'text' holds wrong UTF-8 at character 1"),
        (b'{"text": "a\\ud800b"}', "field 'text' holds a lone surrogate at character 1"),
        (b'{"text": "a", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_bad_line_says_what_is_wrong(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"first"}\n' + line + b'\n{"text":"last"}\n')
    with pytest.raises(SourceError, match=f"a.jsonl, line 2: {reason}"):
        read_inputs(path)
    assert read_inputs(path, on_error="reject").texts == ["first", "last"]


@pytest.mark.parametrize("field", ["odd name", 'quo"te', "back\\slash", "é", "_", "class", "a.b", "", "\n"])
def test_any_name_may_be_the_field(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({field: "here", "text": "there"}) + "\n")
    assert read_inputs(path, text_field=field).texts == ["here"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_document_beyond_the_limit_is_a_bad_one(tmp_path: Path, monkeypatch, name: str) -> None:
    for module in (jsonl, json_array):
        monkeypatch.setattr(module, "MAX_DOCUMENT", 1000)
    path = tmp_path / name
    lines = [json.dumps({"text": "x" * size}) for size in (10, 5000, 985, 2000, 20)]
    content = "\n".join(lines) if name == "a.jsonl" else "[" + ",".join(lines) + "]"
    path.write_text(content)
    inputs = find_inputs([str(path)], REJECT)
    for block in (64, 1500, 1 << 20):
        read = read_part(inputs, block=block)
        if name == "a.jsonl" and block > 5000:
            continue
        assert [len(text) for text in read.texts] == [10, 985, 20]
        assert [(bad.record, bad.reason) for bad in read.rejected] == [
            (1, "a record of more than 1000 bytes"),
            (3, "a record of more than 1000 bytes"),
        ]


@pytest.mark.parametrize(("name", "begin"), [("a.jsonl", b'{"text":"'), ("a.json", b'[{"text":"')])
def test_a_document_beyond_the_limit_is_not_held(tmp_path: Path, monkeypatch, name: str, begin: bytes) -> None:
    for module in (jsonl, json_array):
        monkeypatch.setattr(module, "MAX_DOCUMENT", 1 << 20)
    path = tmp_path / name
    path.write_bytes(begin + b"x" * (64 << 20) + b'"}' + b"\n" * (name == "a.jsonl") + b"]" * (name == "a.json"))
    tracemalloc.start()
    read = read_inputs(path, on_error="reject")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [bad.reason for bad in read.rejected] == ["a record of more than 1048576 bytes"]
    assert peak < 10 << 20


def test_a_long_line_costs_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"' + b"word " * (20 << 20) + b'"}\n{"text":"short"}\n')
    [long, short] = read_inputs(path).texts
    assert (len(long), short) == (100 << 20, "short")


def test_slices_inside_a_long_line_read_no_more_than_themselves(tmp_path: Path, monkeypatch) -> None:
    """Else a line of N slices costs N squared."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"' + b"word " * (8 << 20) + b'"}\n{"text":"short"}\n')
    read, sizes = PlainStream.read, []
    monkeypatch.setattr(PlainStream, "read", lambda self, size: sizes.append(size) or read(self, size))
    options = SourceOptions(task_bytes=1 << 20)
    inputs = find_inputs([str(path)], options)
    tasks = inputs.plan_tasks()
    assert len(tasks) == 41
    assert [len(text) for text in read_all(inputs, tasks=tasks).texts] == [40 << 20, 5]
    assert sum(sizes) < 7 * path.stat().st_size


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8), st.integers(1, 40))
def test_arrays_are_cut_where_json_cuts_them(tmp_path_factory, texts: list[str], block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(make_json_array(texts))
    inputs = find_inputs([str(path)], REJECT)
    matches(read_part(inputs, block=block), list(texts))


@given(broken(), st.integers(1, 40))
def test_a_broken_array_loses_nothing_silently(tmp_path_factory, content: bytes, block: int) -> None:
    """What is given is what json gives for the whole, or something is rejected."""
    path = tmp_path_factory.getbasetemp() / "broken.json"
    content = b"[" + content.removeprefix(b"\xef\xbb\xbf") + b"]"
    path.write_bytes(content)
    inputs = find_inputs([str(path)], REJECT)
    read = read_part(inputs, block=block)
    if not read.rejected:
        rows = json.loads(content.decode(errors="surrogateescape"))
        assert [row["text"] for row in rows if row["text"]] == read.texts


@pytest.mark.parametrize(
    ("content", "texts", "reason"),
    [
        (b'[{"text":"a"},]', ["a"], "record 2: not JSON"),
        (b'[{"text":"a"},{"text":"b"}', ["a"], "record 2 on: it ends in the middle"),
        (b'[{"text":"a"}] x', ["a"], "record 2 on: there is more after the end"),
        (b'[{"text":"a"},3,{"text":"b"}]', ["a", "b"], "record 2: a number, not an object"),
        (b'[{"text":"a"},{"text":]},{"text":"b"}]', ["a"], "record 2"),
        (b'{"text":\n"a"}}', ["a"], "record 2 on: a bracket is closed that was never opened"),
        (b'{"text":\n"a"} {"text":"b"', ["a"], "record 2 on: it ends in the middle"),
        (b'"text"', [], "record 1 on: it is neither"),
        (b"hello", [], "record 1 on: it is neither"),
    ],
)
def test_json_that_breaks_off_says_where(tmp_path: Path, content: bytes, texts: list[str], reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"a.json, {reason}"):
        read_inputs(path)
    assert read_inputs(path, on_error="reject").texts == texts


def test_ids_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        "[1,2,3]",
        "[]",
        "[0]",
        "null",
        "[-1]",
        "[2147483648]",
        "[1.0]",
        "[true]",
        '"1"',
        "[2147483647]",
        "[1" + "0" * 30 + "]",
    ]
    path.write_text("".join(f'{{"ids":{row},"text":7,"other":NaN}}\n' for row in rows))
    read = read_inputs(path, ids_field="ids", on_error="reject")
    assert [(record, ids) for _, record, ids in read.ids] == [(0, [1, 2, 3]), (2, [0]), (9, [2**31 - 1])]
    assert [bad.record for bad in read.rejected] == [3, 4, 5, 6, 7, 8, 10]
    assert read.empty == 1
