"""A Hugging Face causal LM from disk in place of the small decoder, with its documents provably apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.isolation import assert_documents_isolated
from exact_prep.validation.model import left_contexts

if TYPE_CHECKING:
    from pathlib import Path


class CausalLM(nn.Module):
    """ids[T] in segments -> logits[T, V], by position ids alone: with a mask or a cache documents would leak."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """One row that holds everything; the model tells segments by where positions start again."""
        return self.model(input_ids=ids[None], position_ids=left_contexts(edges)[None], use_cache=False).logits[0]


def load_model(path: Path, vocab_size: int, *, length: int, device: str = "cpu") -> CausalLM:
    """A causal LM saved in `path` that knows ids below `vocab_size` and reads documents of `length` tokens.

    Raises UsageError if it cannot be loaded, knows fewer, reads shorter ones, or lets documents see each other.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UsageError("--model PATH needs transformers: pip install 'exact-prep[validate,hf]'") from None
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no causal language model: {error}") from error
    if (known := int(loaded.config.vocab_size)) < vocab_size:
        raise UsageError(f"{path} knows {known} ids, the data have {vocab_size}; pack with the model's own tokenizer")
    check_length(loaded, path, length)
    loaded.to(device)  # type: ignore[arg-type]
    check_isolation(loaded, device)
    return CausalLM(loaded)


def check_length(model: nn.Module, path: Path, length: int) -> None:
    """One token at the last position, on the CPU, which says where a table of positions ends; raises UsageError."""
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), position_ids=torch.tensor([[length - 1]]))
    except IndexError as error:
        raise UsageError(
            f"{path} has learned no position beyond {getattr(model.config, 'max_position_embeddings', '?')}, and is "
            f"measured on documents of {length:,} tokens; use shorter rows, or a model with relative positions"
        ) from error


def check_isolation(model: nn.Module, device: str) -> None:
    """Two documents in a row of 24 tokens; raises UsageError if one moves the other's logits."""
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = torch.randint(0, vocabulary, (1, 24), generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    positions = torch.cat([torch.arange(11), torch.arange(13)])[None].to(device)
    assert_documents_isolated(model, {"input_ids": ids, "position_ids": positions})
