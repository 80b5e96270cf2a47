"""The training loop: AdamW, warm-up and cosine decay, checkpoints. Every arm sees the same batches in the same order.

The loss is the one of `integrations.torch`, and the data come from its collator and loader. Its denominator is the
corpus's mean weight times the step's supervised targets: divided by a step's own sum of weights, small steps would
cancel part of what the weights do (29 % of it with one row per step).

On one thread it is bitwise reproducible, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from exact_prep.integrations.torch.loss import weighted_cross_entropy
from exact_prep.stores.local import explained
from exact_prep.validation.decoder import left_contexts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from exact_prep.validation.arms import Arm
    from exact_prep.validation.training_batches import Batches


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a run is optimised."""

    steps: int
    lr: float
    warmup: int = 10
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    floor: float = 0.1
    """The final learning rate, as a share of `lr`."""

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of `step` in a run of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2)


def train(
    model: nn.Module,
    stream: Batches,
    arm: Arm,
    schedule: Schedule,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every: int = 100,
    stop_after: int | None = None,
    progressed: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train `model` in place; returns the weighted loss of each step taken in this call.

    With `checkpoint`, the state is saved there after every `every` steps, except the last step; if the file exists,
    training continues from it. `stop_after` ends the call after that many steps in total, for tests. `progressed` is
    called after each step. A run that diverges ends with its first loss that is not finite, and is not updated by it.
    """
    steps = count_steps(schedule.steps, arm)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
    )
    first = restore(checkpoint, model, optimizer) if checkpoint else 0
    losses = []
    model.train()
    for step, whole in zip(range(first, min(steps, stop_after or steps)), stream.batches(first), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step, steps) * arm.lr_factor
        torch.manual_seed(step)  # makes dropout the same in every arm, and in a resumed run
        batch = whole.to(device)
        weights = arm.weights(batch, left_contexts(batch.edges), step)
        targets = batch.supervised.sum().clamp(min=1)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(batch.ids, batch.edges)
        loss = weighted_cross_entropy(logits, batch.ids, weights, denominator=arm.mean_weight * targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        progressed()
        if checkpoint and (step + 1) % every == 0 and step + 1 < steps:  # so that a resumed run has a step left
            save(checkpoint, model, optimizer, step + 1)
    return losses


def count_steps(steps: int, arm: Arm) -> int:
    """Steps of an arm where a run of normal length has `steps`."""
    return round(steps * arm.steps_factor)


def save(path: Path, model: nn.Module, optimizer: Any, step: int) -> None:
    """Save everything that the next step depends on; raises StorageError."""
    temporary = path.with_suffix(".tmp")
    with explained("write", path):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
        temporary.replace(path)


def restore(path: Path, model: nn.Module, optimizer: Any) -> int:
    """Restore a checkpoint, if there is one; returns the number of steps already taken."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
