"""A RULER-style suite for models that read text, generated offline. Definitions: Hsieh et al. 2024, arXiv 2404.06654.

    niah_single     one needle in repeated noise
    niah_multikey   the haystack consists of needles, the question asks for one
    vt              variable tracking: which variables have a value, through a chain of four assignments
    cwe             common words: ten words occur 30 times each, the others 3 times
    fwe             frequent words: coded words with a Zeta(2) distribution; the question asks for the top three

Each item is as long as fits into `length` tokens together with its answer. There are two scores: `match`, the share of
answers in the text that the model generates (ignoring case), and `logp`, the log-probability of the answer. A small
model improves `logp` long before it generates the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from exact_prep.validation.decoder import cross_entropy
from exact_prep.validation.generation import continue_greedily
from exact_prep.validation.items import Items, make_items

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic numbers for {key} is: {value}."
SYLLABLES = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu"]


class Codec(Protocol):
    """The part of a tokenizer that the suite needs."""

    def encode(self, text: str) -> list[int]:
        """Ids without special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True)
class Item:
    """One question with its answers."""

    prompt: str
    answers: tuple[str, ...]


class Maker(Protocol):
    """Makes an item whose length grows with `size` >= 1, without limit."""

    def __call__(self, rng: np.random.Generator, size: int, /) -> Item:
        """The same random state and size give the same item."""
        ...


def draw_words(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different words of three syllables, or of more if `count` is large."""
    syllables = 3
    while len(SYLLABLES) ** syllables < 3 * count:
        syllables += 1
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(SYLLABLES, syllables))] = None
    return list(found)


def draw_number(rng: np.random.Generator) -> str:
    """A number of seven digits."""
    return str(rng.integers(10**6, 10**7))


def niah_single(rng: np.random.Generator, size: int) -> Item:
    """One needle among `size` sentences of noise."""
    key, value = draw_words(rng, 1)[0], draw_number(rng)
    hay = [NOISE] * size
    hay.insert(int(rng.integers(size + 1)), NEEDLE.format(key=key, value=value))
    ask = f"What is the special magic number for {key} mentioned in the provided text?"
    return Item(
        " ".join(hay) + f"\n{ask} The special magic number for {key} mentioned in the provided text is", (value,)
    )


def niah_multikey(rng: np.random.Generator, size: int) -> Item:
    """`size` + 1 needles; the question asks for one of them."""
    keys, values = draw_words(rng, size + 1), [draw_number(rng) for _ in range(size + 1)]
    asked = int(rng.integers(size + 1))
    hay = [NEEDLE.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    key = keys[asked]
    ask = f"What is the special magic number for {key} mentioned in the provided text?"
    text = " ".join(hay) + f"\n{ask} The special magic number for {key} mentioned in the provided text is"
    return Item(text, (values[asked],))


def vt(rng: np.random.Generator, size: int) -> Item:
    """A chain of five variables, scattered in `size` sentences of noise."""
    names, value = [word.upper() for word in draw_words(rng, 5)], str(rng.integers(10**4, 10**5))
    lines = [f"VAR {names[0]} = {value}"] + [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
    hay = [NOISE] * size
    for place, line in zip(sorted(rng.integers(0, size + 1, len(lines)))[::-1], lines[::-1], strict=True):
        hay.insert(int(place), line)
    ask = f"Find all variables that are assigned the value {value} in the text above."
    text = "\n".join(hay) + f"\n{ask} Answer: according to the chain of variable assignment, they are:"
    return Item(text, tuple(names))


def cwe(rng: np.random.Generator, size: int) -> Item:
    """Ten words that occur 30 times each, among `size` words that occur 3 times each."""
    every = draw_words(rng, size + 10)
    listed = every[:10] * 30 + every[10:] * 3
    rng.shuffle(listed)
    text = " ".join(f"{place}. {word}" for place, word in enumerate(listed, 1))
    return Item(f"{text}\nThe top 10 words that appear most often in the list are:", tuple(every[:10]))


def fwe(rng: np.random.Generator, size: int) -> Item:
    """Coded words; the k-th most frequent occurs `size` / k^2 times. The question asks for the top three."""
    every = draw_words(rng, 50)
    listed = [word for rank, word in enumerate(every, 1) for _ in range(max(round(size / rank**2), 1))]
    rng.shuffle(listed)
    ask = "The three most frequently appeared words in the above coded text are:"
    return Item(" ".join(listed) + f"\n{ask}", tuple(every[:3]))


MAKERS: dict[str, Maker] = {
    "niah_single": niah_single,
    "niah_multikey": niah_multikey,
    "vt": vt,
    "cwe": cwe,
    "fwe": fwe,
}


def fit_item(make: Maker, length: int, seed: tuple[int, ...], codec: Codec) -> Item | None:
    """The largest item that fits into `length` tokens with its answers; None if even the smallest does not fit."""

    def item(size: int) -> Item:
        return make(np.random.default_rng(seed), size)

    def fits(size: int) -> bool:
        made = item(size)
        return len(codec.encode(f"{made.prompt} {' '.join(made.answers)}")) <= length

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return item(low)


@torch.no_grad()
def run_suite(
    model: nn.Module,
    codec: Codec,
    lengths: tuple[int, ...],
    items: int,
    seed: int,
    device: str = "cpu",
    makers: dict[str, Maker] = MAKERS,
    answered: Callable[[int], None] = lambda length: None,
) -> dict[str, Items]:
    """`match` and `logp` (per answer token) of every task, at every length into which its smallest item fits.

    `answered` is called with the length after each item.
    """
    measures: dict[str, Items] = {}
    model.eval()
    for length in lengths:
        for place, (task, make) in enumerate(makers.items()):
            scores = []
            for number in range(items):
                item = fit_item(make, length, (seed, place, number), codec)
                if item is not None:
                    scores.append(score(model, codec, item, device))
                answered(length)
            if scores:
                match, logp = np.transpose(scores)
                measures[f"match {task}@{length}"] = make_items(match)
                measures[f"logp {task}@{length}"] = make_items(logp)
    return measures


def score(model: nn.Module, codec: Codec, item: Item, device: str) -> tuple[float, float]:
    """The share of answers in the greedily generated text, and the mean log-probability of the answers' tokens."""
    prompt, answer = codec.encode(item.prompt), codec.encode(" " + " ".join(item.answers))
    ids = torch.tensor(prompt + answer, device=device)
    places = torch.arange(len(prompt), ids.numel(), device=device)
    logp = -cross_entropy(model, ids, torch.tensor([0, ids.numel()], device=device), places).mean()
    said = islice(continue_greedily(model, ids[: len(prompt)]), len(answer) + 4)
    text = codec.decode(list(said)).lower()
    return sum(answer.lower() in text for answer in item.answers) / len(item.answers), float(logp)
