"""Which rows, when and on which rank: an order that any number of ranks can share and that resumes exactly.

A global batch is all ranks' batches of one step. The state is one number, the rows used so far by all ranks together,
so that a run can continue with another number of ranks or another batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.shuffle import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator


class BatchOrder:
    """Batches of row numbers for one rank; iterating continues where the last iteration stopped.

    Every row comes once per epoch, over all ranks. A global batch may span two epochs. With `epochs` the last global
    batch is short if the rows do not divide evenly: ranks share what is left, and a rank that gets nothing stops one
    step earlier (`drop_last` leaves that batch out, on every rank). Without `epochs` it never ends, and every batch is
    full.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """`batch_size` is per rank; without `seed` rows come in their own order. Raises UsageError."""
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1")
        if rows < 1 or batch_size < 1 or (epochs is not None and epochs < 1):
            raise UsageError(f"rows ({rows}), batch_size ({batch_size}) and epochs ({epochs}) must be at least 1")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.position = 0
        """Rows used so far by all ranks together, over all epochs."""
        self._stop: int | None = None
        if epochs is not None:
            total = rows * epochs
            self._stop = total - total % self.global_batch if drop_last else total
        self._orders: dict[int, np.ndarray] = {}

    @property
    def global_batch(self) -> int:
        """Rows per step over all ranks."""
        return self.batch_size * self.world_size

    def batch(self, step: int) -> np.ndarray:
        """This rank's row numbers of the `step`-th batch from here, int64[B]; empty after the end."""
        start = self.position + step * self.global_batch
        stop = start + self.global_batch
        if self._stop is not None:
            stop = min(stop, self._stop)
        places = np.arange(start + self.rank, stop, self.world_size)
        epochs = places // self.rows
        chosen = places % self.rows
        if self.seed is not None:
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                chosen[here] = self._order(epoch)[chosen[here]]
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
        return {"position": self.position, "rows": self.rows, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue where `state` was taken; raises UsageError if that was another dataset size or seed."""
        for name in ("rows", "seed"):
            if state[name] != getattr(self, name):
                raise UsageError(
                    f"the saved order has {name} {state[name]}, this one {getattr(self, name)}; resume with the "
                    f"dataset and the seed the run began with"
                )
        self.position = int(state["position"] or 0)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of one epoch; the two latest are kept, since a batch may span both."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = permutation(self.rows, self.seed or 0, epoch)
        return self._orders[epoch]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_orders": {}}
