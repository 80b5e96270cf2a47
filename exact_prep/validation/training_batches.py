"""What a training step sees: tokens in segments, in one flat array. Every data source produces these batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from exact_prep.integrations.torch.data import Collator
from exact_prep.reader.columns import IGNORED, position_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import torch

    from exact_prep.reader.rows import Row
    from exact_prep.weighing.exposure import Exposure

COLLATE = Collator(cu_seqlens=True)
"""Batches are those that every user of exact-prep's collator gets."""


@dataclass(frozen=True)
class Batch:
    """Some rows, end to end. Attention stops at segment edges, so row edges need not be stored."""

    ids: torch.Tensor
    """int64[T]."""
    edges: torch.Tensor
    """Where segments start and end, int64[S + 1]; the padding of each row is one segment."""
    supervised: torch.Tensor
    """Targets that carry loss, bool[T]: not padding, not masked, nor the first of a row; the first token of a segment
    only in a dataset that was weighed with --supervise-first."""

    def to(self, device: str) -> Batch:
        """The same batch on another device."""
        return Batch(self.ids.to(device), self.edges.to(device), self.supervised.to(device))


class Batches(Protocol):
    """What training needs: the same batches in the same order for every arm."""

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on. Each depends only on the stream and its step."""
        ...


class Stream(Batches, Protocol):
    """Training data, with the properties that arms are made from."""

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        ...

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        ...

    @property
    def exposure(self) -> Exposure:
        """The exposure of all batches of a run of normal length."""
        ...

    @property
    def rows_per_step(self) -> int:
        """Rows of a batch."""
        ...

    def count_distinct(self, rows: int) -> int:
        """How many different rows are among the first `rows`: fewer if data repeat."""
        ...


def join_rows(made: dict[str, Any]) -> Batch:
    """A batch of the collator, its rows end to end."""
    supervised = (made["labels"] != IGNORED).flatten()
    return Batch(made["input_ids"].flatten(), made["cu_seqlens"].long(), supervised)


def read_batch(rows: Sequence[Row]) -> Batch:
    """Rows of a dataset as a batch; targets of weight 0 carry no loss."""
    return join_rows(COLLATE(rows))


def make_batch(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Make a batch from rows of (ids[L], segment lengths[S]) without masks; what is after segments is padding."""
    return join_rows(
        COLLATE(
            [
                {"input_ids": ids, "seq_lengths": lengths, "loss_weights": position_ids(lengths, ids.size) > 0}
                for ids, lengths in rows
            ]
        )
    )
