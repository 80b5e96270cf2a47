"""Checks of values in tensors that cost no synchronisation with an accelerator, and of weights before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from exact_prep.reader.rows import PackedDataset


def require(condition: Tensor, reason: str) -> None:
    """Raise UsageError with `reason` unless the boolean `condition[]` holds.

    On an accelerator, and inside torch.compile, it is a RuntimeError that comes when the device gets there.
    """
    if torch.compiler.is_compiling() or condition.device.type != "cpu":
        torch._assert_async(condition, reason)  # pyright: ignore[reportPrivateImportUsage]
    elif not condition:
        raise UsageError(reason)


def check_mean(dataset: PackedDataset, trainer: str) -> None:
    """Raise UsageError unless a supervised target weighs 1 in the mean over the corpus, to 1 %.

    For a `trainer` that divides the loss by the number of supervised targets.
    """
    mean = dataset.loaded_weights.mean_weight if dataset.loaded_weights else 1.0
    if abs(mean - 1) > 0.01:
        raise UsageError(
            f"targets weigh {mean:.4f} in the mean, but {trainer} divides by their number: every step would be "
            f"{mean:.4f} times as large; run `exact-prep weigh {dataset.path} --normalize mean`"
        )
