"""OLMo-core 3: packed rows with their weights inside the labels, and the loss that reads them. Needs `ai2-olmo-core`.

    use_weights()    # once, before the first step
    data_loader = PackedDataLoader("packed", work_dir="work", global_batch_size=512 * 4096, seed=0)
    trainer = trainer_config.build(train_module, data_loader)

OLMo-core divides a rank's loss by the number of its supervised targets. So weigh with `--normalize mean`: the mean
weight is then 1. Batches have `doc_lens`: give the model a FlashAttention backend, which keeps documents apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import olmo_core.nn.lm_head as lm_head  # pyright: ignore[reportMissingImports]
import torch
from olmo_core.data.data_loader import DataLoaderBase  # pyright: ignore[reportMissingImports]
from olmo_core.distributed.utils import get_rank, get_world_size  # pyright: ignore[reportMissingImports]

import exact_prep
from exact_prep.errors import UsageError
from exact_prep.integrations.torch import BatchPolicy, Collator, Loader, carried, carry
from exact_prep.integrations.torch.require import check_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from exact_prep.reader.rows import Row

cross_entropy_loss = lm_head.cross_entropy_loss
"""OLMo-core's own."""


def use_weights() -> None:
    """Let the language-model head read weights from labels, for `loss_implementation` default."""
    lm_head.cross_entropy_loss = weighted_loss
    lm_head.fused_linear_cross_entropy_loss = refuse_fused_loss


def weighted_loss(logits: Tensor, labels: Tensor, *, reduction: str = "mean", **options: Any) -> tuple[Any, Any]:
    """OLMo-core's loss times the weights that int64 `labels[N]` carry; the z-loss is not weighted."""
    labels, weights = carried(labels)
    losses, z_losses = cross_entropy_loss(logits, labels, reduction="none", **options)
    if reduction == "none":
        return losses * weights, z_losses
    if reduction != "sum":
        raise UsageError(
            f"reduction {reduction!r}: OLMo-core's train modules ask for the sum, and divide it themselves"
        )
    supervised = labels != options.get("ignore_index", -100)
    return (losses * weights).sum(), None if z_losses is None else (z_losses * supervised).sum()


def refuse_fused_loss(*_: Any, **__: Any) -> None:
    """Raise UsageError: the fused loss would take weights for tokens."""
    raise UsageError("loss_implementation fused_linear knows no weights; set lm_head.loss_implementation to default")


class PackedDataLoader(DataLoaderBase):
    """The rows of a weighed dataset, shuffled, shared by data-parallel ranks, resumed to the batch by checkpoints."""

    def __init__(
        self,
        path: str,
        *,
        work_dir: str,
        global_batch_size: int,
        seed: int = 0,
        plain: bool = False,
        dp_world_size: int | None = None,
        dp_rank: int | None = None,
    ) -> None:
        """Open the dataset in `path`; `global_batch_size` in tokens. `plain`: every target weighs 1, the baseline.

        Raises UsageError for a batch that is not of whole rows, or weights whose mean is not 1.
        """
        world_size = get_world_size() if dp_world_size is None else dp_world_size
        rank = get_rank() if dp_rank is None else dp_rank
        super().__init__(work_dir=work_dir, global_batch_size=global_batch_size, dp_world_size=world_size, dp_rank=rank)
        dataset = exact_prep.open(path, plain=plain)
        rows, rest = divmod(global_batch_size, world_size * dataset.seq_len)
        if rest or not rows:
            raise UsageError(
                f"global_batch_size {global_batch_size:,} tokens is not of whole rows of {dataset.seq_len:,} on each "
                f"of {world_size} ranks"
            )
        check_mean(dataset, "OLMo-core")
        policy = BatchPolicy(batch_size=rows, seed=seed)
        self.loader = Loader(dataset, policy, collate=make_batch, rank=rank, world_size=world_size)

    @property
    def total_batches(self) -> int:
        """Batches of one pass over the rows; the last one may hold rows of the next pass."""
        return len(self.loader)

    def _iter_batches(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield batch
            if self.batches_processed >= self.total_batches:
                return

    def reshuffle(self, epoch: int | None = None, **_: Any) -> None:
        """Begin an epoch; its order follows from the seed and from the rows read so far."""
        self._epoch = (self._epoch or 0) + 1 if epoch is None else epoch

    def get_mock_batch(self) -> dict[str, Any]:
        """A batch of the first rows."""
        return make_batch([self.loader.dataset[0]] * self.loader.policy.batch_size)

    def global_num_tokens_in_batch(self, batch: dict[str, Any]) -> int:
        """Tokens of a batch over all ranks."""
        del batch
        return self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, equal on all ranks."""
        return {"loader": self.loader.state_dict(), "batches": self.batches_processed, "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a position, with any number of ranks; raises UsageError if it is of other data."""
        self.loader.load_state_dict(state_dict["loader"])
        self.batches_processed, self._epoch = state_dict["batches"], state_dict["epoch"]


def make_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """input_ids, and labels of the next tokens with their weights inside, int64[B, L]; doc_lens and max_doc_lens."""
    batch = Collator(align="prediction")(rows)
    seq_len = batch["input_ids"].shape[1]
    lengths = [row.seq_lengths.tolist() for row in rows]
    # Padding is a last document of its own.
    lengths = [[*own, seq_len - sum(own)] if sum(own) < seq_len else own for own in lengths]
    most = max(map(len, lengths))
    return {
        "input_ids": batch["input_ids"],
        "labels": carry(batch["labels"], batch["loss_weights"]),
        "doc_lens": torch.tensor([[*own, *[0] * (most - len(own))] for own in lengths]),
        "max_doc_lens": [max(own) for own in lengths],
    }
