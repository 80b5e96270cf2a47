"""`exact-prep validate --model`: a real Hugging Face model in the paired experiment."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from oracle import framework

from exact_prep.errors import UsageError
from exact_prep.validation.arms import make_arm
from exact_prep.validation.huggingface_model import load_model
from exact_prep.validation.synthetic_data import VOCABULARY, SyntheticStream
from exact_prep.validation.training import Schedule, train

transformers = framework("transformers")


pytestmark = pytest.mark.usefixtures("one_thread")


def stream(steps: int) -> SyntheticStream:
    return SyntheticStream(seq_len=128, rows_per_step=4, steps=steps, seed=3)


def state(model) -> list:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_a_hugging_face_model_trains_with_its_documents_apart(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", VOCABULARY, length=256)
    with pytest.raises(UsageError, match="knows 257 ids, but the data have 258"):
        load_model(tmp_path / "model", VOCABULARY + 1, length=256)
    source = stream(3)
    load_model(tmp_path / "model", VOCABULARY, length=10_000)  # positions are relative
    before = state(model)
    losses = train(model, source, make_arm("exact", source.exposure, 128, 32), Schedule(steps=3, lr=1e-3))
    assert len(losses) == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    with pytest.raises(UsageError, match="no causal language model"):
        load_model(tmp_path, VOCABULARY, length=256)


def test_dropout_is_the_same_in_every_arm_and_after_a_restart(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=24, n_layer=1, n_head=2)
    assert config.resid_pdrop > 0
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    source, schedule = stream(4), Schedule(steps=4, lr=1e-3)

    def run(name: str, **options) -> list[torch.Tensor]:
        model = load_model(tmp_path / "model", VOCABULARY, length=256)
        train(model, source, make_arm(name, source.exposure, 128, 32), schedule, **options)
        return state(model)

    with pytest.raises(UsageError, match=r"no position beyond 256, but would be measured on documents of 257 tokens"):
        load_model(tmp_path / "model", VOCABULARY, length=257)
    whole = run("uniform")
    assert all(map(torch.equal, whole, run("exact@0")))
    checkpoint = {"checkpoint": tmp_path / "checkpoint", "every": 2}
    run("uniform", **checkpoint, stop_after=2)
    assert all(map(torch.equal, whole, run("uniform", **checkpoint)))


def test_a_folder_without_a_model_is_refused_before_a_place_is_taken(tmp_path):
    (tmp_path / "plain").mkdir()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "exact_prep", "validate", "--out", out, "--model", tmp_path / "plain"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert "contains no causal language model" in done.stderr
    assert "internal error" not in done.stderr
    assert not (out / "experiment.json").exists()
