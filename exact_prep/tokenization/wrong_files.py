"""What is passed as a tokenizer but is not a tokenizer.json: says what it is, and what to do. Only for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from exact_prep.signatures import HEAD, find_codec, recognise

if TYPE_CHECKING:
    from pathlib import Path

FILE = "tokenizer.json"

CONVERT = "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
"""The remedy for every tokenizer that is stored in another form."""

FORMS = {
    "tokenizer.model": "a SentencePiece model",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
    "tekken.json": "a tokenizer of mistral-common",
    "vocab.json": "a vocabulary without its rules",
    "merges.txt": "the merges of a BPE without its rules",
    "vocab.txt": "a vocabulary without its rules",
}
"""Files that hold a tokenizer, or part of one, in another form."""


def explain_directory(path: Path) -> str:
    """What a directory without tokenizer.json holds instead, and the remedy; begins with punctuation."""
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    for form, what in FORMS.items():
        if form in names:
            return f", only {form}, {what}; {CONVERT}"
    for name in sorted(names):
        if name.startswith(f"{FILE}."):
            return f", only {name}; decompress it"
        if name.endswith(".tiktoken"):
            return f", only {name}, a vocabulary of tiktoken; {CONVERT}"
        if (path / name / FILE).is_file():
            return f"; pass {path / name}, which does"
    return "; pass a directory that does, or the file itself"


def explain_file(path: Path, data: bytes) -> str | None:
    """What the bytes of `path` are, where a tokenizer's file was expected, and the remedy; None if unknown."""
    if not data.strip():
        return "it is empty; fetch or copy it again"
    if codec := find_codec(data[:HEAD]):
        return f"it is compressed with {codec}; decompress it"
    if found := recognise(data[:HEAD]):
        return found.explain()
    what = FORMS.get(path.name) or recognize(path, data)
    if what is None:
        return None
    if path.name != FILE and path.with_name(FILE).is_file():
        return f"it is {what}; pass {path.with_name(FILE)}"
    return f"it is {what}; {CONVERT}"


def recognize(path: Path, data: bytes) -> str | None:
    """What kind of file of a tokenizer the bytes are; None if unknown."""
    if path.suffix == ".model" or (data.startswith(b"\n") and b"<unk>" in data[:64]):
        return "a SentencePiece model"
    if path.suffix == ".tiktoken":
        return "a vocabulary of tiktoken"
    if data.startswith(b"#version"):
        return "the merges of a BPE without its rules"
    try:
        value: Any = msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return None
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("vocab"), list) and "config" in value:
        return "a tokenizer of mistral-common"
    if value and "model" not in value and all(isinstance(number, int) for number in value.values()):
        return "a vocabulary without its rules"
    if path.name == "tokenizer_config.json" or "tokenizer_class" in value or "added_tokens_decoder" in value:
        return "a tokenizer_config.json, which only names special tokens"
    if "eos_token" in value or "unk_token" in value:
        return "a special_tokens_map.json, which only names special tokens"
    if "model_type" in value or "architectures" in value:
        return "the config.json of a model"
    return None
