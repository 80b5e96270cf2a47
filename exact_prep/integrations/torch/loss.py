"""Weighted cross-entropy: sum of weight * CE, divided by the sum of weights (arXiv 2605.10544); plain or in chunks.

The denominator matters. With gradient accumulation and several ranks, it must be the sum over all of them (see
`denominator`). With a mean of means, a microbatch of short documents would count as much as one of long documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.linear import sum_linear_loss
from exact_prep.integrations.torch.require import require
from exact_prep.reader.columns import IGNORED, check_align

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exact_prep.reader.columns import Align

    Observe = Callable[[Tensor, Tensor], None]

CHUNK = 1024
"""Targets per chunk of the linear loss: 1024 * 152K fp32 logits take 0.6 GB, enough for full matrix-product speed."""

SLICED = (
    "the first token of a row carries loss, so rows are slices of longer ones, and shifting them here would misplace "
    "targets; shift before slicing: Collator(align='prediction'), and align='prediction' here"
)


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    denominator: Tensor | float | None = None,
    align: Align = "target",
    observe: Observe | None = None,
) -> Tensor:
    """Sum of weight * cross-entropy, divided by `denominator`, in float32; 0 if no target has weight.

    `logits[..., L, V]`, `labels[..., L]` (-100 carries no loss), `weights[..., L]`. With `align="target"`, labels and
    weights are aligned with targets and are shifted here; with "prediction" they are already shifted. The default of
    `denominator` is the sum of weights of this call. Logits may be a DTensor that is sharded over the vocabulary; under
    torch's `loss_parallel` no rank ever has all of them. `observe` is called with the cross-entropy and the weight of
    each prediction, float32 without gradient (see `ContextWatch`). Raises UsageError if shapes differ, or if with
    "target" the first token of a row carries loss: then the rows are slices of longer ones, which only "prediction" can
    take.
    """
    labels, weights = _aligned(logits.shape[:-1], labels, weights, align)
    targets = labels.flatten()
    if isinstance(logits, DTensor):
        everywhere = [Replicate()] * logits.device_mesh.ndim
        targets = DTensor.from_local(targets, logits.device_mesh, everywhere, run_check=False)
    losses = functional.cross_entropy(logits.flatten(0, -2).float(), targets, ignore_index=IGNORED, reduction="none")
    if isinstance(losses, DTensor):  # logits sharded over the vocabulary: the losses are the same on each rank
        losses = losses.full_tensor()
    if observe is not None:
        observe(losses.detach(), weights)
    return (losses * weights.flatten()).sum() / _divisor(weights, denominator)


def linear_weighted_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    denominator: Tensor | float | None = None,
    align: Align = "target",
    chunk: int = CHUNK,
    observe: Observe | None = None,
) -> Tensor:
    """`weighted_cross_entropy(hidden @ head.T + bias, ...)` that never has more than `chunk` rows of logits in memory.

    `hidden[..., L, H]`, `head[V, H]`, `bias[V]`. Targets without weight are skipped. Gradients are computed in the
    forward pass, so that logits are computed only once. Peak memory is about 2 * chunk * V * 4 bytes, plus two float32
    gradients of the head. One graph under torch.compile. Raises UsageError as `weighted_cross_entropy` does,
    for a sharded head, or if `chunk` is below 1.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}; it must be at least 1 target")
    if isinstance(hidden, DTensor) or isinstance(head, DTensor):
        raise UsageError(
            "the hidden states or the head are sharded (DTensor), and the chunked loss needs them whole: compute it "
            "inside the forward of the module that fully_shard wraps, or, with a head sharded over the vocabulary, use "
            "weighted_cross_entropy on its logits under torch.distributed.tensor.parallel.loss_parallel"
        )
    labels, weights = _aligned(hidden.shape[:-1], labels, weights, align)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, head = hidden.to(dtype), head.to(dtype)
    # Divide afterwards: a single target's gradient divided by 100K would be too small for float16.
    loss, losses = sum_linear_loss(hidden.flatten(0, -2), head, bias, labels.flatten(), weights.flatten(), chunk)
    if observe is not None:
        observe(losses, weights)
    return loss / _divisor(weights, denominator)


def denominator(
    weights: Iterable[Tensor], *, align: Align = "target", averaged: bool = True, group: Any = None
) -> Tensor:
    """The denominator for all microbatches of one optimizer step, over all ranks: pass it to the losses above.

    `weights` are the `loss_weights[..., L]` of this rank's microbatches (or `labels != -100` to divide by the number
    of supervised targets). DDP and FSDP average gradients over ranks, so the sum is divided by the number of ranks;
    pass `averaged=False` for trainers that sum gradients. Every rank must call this function. With `align="target"`,
    the first token of a row is not counted. Where ranks hold slices of rows (context or sequence parallelism), the
    alignment is "prediction", and `group` is that of all ranks that share a step. Raises UsageError if there are no
    microbatches, or for slices with "target".
    """
    check_align(align)
    weights = list(weights)
    if align == "target":
        for own in weights:
            require((own[..., 0] == 0).all(), SLICED)
    parts = [own[..., 1:] if align == "target" else own for own in weights]
    if not parts:
        raise UsageError("denominator needs the weights of at least one microbatch")
    total = torch.stack([part.sum(dtype=torch.float32) for part in parts]).sum()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total, group=group)
        if averaged:
            total = total / distributed.get_world_size(group)
    return total


def _aligned(shape: torch.Size, labels: Tensor, weights: Tensor, align: Align) -> tuple[Tensor, Tensor]:
    """Labels and float32 weights, aligned with predictions; targets without label or without weight are ignored."""
    check_align(align)
    if not shape == labels.shape == weights.shape:
        raise UsageError(
            f"the shapes of logits or hidden states (without the last dimension) {tuple(shape)}, labels "
            f"{tuple(labels.shape)} and weights {tuple(weights.shape)} must agree"
        )
    if weights.is_floating_point() is False:
        raise UsageError(
            f"weights are {weights.dtype}: an integer type has lost the weights; pass floating-point weights"
        )
    if align == "target":
        require(((weights[..., 0] == 0) | (labels[..., 0] == IGNORED)).all(), SLICED)
        labels = functional.pad(labels[..., 1:], (0, 1), value=IGNORED)
        weights = functional.pad(weights[..., 1:], (0, 1))
    weights = weights.to(torch.float32).masked_fill(labels == IGNORED, 0.0)
    return labels.masked_fill(weights == 0, IGNORED), weights


def _divisor(weights: Tensor, given: Tensor | float | None) -> Tensor:
    total = weights.sum() if given is None else torch.as_tensor(given, device=weights.device, dtype=torch.float32)
    return torch.where(total == 0, torch.ones_like(total), total)
