"""weights.json as a trainer uses it: the table, a lookup by position, and weights for rows packed on the fly.

A token's weight depends on its effective left context alone, so `lut[position_ids]` gives what the shards hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import MANIFEST, WEIGHTS, is_named, load_weights_file, open_any
from exact_prep.errors import DatasetError, WeightsError
from exact_prep.reader.columns import position_ids
from exact_prep.stores.paths import find_place
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import find_divisor, load_table, weight_runs

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import ArrayLike

    from exact_prep.dataset import Dataset, Measured
    from exact_prep.records.weights import WeightsFile
    from exact_prep.stores.paths import StorePath
    from exact_prep.weighing.weights import WeightTable


@dataclass(frozen=True)
class LoadedWeights:
    """A weights.json, ready to be looked up. Get it with `load_weights`."""

    file: WeightsFile
    """The file as it was written: exposures, table, options, rounding audit."""
    dataset_id: str = ""
    """The dataset whose weights these are, where a mixture gives each its own."""

    @property
    def seq_len(self) -> int:
        """Tokens per row of the dataset the weights were made for."""
        return self.file.seq_len

    @property
    def mean_weight(self) -> float:
        """Mean weight of a supervised target over the corpus, as rounded to float16.

        Dividing a batch's weighted loss by `mean_weight * supervised targets` is dividing by its expected sum of
        weights, without summing over ranks.
        """
        return self.file.rounding.mean_weight_float16 if self.file.rounding else 1.0

    @property
    def supervise_first(self) -> bool:
        """Whether the first token of a segment carries loss."""
        return bool(self.file.options and self.file.options.supervise_first)

    @cached_property
    def table(self) -> WeightTable:
        """Weights by bucket, float64, before rounding."""
        return load_table(self.file)

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights by position as constant runs: edges int32[K + 1] and float16 bit patterns uint16[K]."""
        return weight_runs(self.file, self.dataset_id)

    @cached_property
    def lut(self) -> np.ndarray:
        """Weight by position in the segment, float32[seq_len + 1], rounded to float16 as in the shards; read-only.

        Position seq_len is met only in windows of seq_len + 1 tokens (inputs `[:-1]`, labels `[1:]`), where a target
        may see seq_len tokens. It weighs as seq_len - 1 does.
        """
        edges, bits = self.runs
        lut = np.repeat(bits.view(np.float16).astype(np.float32), np.diff(edges))
        lut = np.append(lut, lut[-1:])
        lut.flags.writeable = False
        return lut

    def sum_weights(self, exposure: Exposure) -> float:
        """Sum of the weights of all supervised targets of a dataset, as rounded to float16."""
        counts = self.table.count(exposure)
        weights = (self.table.by_bucket(counts.size) / find_divisor(self.file, self.dataset_id)).astype(np.float16)
        return float(counts @ weights.astype(np.float64))

    def count_weights(self, exposure: Exposure) -> dict[int, int]:
        """How many targets of a dataset have each weight, by its float16 bit pattern."""
        counts = self.table.count(exposure)
        weights = (self.table.by_bucket(counts.size) / find_divisor(self.file, self.dataset_id)).astype(np.float16)
        found: dict[int, int] = {}
        for value, count in zip(weights.view(np.uint16).tolist(), counts.tolist(), strict=True):
            found[value] = found.get(value, 0) + count
        return found

    def of_positions(self, positions: ArrayLike) -> np.ndarray:
        """Weights of tokens at `positions[...]` in their segments, float32 of the same shape.

        Raises WeightsError for a position outside [0, seq_len]. Padding must be masked by the caller, or have
        position 0, which carries no weight unless `supervise_first`.
        """
        positions = np.asarray(positions)
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) <= self.seq_len:
            raise WeightsError(
                f"positions span [{positions.min()}, {positions.max()}], but the weights were made for rows of "
                f"{self.seq_len} tokens; pack and weigh a dataset of the row length you train on"
            )
        return self.lut[positions]

    def of_predictions(self, position_ids: ArrayLike, ends: ArrayLike) -> np.ndarray:
        """Weights of predictions, for data that come shifted: float32[...], aligned with labels `input_ids[1:]`.

        `position_ids[...]` are the positions of the inputs in their segments, below seq_len. `ends[...]` is true where
        the next token begins another segment, and where there is no next token: such a prediction weighs 0, unless
        the weights `supervise_first`. The caller masks padding. Raises WeightsError for other positions or shapes.
        """
        positions, ends = np.asarray(position_ids), np.asarray(ends)
        if ends.shape != positions.shape or ends.dtype != np.bool_:
            raise WeightsError(
                f"ends are {ends.dtype}{list(ends.shape)}, position_ids have shape {list(positions.shape)}; ends are "
                "booleans, one per position"
            )
        return self.of_positions(np.where(ends, 0, positions + 1))

    def of_lengths(self, seq_lengths: ArrayLike, seq_len: int | None = None) -> np.ndarray:
        """Weights of a row packed on the fly from segments of `seq_lengths[S]` tokens, float32[seq_len].

        Aligned with targets; what the segments leave of the row is padding and weighs 0. `seq_len` is the dataset's
        if not given. Raises WeightsError if the segments do not fit.
        """
        lengths = np.asarray(seq_lengths, np.int64)
        seq_len = self.seq_len if seq_len is None else seq_len
        used = int(lengths.sum())
        if used > seq_len or (lengths.size and lengths.min() < 1):
            raise WeightsError(f"segments of {lengths.tolist()} tokens do not fit a row of {seq_len}")
        weights = self.of_positions(position_ids(lengths, seq_len))
        weights[used:] = 0
        return weights


@dataclass(frozen=True)
class MeasuredWeights:
    """Data that `measure` read, and their weights: what an export without rows needs."""

    files: Measured
    loaded_weights: LoadedWeights

    def __len__(self) -> int:
        """Rows that the trainer makes of one pass."""
        return self.files.record.rows

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.files.seq_len

    @property
    def exposure(self) -> Exposure:
        """What was measured."""
        return Exposure.from_record(self.files.record.exposure)


def load_weights(path: str | PathLike[str] | StorePath) -> LoadedWeights:
    """The weights in `path`: a weights.json, a table that `weigh --out` wrote, or the directory of a dataset.

    Raises DatasetError if there is none, if they are plain (the dataset is not weighed), or if `weigh` has not
    finished.
    """
    path = find_place(path)
    own = ""
    if (path / MANIFEST).is_file() or path.is_dir():
        dataset = open_any(path)
        file, weights, own = path / WEIGHTS, dataset.weights(), dataset.described.id
    elif path.is_file():
        file, weights = path, load_weights_file(path)
    else:
        raise DatasetError(
            f"{path} does not exist; check the path, or write it with `exact-prep weigh DIR --out {path}`"
        )
    directory = file.parent
    if weights.kind == "plain":
        raise DatasetError(
            f"{file} holds plain weights: the dataset is not weighed; run `exact-prep weigh {directory}`"
        )
    if weights.state != "complete":
        raise DatasetError(f"{file} is incomplete: weigh has not finished; run `exact-prep weigh {directory}` again")
    return LoadedWeights(weights, own or (weights.datasets[0].id if len(weights.datasets) == 1 else ""))


def load_table_for(
    weights: str | PathLike[str], files: Dataset | Measured, *, elsewhere: bool = False
) -> LoadedWeights:
    """The table in the file `weights`, for a dataset that need not be its own.

    Raises DatasetError if it was made for rows of another length, for another tokenizer or, unless `elsewhere`, for
    other datasets.
    """
    loaded, described = load_weights(weights), files.described
    if loaded.seq_len != files.seq_len:
        raise DatasetError(
            f"{weights} was made for rows of {loaded.seq_len} tokens, {files.path} has rows of {files.seq_len}; "
            "make a table for this dataset with `exact-prep weigh --out`"
        )
    known = {dataset.tokenizer for dataset in loaded.file.datasets} - {""}
    if known and described.tokenizer and described.tokenizer not in known:
        raise DatasetError(
            f"{weights} was made for another tokenizer than {files.path} was packed with; "
            "make a table for this dataset with `exact-prep weigh --out`"
        )
    if not is_named(loaded.file, files) and not elsewhere:
        raise DatasetError(
            f"{weights} was made for other datasets than {files.path}; make a table for this one with "
            "`exact-prep weigh --out`, or use it all the same with --weights-from-elsewhere "
            "(weights_from_elsewhere=True)"
        )
    return LoadedWeights(loaded.file, described.id)
