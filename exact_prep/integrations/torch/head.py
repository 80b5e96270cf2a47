"""Computes the weighted loss inside someone else's model, where it applies its output head. Knows no trainer."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.loss import linear_weighted_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class HeadLoss:
    """The loss and logits computed at the head during one forward pass."""

    loss: Tensor | None = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """The head's own output for the first token of each row; no other logits are kept."""

    def checked_loss(self, logits: Tensor) -> Tensor:
        """The loss, after checking that the model's `logits` are the output of its head.

        Raises UsageError if the model did not use its head, or scales or caps the output: then the loss would be that
        of other logits.
        """
        if self.loss is None or not are_equal(self.logits.float(), logits.float()):
            raise UsageError(
                "the model does not return the output of its head unchanged (it scales or caps logits, or uses another "
                "head), so the loss cannot be computed in chunks at the head; set head_chunk = None"
            )
        # Under FSDP, backward begins at the model's own output: only that gathers parameters that were resharded.
        return self.loss + logits.float().masked_fill(torch.ones_like(logits, dtype=torch.bool), 0.0).sum()


def are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal. NaN equals NaN: a diverged run does not mean that another head was used."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def is_plain_linear(head: Any) -> bool:
    """Whether `head` computes hidden @ weight and no more, also if FSDP2 made it a sharded class of its own."""
    # Not isinstance: a LoRA or quantised layer computes more.
    kind = type(head)
    return kind is nn.Linear or (issubclass(kind, FSDPModule) and kind.__bases__ == (FSDPModule, nn.Linear))


@contextmanager
def loss_at_head(
    head: Any, labels: Tensor, weights: Tensor, *, denominator: Tensor | float | None, chunk: int, observe: Any = None
) -> Iterator[HeadLoss]:
    """Inside this context, `head` (an nn.Linear) computes the weighted loss of its input instead of the full logits.

    The loss is computed during the model's forward pass, while a sharded head (FSDP, ZeRO-3) is gathered. Labels and
    weights are aligned with targets. Raises UsageError if the head is not a plain linear layer.
    """
    if not is_plain_linear(head):
        raise UsageError(f"the output head is a {type(head).__name__}, not a plain nn.Linear; set head_chunk = None")
    made, apply = HeadLoss(), head.forward

    def forward(input: Tensor) -> Tensor:  # noqa: A002
        made.loss = linear_weighted_cross_entropy(
            input, head.weight, labels, weights, bias=head.bias, denominator=denominator, chunk=chunk, observe=observe
        )
        made.logits = apply(input[:, :1])
        return made.logits

    head.forward = forward
    try:
        yield made
    finally:
        del head.forward
