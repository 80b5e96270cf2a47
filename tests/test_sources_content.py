"""Laws of first bytes: what a file is decides how it is read, whatever its name says. And of damage."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import COMPRESSIONS, arrow, json_array, json_objects, jsonl, parquet, read_inputs
from hypothesis import given
from hypothesis import strategies as st

from exact_prep.errors import SourceError
from exact_prep.records.options import SourceOptions
from exact_prep.signatures import HEAD, find_codec, recognise
from exact_prep.sources import find_inputs

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = [f"document {i}, é" for i in range(50)]


def make_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    return out.getvalue()


def make_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "text")
    return out.getvalue()


def make_sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (x)")
        return database.serialize()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 12345\n"

FOREIGN = {
    "tar": (make_tar(), "tar archive.*--input-format tar"),
    "zip": (make_zip(), "zip archive.*unpack"),
    "lfs": (POINTER, "Git LFS pointer.*git lfs pull"),
    "parquet": (parquet()(DOCUMENTS), "Parquet.*--input-format parquet"),
    "arrow": (arrow(stream=False)(DOCUMENTS), "Arrow.*--input-format arrow"),
    "utf-16": ("text of a file".encode("utf-16"), "UTF-16.*iconv -f UTF-16"),
    "utf-16-le": ("text of a file".encode("utf-16-le"), "UTF-16.*iconv"),
    "utf-16-be": ("text of a file".encode("utf-16-be"), "UTF-16.*iconv"),
    "utf-32": ("text".encode("utf-32"), "UTF-32.*iconv"),
    "sqlite": (make_sqlite(), "SQLite.*convert"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "avro": (b"Obj\x01\x04\x14avro.codec\x08null", "Avro"),
    "orc": (b"ORC\x0a\x0b\x00\x01", "ORC"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_what_is_no_text_is_named_with_a_remedy(tmp_path: Path, name: str, what: str) -> None:
    """As it is, and compressed; with `reject` the other files are read."""
    if name == f"a.{what}":
        return
    data, reason = FOREIGN[what]
    for suffix, compress in [("", bytes), (".gz", gzip.compress)]:
        if suffix and name in ("a.parquet", "a.arrow"):
            continue
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(data))
        with pytest.raises(SourceError, match=f"(?s){path.name}, .*it is .*{reason}.*--on-error reject"):
            read_inputs(path)
        (tmp_path / "other.jsonl").write_bytes(jsonl(["good"]))
        read = read_inputs(path, tmp_path / "other.jsonl", on_error="reject")
        assert read.texts == ["good"]
        [bad] = read.rejected
        assert bad.source == str(path)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<p>404", b"\n <HTML>\n<body>", b"<html lang='en'>"])
def test_an_error_page_is_no_data_but_a_page_is_text(tmp_path: Path, page: bytes) -> None:
    for name in ("a.jsonl", "a.csv", "a.json", "a.parquet"):
        (tmp_path / name).write_bytes(page)
        with pytest.raises(SourceError, match="HTML page, perhaps the error page of a download"):
            read_inputs(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(page)
    assert read_inputs(tmp_path / "a.txt").texts == [page.decode()]


@given(st.text(max_size=40), st.sampled_from(["", "PAR1", "ORC ", "PK", "Obj", "BZh9", "ustar", "ARROW1", "{", "\x1f"]))
def test_no_text_is_taken_for_something_else(text: str, begin: str) -> None:
    head = (begin + "".join(char for char in text if char >= " " or char in "\n\t")).encode()[:HEAD]
    if recognise(head) is not None:
        assert recognise(head).name == "HTML" or head.startswith(b"%PDF-")
    assert find_codec(head) is None


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.gzip", "a.jsonl.zstd", "a.jsonl.xz"])
def test_compression_is_told_by_bytes_whatever_the_name(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESSIONS[suffix](jsonl(DOCUMENTS)))
    assert read_inputs(path).texts == DOCUMENTS
    # Also where the name says that the file could be cut.
    read = read_inputs(path, task_bytes=10)
    assert read.texts == DOCUMENTS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zstd", "a.jsonl.bz2", "a.jsonl.xz"])
def test_plain_text_named_like_a_compressed_file_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(jsonl(DOCUMENTS))
    assert read_inputs(tmp_path).texts == DOCUMENTS
    (tmp_path / name).write_bytes(os.urandom(1000).replace(b"\n", b"") + b"\0")
    with pytest.raises(SourceError, match=r"damaged: it does not begin as .* does"):
        read_inputs(tmp_path)


ARRAYS = {
    "array": json_array(DOCUMENTS),
    "array on a line": json.dumps([{"text": text} for text in DOCUMENTS]).encode() + b"\n",
    "array of lines": b"[\n" + b",\n".join(json.dumps({"text": text}).encode() for text in DOCUMENTS) + b"\n]\n",
    "pretty": json_objects(DOCUMENTS),
    "large": json.dumps([{"text": "x" * 100_000}] + [{"text": text} for text in DOCUMENTS], indent=1).encode(),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("what", ARRAYS)
def test_json_in_a_file_of_lines_is_read_as_what_it_is(tmp_path: Path, what: str, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes((gzip.compress if suffix else bytes)(ARRAYS[what]))
    expected = ["x" * 100_000, *DOCUMENTS] if what == "large" else DOCUMENTS
    for options in ({}, {"task_bytes": 100}):
        assert read_inputs(path, **options).texts == expected


def test_a_record_of_an_array_in_a_file_of_lines_is_called_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[{"text": "a"},\n{"text": 1}]')
    [bad] = read_inputs(tmp_path, on_error="reject").rejected
    assert bad.place == "record 2"


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_everything_before_a_damage_is_read(tmp_path: Path, suffix: str) -> None:
    """Every whole line that a decoder fed byte by byte gives before it fails."""
    documents = [f"{i} " + os.urandom(60).hex() for i in range(20_000)]
    sound = COMPRESSIONS[suffix](jsonl(documents))
    flipped = bytearray(sound)
    flipped[len(sound) * 2 // 3] ^= 0xFF
    path = tmp_path / f"a.jsonl{suffix}"
    # A frame of zstd without a checksum does not show a flipped byte.
    for data in (sound[: len(sound) * 3 // 4], bytes(flipped))[: 1 if suffix == ".zst" else 2]:
        path.write_bytes(data)
        whole = decode_slowly(suffix, data).count(b"\n")
        read = read_inputs(path, on_error="reject")
        # A decoder may give wrong bytes before it notices: these lines are bad, or differ.
        assert len(read.documents) + len(read.rejected) >= whole
        assert len(read.texts) > 5000
        assert read.rejected[-1].place == f"line {read.records} on"
        assert "lost: " in read.rejected[-1].reason


def decode_slowly(suffix: str, data: bytes) -> bytes:
    out = bytearray()
    if suffix == ".zst":
        with pa.CompressedInputStream(pa.py_buffer(data), "zstd") as stream:
            try:
                while byte := stream.read(1):
                    out += byte
            except OSError:
                return bytes(out)
    decoder = {".gz": lambda: __import__("zlib").decompressobj(31), ".bz2": bz2.BZ2Decompressor}.get(
        suffix, lzma.LZMADecompressor
    )()
    with __import__("contextlib").suppress(Exception):
        for at in range(len(data)):
            out += decoder.decompress(data[at : at + 1])
    return bytes(out)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_zeros_after_a_member_are_padding(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSIONS[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    for zeros in (1, 4, 512, 100_000):
        zeros *= 4 if suffix == ".xz" else 1
        path.write_bytes(compress(jsonl(DOCUMENTS)) + b"\0" * zeros)
        assert read_inputs(path).texts == DOCUMENTS
        path.write_bytes(compress(jsonl(DOCUMENTS)) + b"\0" * zeros + compress(jsonl(["more"])))
        assert read_inputs(path).texts == [*DOCUMENTS, "more"]
        path.write_bytes(compress(jsonl(DOCUMENTS)) + b"\0" * zeros + b"garbage")
        read = read_inputs(path, on_error="reject")
        assert read.texts == DOCUMENTS
        assert len(read.rejected) == 1


def test_a_zstd_dictionary_is_named(tmp_path: Path) -> None:
    # A frame header with a dictionary id of one byte (RFC 8878 3.1.1.1), and an empty last block.
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x21\x07\x00\x01\x00\x00")
    with pytest.raises(SourceError, match=r"made with a zstd dictionary.*-D"):
        read_inputs(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_a_bomb_stays_within_memory(tmp_path: Path, name: str) -> None:
    """600 MB of one character in 3 MB, as a text or as a string that never ends."""
    with gzip.open(tmp_path / f"{name}.gz", "wb", 1) as out:
        out.write({"a.txt": b"", "a.jsonl": b'{"text": "', "a.json": b'[{"text": "', "a.csv": b"text\n"}[name])
        for _ in range(600):
            out.write(b"a" * (1 << 20))
    program = """if True:
        import sys
        from pathlib import Path
        from exact_prep.records.options import SourceOptions
        from exact_prep.sources import find_inputs
        inputs = find_inputs([sys.argv[1]], SourceOptions(on_error="reject"))
        size = sum(batch.text_bytes for one in inputs.plan_tasks() for batch in inputs.read(one))
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        print(size, peak.split()[1])
    """
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    size, kilobytes = map(int, done.stdout.split())
    assert size == (600 << 20 if name == "a.txt" else 0)
    assert kilobytes < 400_000


def test_planning_reads_no_small_file(tmp_path: Path, monkeypatch) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_bytes(jsonl(DOCUMENTS))
    inputs = find_inputs([str(tmp_path)], SourceOptions())

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("exact_prep.sources.streams.io.FileIO", refuse)
    assert len(inputs.plan_tasks()) == 1


def test_an_encrypted_column_is_a_bad_file(tmp_path: Path) -> None:
    """Pyarrow ends the process when it is asked for the size of such a column."""
    pe = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(pe.KmsClient):
        def __init__(self, config: object) -> None:
            pe.KmsClient.__init__(self)

        def wrap_key(self, key: bytes, name: str) -> bytes:
            return __import__("base64").b64encode(key)

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return __import__("base64").b64decode(key)

    options = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=True, double_wrapping=False
    )
    factory = pe.CryptoFactory(Kms)
    rows = pa.table({"text": ["alpha", "beta"], "plain": ["one", "two"]})
    keys = factory.file_encryption_properties(pe.KmsConnectionConfig(), options)
    with pq.ParquetWriter(tmp_path / "a.parquet", rows.schema, encryption_properties=keys) as writer:
        writer.write_table(rows)
    with pytest.raises(SourceError, match=r"a.parquet, row 0 on: column 'text' is encrypted: decrypt"):
        read_inputs(tmp_path)
    assert read_inputs(tmp_path, on_error="reject").records == 1
    assert read_inputs(tmp_path, text_field="plain").texts == ["one", "two"]


def test_places_of_many_bad_lines_cost_no_more_than_good_ones(tmp_path: Path) -> None:
    """Counted in calls, not in seconds: no bad line makes work that grows with the lines before it."""

    def count(lines: int, on_error: str) -> int:
        path = tmp_path / "a.jsonl"
        path.write_text('{"t":1}\n' * lines)
        inputs = find_inputs([str(path)], SourceOptions(on_error=on_error))
        calls = itertools.count()
        sys.setprofile(lambda *_: next(calls))
        try:
            for one in inputs.plan_tasks():
                list(inputs.read(one))
        finally:
            sys.setprofile(None)
        return next(calls)

    few, many = count(1000, "reject"), count(4000, "reject")
    assert many < 4.5 * few
