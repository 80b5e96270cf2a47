"""Batches for one rank, made ahead by a thread, resumable at any batch; the frameworks say what a batch is."""

from __future__ import annotations

from copy import copy
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from exact_prep.reader.order import FILLER, BatchOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.order import BatchPolicy
    from exact_prep.reader.rows import PackedDataset, Row

Batch = TypeVar("Batch")


class RankLoader(Generic[Batch]):
    """Batches of one rank. A new iteration continues where the last one stopped.

    `state_dict` counts the batches that were returned, not those made ahead. It is equal on all ranks, and a run may be
    resumed with another number of ranks or another batch size. `len` is the number of batches of the whole run, or of
    one pass over the rows if the policy has no `epochs`: a trainer that stops there loses nothing, because the next
    iteration continues.
    """

    def __init__(
        self,
        dataset: PackedDataset | MixedDataset,
        policy: BatchPolicy,
        make: Callable[[list[Row]], Batch],
        find_place: Callable[[], tuple[int, int]],
    ) -> None:
        """`find_place` gives rank and world size; asked when iteration begins, since a process group may come late."""
        self.dataset, self.policy = dataset, policy
        self.order = BatchOrder(len(dataset), policy)
        self._make, self._find_place = make, find_place

    def __len__(self) -> int:
        self.order.place(*self._find_place())
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        self.order.place(*self._find_place())
        for batch in make_ahead(self._batches(copy(self.order)), self.policy.prefetch):
            self.order.advance()
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """The loader's position in the data; save it with the model."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from the position in `state`; raises UsageError if it belongs to another dataset or seed."""
        self.order.load_state_dict(state)

    def _batches(self, order: BatchOrder) -> Iterator[Batch]:
        for chosen in order:
            yield self._make([self._row(row) for row in chosen.tolist()])

    def _row(self, number: int) -> Row:
        return self.dataset[0].without_loss() if number == FILLER else self.dataset[number]


def make_ahead(items: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The `items`, up to `depth` of them made ahead by a thread; what fails there is raised here, in its turn."""
    if depth == 0:
        yield from items
        return
    made: SimpleQueue[tuple[str, Batch | BaseException | None]] = SimpleQueue()
    free = Semaphore(depth)
    stopped = False

    def fill() -> None:
        try:
            while free.acquire() and not stopped:
                made.put(("item", next(items)))
        except StopIteration:
            made.put(("end", None))
        except BaseException as error:  # whoever takes the item must see it
            made.put(("error", error))

    thread = Thread(target=fill, name="exact-prep batches", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = made.get()
            free.release()
            if kind == "end":
                return
            if kind == "error":
                raise item  # type: ignore[misc]
            yield item  # type: ignore[misc]
    finally:
        stopped = True
        free.release()
        thread.join()
