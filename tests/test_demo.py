"""The demo's corpus and tokenizer, and the demo as a newcomer sees it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import fastokens
import numpy as np
import pytest
from tokenizers import Tokenizer

from exact_prep.demo import HERE, corpus_path, tokenizer_path


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    with gzip.open(corpus_path(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_documents_reach_from_a_few_tokens_to_more_than_a_row(corpus):
    assert [document["id"] for document in corpus] == list(range(len(corpus)))
    encodings = Tokenizer.from_file(str(tokenizer_path())).encode_batch([document["text"] for document in corpus])
    lengths = [len(encoding.ids) for encoding in encodings]
    assert min(lengths) <= 8
    assert max(lengths) > 32768
    for low in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        assert any(low <= length < 2 * low for length in lengths), low


def test_the_tokenizer_gives_back_the_text_and_both_libraries_agree(corpus):
    texts = [document["text"] for document in corpus]
    reference = Tokenizer.from_file(str(tokenizer_path()))
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    assert [reference.decode(encoding.ids) for encoding in encodings] == texts
    fast = fastokens.Tokenizer.from_file(str(tokenizer_path()))
    ids, _ = fast.encode_batch_flat(texts, add_special_tokens=False)
    assert np.frombuffer(ids, np.uint32).tolist() == [token for encoding in encodings for token in encoding.ids]
    assert reference.token_to_id("<|endoftext|>") == 0


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) < 2_200_000


def test_the_demo_packs_weighs_reports_and_says_how_to_load_the_result(tmp_path):
    demo = [sys.executable, "-m", "exact_prep", "demo", "--out", tmp_path / "demo"]
    done = subprocess.run(demo, capture_output=True, text=True, check=True, timeout=120)
    assert "8,192 - 16,383" in done.stdout
    assert "tail" in done.stdout
    lines = done.stdout.split("Load it with:")[1].splitlines()
    code = "\n".join(line.strip() for line in lines if line.startswith("    ")).replace("'torch'", "'numpy'")
    shown = subprocess.run(
        [sys.executable, "-c", code + "\nprint(len(rows))"], capture_output=True, text=True, check=True
    )
    assert int(shown.stdout) > 20
    again = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_a_demo_stopped_before_it_had_weighed_is_finished_by_the_same_command(tmp_path):
    out = tmp_path / "demo"
    pack = ["pack", corpus_path(), "--tokenizer", tokenizer_path(), "--seq-len", "16384", "--out", out]
    run = [sys.executable, "-m", "exact_prep"]
    subprocess.run([*run, *map(str, pack)], capture_output=True, check=True)
    before = (out / "manifest.json").read_bytes()
    done = subprocess.run([*run, "demo", "--out", out], capture_output=True, text=True, check=True, timeout=120)
    assert "Load it with:" in done.stdout
    assert (out / "manifest.json").read_bytes() == before
    assert subprocess.run([*run, "demo", "--out", out], capture_output=True, check=False).returncode == 2
