"""Permutations that depend on a key alone: the same on any machine and with any NumPy."""

from __future__ import annotations

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of `size` things that depends on the key alone, on any machine and with any NumPy.

    Things are sorted by a hash of (key, number): splitmix64 (Steele, Lea, Flood 2014), which NumPy's own generators,
    free to change their streams, do not promise.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = mix(state ^ np.uint64(word))
    return np.argsort(mix(state + np.arange(size, dtype=np.uint64)), kind="stable")


def mix(words: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser of uint64 words, wrapping."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
