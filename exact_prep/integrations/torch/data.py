"""Makes batches of tensors from rows: a collator, and a loader that shards over ranks and resumes exactly."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from exact_prep.reader import columns
from exact_prep.reader.collate import collate
from exact_prep.reader.order import BatchOrder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exact_prep.reader.columns import Align
    from exact_prep.reader.rows import PackedDataset, Row

Batch = dict[str, torch.Tensor]


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

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown alignment."""
        columns.check_align(self.align)

    def __call__(self, rows: Sequence[Row | Mapping[str, Any]]) -> Batch:
        """The batch; raises UsageError if a row lacks a column, or rows differ in length."""
        made = collate(rows, align=self.align, cu_seqlens=self.cu_seqlens, segment_ids=self.segment_ids)
        return {name: torch.as_tensor(values) for name, values in made.items()}


class BatchStream(IterableDataset):
    """The batches of a `BatchOrder` as an iterable dataset; give it to a DataLoader with `batch_size=None`.

    Worker w of W makes the batches w, w + W, ..., and the DataLoader takes one from each worker in turn. So the order
    of batches does not depend on the number of workers.
    """

    def __init__(self, dataset: PackedDataset, order: BatchOrder, collate: Collate) -> None:
        """`order` is read but not advanced, because a prefetched batch has not been used yet."""
        self.dataset, self.order, self.collate = dataset, order, collate

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = copy(self.order)
        while (rows := order.batch(step)).size:
            yield self.collate([self.dataset[row] for row in rows])
            step += workers


class Loader:
    """Batches for one rank: shuffled, sharded, prefetched by workers, resumable at any batch.

    A new iteration continues where the last one stopped. `state_dict` counts the batches that were returned, not those
    prefetched. It is equal on all ranks, and a run may be resumed with another number of ranks, batch size or number of
    workers.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        *,
        batch_size: int,
        seed: int | None = None,
        epochs: int | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        collate: Collate | None = None,
    ) -> None:
        """`batch_size` is per rank; `rank` and `world_size` default to those of torch.distributed if it is initialised.

        Without `epochs` the loader never ends, and every batch is full. With `epochs`, see `BatchOrder` for the last
        batch.
        """
        together = distributed.is_available() and distributed.is_initialized()
        self.order = BatchOrder(
            len(dataset),
            batch_size=batch_size,
            seed=seed,
            rank=rank if rank is not None else distributed.get_rank() if together else 0,
            world_size=world_size if world_size is not None else distributed.get_world_size() if together else 1,
            epochs=epochs,
            drop_last=drop_last,
        )
        self.dataset, self.collate = dataset, collate or Collator()
        self._options = {"num_workers": workers, "pin_memory": pin_memory}

    def __iter__(self) -> Iterator[Batch]:
        stream = BatchStream(self.dataset, self.order, self.collate)
        for batch in DataLoader(stream, batch_size=None, **self._options):
            self.order.advance()
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """The loader's position in the data; save it with the model."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from the position in `state`; raises UsageError if it belongs to another dataset or seed."""
        self.order.load_state_dict(state)
