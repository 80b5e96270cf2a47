"""The weighted loss of a model one does not own, computed where its output head is applied. No trainer here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.loss import linear_weighted_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class HeadLoss:
    """What was computed at the head during one forward pass."""

    loss: Tensor | None = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """The head's own output for the first token of each row, all that is made of the logits."""

    def checked(self, logits: Tensor) -> Tensor:
        """The loss, once it is certain that the model's `logits` are what its head gave.

        Raises UsageError if the model never used its head, or scales or caps what it gives: the loss would be that of
        other logits.
        """
        if self.loss is None or not same(self.logits.float(), logits.float()):
            raise UsageError(
                "the model does not return what its output head gives (it scales or caps logits, or uses another "
                "head), so the loss cannot be chunked over the head; set head_chunk = None"
            )
        return self.loss


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN for NaN: a run that diverged is no other head."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


@contextmanager
def loss_at_head(
    head: Any, labels: Tensor, weights: Tensor, *, denominator: Tensor | float | None, chunk: int
) -> Iterator[HeadLoss]:
    """Let `head`, an nn.Linear, compute the weighted loss of its input instead of full logits, while inside.

    The loss is computed inside the model's forward pass, where a sharded head (FSDP, ZeRO-3) is whole. Labels and
    weights are aligned with targets. Raises UsageError for a head that is no plain linear layer.
    """
    # Not isinstance: a LoRA or quantised layer computes more than hidden @ weight.
    if type(head) is not nn.Linear:
        raise UsageError(f"the output head is a {type(head).__name__}, not a plain nn.Linear; set head_chunk = None")
    made, apply = HeadLoss(), head.forward

    def forward(input: Tensor) -> Tensor:  # noqa: A002
        made.loss = linear_weighted_cross_entropy(
            input, head.weight, labels, weights, bias=head.bias, denominator=denominator, chunk=chunk
        )
        made.logits = apply(input[:, :1])
        return made.logits

    head.forward = forward
    try:
        yield made
    finally:
        del head.forward
