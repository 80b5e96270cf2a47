"""Texts too long to be held as a Python string: given in pieces, straight from the bytes of the record.

A string takes up to four bytes per character, beside the record it was decoded from. Whatever is not certain to be a
good text is left to the reader's usual way of decoding.
"""

from __future__ import annotations

import re
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.sources.labels import BadLabel, spell_label, spell_own_id
from exact_prep.sources.streams import Span
from exact_prep.sources.text import PIECE, WORD_BREAK_REACH, find_break

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 16 << 20
"""Bytes from which a record is looked at here."""

BACKSLASH = ord("\\")

IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""Up to the quote that ends a JSON string, or as far as the bytes go."""


class CutText(NamedTuple):
    """A long text, given in pieces."""

    pieces: Iterator[str]
    label: str | None
    """Its source label, if that comes from the record."""
    own_id: str | None = None
    """Its own id, if ids are kept."""


def cut_json_text(
    record: bytes | bytearray | Span, field: str, source_field: str | None = None, id_field: str | None = None
) -> CutText | None:
    """The string in a field of a JSON object, in pieces; None if it is short or may be bad.

    It is also None if `source_field` is given and may give no label, or `id_field` and may give no id.
    """
    data = record if isinstance(record, Span) else memoryview(record)
    edges = [(start, stop) for start, stop in find_strings(data) if stop - start >= LONG]
    if not edges:
        return None
    cuts = [0, *chain.from_iterable(edges), len(data)]
    between = [bytes(data[start:stop]) for start, stop in zip(cuts[::2], cuts[1::2], strict=True)]
    # The long strings are replaced by names, the first time by some, the second time by others: a value that is a
    # string's name both times is that string.
    names = (field, source_field, id_field)
    values, sources, own_ids = zip(*(raw_values(between, stand_in, *names) for stand_in in (b"a", b"b")), strict=True)
    chosen = None
    for number, (start, stop) in enumerate(edges):
        texts = checked_pieces(
            data[start:stop], find_json_cut, lambda piece: msgspec.json.decode(b'"%b"' % piece, type=str)
        )
        if texts is None:
            return None
        if values == (b'"a%d"' % number, b'"b%d"' % number):
            chosen = texts
    if chosen is None:
        return None
    try:
        return CutText(
            chosen,
            spell_raw(sources, source_field, spell_label),
            spell_raw(own_ids, id_field, spell_own_id),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, BadLabel):
        return None


def spell_raw(values: tuple[bytes | None, ...], field: str | None, spell: Callable[[object, str], str]) -> str | None:
    """The label or id in a field's two values, None without a field; raises BadLabel, MsgspecError."""
    if field is None:
        return None
    if values[0] is None or values[0] != values[1]:
        raise BadLabel(f"{field} is a long string itself, or holds one")
    return spell(msgspec.json.decode(values[0], type=str | int | float | bool | None), field)


def find_strings(data: memoryview | Span) -> Iterator[tuple[int, int]]:
    """Start and stop of the inside of each string in some JSON."""
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
            return  # a backslash at the very end
        at += here


def raw_values(
    between: list[bytes], name: bytes, field: str, source_field: str | None, id_field: str | None
) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The values of three fields as they are spelled in a JSON object; null for the last two if they are missing.

    `between` is the object without the insides of some strings; in place of each stands `name` and its number. None
    for all if this is no object, or one without the first field.
    """
    names = [b"%b%d" % (name, number) for number in range(len(between) - 1)]
    types: list[Any] = [("value", msgspec.Raw)]
    rename = {"value": field}
    for place, more in (("label", source_field), ("own_id", id_field)):
        if more is not None:
            types.append((place, msgspec.Raw, msgspec.Raw(b"null")))
            rename[place] = more
    try:
        wanted = msgspec.defstruct("Long", types, rename=rename, gc=False)
        record: Any = msgspec.json.decode(b"".join(chain(*zip_longest(between, names, fillvalue=b""))), type=wanted)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None, None, None
    label = None if source_field is None else bytes(record.label)
    return bytes(record.value), label, None if id_field is None else bytes(record.own_id)


def cut_utf8(value: memoryview) -> Iterator[str] | None:
    """UTF-8 as text, in pieces; None if it is short, or not UTF-8."""
    return checked_pieces(value, find_break, bytes.decode) if len(value) >= LONG else None


def checked_pieces(
    data: memoryview | Span, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]
) -> Iterator[str] | None:
    """Pieces of `data`, decoded; None unless all can be decoded: a piece cannot be taken back once it is given."""
    try:
        for _ in decode_pieces(data, cut, decode):
            continue
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return decode_pieces(data, cut, decode)


def decode_pieces(
    data: memoryview | Span, cut: Callable[[bytes, int], int], decode: Callable[[bytes], str]
) -> Iterator[str]:
    """Pieces of about PIECE bytes; longer where `cut` finds no place."""
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


def find_json_cut(data: bytes, limit: int) -> int:
    """Where to cut the inside of a JSON string: at a space, or between characters; 0 if there is no place nearby."""
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


def make_batches(
    texts: Iterator[str], record: int, label: str | None, own_id: str | None = None
) -> Iterator[TextBatch]:
    """The batches of a document given in pieces."""
    columns: dict[str, Any] = {
        "records": np.array([record], np.int64),
        "labels": None if label is None else [label],
        "own_ids": None if own_id is None else [own_id],
    }
    text = next(texts)
    for following in texts:
        yield TextBatch(texts=[text], continues=True, text_bytes=len(text.encode()), **columns)
        text = following
    yield TextBatch(texts=[text], read=1, text_bytes=len(text.encode()), **columns)
