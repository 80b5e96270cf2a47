"""Texts too long to be held as a Python string: given in pieces, straight from the bytes they lie in.

A string takes up to four bytes per character, beside the record it was decoded from. What cannot be given in pieces
with certainty is left to the reader's usual way.
"""

from __future__ import annotations

import re
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.sources.streams import Span
from exact_prep.sources.text import PIECE, WORD_BREAK_REACH, break_before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 16 << 20
"""Bytes from which a record is looked at here."""

BACKSLASH = ord("\\")

IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""Up to the quote that ends a JSON string, or as far as the bytes go."""


def json_pieces(record: bytes | bytearray | Span, field: str) -> Iterator[str] | None:
    """The string in a field of a JSON object, in pieces; None if it is short, or anything but a good string."""
    data = record if isinstance(record, Span) else memoryview(record)
    edges = [(start, stop) for start, stop in strings_of(data) if stop - start >= LONG]
    if not edges:
        return None
    cuts = [0, *chain.from_iterable(edges), len(data)]
    between = [bytes(data[start:stop]) for start, stop in zip(cuts[::2], cuts[1::2], strict=True)]
    # Names stand for the long strings, first these, then those: what is a string's name both times is that string.
    found = [raw_value(between, name, field) for name in (b"a", b"b")]
    chosen = None
    for number, (start, stop) in enumerate(edges):
        texts = checked(data[start:stop], json_cut, lambda piece: msgspec.json.decode(b'"%b"' % piece, type=str))
        if texts is None:
            return None
        if found == [b'"a%d"' % number, b'"b%d"' % number]:
            chosen = texts
    return chosen


def strings_of(data: memoryview | Span) -> Iterator[tuple[int, int]]:
    """Where the insides of the strings in some JSON start and stop."""
    at, start = 0, -1
    while at < len(data):
        block, here = bytes(data[at : at + PIECE]), 0
        while here < len(block):
            if start < 0:
                quote = block.find(b'"', here)
                start, here = (at + quote + 1, quote + 1) if quote >= 0 else (-1, len(block))
                continue
            here = end.end() if (end := IN_STRING.match(block, here)) else here
            if block[here : here + 1] != b'"':
                break
            yield start, at + here
            start, here = -1, here + 1
        if not here:
            return  # a backslash with nothing behind it
        at += here


def raw_value(between: list[bytes], name: bytes, field: str) -> bytes | None:
    """A field's value as it is spelled in a JSON object; None if it is no object, or one without the field.

    `between` is the object less the insides of some strings, which are called `name` and their number.
    """
    names = [b"%b%d" % (name, number) for number in range(len(between) - 1)]
    try:
        wanted = msgspec.defstruct("Long", [("value", msgspec.Raw)], rename={"value": field}, gc=False)
        record: Any = msgspec.json.decode(b"".join(chain(*zip_longest(between, names, fillvalue=b""))), type=wanted)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return bytes(record.value)


def utf8_pieces(value: memoryview) -> Iterator[str] | None:
    """UTF-8 as text, in pieces; None if it is short, or not UTF-8."""
    return checked(value, break_before, bytes.decode) if len(value) >= LONG else None


def checked(
    data: memoryview | Span, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]
) -> Iterator[str] | None:
    """Pieces of `data`, decoded; None unless all of them can be: pieces cannot be taken back."""
    try:
        for _ in pieces(data, cut, decode):
            continue
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return pieces(data, cut, decode)


def pieces(data: memoryview | Span, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]) -> Iterator[str]:
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
