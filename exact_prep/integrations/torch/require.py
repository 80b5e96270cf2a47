"""Checks of values in tensors that cost no synchronisation with an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor

from exact_prep.errors import UsageError


def require(condition: Tensor, reason: str) -> None:
    """Raise UsageError with `reason` unless the boolean `condition[]` holds.

    On an accelerator, and inside torch.compile, it is a RuntimeError that comes when the device gets there.
    """
    if torch.compiler.is_compiling() or condition.device.type != "cpu":
        torch._assert_async(condition, reason)  # pyright: ignore[reportPrivateImportUsage]
    elif not condition:
        raise UsageError(reason)
