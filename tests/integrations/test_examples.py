"""Every file in examples/ trains a tiny model, as the README runs it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracle import framework

from exact_prep.demo import corpus_path, tokenizer_path

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "torch_loop": "torch",
    "pre_shifted_loop": "torch",
    "lightning_module": "lightning",
    "huggingface_trainer": "transformers",
    "trl_sft": "trl",
    "jax_flax": "flax",
}
NO_SCRIPTS = {"tiny_model", "megatron_dataset"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's corpus in short rows."""
    out = tmp_path_factory.mktemp("examples") / "packed"
    command = [sys.executable, "-m", "exact_prep"]
    pack = ["pack", corpus_path(), "--tokenizer", tokenizer_path(), "--seq-len", 128, "--limit-docs", 60, "--out", out]
    for arguments in (pack, ["weigh", out]):
        subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True)
    return out


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_runs(name, demo):
    framework(NEEDS[name])
    arguments = [demo, *([tokenizer_path()] if name == "trl_sft" else []), 3]
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"loss'?:? '?([\d.]+)", done.stdout)]
    assert losses, done.stdout
    # An untrained model guesses among 8192 ids.
    assert losses[0] == pytest.approx(math.log(8192), rel=0.5)


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS) | NO_SCRIPTS
