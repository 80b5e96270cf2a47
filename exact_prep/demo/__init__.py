"""The corpus and tokenizer of `exact-prep demo`: SOURCES.md says where they come from, build.py makes them."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def corpus_path() -> Path:
    """A public-domain corpus, JSON lines with fields id, title, text: documents from 10 tokens to more than 32K."""
    return HERE / "corpus.jsonl.gz"


def tokenizer_path() -> Path:
    """A byte-level BPE of 8192 tokens trained on it."""
    return HERE / "tokenizer.json"
