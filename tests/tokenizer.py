"""The tokenizer of the tests: a byte-level BPE of 400 tokens with an EOS, trained where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def train_tokenizer(path: Path) -> Path:
    """Train the tokenizer and save it at `path`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["the long context of a row", "context and weight", "supervision of the tail", "documents 0123"] * 3
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path
