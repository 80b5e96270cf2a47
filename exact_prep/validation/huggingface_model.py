"""A Hugging Face causal LM from disk in place of the small decoder. Every document is a sequence of its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BATCH_TOKENS = 1 << 14
"""Tokens of segments that the model reads at once, padding included."""
LEAST_SHARE = 0.75
"""Of the longest segment of a batch that every other has: the rest is padding."""


class CausalLM(nn.Module):
    """ids[T] in segments -> logits[T, V].

    Segments are the rows of batches, padded at their end, where causal attention does not see it. So no document sees
    another, whatever the model; and attention needs no mask, which is quadratic in T and slow without a GPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.keeps = "logits_to_keep" in takes
        self.cache_name = "cache" if "cache" in takes else "past_key_values"  # renamed in transformers 5

    def forward(self, ids: torch.Tensor, edges: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """`ids[T]` in segments cut at `edges[S + 1]` -> logits[T, V]; with `wanted[N]`, ascending, of these places."""
        places = torch.arange(ids.numel(), device=ids.device) if wanted is None else wanted
        segment = torch.searchsorted(edges, places, right=True) - 1
        offset = places - edges[segment]
        parts = ids.split(edges.diff().tolist())
        logits, order = [], []
        for group in group_by_length([part.numel() for part in parts]):
            row = torch.full((len(parts),), -1, device=ids.device)
            row[group] = torch.arange(len(group), device=ids.device)
            own = (row[segment] >= 0).nonzero()[:, 0]
            if own.numel():
                kept, column = offset[own].unique(return_inverse=True)
                found = self.read(pad_sequence([parts[s] for s in group], batch_first=True), kept)
                logits.append(found[row[segment[own]], column])
                order.append(own)
        return logits[0] if len(logits) == 1 else torch.cat(logits)[torch.cat(order).argsort()]

    def read(self, rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Logits[B, K, V] of the places `kept[K]` of rows[B, L]."""
        if self.keeps:
            return self.model(input_ids=rows, use_cache=False, logits_to_keep=kept).logits
        return self.model(input_ids=rows, use_cache=False).logits[:, kept]

    @torch.no_grad()
    def continue_greedily(self, ids: torch.Tensor) -> Iterator[int]:
        """The likeliest next token after ids[T], and so on without end; the cache holds what was read."""
        fresh, cache = ids[None], None
        last = {"logits_to_keep": 1} if self.keeps else {}
        while True:
            read = self.model(input_ids=fresh, use_cache=True, **{self.cache_name: cache}, **last)
            fresh, cache = read.logits[:, -1:].argmax(-1), read[self.cache_name]
            yield int(fresh)


def group_by_length(lengths: list[int]) -> Iterator[list[int]]:
    """Places of `lengths` in groups of similar lengths, each at most BATCH_TOKENS with its padding, or one segment."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[group[0]] if group else 0
        if group and (lengths[place] < LEAST_SHARE * longest or longest * (len(group) + 1) > BATCH_TOKENS):
            yield group
            group = []
        group.append(place)
    yield group


def load_model(path: Path, vocab_size: int, *, length: int, device: str = "cpu") -> CausalLM:
    """Load the causal LM in `path`; it must know all ids below `vocab_size` and read documents of `length` tokens.

    Raises UsageError if it cannot be loaded, knows fewer ids, or reads only shorter documents.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UsageError("--model PATH needs transformers: pip install 'exact-prep[validate,hf]'") from None
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    home = path.parent if where else path
    try:
        loaded = AutoModelForCausalLM.from_pretrained(home, local_files_only=True, dtype=torch.float32, **where)
    except ImportError as error:
        remedy = "; pip install gguf" if where else ""
        raise UsageError(f"{path} needs a package that is not there: {' '.join(str(error).split())}{remedy}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} contains no causal language model that transformers can load: {error}") from error
    if (known := int(loaded.config.vocab_size)) < vocab_size:
        raise UsageError(
            f"{path} knows {known} ids, but the data have {vocab_size}; pack with the model's own tokenizer"
        )
    check_length(loaded, path, length)
    return CausalLM(loaded.to(device))  # type: ignore[arg-type]


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
