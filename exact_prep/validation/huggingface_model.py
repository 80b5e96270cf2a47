"""A Hugging Face causal LM from disk in place of the small decoder; checks that it keeps documents apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.isolation import assert_documents_isolated
from exact_prep.validation.decoder import left_contexts

if TYPE_CHECKING:
    from pathlib import Path


class CausalLM(nn.Module):
    """ids[T] in segments -> logits[T, V]. Passes only position ids: with a mask or a cache, documents would leak."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Run the model on one row with all tokens; a segment starts where position ids start again at 0."""
        return self.model(input_ids=ids[None], position_ids=left_contexts(edges)[None], use_cache=False).logits[0]


def load_model(path: Path, vocab_size: int, *, length: int, device: str = "cpu") -> CausalLM:
    """Load the causal LM in `path`; it must know all ids below `vocab_size` and read documents of `length` tokens.

    Raises UsageError if it cannot be loaded, knows fewer ids, reads only shorter documents, or lets documents see each
    other.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UsageError("--model PATH needs transformers: pip install 'exact-prep[validate,hf]'") from None
    try:
        where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        home = path.parent if where else path
        loaded = AutoModelForCausalLM.from_pretrained(home, local_files_only=True, dtype=torch.float32, **where)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} contains no causal language model that transformers can load: {error}") from error
    if (known := int(loaded.config.vocab_size)) < vocab_size:
        raise UsageError(
            f"{path} knows {known} ids, but the data have {vocab_size}; pack with the model's own tokenizer"
        )
    check_length(loaded, path, length)
    loaded.to(device)  # type: ignore[arg-type]
    check_isolation(loaded, device)
    return CausalLM(loaded)


def check_length(model: nn.Module, path: Path, length: int) -> None:
    """Check that the model accepts `length` positions; raises UsageError.

    Runs one token at the last position, on the CPU: there a position beyond a learned table raises IndexError.
    """
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), position_ids=torch.tensor([[length - 1]]))
    except IndexError as error:
        known = getattr(model.config, "max_position_embeddings", "?")
        raise UsageError(
            f"{path} has learned no position beyond {known}, but would be measured on documents of {length:,} tokens; "
            "use shorter rows, or a model with relative positions"
        ) from error


def check_isolation(model: nn.Module, device: str) -> None:
    """Check, with two documents in a row of 24 tokens, that neither changes the other's logits; raises UsageError."""
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = torch.randint(0, vocabulary, (1, 24), generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    positions = torch.cat([torch.arange(11), torch.arange(13)])[None].to(device)
    assert_documents_isolated(model, {"input_ids": ids, "position_ids": positions})
