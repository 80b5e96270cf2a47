"""Text files in: a file is one document, or several with a separator between them. Only a BOM is stripped.

A long document is given in pieces, so memory is bounded however long it is. After a separator that ends the file comes
no further document; between two adjacent separators is an empty one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError
from exact_prep.sources.batching import BATCH_RECORDS, reject, reject_rest
from exact_prep.sources.streams import BOM, Damaged, newlines, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.batching import Part

PIECE = 4 << 20
"""Bytes per read, and about the longest piece of a document that is given at once."""

WORD_BREAK_REACH = 1 << 12
"""How far before its end, in bytes, a piece is searched for whitespace at which to cut it."""


class Piece(NamedTuple):
    """A document, or part of one, as bytes."""

    document: int
    """Number of the document in the file."""
    data: bytes
    offset: int
    """Where the piece begins in the file's content, in bytes."""
    line: int
    """Line of the file it begins in, from 1."""
    whole: bool
    """Whether the document begins here."""
    last: bool
    """Whether the document ends here."""


def read_text(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a text file, read `block` bytes at once, by default PIECE; see `Part` and `TextBatch`.

    Pieces cannot be taken back. So when bad documents are to be skipped, the whole file is searched for them as soon
    as a document longer than a piece is met.
    """
    block = block or PIECE
    bad: dict[int, str] | None = None
    document = consumed = 0
    try:
        for pieces, share in group_pieces(part, block):
            consumed += share
            if pieces and not pieces[-1].last and bad is None and part.options.on_error == "reject":
                bad = find_faults(part, block)
            yield decode_pieces(part, pieces, share, bad)
            if pieces:
                document = pieces[-1].document + pieces[-1].last
    except Damaged as damage:
        yield reject_rest(part, document, damage, consumed=consumed, size=part.file.bytes)


def group_pieces(part: Part, size: int) -> Iterator[tuple[list[Piece], int]]:
    """Pieces in order with the bytes of the file consumed for them; only the last of a group may be cut short."""
    separator = (part.options.separator or "").encode()
    spare = max(len(separator) - 1, 0)
    held, document, offset, line, whole = b"", 0, 0, 1, True
    for block in whole_blocks(part.file, part.path, size=size):
        data, consumed = block.data, block.consumed
        if block.offset == 0 and data.startswith(BOM):
            data, offset = data[len(BOM) :], len(BOM)
        *ended, held = (held + data).split(separator) if separator else [held + data]
        pieces = []
        for one in ended:
            pieces.append(Piece(document, one, offset, line, whole, True))
            document, whole = document + 1, True
            offset += len(one) + len(separator)
            line += newlines(one) + separator.count(b"\n")
            if len(pieces) == BATCH_RECORDS:
                yield pieces, consumed
                pieces, consumed = [], 0
        if not block.data and (held or not whole or not separator):
            pieces.append(Piece(document, held, offset, line, whole, True))
        elif len(held) >= size + spare and (cut := find_break(held, len(held) - spare)):
            pieces.append(Piece(document, held[:cut], offset, line, whole, False))
            line, offset, held, whole = line + newlines(pieces[-1].data), offset + cut, held[cut:], False
        yield pieces, consumed


def find_break(data: bytes, limit: int) -> int:
    """Where to cut `data` at or before `limit`: before whitespace if there is any nearby, always between characters."""
    low = max(limit - WORD_BREAK_REACH, 0)
    if (space := max(data.rfind(b" ", low, limit), data.rfind(b"\n", low, limit))) > 0:
        return space
    for cut in range(limit - 1, max(limit - 5, -1), -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return limit


def explain_fault(piece: Piece, error: UnicodeDecodeError) -> str:
    """Where and why a piece is not UTF-8."""
    line = piece.line + piece.data.count(b"\n", 0, error.start)
    return f"wrong UTF-8 ({error.reason} at byte {piece.offset + error.start} of the file, in line {line})"


def find_faults(part: Part, size: int) -> dict[int, str]:
    """The reason for every document of the file that is not UTF-8, or that damage cuts short."""
    bad: dict[int, str] = {}
    document = 0
    try:
        for pieces, _ in group_pieces(part, size):
            for piece in pieces:
                try:
                    piece.data.decode()
                except UnicodeDecodeError as error:
                    bad.setdefault(piece.document, explain_fault(piece, error))
                document = piece.document + piece.last
    except Damaged as damage:
        bad.setdefault(document, str(damage))
    return bad


def decode_pieces(part: Part, pieces: list[Piece], consumed: int, bad: dict[int, str] | None) -> TextBatch:
    """One batch; `bad` are the file's bad documents where they had to be known beforehand."""
    texts: list[str] = []
    records: list[int] = []
    rejected: list[Rejected] = []
    empty = text_bytes = 0
    for piece in pieces:
        text, fault = "", bad.get(piece.document) if bad else None
        if fault is None:
            try:
                text = piece.data.decode()
            except UnicodeDecodeError as error:
                if bad is not None:
                    raise SourceError(
                        f"{part.name} changed while it was read; run the same command again when nothing writes to it"
                    ) from error
                fault = explain_fault(piece, error)
        if fault is not None:
            one = reject(part, piece.document, fault)
            rejected += [one] * piece.last
        elif piece.whole and piece.last and not text:
            empty += 1
        else:
            texts.append(text)
            text_bytes += len(piece.data)
            records.append(piece.document)
    return TextBatch(
        texts=texts,
        records=np.array(records, np.int64),
        continues=bool(texts) and not pieces[-1].last and records[-1] == pieces[-1].document,
        read=sum(piece.last for piece in pieces),
        empty=empty,
        rejected=tuple(rejected),
        bytes_read=consumed,
        text_bytes=text_bytes,
    )
