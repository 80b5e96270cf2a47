"""The check that documents packed into one row do not see each other. Works on any model, by trying."""

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
    """Raise UsageError if a document of `batch` moves the logits of another document of its row.

    Every second document is replaced by other tokens, then the ones between: the logits of the untouched ones must not
    move by more than `tolerance` (a leak moves them by about 1). `batch` is what the Collator makes; documents are
    told by its position_ids. `forward` maps a batch to logits[B, L, V], or to something with `.logits`; by default
    it is the model, called with the batch less labels and weights, and `use_cache=False` where it has a config (a
    Hugging Face model that makes a cache does not isolate). Where no row holds two documents, each is taken for two.
    Returns the largest movement seen.
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
    """How far logits move when the tokens at `changed[B, L]` are others: there, and elsewhere."""
    known, ids = inputs["input_ids"].unique(return_inverse=True)
    others = known.roll(1)[ids] if known.numel() > 1 else inputs["input_ids"] + 1
    after = _logits(forward({**inputs, "input_ids": torch.where(changed, others, inputs["input_ids"])}))
    movement = (after.float() - before.float()).abs().amax(-1)
    return _largest(movement[changed]), _largest(movement[~changed])


def _largest(movement: Tensor) -> float:
    return float(movement.max()) if movement.numel() else 0.0


def _logits(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output
