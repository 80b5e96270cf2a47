"""JSON files in: an array of records, or records that follow each other. JSON lines named .json are read as lines.

No library reads an array of records fast and in bounded memory, so records are cut out here by their brackets and
quotes, and decoded like lines. Cutting is linear and holds one record; a wrong cut fails to decode.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from exact_prep.sources.batching import MAX_DOCUMENT
from exact_prep.sources.jsonl import EXPLODED, SPACE, TOO_LONG, Group, decode_groups, read_jsonl
from exact_prep.sources.long_texts import IN_STRING
from exact_prep.sources.streams import BLOCK, BOM, BOMB, Damaged, Expansion, decompressed, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exact_prep.batches import TextBatch
    from exact_prep.sources.batching import Part
    from exact_prep.sources.streams import Block

OUTSIDE = re.compile(rb'["{}\[\],]')
"""What matters outside of strings."""

BLANK = re.compile(b"[ \t\r\n]*")
NOTHING = b","
"""Stands for a missing record; it fails to decode."""


def read_json(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a JSON file, read `block` bytes at once; see `Part` and `TextBatch`."""
    block = block or BLOCK
    if holds_lines(part, block):
        return read_jsonl(part, block)
    return decode_groups(part, group_records(whole_blocks(part.file, part.path, size=block)))


def holds_lines(part: Part, size: int) -> bool:
    """Whether the first line of the file, within `size` bytes, is an object by itself: JSON lines, then."""
    try:
        with decompressed(part.file, part.path) as stream:
            head = stream.read(size)
    except Damaged:
        return False
    line, newline, _ = head.removeprefix(BOM).lstrip(SPACE).partition(b"\n")
    if len(head) == size and not newline:
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def group_records(blocks: Iterable[Block]) -> Iterator[Group]:
    """Records as they are in the file; raises Damaged if it is neither an array of records nor records alone."""
    cutter = Cutter()
    expansion = Expansion()
    rest = b""
    for block in tell_unfinished(blocks, cutter):
        data = block.data
        expansion.add(block)
        if expansion.is_bomb:
            cutter.longest = min(BOMB, MAX_DOCUMENT)
        if block.offset == 0 and data.startswith(BOM):
            data = data[len(BOM) :]
        records, rest = cutter.cut(rest + data)
        yield Group(records, block.consumed)
        if cutter.fault:
            raise Damaged(cutter.fault)
    if not cutter.complete():
        raise Damaged("it ends in the middle of a record or of the array")


def tell_unfinished(blocks: Iterable[Block], cutter: Cutter) -> Iterator[Block]:
    """The same blocks; a damage learns how many bytes of a record are lost with it."""
    try:
        yield from blocks
    except Damaged as damage:
        damage.unfinished = cutter.held()
        raise


class Cutter:
    """Cuts records out of JSON as its bytes come in."""

    def __init__(self) -> None:
        """Before the first byte."""
        self.longest = MAX_DOCUMENT
        """Bytes of a record that are held, at most."""
        self.fault = ""
        """Why nothing more can be cut, if so."""
        self._base = -1
        """Open brackets between records: 1 in an array, 0 where records follow one another, -1 before the first."""
        self._depth = 0
        """Open brackets."""
        self._string = False
        """Whether a string is open."""
        self._records = 0
        """Records cut so far."""
        self._ended = False
        """Whether the array is closed."""
        self._held = bytearray()
        """The unfinished record, as far as it was given; grows in place: it is held once."""
        self._size = 0

    def cut(self, data: bytes) -> tuple[list[bytes | bytearray], bytes]:
        """Records that end in `data`, and the rest, to be given again in front of the next bytes."""
        records: list[bytes | bytearray] = []
        begin = at = 0 if self._base >= 0 else self._enter(data)
        while at < len(data) and not self._ended and not self.fault:
            if self._string:
                at = end.end() if (end := IN_STRING.match(data, at)) else at
                if data[at : at + 1] != b'"':
                    break
                self._string = False
                at += 1
                continue
            found = OUTSIDE.search(data, at)
            at = found.end() if found else len(data)
            if self._ends_record(found[0] if found else b""):
                # In an array the comma or bracket that ends a record is not part of it.
                self._finish(data[begin : at - self._base], records)
                begin = at
        if self._ended and data[begin:].strip(SPACE):
            self.fault = "there is more after the end of its array"
        self._hold(data[begin:at])
        return records, data[at:]

    def _enter(self, data: bytes) -> int:
        """Look at the first byte; where the first record begins in `data`."""
        begin = len(data) - len(data.lstrip(SPACE))
        first = data[begin : begin + 1]
        if first == b"[":
            self._base = self._depth = 1
            return begin + 1
        if first == b"{":
            self._base = 0
        elif first:
            self.fault = "it is neither an array of objects nor objects that follow each other"
        return begin

    def _ends_record(self, mark: bytes) -> bool:
        """Count a bracket, quote or comma; whether a record ends with it."""
        if mark == b'"':
            self._string = True
        elif mark in (b"{", b"["):
            self._depth += 1
        elif mark in (b"}", b"]"):
            self._depth -= 1
            if self._depth < self._base:
                self._ended = mark == b"]" and self._depth == 0
                self.fault = "" if self._ended else "a bracket is closed that was never opened"
                return self._ended
            return self._depth == self._base == 0
        return mark == b"," and self._depth == self._base == 1

    def _finish(self, data: bytes, records: list[bytes | bytearray]) -> None:
        """The unfinished record ends with `data`."""
        self._hold(data)
        record = self._held
        if self._size > self.longest:
            record = TOO_LONG if self._size > MAX_DOCUMENT else EXPLODED
        self._held, self._size = bytearray(), 0
        if BLANK.fullmatch(record):
            if self._ended and not self._records:
                return
            record = NOTHING
        self._records += 1
        records.append(record)

    def _hold(self, data: bytes) -> None:
        """Keep part of a record, unless it is too long by now."""
        self._size += len(data)
        if self._size <= self.longest:
            self._held += data
        else:
            self._held.clear()

    def held(self) -> int:
        """Bytes of the unfinished record."""
        return self._size

    def complete(self) -> bool:
        """Whether the bytes may end here."""
        if self._base == 1:
            return self._ended
        return not self._depth and not self._string and BLANK.fullmatch(self._held) is not None
