"""WARC files and tar archives: their texts, what they hold beside them, and every kind of damage."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile

import pytest
from corpora import read_inputs
from runs import exact_prep, read_documents, read_json

from exact_prep.errors import SourceError, UsageError
from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs

# ---- WARC


def record(kind, body, content="text/plain", *, length=None, uri="https://a.example/", newline="\r\n"):
    head = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {uri}",
        "WARC-Record-ID: <urn:uuid:0>",
        f"Content-Type: {content}",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return (newline.join(head) + 2 * newline).encode() + body + (2 * newline).encode()


def response(body, content, *more):
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {content}", *more])
    return record("response", f"{head}\r\n\r\n".encode() + body, "application/http; msgtype=response")


WET = [
    record("warcinfo", b"software: x\r\n", "application/warc-fields"),
    record("conversion", "the first straße".encode(), uri="https://a.example/1"),
    record("conversion", b"", uri="https://a.example/2"),
    record("conversion", b"line\r\n\r\nWARC/1.0\r\nWARC-Type: conversion\r\n", uri="https://a.example/3"),
    record("conversion", b"the last", uri="https://a.example/4"),
]
TEXTS = ["the first straße", "line\r\n\r\nWARC/1.0\r\nWARC-Type: conversion\r\n", "the last"]


def read(path, **options):
    return [batch for slices in find(path, **options).plan_tasks() for batch in find(path, **options).read(slices)]


def find(path, **options):
    return find_inputs([str(path)], SourceOptions(**options))


def texts_of(batches):
    return [text for batch in batches for text in batch.texts]


def left_out_of(batches):
    found = {}
    for batch in batches:
        for kind, count in batch.left_out.items():
            found[kind] = found.get(kind, 0) + count
    return found


@pytest.mark.parametrize("name", ["a.warc", "a.wet", "a.warc.wet.gz", "a.warc.gz", "named.wrongly.jsonl"])
def test_the_text_of_a_wet_file_is_read(name, tmp_path):
    path = tmp_path / name
    # A member of gzip per record, as archives have it.
    path.write_bytes(b"".join(map(gzip.compress, WET)) if name.endswith(".gz") else b"".join(WET))
    options = {"input_format": "warc"} if name.endswith("jsonl") else {}
    batches = read(path, id_field="WARC-Target-URI", **options)
    assert texts_of(batches) == TEXTS
    assert left_out_of(batches) == {"WARC warcinfo": 1}
    assert [number for batch in batches for number in batch.records] == [1, 3, 4]
    assert (sum(batch.read for batch in batches), sum(batch.empty for batch in batches)) == (5, 2)
    own = [one for batch in batches for one in batch.own_ids or ()]
    assert own == [f"https://a.example/{number}" for number in (1, 3, 4)]
    assert sum(batch.bytes_read for batch in batches) == path.stat().st_size


def test_pages_are_read_if_they_are_plain_text_and_counted_otherwise(tmp_path):
    chunked = b"5\r\nhello\r\n6\r\n chunk\r\n0\r\n\r\n"
    path = tmp_path / "a.warc"
    path.write_bytes(
        b"".join(
            [
                record("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
                response(b"plain", "text/plain"),
                response("latin é".encode("latin-1"), "text/plain; charset=iso-8859-1"),
                response(chunked, "text/plain", "Transfer-Encoding: chunked"),
                response(gzip.compress(b"zipped"), "text/plain", "Content-Encoding: gzip"),
                response(b"<p>page", "text/html; charset=utf-8"),
                response(b"<p>page", "text/html"),
                response(b"\x89PNG", "image/png"),
                record("resource", b"a file", "text/plain"),
                record("resource", b"\x00", "application/pdf"),
                record("metadata", b"a: b", "application/warc-fields"),
            ]
        )
    )
    batches = read(path)
    assert texts_of(batches) == ["plain", "latin é", "hello chunk", "zipped", "a file"]
    assert left_out_of(batches) == {
        "WARC request": 1,
        "WARC response text/html": 2,
        "WARC response image/png": 1,
        "WARC resource application/pdf": 1,
        "WARC metadata": 1,
    }


def test_lines_may_end_with_newlines_alone_and_the_end_may_lack_them(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(record("conversion", text.encode()) for text in ("one", "two")).removesuffix(b"\r\n\r\n"))
    assert texts_of(read(path)) == ["one", "two"]
    path.write_bytes(b"")
    assert read_inputs(path).texts == []


GOOD = b"".join(WET)
HARMS = {
    "cut in its content": (GOOD[:-9], "it ends in the middle of a record", ["the first straße", TEXTS[1]]),
    "cut in a header": (GOOD[: -len(WET[-1]) + 40], "it ends in the middle of a record", TEXTS[:2]),
    "cut in its length": (
        GOOD[: GOOD.rindex(b"Content-Length") + 5],
        "it ends in the middle of a record",
        TEXTS[:2],
    ),
    "a length too long": (
        GOOD.replace(b"Content-Length: 17", b"Content-Length: 19"),
        "the Content-Length of a record, 19, does not lead to its end",
        [],
    ),
    "a length too short": (
        GOOD.replace(b"Content-Length: 17", b"Content-Length: 12"),
        "the Content-Length of a record, 12, does not lead to its end",
        [],
    ),
    "garbage between records": (
        WET[0] + WET[1] + b"garbage\r\n\r\n" + WET[4],
        "it is not a WARC file after record 2",
        ["the first straße"],
    ),
    "no archive at all": (b"just\nlines\n" * 30, "it is not a WARC file", []),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("harm", HARMS)
def test_what_comes_before_a_damage_is_kept_and_the_rest_is_stated(harm, compressed, tmp_path):
    data, words, texts = HARMS[harm]
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert data != GOOD
    got = read_inputs(path, on_error="reject")
    assert got.texts == texts
    (rejected,) = got.rejected
    assert rejected.reason.startswith(words), rejected
    assert "lost: " in rejected.reason
    assert rejected.place.startswith("record ")
    assert rejected.place.endswith(" on")
    with pytest.raises(SourceError, match=f"a\\.warc.*record .*{words}"):
        read_inputs(path, on_error="stop")


def test_a_cut_member_of_gzip_keeps_the_records_before_it(tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, WET))[:-20])
    got = read_inputs(path, on_error="reject")
    assert got.texts == TEXTS[:2]
    assert "its compressed bytes are damaged: they end too early" in got.rejected[0].reason


def test_text_that_is_not_utf_8_is_a_bad_record(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(
        record("conversion", b"good") + record("conversion", b"b\xe9d") + record("conversion", b"good too")
    )
    got = read_inputs(path, on_error="reject")
    assert got.texts == ["good", "good too"]
    assert [(one.place, one.reason) for one in got.rejected] == [
        ("record 2", "field 'text' holds wrong UTF-8 at character 1")
    ]


def test_the_command_says_what_was_left_out_and_what_to_do(tokenizer_file, tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, [*WET, response(b"<p>page", "text/html")])))
    base = ("pack", path, "--tokenizer", tokenizer_file, "--seq-len", 64)
    ran = exact_prep(*base, "-o", tmp_path / "out")
    assert "not read because they hold no text: 1 WARC response text/html, 1 WARC warcinfo; extract" in ran.stderr
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["records_left_out"] == {"WARC response text/html": 1, "WARC warcinfo": 1}
    assert manifest["documents"] == {"records": 6, "packed": 3, "empty": 3, "rejected": 0, "held_out": 0}
    assert len(read_documents(tmp_path / "out")) == 3
    exact_prep("verify", tmp_path / "out")


def test_a_warc_file_under_another_name_is_recognised(tokenizer_file, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    base = ("pack", path, "--tokenizer", tokenizer_file, "--seq-len", 64, "-o", tmp_path / "out")
    assert "it is a WARC file: name it .warc, or use --input-format warc" in exact_prep(*base, check=1).stderr
    with pytest.raises(UsageError, match="holds no token ids"):
        find(tmp_path / "a.jsonl", input_format="warc", ids_field="ids")


# ---- tar


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SAMPLES = [
    ("a/000.json", b'{"text": "from json", "url": "u0"}'),
    ("a/000.jpg", b"\xff\xd8"),
    ("a/001.txt", b"from txt"),
    ("a/001.json", b'{"url": "u1"}'),
    ("a/001.cls", b"7"),
    ("a/002.jpg", b"\xff\xd8"),
    ("a/003.txt", "\ufeffstraße".encode()),
    ("a/004.txt", b""),
    ("b.c/005.TXT", b"upper"),
]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst"])
def test_samples_of_a_webdataset_are_read(name, tmp_path):
    path = write_tar(tmp_path / "plain.tar", SAMPLES)
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    elif name.endswith("zst"):
        from corpora import zstd

        (tmp_path / name).write_bytes(zstd(path.read_bytes()))
    else:
        path.rename(tmp_path / name)
    batches = read(tmp_path / name, id_field="__key__", source_from="field:url")
    assert texts_of(batches) == ["from json", "from txt", "straße", "upper"]
    assert [own for batch in batches for own in batch.own_ids or ()] == ["a/000", "a/001", "a/003", "b.c/005"]
    assert [own for batch in batches for own in batch.labels or ()] == ["u0", "u1", "(none)", "(none)"]
    assert left_out_of(batches) == {"tar member .jpg": 2, "tar member .cls": 1}
    assert (sum(batch.read for batch in batches), sum(batch.empty for batch in batches)) == (6, 2)
    assert sum(batch.bytes_read for batch in batches) == (tmp_path / name).stat().st_size


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
def test_archives_of_the_system_s_tar_are_read(tmp_path):
    """With directories, links and long names."""
    folder = tmp_path / "data" / ("long" * 40)
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"text {number}")
    (folder / "9.txt").symlink_to("1.txt")
    subprocess.run(["tar", "-C", tmp_path, "--sort=name", "-cf", tmp_path / "a.tar", "data"], check=True, timeout=60)
    batches = read(tmp_path / "a.tar")
    assert texts_of(batches) == ["text 0", "text 1", "text 2"]
    assert left_out_of(batches) == {"tar link or device": 1}


def test_the_text_field_decides_between_json_and_txt(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.json", b'{"caption": "c", "text": "t"}'), ("0.txt", b"x")])
    assert texts_of(read(path)) == ["t"]
    assert texts_of(read(path, text_field=("caption",))) == ["c"]
    assert texts_of(read(path, text_field=("body",))) == ["x"]
    ids = write_tar(tmp_path / "ids.tar", [("0.json", b'{"ids": [1, 2]}'), ("0.txt", b"x")])
    (batch, *_) = read(ids, ids_field="ids")
    assert batch.ids.tolist() == [1, 2]


def test_two_members_of_one_name_are_two_samples(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [("0.txt", b"one"), ("0.txt", b"two"), ("1.txt", b"three"), ("0.txt", b"four")]
    )
    assert texts_of(read(path)) == ["one", "two", "three", "four"]


def test_bad_samples_are_named(tmp_path):
    members = [("0.txt", b"b\xe9d"), ("1.json", b"{broken"), ("2.json", b"[1]"), ("3.json", b'{"a": 1}')]
    members.append(("4.txt", b"good"))
    got = read_inputs(write_tar(tmp_path / "a.tar", members), on_error="reject")
    assert got.texts == ["good"]
    assert [one.place for one in got.rejected] == [f"sample {number}" for number in (1, 2, 3, 4)]
    reasons = [one.reason for one in got.rejected]
    assert reasons[0] == "field 'text' holds wrong UTF-8 at character 1"
    assert reasons[1].startswith("not JSON")
    assert reasons[2] == "an array, not an object"
    assert reasons[3].startswith("field 'text' is missing; name one with --text-field, there is: '__key__', 'a'")


def test_damage_of_an_archive_is_stated(tmp_path):
    data = write_tar(tmp_path / "good.tar", [(f"{number}.txt", b"text " * 200) for number in range(6)]).read_bytes()
    member = 512 + 1024
    header = bytearray(data)
    header[3 * member + 10] ^= 1
    for name, damaged, words, count in [
        ("cut in a member", data[: 4 * member + 700], "its archive is damaged: unexpected end of data", 4),
        ("cut in a header", data[: 4 * member + 100], "its archive is damaged: truncated header", 3),
        ("cut between members", data[: 4 * member], "its archive is damaged: there is no mark of its end", 3),
        ("a damaged header", bytes(header), "its archive is damaged: bad checksum", 2),
        ("no archive", b"just lines\n" * 100, "it is not a tar archive", 0),
    ]:
        path = tmp_path / f"{name}.tar"
        path.write_bytes(damaged)
        got = read_inputs(path, on_error="reject")
        assert len(got.texts) == count, name
        (rejected,) = got.rejected
        assert words in rejected.reason, name
        assert rejected.place == f"sample {count + 1} on", name
        with pytest.raises(SourceError, match="sample"):
            read_inputs(path, on_error="stop")
    (tmp_path / "two.tar").write_bytes(data + data)
    got = read_inputs(tmp_path / "two.tar", on_error="reject")
    assert len(got.texts) == 6
    assert "two archives follow each other: there is more after its end" in got.rejected[0].reason
    (tmp_path / "empty.tar").write_bytes(b"")
    assert read_inputs(tmp_path / "empty.tar").texts == []
    (tmp_path / "none.tar").write_bytes(bytes(10240))
    assert read_inputs(tmp_path / "none.tar").texts == []


def test_archives_are_estimated_and_packed(tokenizer_file, tmp_path):
    texts = ["of the long row " * (number % 40 + 1) for number in range(200)]
    members = [(f"{number:03d}.json", json.dumps({"text": text}).encode()) for number, text in enumerate(texts)]
    path = write_tar(tmp_path / "a.tar", members)
    base = ("pack", path, "--tokenizer", tokenizer_file, "--seq-len", 64, "-o", tmp_path / "out")
    assert "tar" in exact_prep(*base, "--dry-run").stdout
    exact_prep(*base)
    assert read_json(tmp_path / "out" / "manifest.json")["documents"]["packed"] == 200
    exact_prep("verify", tmp_path / "out")
