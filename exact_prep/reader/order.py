"""Which rows, when and on which rank: an order that any number of ranks can share and that resumes exactly.

A global batch is all ranks' batches of one step. The state is one number, the rows used so far by all ranks together,
so that a run can continue with another number of ranks or another batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.shuffle import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator


FILLER = -1
"""In place of a row number: a row that carries no loss."""


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """What every rank of a run reads, and how; the same on all ranks."""

    batch_size: int
    """Rows per batch and rank."""
    seed: int | None = None
    """Shuffles each epoch in an order of its own; without it, rows come in the dataset's order."""
    epochs: int | None = None
    """How often each row comes; without it, batches never end, and every batch is full."""
    last: Literal["fill", "drop"] = "fill"
    """Where rows do not divide into global batches: `fill` completes the last one with rows of weight 0, so that no row
    is lost and no rank stops before another; `drop` leaves it out, on every rank."""
    prefetch: int = 2
    """Batches that a thread makes ahead; 0 makes each when it is asked for."""

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that cannot be meant."""
        if self.batch_size < 1 or (self.epochs is not None and self.epochs < 1):
            raise UsageError(f"batch_size is {self.batch_size}, epochs {self.epochs}; both must be at least 1")
        if self.last not in ("fill", "drop") or self.prefetch < 0 or (self.seed is not None and self.seed < 0):
            raise UsageError(
                f"last is {self.last!r}, prefetch {self.prefetch}, seed {self.seed}; last is fill or drop, the others "
                "are at least 0"
            )


class BatchOrder:
    """Batches of row numbers for one rank; iterating continues where the last iteration stopped.

    Every row comes once per epoch, over all ranks. A global batch may span two epochs. All ranks have the same number
    of batches, of the same size.
    """

    def __init__(self, rows: int, policy: BatchPolicy, *, rank: int = 0, world_size: int = 1) -> None:
        """Raises UsageError if there are no rows, or for a rank that does not exist."""
        if rows < 1:
            raise UsageError("the dataset has no rows, so it has no batches")
        self.rows, self.policy = rows, policy
        self.position = 0
        """Rows used so far by all ranks together, over all epochs."""
        self._orders: dict[int, np.ndarray] = {}
        self.place(rank, world_size)

    def place(self, rank: int, world_size: int) -> None:
        """Give the batches of `rank` of `world_size` from here on; raises UsageError for a rank that does not exist."""
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1")
        self.rank, self.world_size = rank, world_size

    @property
    def global_batch(self) -> int:
        """Rows per step over all ranks."""
        return self.policy.batch_size * self.world_size

    @property
    def _stop(self) -> int | None:
        """Rows of the whole run, over all epochs and ranks; None if it never ends."""
        if self.policy.epochs is None:
            return None
        total = self.rows * self.policy.epochs
        return total - total % self.global_batch if self.policy.last == "drop" else total

    def __len__(self) -> int:
        """Batches of the whole run; of one pass over the rows if it never ends."""
        return -(-(self.rows if self._stop is None else self._stop) // self.global_batch)

    def batch(self, step: int) -> np.ndarray:
        """This rank's row numbers of the `step`-th batch from here, int64[B]; empty after the end.

        FILLER stands for a row that completes the last batch: any row, with weight 0.
        """
        start, stop = self.position + step * self.global_batch, self._stop
        if stop is not None and start >= stop:
            return np.empty(0, np.int64)
        places = np.arange(start + self.rank, start + self.global_batch, self.world_size)
        epochs = places // self.rows
        chosen = places % self.rows
        if self.policy.seed is not None:
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                chosen[here] = self._order(epoch)[chosen[here]]
        if stop is not None:
            chosen[places >= stop] = FILLER
        return chosen

    def advance(self, steps: int = 1) -> None:
        """Count `steps` batches as done."""
        self.position += steps * self.global_batch
        if self._stop is not None:
            self.position = min(self.position, self._stop)

    def __iter__(self) -> Iterator[np.ndarray]:
        while (batch := self.batch(0)).size:
            self.advance()
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """The position of the order: enough to continue exactly, equal on every rank."""
        return {"position": self.position, "rows": self.rows, "seed": self.policy.seed}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue where `state` was taken; raises UsageError if that was another dataset size or seed."""
        own = self.state_dict()
        for name in ("rows", "seed"):
            if state[name] != own[name]:
                raise UsageError(
                    f"the saved order has {name} {state[name]}, this one {own[name]}; resume with the dataset and the "
                    "seed the run began with"
                )
        self.position = int(state["position"] or 0)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of one epoch; the two latest are kept, since a batch may span both."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = permutation(self.rows, self.policy.seed or 0, epoch)
        return self._orders[epoch]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_orders": {}}
