"""Makes batches of tensors from rows: a collator, and a loader that shards over ranks and resumes exactly."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed

from exact_prep.errors import UsageError
from exact_prep.reader import columns
from exact_prep.reader.collate import collate
from exact_prep.reader.loader import RankLoader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exact_prep.reader.columns import Align
    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.order import BatchPolicy
    from exact_prep.reader.rows import PackedDataset, Row

Batch = dict[str, Any]
"""Tensors by name; the lengths of a flattened batch are ints."""


class Collate(Protocol):
    """Makes one batch from some rows."""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """The batch; its tensors share no memory with the rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Stacks B rows of L tokens into a batch for a causal language model.

    input_ids int64[B, L], position_ids int64[B, L] (0 at the start of each document and in all padding), labels
    int64[B, L] (-100 where the weight is 0), loss_weights float32[B, L]. Accepts rows of `exact_prep.open`, and rows of
    a Hugging Face dataset with the columns input_ids, seq_lengths and loss_weights. There is no attention mask on
    purpose: with one, Hugging Face models ignore position_ids, and documents see each other.
    """

    align: Align = "target"
    """`target` for trainers that shift labels themselves, `prediction` for trainers that expect shifted labels."""
    cu_seqlens: bool = False
    """Add cu_seqlens int32[S + 1], the segment edges of the batch as one sequence of B * L tokens, and max_seqlen."""
    segment_ids: bool = False
    """Add segment_ids int64[B, L], counted from 1 in each row, 0 for padding."""
    flatten: bool = False
    """Make one sequence [1, B * L] of the rows, with cu_seq_lens_q and cu_seq_lens_k int32[S + 1], and max_length_q and
    max_length_k (ints), as variable-length attention (FlashAttention) in Hugging Face models reads them. With more than
    one row per batch it isolates documents in no other form."""

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown alignment."""
        columns.check_align(self.align)

    def __call__(self, rows: Sequence[Row | Mapping[str, Any]]) -> Batch:
        """The batch; raises UsageError if a row lacks a column, or rows differ in length."""
        made = collate(
            rows, align=self.align, cu_seqlens=self.cu_seqlens, segment_ids=self.segment_ids, flatten=self.flatten
        )
        return {name: own if isinstance(own, int) else torch.as_tensor(own) for name, own in made.items()}


class Loader(RankLoader[Batch]):
    """Batches for one rank: shuffled, sharded, made ahead by a thread, resumable at any batch.

    See `RankLoader` for what iterating again, `len` and `state_dict` mean. Worker processes are not offered: they were
    slower for rows below 16K tokens. `DataLoader(dataset, collate_fn=Collator(), num_workers=...)` has them.
    """

    def __init__(
        self,
        dataset: PackedDataset | MixedDataset,
        policy: BatchPolicy,
        *,
        collate: Collate | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Rank and world size are those of torch.distributed when iteration begins, unless both are given.

        `pin_memory` puts batches into pinned memory where there is an accelerator. At the first batch, or at `len`,
        raises UsageError if WORLD_SIZE says that there are several processes, but no process group exists: every rank
        would train on the same rows.
        """
        if (rank is None) != (world_size is None):
            raise UsageError(f"rank is {rank}, world_size {world_size}; give both or none")
        self.collate = collate or Collator()
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        super().__init__(dataset, policy, self._collate, self._find_own_place)

    def _collate(self, rows: list[Row]) -> Batch:
        batch = self.collate(rows)
        if self.pin_memory and torch.accelerator.is_available():
            return {name: own if isinstance(own, int) else own.pin_memory() for name, own in batch.items()}
        return batch

    def _find_own_place(self) -> tuple[int, int]:
        return find_place() if self.rank is None or self.world_size is None else (self.rank, self.world_size)


def find_place() -> tuple[int, int]:
    """Rank and world size of torch.distributed, else 0 and 1; raises UsageError if WORLD_SIZE says otherwise."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    if (started := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"WORLD_SIZE is {started}, but there is no process group, so every process would read the same rows; call "
            "torch.distributed.init_process_group before the loader is read, or pass rank= and world_size="
        )
    return 0, 1
