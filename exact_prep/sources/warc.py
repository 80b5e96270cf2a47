"""WARC files in: extracted text of web pages (WET), and pages and files that are plain text. Read by FastWARC.

A record of another kind, such as an HTML page, holds no text that could be packed: it is counted by its kind. A record
has its headers as fields, so `--id-field WARC-Target-URI` keeps the address.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.errors import UsageError
from exact_prep.sources.batching import BATCH_BYTES, MAX_DOCUMENT
from exact_prep.sources.jsonl import TOO_LONG, Group, decode_groups
from exact_prep.sources.streams import Damaged
from exact_prep.sources.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.sources.batching import Part

NO_TEXT = b""
"""Stands for a record without text: a blank one."""

RECORDS = 1 << 10
"""Records in a group, at most."""


def check_installed(path: str) -> None:
    """Raise UsageError if the library that reads WARC is missing."""
    if find_spec("fastwarc") is None:
        raise UsageError(
            f"{path} is a WARC file, which is read with FastWARC;\n"
            "install it: pip install fastwarc, or the extra `warc` of exact-prep"
        )


def read_warc(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a WARC file, read `block` bytes at once; see `Part` and `TextBatch`."""
    left_out: Counter[str] = Counter()
    yield from decode_groups(part, group_records(part, block, left_out))
    yield TextBatch(records=np.empty(0, np.int64), left_out=dict(left_out))


def group_records(part: Part, block: int | None, left_out: Counter[str]) -> Iterator[Group]:
    """Records as JSON objects of their headers and text; raises Damaged. Kinds without text go into `left_out`."""
    tape = Tape(part, block, keep=True)
    records: list[bytes | bytearray] = []
    size = 0
    try:
        for record in list_records(tape):
            records.append(convert(part, record, tape, left_out))
            size += len(records[-1])
            if size >= BATCH_BYTES or len(records) == RECORDS:
                yield Group(records, tape.take_consumed())
                records, size = [], 0
    except Damaged:
        # What comes before the damage is whole.
        yield Group(records, tape.take_consumed())
        raise
    yield Group(records, tape.take_consumed())


def list_records(tape: Tape) -> Iterator[Any]:
    """The records of an archive; raises Damaged for what FastWARC cannot read."""
    from fastwarc.warc import ArchiveIterator

    if not tape.look(0, 1):
        tape.check()
        return
    # The library reads on for a record only when it is asked for the next: until then the tape holds what it passed.
    records = iter(ArchiveIterator(cast("Any", tape), parse_http=True, auto_decode="all", stream_detect=False))
    number = 0
    while True:
        try:
            record = next(records, None)
        except OSError as error:
            if error.errno is not None:
                raise
            after = f" after record {number}" if number else ""
            raise Damaged(f"it is not a WARC file{after}: {error}") from error
        if record is None:
            return
        number += 1
        tape.keep = True
        tape.forget(record.stream_pos)
        yield record


def convert(part: Part, record: Any, tape: Tape, left_out: Counter[str]) -> bytes | bytearray:
    """A record as JSON, NO_TEXT if it holds no text; raises Damaged if its length contradicts what follows it."""
    kind, encoding = find_kind(record)
    length = read_length(record)
    if length is not None and length > MAX_DOCUMENT:
        tape.keep = False
        left_out[kind or "WARC record too long"] += 1
        return NO_TEXT if kind else TOO_LONG
    body = b"" if kind else record.reader.read()
    check_end(record.stream_pos, length, tape)
    if kind:
        left_out[kind] += 1
        return NO_TEXT
    return make_json(part, dict(record.headers), decode(body, encoding))


def read_length(record: Any) -> int | None:
    """The length of a record's content as its header says it; None if it says none."""
    # Not `record.content_length`: without the header of HTTP.
    text = (record.headers.get("Content-Length") or "").strip()
    return int(text) if text.isascii() and text.isdecimal() else None


def check_end(start: int, length: int | None, tape: Tape) -> None:
    """Raise Damaged unless a record is whole: a blank line follows its content, or the end of the file."""
    begin = tape.find_header_end(start)
    content = tape.look(begin, begin + (length or 0))
    if length is None or len(content) < length:
        tape.check()
        damage = Damaged("it ends in the middle of a record")
        damage.unfinished = len(content) + begin - start
        raise damage
    after = tape.look(begin + length, begin + length + 4)
    # The last record of a file may lack its empty lines.
    if after != b"\r\n\r\n" and not after.startswith(b"\n\n") and after not in (b"", b"\n", b"\r\n"):
        damage = Damaged(f"the Content-Length of a record, {length}, does not lead to its end")
        damage.unfinished = begin + length - start
        raise damage


def find_kind(record: Any) -> tuple[str, str]:
    """What a record is that is not text, empty if it is; and the encoding of its text."""
    name = record.record_type.name if hasattr(record.record_type, "name") else str(record.record_type).split(".")[-1]
    if record.is_http:
        content, encoding = record.http_content_type, record.http_charset
        name = name if name != "response" or content is None else f"response {content}"
        is_text = name == "response text/plain"
    else:
        content, _, more = (record.headers.get("Content-Type") or "").partition(";")
        encoding = more.partition("charset=")[2].strip(' "') or None
        is_text = name == "conversion" or (name == "resource" and content.strip().lower() == "text/plain")
        name = f"resource {content.strip()}" if name == "resource" else name
    return "" if is_text else f"WARC {name}", encoding or "utf-8"


def decode(body: bytes, encoding: str) -> str:
    """The text of a body; bytes that are not in its encoding become lone surrogates, which are found later."""
    try:
        return body.decode(encoding, "surrogateescape")
    except (LookupError, UnicodeDecodeError):
        return body.decode("utf-8", "surrogateescape")


def make_json(part: Part, fields: dict[str, str], text: str) -> bytes:
    """A JSON object of some fields, and the text under the name that is read."""
    fields[part.options.text_field[0]] = text
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
