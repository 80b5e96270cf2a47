"""Splits documents into the pieces of text that are encoded: a short document is one piece, a long one is cut. No ids.

The pieces of a document depend only on its characters, not on the fragments in which a source delivered it. Finding
them takes time linear in the text, even if there is no place to cut.
"""

from __future__ import annotations

import re

PIECE_CHARS = 1 << 16
"""The most characters to encode in one call, if a cut is possible: `tokenizers` takes 100 bytes of memory for each."""


class Splitter:
    """Takes the fragments of one document after another and returns the document's pieces."""

    def __init__(self, cuts: re.Pattern[str] | None) -> None:
        """Matches of `cuts` end where a text may be cut; without `cuts` every document is one piece."""
        self._cuts = (re.compile(f"(?s:.*)(?:{cuts.pattern})"), cuts) if cuts else None
        self._held: list[str] = []
        self._length = 0
        self._sought: re.Pattern[str] | None = None
        """What to search for in the next fragment: set while more than a piece is held and no cut was found in it."""

    def split(self, fragment: str, *, last: bool) -> list[str]:
        """The pieces that are complete after `fragment`; none is empty. With `last` the document ends here."""
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
        """Cut `text` at the last possible place within each PIECE_CHARS, else at the first one after; hold the rest."""
        start = 0
        while len(text) - start > PIECE_CHARS:
            # Match with one more character, because a cut depends on the character after it.
            stop = start + PIECE_CHARS
            found = within.match(text, start, stop + 1) or after.search(text, stop)
            if found is None:
                break
            pieces.append(text[start : found.end()])
            start = found.end()
        self._release(text[start:])
        self._sought = after if self._length > PIECE_CHARS else None

    def _seek(self, cuts: re.Pattern[str], fragment: str, pieces: list[str]) -> str:
        """Search for a cut in `fragment` and where it joins the held text; returns the part of it still to be held."""
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
