"""Synthetic key-value recall: long documents in which the first mention of a key sets its value.

A document is filler (a Markov chain) with scattered (key, value) pairs. Half of the pairs repeat a key of the same
document, so the distance to the evidence varies. Document lengths are log-normal; documents are cut at row edges.

    0         start of a document
    1-32      filler
    33-224    keys
    225-256   values
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.validation.training_batches import Batch, make_batch
from exact_prep.weighing.exposure import Exposure, measure_lengths

if TYPE_CHECKING:
    from collections.abc import Iterator

START, FILLER, KEYS, VALUES = 0, 1, 33, 225
FILLERS, KEY_COUNT, VALUE_COUNT = 32, 192, 32
VOCABULARY = 257

MEDIAN_LENGTH, SIGMA = 110, 1.25
PAIR_EVERY = 4
"""On average, a pair begins once in this many tokens."""


@dataclass
class RecallTargets:
    """The targets of a document that test recall."""

    positions: list[int] = field(default_factory=list)
    """Positions of targets that are the value of a key seen before."""
    distances: list[int] = field(default_factory=list)
    """The distance back to the last mention of that key, in tokens."""


def make_chain(seed: int = 7) -> list[bytes]:
    """The filler's Markov chain: the next symbol by symbol and random byte. Each symbol has four likely followers."""
    rng = np.random.default_rng(seed)
    weights = np.full((FILLERS, FILLERS), 0.02)
    for row in weights:
        row[rng.choice(FILLERS, 4, replace=False)] += rng.dirichlet(np.ones(4))
    upto = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)
    return [np.searchsorted(row, (np.arange(256) + 0.5) / 256).astype(np.uint8).tobytes() for row in upto]


CHAIN = make_chain()


def draw_filler(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` tokens of filler, int32."""
    state = int(rng.integers(FILLERS))
    symbols = bytearray(count)
    for place, draw in enumerate(rng.bytes(count)):
        state = CHAIN[state][draw]
        symbols[place] = state
    return np.frombuffer(symbols, np.uint8).astype(np.int32) + FILLER


def make_document(rng: np.random.Generator, length: int) -> tuple[np.ndarray, RecallTargets]:
    """A document of `length` >= 1 tokens, int32, and its targets that test recall. About 1 us per token."""
    tokens = np.concatenate([[START], draw_filler(rng, length - 1)]).astype(np.int32)
    gaps = rng.integers(2, 2 * PAIR_EVERY - 1, length // 2 + 1)
    gaps[0] = rng.integers(2, 1 + 2 * PAIR_EVERY)
    places = gaps.cumsum() - 1
    places = places[places + 1 < length]
    keys = draw_keys(rng, places.size)
    values = rng.integers(VALUE_COUNT, size=KEY_COUNT)
    tokens[places], tokens[places + 1] = KEYS + keys, VALUES + values[keys]
    by_key = np.argsort(keys, kind="stable")  # groups the mentions of each key, in their order
    same = keys[by_key[1:]] == keys[by_key[:-1]]
    again, last = places[by_key[1:][same]], places[by_key[:-1][same]]
    by_position = np.argsort(again)
    return tokens, RecallTargets(
        positions=(again + 1)[by_position].tolist(), distances=(again - last)[by_position].tolist()
    )


def draw_keys(rng: np.random.Generator, count: int) -> np.ndarray:
    """Keys of `count` pairs, int64[count]: half repeat a random earlier key of the document, the rest are any keys."""
    again, which = (rng.random(count) < 0.5).tolist(), rng.random(count).tolist()
    fresh = rng.integers(KEY_COUNT, size=count).tolist()
    seen: dict[int, None] = {}
    order, keys = [], []
    for repeat, place, new in zip(again, which, fresh, strict=True):
        key = order[int(place * len(order))] if repeat and order else new
        if key not in seen:
            seen[key] = None
            order.append(key)
        keys.append(key)
    return np.array(keys, np.int64)


@dataclass
class SyntheticStream:
    """Rows of `seq_len` tokens from one endless stream of documents, cut at row edges as `concat` packing does."""

    seq_len: int
    rows_per_step: int
    steps: int
    """Steps of a run of normal length. Exposure is measured on the batches of such a run."""
    seed: int
    vocab_size: int = VOCABULARY
    made: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Rows made so far, with their segments."""

    @cached_property
    def source(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Makes the rows, one after the other."""
        rng = np.random.default_rng([self.seed, self.seq_len])
        row, lengths = [], []
        room = self.seq_len
        while True:
            tokens, _ = make_document(rng, max(int(rng.lognormal(np.log(MEDIAN_LENGTH), SIGMA)), 2))
            while tokens.size:
                part, tokens = tokens[:room], tokens[room:]
                row.append(part)
                lengths.append(part.size)
                room -= part.size
                if room == 0:
                    yield np.concatenate(row), np.array(lengths, np.int32)
                    row, lengths, room = [], [], self.seq_len

    def take(self, first: int, stop: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows from `first` to `stop`, made if they are not."""
        self.made.extend(islice(self.source, max(stop - len(self.made), 0)))
        return self.made[first:stop]

    @property
    def exposure(self) -> Exposure:
        """The exposure of the batches of a run of normal length, or of one step."""
        rows = self.take(0, max(self.steps, 1) * self.rows_per_step)
        return measure_lengths(np.concatenate([lengths for _, lengths in rows]))

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on; they never end."""
        return map(self.batch, count(first))

    def count_distinct(self, rows: int) -> int:
        """How many different rows are among the first `rows`: all."""
        return rows

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return make_batch(self.take(step * self.rows_per_step, (step + 1) * self.rows_per_step))
