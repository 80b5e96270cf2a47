"""Checks that the fast library gives the reference's ids: before the run (`gate`) and during it (`Inspector`).

The reference is right by definition. A difference before the run makes the run use the reference. A difference during
the run stops it.
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
"""The gate compares at most this much of the corpus."""

WINDOW_CHARS = 1 << 15
"""The inspector compares the documents in a window of this size ..."""
STRIDE_CHARS = WINDOW_CHARS << 13
"""... and there is one window per stride. So it compares 1 character in 8192, and a task loads the reference only if
it reaches its first window (once in 268 million characters)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The result of comparing both libraries."""

    texts: int
    bytes: int
    """UTF-8 bytes of the texts."""
    differences: int
    """Texts whose ids differ."""
    first: str = ""
    """Describes the first difference."""


def gate(fast: Backend, reference: Backend, *, spellings: Sequence[str], sample: Sequence[str]) -> Parity:
    """Compare both libraries on the stress set and on the beginning of `sample`."""
    return compare(fast, reference, [*stress_texts(spellings), *take_beginning(sample)])


def take_beginning(sample: Sequence[str]) -> list[str]:
    """The first SAMPLE_CHARS characters of the sample, at most PIECE_CHARS of each text."""
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
    """Describe, in one line, how two libraries encode a text differently."""
    shorter = min(ids.size, right.size)
    unequal = np.flatnonzero(ids[:shorter] != right[:shorter])
    token = int(unequal[0]) if unequal.size else shorter
    shown = ascii(text if len(text) <= 60 else text[:60] + "...")
    return f"token {token} of {shown}: {ids[token : token + 3].tolist()} for {right[token : token + 3].tolist()}"


class Inspector:
    """Compares some of the texts that a task encodes with the reference.

    The choice of texts depends only on the task's number and on the lengths of its texts, not on how they are batched.
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

    def inspect(
        self, texts: Sequence[str], ends: np.ndarray, ids: np.ndarray, offsets: np.ndarray
    ) -> tuple[int, str] | None:
        """Compare those of the encoded texts that lie in a window.

        Returns the index of a text that differs and a line that describes it; None if all agree. `ends[D]` are the
        texts' ends in characters, counted from the start of `texts[0]`.
        """
        start, self._position = self._position, self._position + int(ends[-1])
        while self._next < self._position:
            first = int(np.searchsorted(ends, self._next - start, side="right"))
            last = int(np.searchsorted(ends, self._next + WINDOW_CHARS - start, side="left"))
            for index in range(first, min(last + 1, len(texts))):
                found = self._compare(texts[index], ids[offsets[index] : offsets[index + 1]])
                if found:
                    return index, found
            if last >= len(texts):
                # The window extends into the texts of the next call, which compares the rest of it.
                break
            self._next += STRIDE_CHARS
        return None

    def _compare(self, text: str, ids: np.ndarray) -> str | None:
        if len(text) > PIECE_CHARS:
            # A document that cannot be cut. The reference would take too long, so both encode only its beginning.
            text = text[:PIECE_CHARS]
            ids, _ = self._fast.encode([text])
        right, _ = self._load_reference().encode([text])
        self.texts += 1
        self.bytes += len(text.encode())
        return None if np.array_equal(ids, right) else describe(text, ids, right)
