"""Rows of several datasets that were weighed as one mixture, interleaved at its rates. Nothing is copied.

mixture = exact_prep.open(["books", "code"], seed=1)
mixture[7].input_ids            a row of one of them
mixture.parts[0].weight_per_row
"""

from __future__ import annotations

import warnings
from operator import index as as_index
from typing import TYPE_CHECKING, overload

import numpy as np

from exact_prep.errors import DatasetError, UsageError
from exact_prep.reader.lookup import LoadedWeights
from exact_prep.shuffle import permutation
from exact_prep.weighing.files import identify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.reader.rows import PackedDataset, Row
    from exact_prep.records.weights import WeightsFile


class MixedDataset:
    """Rows of several packed datasets in one order. Open it with `exact_prep.open([DIR, DIR, ...])`.

    `len`, indexing and iteration give rows; slices, `select`, `shuffle` and `shard` give a mixture over the same files,
    as they do for one dataset.
    """

    def __init__(
        self, parts: Sequence[PackedDataset], rates: Sequence[float], chosen: np.ndarray, places: np.ndarray
    ) -> None:
        """Use `exact_prep.open`. Row i is row `places[i]` (int64[R]) of `parts[chosen[i]]` (int64[R])."""
        self.parts = tuple(parts)
        """The datasets, whole; each has its own `weight_per_row`."""
        self.rates = tuple(rates)
        """Share of the rows that come from each dataset; their sum is 1."""
        self._chosen, self._places = chosen, places

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.parts[0].seq_len

    @property
    def loaded_weights(self) -> LoadedWeights | None:
        """The table that all parts share, or None with plain weights."""
        loaded = self.parts[0].loaded_weights
        return loaded and LoadedWeights(loaded.file)

    @property
    def origins(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each row comes from: its dataset (int64[R], place in `parts`), and its number there (int64[R])."""
        return self._chosen, self._places

    @property
    def weight_per_row(self) -> float:
        """Mean sum of weights of a row over the mixture; with plain weights, mean number of supervised targets.

        A constant denominator, as `PackedDataset.weight_per_row` is.
        """
        return sum(rate * part.weight_per_row for rate, part in zip(self.rates, self.parts, strict=True))

    def __len__(self) -> int:
        return self._chosen.size

    def __repr__(self) -> str:
        names = ", ".join(f"{part.path} ({rate:.1%})" for part, rate in zip(self.parts, self.rates, strict=True))
        return f"<MixedDataset of {names}: {len(self)} rows of {self.seq_len} tokens>"

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> MixedDataset: ...
    def __getitem__(self, index: int | slice) -> Row | MixedDataset:
        """The row at `index`, or a mixture over a slice of the rows; IndexError beyond the end."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        index = as_index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {self!r}")
        return self.parts[int(self._chosen[index])][int(self._places[index])]

    def select(self, rows: Sequence[int] | np.ndarray) -> MixedDataset:
        """The rows at these places, in this order; a place may come more than once. Takes a mask too."""
        places = np.asarray(rows)
        places = places if places.size else places.astype(np.int64)
        return MixedDataset(self.parts, self.rates, self._chosen[places], self._places[places])

    def shuffle(self, seed: int, epoch: int = 0) -> MixedDataset:
        """The rows in an order that depends on (seed, epoch) alone; raises UsageError for a negative seed or epoch."""
        if seed < 0 or epoch < 0:
            raise UsageError(f"seed is {seed}, epoch {epoch}; both count from 0")
        return self.select(permutation(len(self), seed, epoch))

    def shard(self, rank: int, world_size: int) -> MixedDataset:
        """Every `world_size`-th row, from row `rank` on: ranks share the rows without overlap or loss."""
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1")
        return self[rank::world_size]


def mix_datasets(parts: Sequence[PackedDataset], *, seed: int, rows: int | None) -> MixedDataset:
    """The rows of `parts`, whole datasets, interleaved at the rates of their common table.

    Until the first dataset has been served once, or `rows` rows, for which datasets repeat: a warning says how often.
    Raises DatasetError unless all parts hold the table of one mixture, of exactly these datasets; UsageError.
    """
    if seed < 0 or (rows is not None and rows < 1):
        raise UsageError(f"seed is {seed}, rows {rows}; a seed is at least 0, rows at least 1")
    rates = find_rates(parts)
    sizes = np.array([len(part) for part in parts])
    if rows is None:
        counts = np.minimum(apportion(int((sizes / rates).min() * (1 + 1e-12)), rates), sizes)
    else:
        counts = apportion(rows, rates)
        warn_of_repeats(parts, counts / sizes)
    chosen = np.repeat(np.arange(len(parts)), counts)
    places = np.concatenate(
        [
            order_rows(int(size), int(count), seed, part)
            for part, (size, count) in enumerate(zip(sizes, counts, strict=True))
        ]
    )
    order = permutation(int(counts.sum()), seed, 0)
    return MixedDataset(parts, rates.tolist(), chosen[order], places[order])


def apportion(rows: int, rates: np.ndarray) -> np.ndarray:
    """How many of `rows` rows come from each dataset, int64[D]: the rates, by largest remainder."""
    exact = rows * rates
    counts = np.floor(exact).astype(np.int64)
    left = max(rows - int(counts.sum()), 0)
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def order_rows(size: int, count: int, seed: int, part: int) -> np.ndarray:
    """`count` rows of a dataset of `size` rows, int64[count]: one permutation after the other."""
    passes = -(-count // size)
    return np.concatenate([permutation(size, seed, part + 1, epoch) for epoch in range(max(passes, 1))])[:count]


def find_rates(parts: Sequence[PackedDataset]) -> np.ndarray:
    """The share of rows of each dataset, float64[D]; raises DatasetError if they are not the datasets of one table."""
    names = [str(part.path) for part in parts]
    together = f"weigh them together: `exact-prep weigh {' '.join(names)}`"
    lengths = {part.seq_len for part in parts}
    if len(lengths) > 1:
        raise DatasetError(f"{', '.join(names)} have rows of {sorted(lengths)} tokens; mix datasets of one row length")
    files = [load_file(part) for part in parts]
    if any(identify(file) != identify(files[0]) for file in files):
        if parts[0].loaded_weights is None:
            raise DatasetError(f"{', '.join(names)} do not say at which rates they are read; {together}")
        raise DatasetError(f"{', '.join(names)} hold different tables of weights; {together}")
    known = {dataset.id: dataset.rate for dataset in files[0].datasets}
    given = [part.manifest.tree_hash for part in parts]
    if len(set(given)) < len(given):
        raise DatasetError(f"{', '.join(names)}: one of them comes twice; name each once")
    if missing := known.keys() - set(given):
        raise DatasetError(
            f"{', '.join(names)} were weighed in a mixture with {len(missing)} more (tree hash "
            f"{', '.join(sorted(missing))}); open all of them, or {together}"
        )
    if strange := [part for part in parts if part.manifest.tree_hash not in known]:
        raise DatasetError(f"{strange[0].path} is not in the mixture that the table was made for; {together}")
    rates = np.array([known[id_] for id_ in given])
    return rates / rates.sum()


def load_file(part: PackedDataset) -> WeightsFile:
    """The table that says at which rate a dataset is read; raises DatasetError."""
    return part.loaded_weights.file if part.loaded_weights else part.files.weights()


def warn_of_repeats(parts: Sequence[PackedDataset], passes: np.ndarray) -> None:
    """Warn of datasets that are read more than once."""
    repeated = [f"{part.path} {count:.2f} times" for part, count in zip(parts, passes, strict=True) if count > 1]
    if repeated:
        warnings.warn(f"rows repeat: {', '.join(repeated)}", UserWarning, stacklevel=4)
