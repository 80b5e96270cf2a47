"""A packed dataset as rows: mapped files, NumPy views, nothing copied. NumPy and the shard room only; no framework.

dataset = exact_prep.open("corpus-4k")
dataset[7].input_ids            int32[L], a view of the file
dataset[7].weights("prediction")
dataset.shuffle(seed=1).shard(rank=0, world_size=8)[10:20]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from operator import index as as_index
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from exact_prep import shards
from exact_prep.dataset import MANIFEST, datasets_in, load_manifest
from exact_prep.errors import DatasetError, UsageError
from exact_prep.reader import columns
from exact_prep.reader.lookup import LoadedWeights, load_weights
from exact_prep.shuffle import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from exact_prep.choices import Align
    from exact_prep.records.manifest import Manifest

SHARDS_MAPPED = 256
"""Shards kept mapped at once: each holds a file descriptor, of which a process often has only 1024."""


@dataclass(frozen=True, eq=False)
class Row:
    """One packed sequence of L tokens. Stored columns are read-only views of the file, the rest is derived."""

    input_ids: np.ndarray
    """int32[L]."""
    seq_lengths: np.ndarray
    """Lengths of the segments in order, int32[S]; what is left of L is padding."""
    doc_ids: np.ndarray
    """Each segment's document, int64[S]."""
    doc_offsets: np.ndarray
    """Where each segment starts in its document, in tokens, int64[S]."""
    loss_weights: np.ndarray
    """Weight of the target `input_ids[t]`, float16[L]."""

    @cached_property
    def position_ids(self) -> np.ndarray:
        """Each token's place in its segment, 0 for padding, int32[L]."""
        return columns.position_ids(self.seq_lengths, self.input_ids.size)

    @property
    def segment_ids(self) -> np.ndarray:
        """Each token's segment counted from 1, 0 for padding, int32[L]."""
        return columns.segment_ids(self.seq_lengths, self.input_ids.size)

    @property
    def cu_seqlens(self) -> np.ndarray:
        """Segment edges for variable-length attention, int32[S + 1], padding as a last segment."""
        return columns.cu_seqlens(self.seq_lengths, self.input_ids.size)

    def labels(self, align: Align = "target") -> np.ndarray:
        """Targets, int64[L], -100 where the weight is 0."""
        return columns.labels(self.input_ids, self.loss_weights, align)

    def weights(self, align: Align = "target") -> np.ndarray:
        """Loss weights in either alignment, float16[L]."""
        return columns.align_weights(self.loss_weights, align)


class PackedDataset:
    """Rows of a packed dataset, in some order. Open it with `exact_prep.open`.

    `len`, indexing and iteration give rows; slices, `shuffle` and `shard` give a dataset over the same files. It can
    be pickled and forked: each process maps the files it reads. Threads may share it.
    """

    def __init__(
        self, path: Path, manifest: Manifest, loaded: LoadedWeights | None, order: Sequence[int] | np.ndarray
    ) -> None:
        """Use `exact_prep.open`; `loaded` None means plain weights, `order` lists row numbers."""
        self.path = path
        self.manifest = manifest
        self.loaded_weights = loaded
        """The weights.json, or None if the dataset was opened with plain weights."""
        self._order = order
        self._first_rows = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
        self._mapped: dict[int, tuple[shards.Shard, np.ndarray]] = {}

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.manifest.seq_len

    @property
    def rows(self) -> Sequence[int] | np.ndarray:
        """The numbers of the rows in the directory, in this dataset's order."""
        return self._order

    @property
    def weight_per_row(self) -> float:
        """Mean sum of weights of a row over the whole corpus; of a plain dataset, mean number of supervised targets.

        `batch_size * weight_per_row` is a constant denominator for trainers that average microbatches and ranks by
        themselves: the gradient does not depend on how rows are split into microbatches, and no sum over ranks is
        needed.
        """
        exposure = self.manifest.exposure
        targets = sum(exposure.counts)
        if self.loaded_weights is not None:
            file = self.loaded_weights.file
            targets = self.loaded_weights.mean_weight * (targets + file.supervise_first * exposure.segments)
        return targets / self.manifest.rows

    def __len__(self) -> int:
        return len(self._order)

    def __repr__(self) -> str:
        kind = "plain weights" if self.loaded_weights is None else "weighed"
        return f"<PackedDataset {self.path}: {len(self)} rows of {self.seq_len} tokens, {kind}>"

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> PackedDataset: ...
    def __getitem__(self, index: int | slice) -> Row | PackedDataset:
        """The row at `index`, or a dataset over a slice of the rows; IndexError beyond the end."""
        if isinstance(index, slice):
            return self._reordered(self._order[index])
        index = as_index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {self!r}")
        return self._row(int(self._order[index]))

    def select(self, rows: Sequence[int] | np.ndarray) -> PackedDataset:
        """A dataset over the rows at these places, in this order; a place may come more than once. Takes a mask too."""
        places = np.asarray(rows)
        return self._reordered(np.asarray(self._order)[places if places.size else places.astype(np.int64)])

    def shuffle(self, seed: int, epoch: int = 0) -> PackedDataset:
        """The rows in an order that depends on (seed, epoch) alone, on any machine and with any NumPy version.

        Raises UsageError for a negative seed or epoch.
        """
        if seed < 0 or epoch < 0:
            raise UsageError(f"seed is {seed}, epoch {epoch}; both count from 0")
        return self.select(permutation(len(self), seed, epoch))

    def shard(self, rank: int, world_size: int) -> PackedDataset:
        """Every `world_size`-th row, from row `rank` on: ranks share the rows without overlap or loss.

        When the rows do not divide, the first `len % world_size` ranks have one row more. For training in step over
        ranks use `order.BatchOrder`, which deals out whole global batches.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1")
        return self[rank::world_size]

    def _reordered(self, order: Sequence[int] | np.ndarray) -> PackedDataset:
        dataset = PackedDataset(self.path, self.manifest, self.loaded_weights, order)
        dataset._mapped = self._mapped
        return dataset

    def _row(self, number: int) -> Row:
        shard_number = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        shard, first_rows = self._shard(shard_number)
        inside = number - int(self._first_rows[shard_number])
        batch_number = int(np.searchsorted(first_rows, inside, side="right")) - 1
        batch = shard.batches[batch_number]
        i = inside - int(first_rows[batch_number])
        segments = slice(int(batch.row_splits[i]), int(batch.row_splits[i + 1]))
        seq_lengths = batch.seq_lengths[segments]
        weights = batch.loss_weights[i]
        if self.loaded_weights is None:
            weights = (columns.position_ids(seq_lengths, self.seq_len) > 0).astype(np.float16)
        return Row(
            input_ids=batch.input_ids[i],
            seq_lengths=seq_lengths,
            doc_ids=batch.doc_ids[segments],
            doc_offsets=batch.doc_offsets[segments],
            loss_weights=weights,
        )

    def _shard(self, number: int) -> tuple[shards.Shard, np.ndarray]:
        """A mapped shard, and the first row of each of its batches; beyond SHARDS_MAPPED the oldest is let go."""
        if (kept := self._mapped.get(number)) is not None:
            return kept
        record = self.manifest.shards[number]
        shard = shards.opened(self.path / record.file)
        first_rows = np.cumsum([0, *(batch.rows for batch in shard.batches)])
        if shard.seq_len != self.seq_len or first_rows[-1] != record.rows:
            raise DatasetError(
                f"{shard.path} holds {first_rows[-1]} rows of {shard.seq_len} tokens, its manifest says {record.rows} "
                f"of {self.seq_len}; run `exact-prep verify {self.path}`"
            )
        self._mapped[number] = shard, first_rows
        for oldest in list(self._mapped)[:-SHARDS_MAPPED]:
            self._mapped.pop(oldest, None)  # unless another thread did it
        return shard, first_rows

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": {}}


def open(path: str | PathLike[str], *, plain: bool = False) -> PackedDataset:  # noqa: A001
    """The packed dataset in the directory `path`, its weights included.

    `plain` gives every supervised target the weight 1, whatever the shards hold: the baseline, on the same rows.
    Nothing but the manifest and weights.json is read until rows are. Raises DatasetError, with the remedy, if there is
    no manifest, a shard is missing or has another size, the dataset is not weighed or only in part, or weights.json
    belongs to another dataset.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file() and (several := datasets_in(path)):
        raise DatasetError(f"{path} holds a dataset per row length; open one of: {', '.join(map(str, several))}")
    manifest = load_manifest(path)
    for record in manifest.shards:
        shard = path / record.file
        size = shard.stat().st_size if shard.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {record.bytes}"
            raise DatasetError(f"{shard} {found}; copy the dataset again, or see `exact-prep verify {path}`")
    loaded = None if plain else _weights_of(path, manifest)
    return PackedDataset(path, manifest, loaded, range(manifest.rows))


def _weights_of(path: Path, manifest: Manifest) -> LoadedWeights:
    """The weights of a dataset; raises DatasetError if they are not its own."""
    loaded = load_weights(path)
    if (loaded.file.dataset_tree_hash, loaded.seq_len) != (manifest.tree_hash, manifest.seq_len):
        raise DatasetError(
            f"{path / 'weights.json'} belongs to another dataset (tree hash {loaded.file.dataset_tree_hash}, this one "
            f"has {manifest.tree_hash}); run `exact-prep weigh {path}`"
        )
    return loaded
