"""Documents as the pieces of text that are encoded: short ones whole, long ones cut. No ids here.

The pieces of a document depend on its characters alone, not on how a source fragmented it, and finding them takes time
linear in the text even where there is nothing to cut at.
"""

from __future__ import annotations

import re

PIECE_CHARS = 1 << 16
"""Characters up to which a text is encoded in one call: `tokenizers` takes 100 bytes of memory for each."""


class Cutter:
    """Collects the fragments of one document and hands out its pieces."""

    def __init__(self, cuts: re.Pattern[str] | None) -> None:
        """`cuts` matches up to a place where a text may be cut; without it every document is one piece."""
        self._cuts = (re.compile(f"(?s:.*)(?:{cuts.pattern})"), cuts) if cuts else None
        self._held: list[str] = []
        self._length = 0
        self._sought: re.Pattern[str] | None = None
        """What to look for in the next fragment: set while more than a piece is held and there is no cut in it."""

    def take(self, fragment: str, *, last: bool) -> list[str]:
        """The pieces that are settled once `fragment` has come; none is empty. What is `last` settles everything."""
        pieces: list[str] = []
        if self._sought:
            fragment = self._seek(self._sought, fragment, pieces)
        self._hold(fragment)
        if self._length > PIECE_CHARS and self._cuts and not self._sought:
            self._cut(*self._cuts, "".join(self._held), pieces)
        if last:
            if self._length:
                pieces.append("".join(self._held))
            self._release("")
        return pieces

    def _cut(self, within: re.Pattern[str], after: re.Pattern[str], text: str, pieces: list[str]) -> None:
        """Cut `text` at the last place within each PIECE_CHARS, or at the first one after them; hold the rest."""
        start = 0
        while len(text) - start > PIECE_CHARS:
            # One character more is seen, never taken: cuts are places before a character.
            stop = start + PIECE_CHARS
            found = within.match(text, start, stop + 1) or after.search(text, stop)
            if found is None:
                break
            pieces.append(text[start : found.end()])
            start = found.end()
        self._release(text[start:])
        self._sought = after if self._length > PIECE_CHARS else None

    def _seek(self, cuts: re.Pattern[str], fragment: str, pieces: list[str]) -> str:
        """Look for a cut in `fragment` and at its seam alone; returns the part of it that is left to be held."""
        found = cuts.search(self._held[-1][-1] + fragment)
        if found is None:
            return fragment
        self._hold(fragment[: found.end() - 1])
        pieces.append("".join(self._held))
        self._release("")
        return fragment[found.end() - 1 :]

    def _hold(self, text: str) -> None:
        if text:
            self._held.append(text)
            self._length += len(text)

    def _release(self, rest: str) -> None:
        self._held, self._length, self._sought = [], 0, None
        self._hold(rest)
