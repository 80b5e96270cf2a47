"""Documents that other libraries write, and what `measure` must find in them."""

from __future__ import annotations

import numpy as np

import exact_prep
from exact_prep.weighing.context import find_bucket

EOS = 0
L = 256


def draw_documents(count: int = 500, longest: int = 2000) -> list[np.ndarray]:
    choose = np.random.default_rng(5)
    lengths = np.minimum(np.exp(choose.normal(4.5, 1.2, count)).astype(int) + 2, longest)
    return [np.append(choose.integers(2, 60_000, length - 1), EOS) for length in lengths]


DOCUMENTS = draw_documents()


def by_bucket(contexts: list[int], seq_len: int = L) -> list[int]:
    """Labels per bucket; those with context 0 are left out, context L counts as L - 1."""
    counts = [0] * (find_bucket(seq_len - 1) + 1)
    for context in contexts:
        if context:
            counts[find_bucket(min(context, seq_len - 1))] += 1
    while counts and not counts[-1]:
        counts.pop()
    return counts


def measure(layout, paths, out, **options):
    return exact_prep.measure(layout, paths, out, progress=False, **options)
