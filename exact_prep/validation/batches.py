"""What a training step sees: tokens in segments, one flat array. The narrow door between data and harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    import numpy as np

    from exact_prep.exposure import Exposure


@dataclass(frozen=True)
class Batch:
    """Some rows end to end; attention stops at segment edges, so row edges need no mention."""

    ids: torch.Tensor
    """int64[T]."""
    edges: torch.Tensor
    """Where segments start and end, int64[S + 1]; padding is segments of their own."""
    supervised: torch.Tensor
    """Targets that carry loss, bool[T]: not padding, not the first of a segment."""

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch(self.ids.to(device), self.edges.to(device), self.supervised.to(device))


class Stream(Protocol):
    """Training data: the same batches in the same order for every arm."""

    vocab_size: int
    seq_len: int
    exposure: Exposure
    """Of all batches of a normal run."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; a pure function of the stream and the step."""
        ...


def batch_of(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """A batch from rows of (ids[L], segment lengths[S]); what the lengths leave over is padding."""
    ids, lengths, supervised = [], [], []
    for row, segments in rows:
        padding = row.size - int(segments.sum())
        ids.append(torch.from_numpy(row.astype("int64")))
        for length in segments.tolist():
            lengths.append(length)
            supervised += [False] + [True] * (length - 1)
        if padding:
            lengths.append(padding)
            supervised += [False] * padding
    edges = torch.tensor([0, *lengths]).cumsum(0)
    return Batch(torch.cat(ids), edges, torch.tensor(supervised))
