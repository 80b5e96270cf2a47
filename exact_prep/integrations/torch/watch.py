"""Watch training by effective context: the mean loss of each bucket, and the tail's share of supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from exact_prep.reader.columns import check_align
from exact_prep.weighing.context import bucket_edges, edge_at_or_above, find_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from exact_prep.reader.columns import Align
    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.rows import PackedDataset


class ContextWatch:
    """Sums the losses of training by effective context, on the device; `read` gives means and starts again.

    Pass `on(batch)` to a loss as `observe`. Nothing is copied from the device before `read`.
    """

    def __init__(self, dataset: PackedDataset | MixedDataset) -> None:
        """The tail is that of the dataset's weights; of plain weights, from a quarter of the row on."""
        loaded = dataset.loaded_weights
        self.window = loaded.file.options.window if loaded and loaded.file.options else None
        """Contexts saturate here, in tokens; None for full attention."""
        self.tail_start = loaded.table.tail_start if loaded else edge_at_or_above(dataset.seq_len // 4)
        """The tail's first context, in tokens."""
        self.edges = bucket_edges(find_bucket(dataset.seq_len) + 1)
        """Edges of the buckets, int64[K + 1], in tokens."""
        self._inner = torch.from_numpy(self.edges[1:-1].copy())
        self._sums = torch.zeros(3, len(self.edges) - 1, dtype=torch.float64)

    def on(self, batch: Mapping[str, Any], *, align: Align = "target") -> Callable[[Tensor, Tensor], None]:
        """What a loss calls with its predictions of `batch`; `align` is that of the batch's labels and weights."""
        check_align(align)
        positions = batch["position_ids"]
        following = torch.cat([positions[..., 1:], positions[..., -1:] + 1], -1)
        # The target of a prediction at the end of a document begins another one: it sees nothing.
        contexts = torch.where(following == 0, 0, positions + 1)

        def observe(losses: Tensor, weights: Tensor) -> None:
            self.add(losses.reshape(-1), weights.reshape(-1), contexts.reshape(-1))

        return observe

    def add(self, losses: Tensor, weights: Tensor, contexts: Tensor) -> None:
        """Add predictions with cross-entropy `losses[N]`, `weights[N]` and effective `contexts[N]` of their targets."""
        if self._sums.device != losses.device:
            self._sums, self._inner = self._sums.to(losses.device), self._inner.to(losses.device)
        if self.window is not None:
            contexts = contexts.clamp(max=self.window)
        bucket = torch.bucketize(contexts, self._inner, right=True)
        counted = weights > 0
        parts = torch.stack([counted.float(), torch.where(counted, losses, 0.0), weights.float()])
        self._sums.index_add_(1, bucket, parts.double())

    def read(self, group: Any = None) -> dict[str, float]:
        """Means since the last `read` over all ranks of `group`, each of which must call this; empty if none came.

        `loss/context 8-15` is the mean unweighted cross-entropy of a bucket, in nats; `tail share` is the tail's part
        of the sum of weights.
        """
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums, group=group)
        counts, losses, weights = sums.tolist()
        found = {
            f"loss/context {start}-{stop - 1}": loss / count
            for start, stop, count, loss in zip(self.edges, self.edges[1:], counts, losses, strict=False)
            if count
        }
        if total := sum(weights):
            tail = sum(weight for start, weight in zip(self.edges, weights, strict=False) if start >= self.tail_start)
            found["tail share"] = tail / total
        return found
