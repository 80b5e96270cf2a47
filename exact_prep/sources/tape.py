"""The content of an archive as a file object that libraries read from, with the bytes of the file that it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.sources.streams import BLOCK, Damaged, whole_blocks

if TYPE_CHECKING:
    from exact_prep.sources.batching import Part


class Tape:
    """The decompressed bytes of a file, read forward. A damage is raised where the bytes before it are used up.

    With `keep`, bytes stay at hand until they are forgotten: a reader can look at what its library has passed over.
    """

    def __init__(self, part: Part, block: int | None, *, keep: bool) -> None:
        """Before the first byte; `block` bytes are read at once."""
        self.keep = keep
        self._blocks = whole_blocks(part.file, part.path, size=block or BLOCK)
        self._held = bytearray()
        self._base = self._at = 0
        """Places of the first byte that is held, and of the next that is read, in the content."""
        self._ended = False
        self._damage: Damaged | None = None
        self._consumed = 0

    def read(self, size: int = -1, /) -> bytes:
        """Between 1 and `size` bytes, as many as there are if it is negative; none at the end. Raises Damaged."""
        self._fill(self._at + 1)
        data = bytes(self._held[self._at - self._base :][: None if size < 0 else size])
        if not data:
            self.check()
        self._at += len(data)
        if not self.keep:
            self.forget(self._at)
        return data

    def tell(self) -> int:
        """Bytes of content that were read."""
        return self._at

    def look(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the content, fewer at its end; those before the last `forget` are gone."""
        self._fill(stop)
        return bytes(self._held[start - self._base : stop - self._base])

    def find_header_end(self, start: int) -> int:
        """Where the first empty line from `start` on ends; the end of the content if there is none."""
        stop = start
        while True:
            self._fill(stop := stop + BLOCK)
            data = self._held[start - self._base :]
            ends = [at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := data.find(mark)) >= 0]
            if ends:
                return start + min(ends)
            if self._ended:
                return start + len(data)

    def check(self) -> None:
        """Raise the damage at which the content ends, if there is one."""
        if self._damage is not None:
            raise self._damage

    def forget(self, before: int) -> None:
        """Release the bytes before a place that was read."""
        del self._held[: before - self._base]
        self._base = max(self._base, before)

    def take_consumed(self) -> int:
        """Bytes of the file, compressed where it is, that were read since the last call."""
        consumed, self._consumed = self._consumed, 0
        return consumed

    def _fill(self, stop: int) -> None:
        """Hold the bytes up to a place."""
        while not self._ended and self._base + len(self._held) < stop:
            try:
                block = next(self._blocks)
            except Damaged as damage:
                self._damage, self._ended = damage, True
                return
            self._consumed += block.consumed
            self._held += block.data
            self._ended = not block.data
