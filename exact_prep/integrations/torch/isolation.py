"""Checks by experiment, on any model, that documents packed into one row do not see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOT_FORWARDED = ("labels", "loss_weights", "segment_ids")


def assert_documents_isolated(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    forward: Callable[[dict[str, Tensor]], Any] | None = None,
    tolerance: float = 1e-3,
) -> float:
    """Raise UsageError if a document of `batch` changes the logits of another document in its row.

    Every second document is replaced by other tokens, then the documents between them. The logits of the unchanged
    documents must not move by more than `tolerance` (a leak moves them by about 1). Returns the largest movement.

    `batch` is the output of the Collator; documents start where its position_ids are 0. If no row has two documents and
    the model gets only input_ids and position_ids, each row is split into two. `forward` maps a batch to
    logits[B, L, V], or to an object with `.logits`. By default it calls the model with the batch without labels,
    weights and segment_ids, and with `use_cache=False` if the model has a config (a Hugging Face model that makes a
    cache does not isolate documents).
    """
    inputs = {name: values for name, values in batch.items() if name not in NOT_FORWARDED}
    cache = {"use_cache": False} if hasattr(model, "config") else {}
    call = forward or (lambda own: model(**own, **cache))
    number = (inputs["position_ids"] == 0).cumsum(-1)
    if int(number.max()) < 2 and set(inputs) == {"input_ids", "position_ids"}:
        half = -(-number.shape[-1] // 2)
        inputs["position_ids"] = torch.arange(number.shape[-1], device=number.device).expand_as(number) % half
        number = (inputs["position_ids"] == 0).cumsum(-1)
    if int(number.max()) < 2:
        raise UsageError("no row of the batch holds two documents, so nothing was checked; choose another batch")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            before = _logits(call(dict(inputs)))
            moved = [_movement(call, inputs, before, number % 2 == parity) for parity in (1, 0)]
    finally:
        model.train(training)
    if max(own for own, _ in moved) == 0:
        raise UsageError("other tokens gave the same logits, so nothing was checked: does the model read input_ids?")
    leak = max(other for _, other in moved)
    if not leak <= tolerance:
        raise UsageError(
            f"documents of one row see each other: replacing one moved the logits of another by {leak:.3g}. Pass "
            f"position_ids and no attention_mask, set use_cache=False, and use an attention that packs (see README)"
        )
    return leak


def _movement(
    forward: Callable[[dict[str, Tensor]], Any], inputs: dict[str, Tensor], before: Tensor, changed: Tensor
) -> tuple[float, float]:
    """How far logits move when the tokens at `changed[B, L]` are replaced: (at these tokens, at all others)."""
    known, ids = inputs["input_ids"].unique(return_inverse=True)
    others = known.roll(1)[ids] if known.numel() > 1 else inputs["input_ids"] + 1
    after = _logits(forward({**inputs, "input_ids": torch.where(changed, others, inputs["input_ids"])}))
    movement = (after.float() - before.float()).abs().amax(-1)
    return _largest(movement[changed]), _largest(movement[~changed])


def _largest(movement: Tensor) -> float:
    return float(movement.max()) if movement.numel() else 0.0


def _logits(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output
