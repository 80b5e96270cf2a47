"""What a training step sees: tokens in segments, one flat array. The narrow door between data and harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    import numpy as np

    from exact_prep.weighing.exposure import Exposure


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


class Batches(Protocol):
    """What training needs: the same batches in the same order for every arm."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; a pure function of the stream and the step."""
        ...


class Stream(Batches, Protocol):
    """Training data with what arms are made from."""

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
        """Of all batches of a normal run."""
        ...


def batch_of(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """A batch from rows of (ids[L], segment lengths[S]); what the lengths leave over is padding."""
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
