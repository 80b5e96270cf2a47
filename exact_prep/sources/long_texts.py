"""Texts too long to be held as a Python string: given in pieces, straight from the bytes they lie in.

A string takes up to four bytes per character, beside the record it was decoded from. What cannot be given in pieces
with certainty is left to the reader's usual way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.sources.text import PIECE, WORD_BREAK_REACH, break_before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 16 << 20
"""Bytes from which a record is looked at here."""

BACKSLASH = ord("\\")


def json_pieces(record: bytes | bytearray, field: str) -> Iterator[str] | None:
    """The string in a field of a JSON object, in pieces; None if it is short, or anything but a good string."""
    try:
        wanted = msgspec.defstruct("Long", [("value", msgspec.Raw)], rename={"value": field}, gc=False)
        decoded: Any = msgspec.json.decode(record, type=wanted)
        raw = memoryview(decoded.value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if len(raw) < LONG or raw[:1] != b'"':
        return None
    return checked(raw[1:-1], json_cut, lambda piece: msgspec.json.decode(b'"%b"' % piece, type=str))


def utf8_pieces(value: memoryview) -> Iterator[str] | None:
    """UTF-8 as text, in pieces; None if it is short, or not UTF-8."""
    return checked(value, break_before, bytes.decode) if len(value) >= LONG else None


def checked(data: memoryview, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]) -> Iterator[str] | None:
    """Pieces of `data`, decoded; None unless all of them can be: pieces cannot be taken back."""
    try:
        for _ in pieces(data, cut, decode):
            continue
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return pieces(data, cut, decode)


def pieces(data: memoryview, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]) -> Iterator[str]:
    """Pieces of about PIECE bytes; one that `cut` finds no place in is as long as it takes."""
    start = 0
    while start < len(data):
        size = PIECE
        while start + size < len(data):
            piece = bytes(data[start : start + size])
            if (at := cut(piece, size)) > 0:
                piece = piece[:at]
                break
            size *= 2
        else:
            piece = bytes(data[start:])
        yield decode(piece)
        start += len(piece)


def json_cut(data: bytes, limit: int) -> int:
    """Where to cut the inside of a JSON string: at a space, or between two characters; 0 if no place is found near."""
    low = max(limit - WORD_BREAK_REACH, 1)
    if (space := data.rfind(b" ", low, limit)) > 0:
        return space
    for at in range(limit - 12, low, -1):
        before = data[max(at - 12, 0) : at]
        if data[at] == BACKSLASH:
            run = data[max(at - WORD_BREAK_REACH, 0) : at]
            backslashes = len(run) - len(run.rstrip(b"\\"))
            # Not before the second half of a surrogate pair.
            if backslashes % 2 == 0 and not (data[at + 1] == ord("u") and data[at + 2 : at + 4].lower() >= b"dc"):
                return at
        elif BACKSLASH not in before and data[at] & 0xC0 != 0x80:
            return at
    return 0


def batches_of(texts: Iterator[str], record: int) -> Iterator[TextBatch]:
    """The batches of a document given in pieces."""
    records = np.array([record], np.int64)
    text = next(texts)
    for following in texts:
        yield TextBatch(texts=[text], records=records, continues=True, text_bytes=len(text.encode()))
        text = following
    yield TextBatch(texts=[text], records=records, read=1, text_bytes=len(text.encode()))
