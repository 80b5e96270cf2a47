"""torchtitan: packed rows with their weights inside the labels, and the loss that reads them. Needs `torchtitan`.

In a config of torchtitan:

    config.dataloader = PackedDataLoader.Config(dataset_path="packed", seed=0)
    config.loss = WeightedCrossEntropyLoss.Config()

torchtitan divides the loss of a step by the number of its supervised targets, over all ranks. So weigh with
`--normalize mean`: the mean weight is then 1. Attention must read positions (flex or varlen), as torchtitan's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchtitan.components.dataloader import BaseDataLoader  # pyright: ignore[reportMissingImports]
from torchtitan.components.loss import BaseLoss  # pyright: ignore[reportMissingImports]
from torchtitan.distributed.spmd_types import spmd_mesh_size  # pyright: ignore[reportMissingImports]

import exact_prep
from exact_prep.errors import UsageError
from exact_prep.integrations.torch import BatchPolicy, Collator, Loader, carried, carry, weighted_cross_entropy
from exact_prep.integrations.torch.require import check_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class PackedDataLoader(BaseDataLoader):
    """The rows of a weighed dataset, shuffled, shared by data-parallel ranks, resumed to the batch by checkpoints."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset_path` (required) is the packed directory."""

        seed: int = 0
        plain: bool = False
        """Every target weighs 1: the baseline, on the same rows in the same order."""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any
    ) -> None:
        """Open the dataset; raises UsageError for rows of another length, or weights whose mean is not 1."""
        dataset = exact_prep.open(config.dataset_path or "", plain=config.plain)
        if dataset.seq_len != seq_len:
            raise UsageError(f"rows have {dataset.seq_len} tokens: set training.seq_len to that; it is {seq_len}")
        check_mean(dataset, "torchtitan")
        policy = BatchPolicy(batch_size=local_batch_size, seed=config.seed)
        collate = Collator(align="prediction")
        self.loader = Loader(dataset, policy, collate=collate, rank=dp_rank, world_size=dp_world_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in self.loader:
            inputs = {"input": batch["input_ids"], "positions": batch["position_ids"]}
            yield inputs, carry(batch["labels"], batch["loss_weights"])

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, equal on all ranks."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a position, with any number of ranks; raises UsageError if it is of other data."""
        self.loader.load_state_dict(state_dict)


def weighted_sum(pred: Tensor, labels: Tensor) -> Tensor:
    """The sum of weight * cross-entropy of logits [B, L, V] and labels int64[B, L] that carry their weights."""
    if spmd_mesh_size("tp") > 1:
        raise UsageError(
            "each tensor-parallel rank has the logits of its part of the vocabulary alone, and this loss needs all; "
            "set parallelism.spmd_backend to partial_dtensor, or parallelism.tensor_parallel_degree to 1"
        )
    labels, weights = carried(labels)
    return weighted_cross_entropy(pred, labels, weights, denominator=1.0, align="prediction")


class WeightedCrossEntropyLoss(BaseLoss):
    """Weighted cross-entropy, alone or inside torchtitan's ChunkedLossWrapper (`loss_fn=`)."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """There is nothing to set."""

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        self.fn = weighted_sum
        self._maybe_compile(compile_config)
