"""A measure with its items (held-out rows, documents, questions), so that their noise is inside the intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class Items:
    """A mean over targets, by item."""

    sums: np.ndarray
    """Sum of the values of each item's targets, float64[I]."""
    counts: np.ndarray
    """Number of these targets, float64[I]; may be 0."""

    @property
    def mean(self) -> float:
        """The measure: mean over all targets."""
        return float(self.sums.sum() / self.counts.sum())


def make_items(values: Sequence[float] | np.ndarray) -> Items:
    """Items of one target each."""
    return Items(np.asarray(values, np.float64), np.ones(len(values)))


def group_items(values: Sequence[Sequence[float]]) -> Items:
    """Items of several targets each, from the values of their targets."""
    return Items(np.array([sum(own) for own in values], np.float64), np.array([len(own) for own in values], np.float64))


def take_means(found: dict[str, Items]) -> dict[str, float]:
    """The means of measures."""
    return {name: items.mean for name, items in found.items()}
