"""Whether the fast library gives the ids of the reference: before the run (the gate) and during it (the inspector).

The reference is always right. A difference before the run makes the run use the reference; one during the run stops it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.tokenization.pieces import PIECE_CHARS
from exact_prep.tokenization.stress import stress_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exact_prep.tokenization.backends import Backend

SAMPLE_CHARS = 1 << 20
"""The gate looks at this much of the corpus."""

WINDOW_CHARS = 1 << 15
"""The inspector looks at the documents in a window of this size ..."""
STRIDE_CHARS = WINDOW_CHARS << 13
"""... and one window begins in each stride: 1 character in 8192, and the reference is loaded once in 268 million."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """What a comparison of both libraries found."""

    texts: int
    bytes: int
    """UTF-8 bytes of the texts."""
    differences: int
    """Texts whose ids differ."""
    first: str = ""
    """Where the first difference is."""


def gate(fast: Backend, reference: Backend, *, spellings: Sequence[str], sample: Sequence[str]) -> Parity:
    """Compare both libraries on the stress set and on the beginning of `sample`."""
    return compare(fast, reference, [*stress_texts(spellings), *beginning(sample)])


def beginning(sample: Sequence[str]) -> list[str]:
    """At most SAMPLE_CHARS characters, of each text at most a piece."""
    taken: list[str] = []
    room = SAMPLE_CHARS
    for text in sample:
        taken.append(text[: min(PIECE_CHARS, room)])
        room -= len(taken[-1])
        if room <= 0:
            break
    return taken


def compare(fast: Backend, reference: Backend, texts: Sequence[str]) -> Parity:
    """Encode texts with both libraries and count those whose ids differ."""
    ids, offsets = fast.encode(texts)
    right, right_offsets = reference.encode(texts)
    size = sum(len(text.encode()) for text in texts)
    if np.array_equal(offsets, right_offsets) and np.array_equal(ids, right):
        return Parity(texts=len(texts), bytes=size, differences=0)
    differing = [
        index
        for index in range(len(texts))
        if not np.array_equal(
            ids[offsets[index] : offsets[index + 1]], right[right_offsets[index] : right_offsets[index + 1]]
        )
    ]
    index = differing[0]
    return Parity(
        texts=len(texts),
        bytes=size,
        differences=len(differing),
        first=describe(
            texts[index],
            ids[offsets[index] : offsets[index + 1]],
            right[right_offsets[index] : right_offsets[index + 1]],
        ),
    )


def describe(text: str, ids: np.ndarray, right: np.ndarray) -> str:
    """One line about a text that two libraries encode differently."""
    shorter = min(ids.size, right.size)
    unequal = np.flatnonzero(ids[:shorter] != right[:shorter])
    token = int(unequal[0]) if unequal.size else shorter
    shown = ascii(text if len(text) <= 60 else text[:60] + "...")
    return f"token {token} of {shown}: {ids[token : token + 3].tolist()} for {right[token : token + 3].tolist()}"


class Inspector:
    """Compares some of what a task encodes with the reference.

    Which texts depends on the task's number and on the lengths of its texts alone, not on how they are batched.
    """

    def __init__(self, fast: Backend, load_reference: Callable[[], Backend], *, task: int) -> None:
        self.texts = 0
        self.bytes = 0
        self._fast = fast
        self._load_reference = load_reference
        self._position = 0
        seed = hashlib.sha256(f"inspect task {task}".encode()).digest()
        self._next = int.from_bytes(seed[:8]) % STRIDE_CHARS
        """Where the next window begins, in characters from the task's start."""

    def look(
        self, texts: Sequence[str], ends: np.ndarray, ids: np.ndarray, offsets: np.ndarray
    ) -> tuple[int, str] | None:
        """Take note of encoded texts, compare those in a window; the index of one that differs and a line about it.

        `ends[D]` are the texts' ends in characters, counted from the first of `texts`.
        """
        start, self._position = self._position, self._position + int(ends[-1])
        while self._next < self._position:
            first = int(np.searchsorted(ends, self._next - start, side="right"))
            last = int(np.searchsorted(ends, self._next + WINDOW_CHARS - start, side="left"))
            for index in range(first, min(last + 1, len(texts))):
                found = self._inspect(texts[index], ids[offsets[index] : offsets[index + 1]])
                if found:
                    return index, found
            if last >= len(texts):
                # The window goes on in the texts to come: what is left of it is all that is looked at there.
                break
            self._next += STRIDE_CHARS
        return None

    def _inspect(self, text: str, ids: np.ndarray) -> str | None:
        if len(text) > PIECE_CHARS:
            # A document that cannot be cut: the reference would need too long, so both encode its beginning.
            text = text[:PIECE_CHARS]
            ids, _ = self._fast.encode([text])
        right, _ = self._load_reference().encode([text])
        self.texts += 1
        self.bytes += len(text.encode())
        return None if np.array_equal(ids, right) else describe(text, ids, right)
