"""What a training step sees: tokens in segments, in one flat array. Every data source produces these batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    import numpy as np

    from exact_prep.weighing.exposure import Exposure


@dataclass(frozen=True)
class Batch:
    """Some rows, end to end. Attention stops at segment edges, so row edges need not be stored."""

    ids: torch.Tensor
    """int64[T]."""
    edges: torch.Tensor
    """Where segments start and end, int64[S + 1]; the padding of each row is one segment."""
    supervised: torch.Tensor
    """Targets that carry loss, bool[T]: all but padding and the first token of each segment."""

    def to(self, device: str) -> Batch:
        """The same batch on another device."""
        return Batch(self.ids.to(device), self.edges.to(device), self.supervised.to(device))


class Batches(Protocol):
    """What training needs: the same batches in the same order for every arm."""

    def batch(self, step: int) -> Batch:
        """The batch of a step. It depends only on the stream and the step."""
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


def make_batch(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Make a batch from rows of (ids[L], segment lengths[S]); tokens after the last segment are padding."""
    ids, lengths, supervised = [], [0], []
    for row, segments in rows:
        used = int(segments.sum())
        ids.append(torch.from_numpy(row.astype("int64")))
        lengths += segments.tolist()
        supervised.append(torch.arange(row.size) < used)
        if used < row.size:
            lengths.append(row.size - used)
    edges = torch.tensor(lengths).cumsum(0)
    carries = torch.cat(supervised)
    carries[edges[:-1]] = False
    return Batch(torch.cat(ids), edges, carries)
