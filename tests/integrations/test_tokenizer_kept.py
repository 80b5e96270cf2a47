"""The tokenizer that a dataset keeps: `AutoTokenizer` loads it, with EOS, BOS and padding as they were used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

import exact_prep
from exact_prep.pipeline.pack import pack
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")

TEXTS = ["the long context of a row", "  straße 東京 🙂\n", "documents 0123 's <|endoftext|> in the text"]


@pytest.fixture
def named(tmp_path) -> Path:
    """A tokenizer with tokens for every role, whose own config names others, or none."""
    from tokenizer import train_tokenizer
    from tokenizers import AddedToken, Tokenizer

    path = train_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "<pad>", "</s>")])
    tokenizer.save(str(path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "model_max_length": 8}))
    return path


ROLES = {
    "EOS alone": ({}, {"eos_token": "<|endoftext|>", "bos_token": None, "pad_token": "<|endoftext|>"}),
    "all named": (
        {"eos_token": "</s>", "bos": True, "bos_token": "<s>", "pad_token": "<pad>"},
        {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"},
    ),
    "no EOS": ({"eos": False, "pad_token": "<pad>"}, {"eos_token": None, "bos_token": None, "pad_token": "<pad>"}),
}


@pytest.mark.parametrize("case", ROLES)
def test_auto_tokenizer_gives_the_ids_of_the_rows(case, named, tmp_path):
    chosen, roles = ROLES[case]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(named), **chosen),
        packing=PackingOptions(seq_lens=(256,)),
    )
    out = tmp_path / "out"
    (manifest,) = pack([str(source)], options, out)
    kept = transformers.AutoTokenizer.from_pretrained(out / "tokenizer")
    assert {role: getattr(kept, role) for role in roles} == roles
    used = manifest.tokenizer
    assert (kept.eos_token_id, kept.bos_token_id, kept.pad_token_id) == (used.eos_id, used.bos_id, used.pad_id)
    ends = ([used.bos_id] if used.bos_id is not None else []), ([used.eos_id] if used.eos_id is not None else [])
    (row,) = exact_prep.open(out, plain=True)
    found = np.split(row.input_ids[: row.seq_lengths.sum()], np.cumsum(row.seq_lengths)[:-1])
    for text, ids in zip(TEXTS, found, strict=True):
        inner = kept(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert [*ends[0], *inner, *ends[1]] == ids.tolist()
    assert (row.input_ids[row.seq_lengths.sum() :] == kept.pad_token_id).all()
    assert kept.decode(kept(TEXTS[0], add_special_tokens=False)["input_ids"]) == TEXTS[0]
