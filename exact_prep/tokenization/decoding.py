"""Ids back to text, by the reference library. A token may hold part of a character, so text is cut between characters.

For people to look at, so of one row at a time; nothing that is packed depends on it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from exact_prep.errors import TokenizerError
from exact_prep.tokenization.files import digest, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STARTS = ("Metaspace", "Strip", "WordPiece")
"""Decoders that treat the first token of a text as the start of a document, and drop the space before it."""


class Decoder:
    """Turns the ids of a segment into text."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Load the tokenizer.json at `path`; raises TokenizerError if its hash is not `sha256`."""
        from tokenizers import Tokenizer

        data = read(path)
        if digest(data) != sha256:
            raise TokenizerError(f"{path} was changed after the dataset was packed; restore it, or pack again")
        text = data.decode()
        try:
            self._tokenizer: Any = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path} cannot be loaded: {error}; restore it, or pack again") from error
        decoder = json.dumps(json.loads(text).get("decoder"))
        self._has_starts = any(f'"{name}"' in decoder for name in STARTS)

    def name(self, token: int) -> str:
        """The text of one token as the vocabulary spells it; empty if it has none."""
        return self._tokenizer.id_to_token(token) or ""

    def decode(self, ids: Sequence[int], *, begins: bool = True) -> str:
        """The text of some ids, special tokens included.

        Bytes that are no whole character become U+FFFD. `begins`: whether a document begins with them.
        """
        if begins or not self._has_starts or not ids:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        # After a copy of its first token, that token stands where no document begins.
        head = self._tokenizer.decode(ids[:1], skip_special_tokens=False)
        return self._tokenizer.decode([ids[0], *ids], skip_special_tokens=False).removeprefix(head)

    def decode_all(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many segments, on all cores; as `decode` has them, but for a space before each."""
        return self._tokenizer.decode_batch(texts, skip_special_tokens=False)

    def split(self, ids: Sequence[int], edges: Sequence[int], *, begins: bool = True) -> list[str]:
        """The text of `ids` in pieces that join to `decode(ids)`; piece i holds the tokens edges[i] to edges[i + 1].

        A character whose bytes lie in several pieces is in the last of them.
        """
        whole = self.decode(ids, begins=begins)
        cuts, start, at = [0], 0, 0
        for edge in edges[1:-1]:
            # Token `start` begins the character at `at`: what comes before is not decoded again.
            text = self.decode(ids[start:edge], begins=begins and not start)
            common = count_common(whole, at, text)
            cuts.append(max(cuts[-1], at + common))
            if common == len(text) and not text.endswith("\ufffd"):
                start, at = edge, at + common
        return [whole[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(whole)], strict=True)]


def count_common(whole: str, at: int, text: str) -> int:
    """How many characters of `text` stand in `whole` from `at` on."""
    for cut in range(len(text), max(len(text) - 4, -1), -1):
        # Bytes of a character that is not whole yet are at most three U+FFFD at the end.
        if whole.startswith(text[:cut], at):
            return cut
    pairs = enumerate(zip(whole[at:], text, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(whole) - at, len(text)))
