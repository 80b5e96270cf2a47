"""Synthetic key-value recall: long documents in which the value of a key is settled by its first mention.

A document is filler (a Markov chain) with (key, value) pairs strewn in. Half of the pairs repeat a key of the same
document, so how far back the evidence lies varies naturally. Lengths are log-normal; windows cut at row edges.

    0         start of a document
    1-32      filler
    33-224    keys
    225-256   values
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from exact_prep.exposure import Exposure, measure
from exact_prep.validation.batches import Batch, batch_of

START, FILLER, KEYS, VALUES = 0, 1, 33, 225
FILLERS, KEY_COUNT, VALUE_COUNT = 32, 192, 32
VOCABULARY = 257

MEDIAN_LENGTH, SIGMA = 110, 1.25
PAIR_EVERY = 4
"""A pair begins about once in so many tokens."""


@dataclass
class Facts:
    """Where a document can be asked."""

    positions: list[int] = field(default_factory=list)
    """Targets that are the value of a key seen before."""
    distances: list[int] = field(default_factory=list)
    """How far back the last mention of that key lies."""


def chain(seed: int = 7) -> np.ndarray:
    """The filler's Markov chain, cumulative rows [32, 32]; each symbol has four likely followers."""
    rng = np.random.default_rng(seed)
    weights = np.full((FILLERS, FILLERS), 0.02)
    for row in weights:
        row[rng.choice(FILLERS, 4, replace=False)] += rng.dirichlet(np.ones(4))
    return np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)


CHAIN = chain()


def filler(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` symbols of noise, int32."""
    symbols = np.empty(count, np.int32)
    state = int(rng.integers(FILLERS))
    for place, draw in enumerate(rng.random(count)):
        state = min(int(np.searchsorted(CHAIN[state], draw)), FILLERS - 1)
        symbols[place] = FILLER + state
    return symbols


def document(rng: np.random.Generator, length: int) -> tuple[np.ndarray, Facts]:
    """A document of `length` tokens, int32, and where it can be asked."""
    tokens = np.concatenate([[START], filler(rng, max(length - 1, 0))]).astype(np.int32)[:length]
    facts, seen, values = Facts(), {}, {}
    place = 1 + int(rng.integers(1, 2 * PAIR_EVERY))
    while place + 1 < length:
        if seen and rng.random() < 0.5:
            key = list(seen)[int(rng.integers(len(seen)))]
            facts.positions.append(place + 1)
            facts.distances.append(place - seen[key])
        else:
            key = int(rng.integers(KEY_COUNT))
            if key in seen:
                facts.positions.append(place + 1)
                facts.distances.append(place - seen[key])
        value = values.setdefault(key, int(rng.integers(VALUE_COUNT)))
        tokens[place], tokens[place + 1] = KEYS + key, VALUES + value
        seen[key] = place
        place += 2 + int(rng.integers(0, 2 * PAIR_EVERY - 3))
    return tokens, facts


@dataclass
class SyntheticStream:
    """Rows of `seq_len` from one endless stream of documents, cut at row edges as `concat` cuts them."""

    seq_len: int
    rows_per_step: int
    steps: int
    """Of a normal run: its batches are the corpus that exposure is measured on."""
    seed: int
    vocab_size: int = VOCABULARY

    @cached_property
    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """All rows that any arm needs: 5 % more than a normal run."""
        rng = np.random.default_rng([self.seed, self.seq_len])
        needed = -(-self.steps * 21 // 20) * self.rows_per_step
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        row, lengths = [], []
        room = self.seq_len
        while len(rows) < needed:
            tokens, _ = document(rng, max(int(rng.lognormal(np.log(MEDIAN_LENGTH), SIGMA)), 2))
            while tokens.size:
                part, tokens = tokens[:room], tokens[room:]
                row.append(part)
                lengths.append(part.size)
                room -= part.size
                if room == 0:
                    rows.append((np.concatenate(row), np.array(lengths, np.int32)))
                    row, lengths, room = [], [], self.seq_len
        return rows[:needed]

    @cached_property
    def exposure(self) -> Exposure:
        """Of the batches of a normal run."""
        rows = self.rows[: self.steps * self.rows_per_step]
        return measure(np.concatenate([lengths for _, lengths in rows]))

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return batch_of(self.rows[step * self.rows_per_step : (step + 1) * self.rows_per_step])
