"""A packed dataset as rows: mapped files, NumPy views, nothing copied.

    dataset = exact_prep.open("corpus-4k")
    dataset[7].input_ids            int32[L], a view of the file
    dataset[7].weights("prediction")
    dataset.shuffle(seed=1).shard(rank=0, world_size=8)[10:20]

Weights come from the shards' column, or are computed from a table: for a dataset without the column, for a table given
to `open`, and for plain weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index as as_index
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from exact_prep.dataset import (
    MANIFEST,
    SPLITS,
    WEIGHTS,
    Dataset,
    find_datasets,
    is_split_in_two,
    open_dataset,
)
from exact_prep.errors import DatasetError, UsageError
from exact_prep.reader import columns
from exact_prep.reader.lookup import LoadedWeights, load_table_for, load_weights
from exact_prep.shards import Shard, fill_weights, open_shard
from exact_prep.shuffle import permutation
from exact_prep.stores.local import identify_file
from exact_prep.stores.paths import Home, find_place
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import plain_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exact_prep.batches import Rows
    from exact_prep.choices import Align, Split
    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.ranges import RangeReader
    from exact_prep.reader.resample import Drawing
    from exact_prep.records.manifest import Manifest

SHARDS_MAPPED = 256
"""Shards kept mapped at once: each holds a file descriptor, and a process often has only 1024."""


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
    sources: np.ndarray
    """Each segment's source, int16[S]: place in the label list of its task."""
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

    def without_loss(self) -> Row:
        """The same tokens and segments with weight 0 throughout: completes a batch and trains nothing."""
        return replace(self, loss_weights=np.zeros_like(self.loss_weights))


class PackedDataset:
    """Rows of a packed dataset, in some order. Open it with `exact_prep.open`.

    `len`, indexing and iteration give rows; slices, `shuffle` and `shard` give a dataset over the same files. It can
    be pickled and forked: each process maps the files it reads. Threads may share it. From a store, workers are not
    forked but started with spawn or forkserver.
    """

    def __init__(
        self,
        files: Dataset,
        loaded: LoadedWeights | None,
        order: Sequence[int] | np.ndarray,
        *,
        stored: bool,
    ) -> None:
        """Use `exact_prep.open`; `loaded` None means plain weights, `order` lists row numbers.

        `stored` says whether the shards' column holds these weights; otherwise they are computed.
        """
        self.files = files
        """Manifest and tables."""
        self.loaded_weights = loaded
        """The weights, or None if the dataset was opened with plain weights."""
        self.has_stored_weights = stored
        """Whether the weights are read from the shards."""
        self._order = order
        self._first_rows = np.cumsum([0, *(shard.rows for shard in files.shards)])
        self._mapped: dict[int, tuple[Shard, np.ndarray]] = {}
        self.drawing: Drawing | None = None
        """What `resample` did, if these are rows that it drew."""
        self._document_ids: dict[int, dict[int, str]] = {}
        """Documents' own ids of the task that was last looked at."""
        self._ranges: dict[int, RangeReader] = {}
        """Of a dataset in a store: what reads it in the process of that number."""
        self._weights_file = str(files.path / WEIGHTS)
        self._weights_seen: tuple[int, int, int] | str | None = None
        """The weights.json that was last found to be the loaded one, by `identify_file`."""

    @property
    def path(self) -> Home:
        """Its directory, or its folder in a store."""
        return self.files.path

    @property
    def manifest(self) -> Manifest:
        """What it is made of, and how."""
        return self.files.manifest

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.manifest.seq_len

    @property
    def rows(self) -> Sequence[int] | np.ndarray:
        """The numbers of the rows in the directory, in this dataset's order."""
        return self._order

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights by position as constant runs: edges int32[K + 1] and float16 bit patterns uint16[K]."""
        return plain_runs(self.seq_len) if self.loaded_weights is None else self.loaded_weights.runs

    @property
    def weight_per_row(self) -> float:
        """Mean sum of weights of a row over the whole corpus; of a plain dataset, mean number of supervised targets.

        `batch_size * weight_per_row` is a constant denominator for trainers that average microbatches and ranks by
        themselves: the gradient does not depend on how rows are split into microbatches, and no sum over ranks is
        needed.
        """
        exposure = Exposure.from_record(self.manifest.exposure)
        whole = exposure.targets if self.loaded_weights is None else self.loaded_weights.sum_weights(exposure)
        return whole / self.manifest.rows

    def with_weights(self, rows: Rows) -> Rows:
        """Rows of this dataset with their weights: those in the shard, or computed."""
        if self.has_stored_weights:
            return rows
        weights = np.empty(rows.input_ids.shape, np.uint16)
        fill_weights(rows, *self.runs, weights)
        return replace(rows, loss_weights=weights.view(np.float16))

    def __len__(self) -> int:
        return len(self._order)

    def __repr__(self) -> str:
        kind = "plain weights" if self.loaded_weights is None else "weighed"
        return f"<PackedDataset {self.path}: {len(self)} rows of {self.seq_len} tokens, {kind}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a histogram of effective context."""
        from exact_prep.reader.html import render_html

        return render_html(self)

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
        ranks use `order.BatchOrder`, which gives every rank its part of whole global batches.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1")
        return self[rank::world_size]

    def resample(self, *, tail_share: float, seed: int, rows: int | None = None) -> PackedDataset:
        """Rows drawn so that the tail has `tail_share` of the supervised targets; `.drawing` says what that cost.

        `rows` are as many as the dataset has if not given; a row may come several times, others never. Depends on
        `seed` alone. Weights stay what they are: open the dataset with `plain=True` to draw in place of weighing.
        Raises UsageError for a share that no drawing reaches.
        """
        from exact_prep.reader.resample import draw_rows

        places, drawing = draw_rows(self, tail_share=tail_share, seed=seed, rows=rows)
        drawn = self.select(places)
        drawn.drawing = drawing
        return drawn

    def document_ids(self, index: int) -> list[str]:
        """The own id of the document of each segment of the row at `index`, as `pack --id-field` kept it.

        Empty texts for documents that have none. Raises UsageError for a dataset that keeps none, DatasetError.
        """
        if self.manifest.options.source.id_field is None:
            raise UsageError(f"{self.path} keeps no ids of documents; pack it with --id-field NAME")
        number = int(self._order[as_index(index)])
        task = self.files.shards[int(np.searchsorted(self._first_rows, number, side="right")) - 1].task
        known = self._document_ids.get(task)
        if known is None:
            known = self.files.document_ids(task)
            self._document_ids = {task: known}  # of one task: rows are mostly looked at in order
        return [known[doc_id] for doc_id in self[index].doc_ids.tolist()]

    def _reordered(self, order: Sequence[int] | np.ndarray) -> PackedDataset:
        dataset = PackedDataset(self.files, self.loaded_weights, order, stored=self.has_stored_weights)
        dataset._mapped, dataset._ranges = self._mapped, self._ranges
        return dataset

    def _row(self, number: int) -> Row:
        rows = self._mapped_row(number) if isinstance(self.path, Path) else self._fetched_row(number)
        if rows.loss_weights is None:
            shard = self.files.shards[int(np.searchsorted(self._first_rows, number, side="right")) - 1]
            raise DatasetError(f"{self.path / shard.file} holds no weights; run `exact-prep verify {self.path}`")
        return Row(
            input_ids=rows.input_ids[0],
            seq_lengths=rows.seq_lengths,
            doc_ids=rows.doc_ids,
            doc_offsets=rows.doc_offsets,
            sources=rows.sources,
            loss_weights=rows.loss_weights[0],
        )

    def _fetched_row(self, number: int) -> Rows:
        """A row of a dataset in a store: no shard there is weighed in place, the weights are those that were loaded."""
        reader = self._ranges.get(os.getpid())
        if reader is None:
            from exact_prep.reader.ranges import RangeReader

            etags = {name: entry.etag for name, entry in self.files.shard_files.items()}
            reader = self._ranges[os.getpid()] = RangeReader(self.files, etags=etags, weights=self.has_stored_weights)
        return self.with_weights(reader.read(number))

    def _mapped_row(self, number: int) -> Rows:
        """A row of a dataset in a directory."""
        if self.has_stored_weights and identify_file(self._weights_file) != self._weights_seen:
            self._check_weights()
        shard_number = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        shard, first_rows = self._shard(shard_number)
        inside = number - int(self._first_rows[shard_number])
        batch = int(np.searchsorted(first_rows, inside, side="right")) - 1
        at = inside - int(first_rows[batch])
        return self.with_weights(shard.batches[batch].slice(at, at + 1))

    def _check_weights(self) -> None:
        """Raise DatasetError if weights.json is no longer the one that was loaded: the shards follow it."""
        seen = identify_file(self._weights_file)
        if self.loaded_weights and self.files.weights().checksum != self.loaded_weights.file.checksum:
            raise DatasetError(
                f"{self.path} was weighed again after it was opened: its rows no longer have the weights that were "
                "loaded; open it again"
            )
        self._weights_seen = seen

    def _shard(self, number: int) -> tuple[Shard, np.ndarray]:
        """A mapped shard, and the first row of each of its batches; beyond SHARDS_MAPPED the oldest is released."""
        if (kept := self._mapped.get(number)) is not None:
            return kept
        record = self.files.shards[number]
        shard = open_shard(self.path / record.file)
        first_rows = np.cumsum([0, *(len(batch) for batch in shard.batches)])
        if shard.seq_len != self.seq_len or first_rows[-1] != record.rows:
            raise DatasetError(
                f"{shard.path} holds {first_rows[-1]} rows of {shard.seq_len} tokens, its dataset says {record.rows} "
                f"of {self.seq_len}; run `exact-prep verify {self.path}`"
            )
        self._mapped[number] = shard, first_rows
        for oldest in list(self._mapped)[:-SHARDS_MAPPED]:
            self._mapped.pop(oldest, None)  # unless another thread did it
        return shard, first_rows

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": {}, "_ranges": {}}


@overload
def open(  # noqa: A001
    path: str | PathLike[str],
    *,
    split: Split | None = None,
    weights: str | PathLike[str] | None = None,
    plain: bool = False,
    weights_from_elsewhere: bool = False,
    store_options: Mapping[str, str] | None = None,
) -> PackedDataset: ...
@overload
def open(  # noqa: A001
    path: list[str | PathLike[str]] | list[str] | list[Path] | tuple[str | PathLike[str], ...],
    *,
    split: Split | None = None,
    weights: str | PathLike[str] | None = None,
    plain: bool = False,
    weights_from_elsewhere: bool = False,
    seed: int = 0,
    rows: int | None = None,
    store_options: Mapping[str, str] | None = None,
) -> MixedDataset: ...
def open(  # noqa: A001
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    split: Split | None = None,
    weights: str | PathLike[str] | None = None,
    plain: bool = False,
    weights_from_elsewhere: bool = False,
    seed: int = 0,
    rows: int | None = None,
    store_options: Mapping[str, str] | None = None,
) -> PackedDataset | MixedDataset:
    """The packed dataset in the directory `path`, its weights included; or a mixture of those in a list of directories.

    `path` may be an address in a store, such as `s3://bucket/folder`, reached by `store_options`: rows then come by
    ranges, many at once where they are read in order, and nothing is copied to the disk.

    A directory that was packed with --validation holds two: `split` names the one to open, "train" if it does not.

    `weights` is a table that `weigh --out` wrote, used in place of the dataset's own weights; one that was made for
    other datasets is refused unless `weights_from_elsewhere`. `plain` gives every supervised target the weight 1: the
    baseline, on the same rows. Only the manifest, weights.json and two tables are read until rows are.

    A list gives rows at the rates at which the datasets were weighed together, in an order that depends on `seed`
    alone, until the first dataset has been served once. `rows` asks for that many instead: datasets then repeat, each
    time in another order, and a UserWarning says how often.

    Raises DatasetError, with the remedy, if there is no manifest, a shard is missing or has another size, the dataset
    is not weighed or only in part, weights belong to another dataset, or datasets of a list hold different tables;
    UsageError for options that exclude each other.
    """
    if not isinstance(path, (str, PathLike)):
        from exact_prep.reader.mixture import mix_datasets

        if not path:
            raise UsageError("open([]): name at least one dataset")
        parts = [
            open_one(
                find_place(one, store_options),
                split=split,
                weights=weights,
                plain=plain,
                weights_from_elsewhere=weights_from_elsewhere,
            )
            for one in path
        ]
        return mix_datasets(parts, seed=seed, rows=rows)
    if seed or rows is not None:
        raise UsageError("seed= and rows= are for a list of datasets; one dataset has shuffle(seed) and select(rows)")
    return open_one(
        find_place(path, store_options),
        split=split,
        weights=weights,
        plain=plain,
        weights_from_elsewhere=weights_from_elsewhere,
    )


def open_one(
    path: Home,
    *,
    split: Split | None = None,
    weights: str | PathLike[str] | None,
    plain: bool,
    weights_from_elsewhere: bool,
) -> PackedDataset:
    """One packed dataset, whole: see `open`."""
    if plain and weights is not None:
        raise UsageError("plain=True and weights= exclude each other; leave one out")
    if is_split_in_two(path):
        path = path / (split or SPLITS[0])
    if not (path / MANIFEST).is_file() and (several := find_datasets(path)) != [path]:
        raise DatasetError(f"{path} holds several datasets; open one of: {', '.join(map(str, several))}")
    files = open_dataset(path)
    if split is not None and files.manifest.split != split:
        held = files.manifest.split or "all rows: it was packed without --validation"
        raise DatasetError(f"{path} is not the {split} side of a dataset, it holds {held}; leave split= out")
    if (rows := sum(shard.rows for shard in files.shards)) != files.manifest.rows:
        raise DatasetError(
            f"{path / MANIFEST} says {files.manifest.rows:,} rows, its shards have {rows:,}; "
            f"run `exact-prep verify {path}`"
        )
    for record in files.shards:
        size = measure_shard(files, record.file)
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size} bytes, not {record.bytes}"
            raise DatasetError(
                f"{path / record.file} {found}; copy the dataset again, or see `exact-prep verify {path}`"
            )
    rows = range(files.manifest.rows)
    if plain:
        return PackedDataset(files, None, rows, stored=False)
    if weights is not None:
        loaded = load_table_for(weights, files, elsewhere=weights_from_elsewhere)
        return PackedDataset(files, loaded, rows, stored=False)
    return PackedDataset(files, load_weights(path), rows, stored=files.manifest.loss_weights == "column")


def measure_shard(files: Dataset, name: str) -> int | None:
    """Bytes of a shard; None if it is missing."""
    if isinstance(files.path, Path):
        shard = files.path / name
        return shard.stat().st_size if shard.is_file() else None
    return files.shard_files[name].bytes if name in files.shard_files else None
