"""NoLiMa's needles as items of the text suite, read from the user's own copy (its licence is non-commercial).

Modarressi et al. 2025, "NoLiMa: Long-Context Evaluation Beyond Literal Matching", arXiv 2502.05167. The question shares
no words with the needle, so a model must find it by association. The directory contains `needle_set.json` and, at any
depth, the haystacks (`*.txt`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from exact_prep.errors import UsageError
from exact_prep.stores.local import read_bytes
from exact_prep.validation.ruler import Item

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from exact_prep.validation.ruler import Maker

WORDS = 20
"""Words of haystack per unit of an item's size."""


@dataclass(frozen=True)
class Needle:
    """A needle of one test. All placeholders are filled, except that of the character's name."""

    template: str
    """Prompt, with {haystack} and {question}."""
    needle: str
    """With {CHAR}."""
    question: str
    characters: tuple[str, ...]


def load_makers(directory: Path) -> dict[str, Maker]:
    """One item maker per kind of question, `nolima_onehop` and `nolima_twohop`; raises UsageError, StorageError."""
    path = directory / "needle_set.json"
    if not path.is_file():
        raise UsageError(f"{directory} has no needle_set.json; give --nolima a copy of NoLiMa's needles and haystacks")
    books = [read_bytes(book).decode().split() for book in sorted(directory.rglob("*.txt"))]
    if not any(books):
        raise UsageError(f"{directory} has no haystacks (*.txt files with words); give --nolima a copy that has them")
    try:
        kinds = needles_by_kind(json.loads(read_bytes(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a NoLiMa needle set ({type(error).__name__}: {error})") from None
    books = [book for book in books if book]
    return {f"nolima_{kind}": partial(make_item, needles, books) for kind, needles in kinds.items()}


def needles_by_kind(needle_set: list[dict[str, Any]]) -> dict[str, list[Needle]]:
    """The needles of all tests of a needle set, by kind of question."""
    kinds: dict[str, list[Needle]] = {}
    for entry in needle_set:
        for test in entry["tests"].values():
            for kind, question in entry["questions"].items():
                texts = [entry["needle"], question]
                for place, argument in enumerate(test["input_args"], 1):
                    texts = [text.replace(f"{{{place}}}", argument) for text in texts]
                found = Needle(entry["task_template"], *texts, characters=tuple(entry["character_set"]))
                kinds.setdefault(kind, []).append(found)
    return kinds


def make_item(needles: list[Needle], books: list[list[str]], rng: np.random.Generator, size: int, /) -> Item:
    """A needle at a random depth in `size` * WORDS words of a book; after its end, the book starts again."""
    needle = needles[int(rng.integers(len(needles)))]
    character = needle.characters[int(rng.integers(len(needle.characters)))]
    book = books[int(rng.integers(len(books)))]
    start, depth = int(rng.integers(len(book))), rng.random()
    hay = [book[(start + place) % len(book)] for place in range(WORDS * size)]
    hay.insert(int(depth * (len(hay) + 1)), needle.needle.replace("{CHAR}", character))
    prompt = needle.template.replace("{haystack}", " ".join(hay)).replace("{question}", needle.question)
    return Item(f"{prompt}\nAnswer:", (character,))
