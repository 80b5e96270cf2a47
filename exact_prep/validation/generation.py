"""Greedy continuation of a text by any model of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from exact_prep.validation.huggingface_model import CausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def continue_greedily(model: nn.Module, ids: torch.Tensor) -> Iterator[int]:
    """The likeliest next token after ids[T], and so on without end."""
    return model.continue_greedily(ids) if isinstance(model, CausalLM) else read_anew(model, ids)


@torch.no_grad()
def read_anew(model: nn.Module, ids: torch.Tensor) -> Iterator[int]:
    """The same from a model without a cache: it reads everything again for each token."""
    while True:
        edges = torch.tensor([0, ids.numel()], device=ids.device)
        best = model(ids, edges, edges[1:] - 1).argmax(-1)
        ids = torch.cat([ids, best])
        yield int(best)
