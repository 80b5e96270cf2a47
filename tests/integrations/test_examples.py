"""Every file in examples/ trains a tiny model, as the README runs it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from oracle import framework

from exact_prep.demo import corpus_path, tokenizer_path

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "torch_loop": "torch",
    "pre_shifted_loop": "torch",
    "long_rows": "torch",
    "lightning_module": "lightning",
    "huggingface_trainer": "transformers",
    "trl_sft": "trl",
    "jax_flax": "flax",
}
NO_SCRIPTS = {"measured_data", "tiny_model", "megatron_dataset"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The demo's corpus in short rows, with a column of weights, and with a table alone."""
    out = tmp_path_factory.mktemp("examples")
    for kind in ("column", "table"):
        pack = ["pack", corpus_path(), "--tokenizer", tokenizer_path(), "--seq-len", 128, "--limit-docs", 60]
        for arguments in ([*pack, "--loss-weights", kind, "--out", out / kind], ["weigh", out / kind]):
            command = [sys.executable, "-m", "exact_prep", *map(str, arguments)]
            subprocess.run(command, check=True, capture_output=True)
    return out


def run_example(name, directory):
    """The losses that an example prints in three steps."""
    command = [sys.executable, EXAMPLES / f"{name}.py", directory, 3]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"loss'?:? '?([\d.]+)", done.stdout)]
    assert losses, done.stdout
    return losses


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_runs(name, packed):
    framework(NEEDS[name])
    losses = run_example(name, packed / "column")
    # An untrained model guesses among 8192 ids.
    assert losses[0] == pytest.approx(math.log(8192), rel=0.5)


@pytest.mark.parametrize("name", ["torch_loop", "trl_sft"])
def test_an_example_runs_the_same_where_weights_are_in_a_table(name, packed):
    framework(NEEDS[name])
    assert run_example(name, packed / "table") == pytest.approx(run_example(name, packed / "column"), rel=0.05)


def test_the_loop_runs_on_two_processes(packed):
    framework("torch")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, EXAMPLES / "torch_loop.py", packed / "column", 2]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            printed, errors = run.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            # torchrun starts each rank in a session of its own: killed alone, it would leave them.
            for process in [*psutil.Process(run.pid).children(recursive=True), run]:
                process.kill()
            raise
    assert run.returncode == 0, errors
    assert len(re.findall(r"step [01]: loss [\d.]+", printed)) == 4, printed


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS) | NO_SCRIPTS
