"""Laws of text files and tables: exact text, exact places, bounded pieces."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from corpora import jsonl, read_all, read_inputs, read_part, zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_prep.errors import SourceError
from exact_prep.records.options import SourceOptions
from exact_prep.records.work import Slice
from exact_prep.sources import Inputs, delimited, find_inputs
from exact_prep.sources.text import PIECE, WORD_BREAK_REACH

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: bytes, **options: object) -> Inputs:
    path.write_bytes(content)
    return find_inputs([str(path)], SourceOptions.model_validate(options))


def split_oracle(content: bytes, separator: str | None) -> list[bytes]:
    content = content.removeprefix(b"\xef\xbb\xbf")
    if separator is None:
        return [content]
    documents = content.split(separator.encode())
    return documents if documents[-1] else documents[:-1]


BITS = [
    b"a",
    b"ab",
    b"--",
    b"-",
    b"\n",
    b"\n\n",
    "é".encode(),
    "😀".encode(),
    b"\xff",
    b"\xc3",
    b" ",
    b"ab--ab",
    b"ab--a",
]
CONTENTS = st.lists(st.sampled_from(BITS), max_size=40).map(b"".join)


@settings(max_examples=300)
@given(CONTENTS, st.sampled_from([None, "--", "\n\n", "-a", "é", "ab--ab"]), st.integers(3, 20))
def test_text_is_split_as_bytes_are(tmp_path_factory, content: bytes, separator: str | None, block: int) -> None:
    """Also where bad documents are found out only after a piece of them could have been given."""
    inputs = write(tmp_path_factory.getbasetemp() / "any.txt", content, separator=separator, on_error="reject")
    read = read_part(inputs, block=block)
    expected = split_oracle(content, separator)
    good, bad = {}, []
    for number, document in enumerate(expected):
        try:
            good[number] = document.decode()
        except UnicodeDecodeError:
            bad.append(number)
    assert {record: text for _, record, text in read.documents} == {n: text for n, text in good.items() if text}
    assert [one.record for one in read.rejected] == bad
    assert (read.records, read.empty) == (len(expected), list(good.values()).count(""))
    if bad:
        with pytest.raises(SourceError, match=r"any.txt, document \d+: wrong UTF-8 .* in line \d+"):
            read_part(inputs, block=block, on_error="stop")


def test_a_separator_is_found_wherever_pieces_and_blocks_end(tmp_path: Path) -> None:
    for before in range(20):
        content = b"x" * before + b"ab--ab" + b"y ab--a" + b"ab--ab"
        inputs = write(tmp_path / "a.txt", content, separator="ab--ab")
        for block in range(3, 20):
            read = read_part(inputs, block=block)
            assert read.texts == ["x" * before] * bool(before) + ["y ab--a"]


def test_wrong_utf8_is_found_to_the_byte(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + "ä line\n".encode() * 1000 + b"bad \xff here\n" + b"more\n" * 1000
    inputs = write(tmp_path / "a.txt", content)
    for block in (10, 1000, 1 << 20):
        with pytest.raises(SourceError) as error:
            read_part(inputs, block=block)
        fault = f"wrong UTF-8 (invalid start byte at byte {content.index(0xFF)} of the file, in line 1001)"
        assert f"a.txt, document 1: {fault}" in str(error.value)
        assert "--on-error reject" in str(error.value)


def test_utf16_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(SourceError, match=r"a.txt, document 1 on: it is text in UTF-16, .*iconv -f UTF-16"):
        read_inputs(tmp_path)


def test_a_long_text_comes_in_pieces_cut_at_words(tmp_path: Path) -> None:
    text = "".join(f"word{i} é\n" for i in range(1_200_000))
    inputs = write(tmp_path / "a.txt", text.encode())
    pieces = []
    for batch in inputs.read([Slice(file=0)]):
        assert set(batch.records.tolist()) == {0}
        assert batch.text_bytes <= PIECE + WORD_BREAK_REACH
        pieces += batch.texts
    assert len(pieces) == len(text.encode()) // PIECE + 1
    assert "".join(pieces) == text
    assert all(piece[0].isspace() for piece in pieces[1:])


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """A gzip bomb of 400 MB without a space in it, good and bad at its end."""
    path = tmp_path / "a.txt.gz"
    for end, texts in ((b"", 1), (b"\xff", 0)):
        with gzip.open(path, "wb", compresslevel=1) as out:
            for _ in range(400):
                out.write(b"x" * 1_000_000)
            out.write(end)
        options = SourceOptions(on_error="reject")
        inputs = find_inputs([str(path)], options)
        tracemalloc.start()
        size = sum(len(text) for batch in inputs.read([Slice(file=0)]) for text in batch.texts)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == texts * 400_000_000
        assert peak < 50_000_000


def test_many_small_files_share_batches(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"{i:04d}.txt").write_text(f"text {i}" if i % 10 else "")
    inputs = find_inputs([str(tmp_path)], SourceOptions())
    read = read_all(inputs)
    assert read.texts == [f"text {i}" for i in range(3000) if i % 10]
    assert read.empty == 300
    assert sum(1 for _ in inputs.read([Slice(file=i) for i in range(3000)])) == 1


TABLE = 'id,text\n1,one\n2,"two\nlines, ""quoted"""\n\n3\n4,\n5,"a","b"\n6,last\n'


def test_rows_that_do_not_fit_the_header_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(TABLE)
    with pytest.raises(SourceError, match=r"a.csv, row 4: 1 fields where the header has 2 \(in line 6\);\n"):
        read_inputs(path)
    read = read_inputs(path, on_error="reject")
    assert [(record, text) for _, record, text in read.documents] == [
        (0, "one"),
        (1, 'two\nlines, "quoted"'),
        (6, "last"),
    ]
    assert [(bad.record, bad.place) for bad in read.rejected] == [(3, "row 4"), (5, "row 6")]
    assert [bad.reason[-9:] for bad in read.rejected] == ["in line 6)"[1:], "in line 8)"[1:]]
    assert read.empty == 2


def test_a_row_whose_quotes_do_not_match_costs_one_line(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"two\nthree\n')
    with pytest.raises(SourceError, match=r"a.csv, row 2: its quotes do not match .*see --csv-quote \(in line 3\)"):
        read_inputs(path)
    read = read_inputs(path, on_error="reject")
    assert (read.texts, [bad.place for bad in read.rejected]) == (["one", "three"], ["row 2"])
    assert [record for _, record, _ in read.documents] == [0, 2]
    monkeypatch.setattr(delimited, "MAX_FIELD", 100)
    path.write_text('text\none\n"' + "x\n" * 1000)
    assert read_inputs(path, on_error="reject").texts == ["one", *["x"] * 999]


@given(
    st.lists(st.sampled_from(["good", '"quoted, with\nlines"', '"stray, x', '"a"b', "", '"x""y"']), max_size=12),
    st.integers(4, 40),
)
def test_a_stray_quote_loses_no_other_line(tmp_path_factory, cells: list[str], block: int) -> None:
    """Every row that Python reads by itself, on lines of its own, is read if no quote before it is stray."""
    path = tmp_path_factory.getbasetemp() / "stray.csv"
    path.write_text("id,text\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    inputs = find_inputs([str(path)], SourceOptions(on_error="reject"))
    read = read_part(inputs, block=block)
    assert read.records == len(read.documents) + read.empty + len(read.rejected)
    sound = next((i for i, cell in enumerate(cells) if cell.startswith('"stray') or cell == '"a"b'), len(cells))
    expected = [row[1] for row in csv.reader(io.StringIO("".join(f"{i},{c}\n" for i, c in enumerate(cells[:sound]))))]
    assert read.texts[: len([text for text in expected if text])] == [text for text in expected if text]
    if '"quoted, with\nlines"' not in cells and '"x""y"' not in cells:
        # Each line is a row: exactly those with a stray quote are lost.
        assert read.texts == [cell for cell in cells if cell == "good"]
        assert len(read.rejected) == sum(cell in ('"stray, x', '"a"b') for cell in cells)


def test_fields_may_be_separated_and_enclosed_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;text\n1;'a;b'\n2;say \"hi\n")
    assert read_inputs(path, csv_delimiter=";", csv_quote="'").texts == ["a;b", 'say "hi']
    path.write_text('id|text\n1|"a\n2|b"c"\n')
    assert read_inputs(path, csv_delimiter="|", csv_quote=None).texts == ['"a', 'b"c"']
    for wrong in ("", "ab", "\n"):
        with pytest.raises(ValueError, match="one character"):
            read_inputs(path, csv_delimiter=wrong)


def test_carriage_returns_end_lines_where_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\r1,one\r2,"two\rlines"\r')
    read = read_inputs(path)
    assert read.texts == ["one", "two\nlines"]
    path.write_bytes(b"id,text\n1,one\n2,tw\ro\n3,three\n")
    read = read_inputs(path, on_error="reject")
    assert read.texts == ["one", "three"]
    assert "carriage return" in read.rejected[0].reason


def test_wrong_utf8_costs_one_row_and_none_if_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,other\nfirst,\xff\nb\xffd,x\nlast,x\n")
    read = read_inputs(path, on_error="reject")
    assert (read.texts, [bad.place for bad in read.rejected]) == (["first", "last"], ["row 2"])


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id,text\na,b,c\n")
    with pytest.raises(SourceError, match="there are 2 columns 'text'"):
        read_inputs(path)


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8),
            min_size=2,
            max_size=2,
        ),
        max_size=6,
    ),
    st.integers(4, 30),
)
def test_tables_are_read_as_python_reads_them(tmp_path_factory, rows: list[list[str]], block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([["text", "b"], *rows])
    inputs = find_inputs([str(path)], SourceOptions())
    read = read_part(inputs, block=block)
    assert [(record, text) for _, record, text in read.documents] == [
        (i, row[0]) for i, row in enumerate(rows) if row[0]
    ]
    assert (read.records, read.empty) == (len(rows), sum(not row[0] for row in rows))


@pytest.mark.parametrize("codec", ["gz", "zst", "bz2", "xz"])
def test_damaged_files_leave_nothing_in_memory(tmp_path: Path, codec: str) -> None:
    compress = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "xz": lzma.compress}[codec]
    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(compress(jsonl(["some text"] * 20))[:-5])
    read_inputs(path, on_error="reject")
    tracemalloc.start()
    for _ in range(20):
        assert read_inputs(path, on_error="reject").rejected
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 1 << 20
