"""The corpus and tokenizer of `exact-prep demo`. SOURCES.md says where they come from; build.py makes them."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def corpus_path() -> Path:
    """A public-domain corpus: JSON lines with fields id, title and text; documents of 10 to more than 32K tokens."""
    return HERE / "corpus.jsonl.gz"


def tokenizer_path() -> Path:
    """A byte-level BPE tokenizer of 8192 tokens, trained on that corpus."""
    return HERE / "tokenizer.json"
