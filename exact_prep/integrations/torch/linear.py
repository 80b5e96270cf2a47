"""The chunked loss of a linear head as one operator, so that torch.compile sees neither its loop nor its targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def sum_linear_loss(
    hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Sum over targets of weight * cross-entropy of `hidden[N, H] @ head[V, H].T + bias[V]`, a float32 scalar.

    And the cross-entropy of each target, float32[N], without gradient; 0 where the weight is.

    `labels[N]` int64, `weights[N]` float32; targets of weight 0 are left out. Differentiable once, in hidden, head and
    bias.
    """
    loss, losses = _LinearLoss.apply(hidden, head, bias, labels, weights, chunk)
    return loss, losses


class _LinearLoss(torch.autograd.Function):
    """The sum, with its gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wants = [hidden.requires_grad, head.requires_grad, bias is not None and bias.requires_grad]
        loss, losses, *grads = _compute(hidden, head, bias, labels, weights, chunk, *wants)
        ctx.save_for_backward(*grads)
        inputs = zip((hidden, head, bias), wants, strict=True)
        ctx.dtypes = [own.dtype if own is not None and wanted else None for own, wanted in inputs]
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        grads = [
            None if dtype is None else (grad * grad_output).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None


@torch.library.custom_op("exact_prep::linear_loss", mutates_args=())
def _compute(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    chunk: int,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum, its terms before weighting (float32[N]), its gradients in hidden (its dtype), head and bias (float32).

    Gradients that are not wanted are empty.
    """
    kept = weights.nonzero().squeeze(-1)
    grad_hidden = torch.zeros_like(hidden) if wants_hidden else hidden.new_empty(0)
    grad_head = torch.zeros_like(head, dtype=torch.float32) if wants_head else head.new_empty(0)
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else head.new_empty(0)
    losses = torch.zeros_like(weights)
    with torch.autocast(hidden.device.type, enabled=False):
        for here in kept.split(chunk):
            own, targets, factors = hidden[here], labels[here, None], weights[here, None]
            logits = functional.linear(own, head, None if bias is None else bias.to(head.dtype))
            # Few passes over [chunk, V]: they take longer than the products.
            logs = functional.log_softmax(logits, -1, dtype=torch.float32)
            log_targets = logs.gather(1, targets)
            losses[here] = -log_targets.squeeze(1)
            if not (wants_hidden or wants_head or wants_bias):
                continue
            # d cross-entropy / d logits = softmax - one-hot of the target; near p = 1, p - 1 must not be rounded first.
            grads = torch.exp(logs, out=torch.empty_like(logits))
            grads.scatter_(1, targets, torch.expm1(log_targets).to(grads.dtype))
            if wants_bias:
                grad_bias += (grads.float() * factors).sum(0)
            if wants_hidden:
                grad_hidden[here] = ((grads @ head) * factors).to(hidden.dtype)
            if wants_head:
                grad_head += grads.T @ (own * factors).to(own.dtype)
    return (losses * weights).sum(), losses, grad_hidden, grad_head, grad_bias


@_compute.register_fake
def _describe(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    chunk: int,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Shapes and dtypes of what `_compute` gives."""
    return (
        weights.new_empty(()),
        torch.empty_like(weights),
        torch.empty_like(hidden) if wants_hidden else hidden.new_empty(0),
        torch.empty_like(head, dtype=torch.float32) if wants_head else head.new_empty(0),
        torch.empty_like(bias, dtype=torch.float32) if bias is not None and wants_bias else head.new_empty(0),
    )
