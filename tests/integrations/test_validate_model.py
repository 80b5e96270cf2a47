"""`exact-prep validate --model`: a real Hugging Face model in the paired experiment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice

import pytest
import torch
from oracle import framework

from exact_prep.errors import UsageError
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.weigh import weigh
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.validation.arms import make_arm
from exact_prep.validation.huggingface_model import BATCH_TOKENS, LEAST_SHARE, group_by_length, load_model
from exact_prep.validation.packed_data import open_corpus
from exact_prep.validation.results import Results
from exact_prep.validation.synthetic_data import VOCABULARY, SyntheticStream
from exact_prep.validation.training import Schedule, train

transformers = framework("transformers")


pytestmark = pytest.mark.usefixtures("one_thread")


def stream(steps: int) -> SyntheticStream:
    return SyntheticStream(seq_len=128, rows_per_step=4, steps=steps, seed=3)


def state(model) -> list:
    return [parameter.detach().clone() for parameter in model.parameters()]


def save_small(family: str, path, vocab_size: int = VOCABULARY):
    """A tiny model of a family, saved in `path`."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("keeps", [True, False])
def test_every_document_is_read_as_if_it_were_alone_forward_and_backward(keeps, tmp_path):
    model = load_model(save_small("Llama", tmp_path / "model"), VOCABULARY, length=256)
    assert model.keeps
    model.keeps = keeps  # whether it computes the logits of chosen places alone
    lengths = [5, 60, 1, 50, 7, 60, 30]
    edges = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(0, VOCABULARY, (int(edges[-1]),), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([model.model(input_ids=part[None]).logits[0] for part in ids.split(lengths)])
    upstream = torch.randn(alone.shape, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((alone * upstream).sum(), list(model.parameters()))
    together = model(ids, edges)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    found = torch.autograd.grad((together * upstream).sum(), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    for wanted in ([0], [4, 5, 64, 65, 66, 200], list(range(120, 190))):
        places = torch.tensor(wanted)
        torch.testing.assert_close(model(ids, edges, places), alone[places], atol=1e-5, rtol=1e-4)


def test_documents_of_similar_lengths_share_a_batch_that_is_not_too_large():
    lengths = [100, 3, BATCH_TOKENS, 90, 4, 2 * BATCH_TOKENS, BATCH_TOKENS // 2, BATCH_TOKENS // 2 - 5, 100]
    groups = list(group_by_length(lengths))
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    sizes = [[lengths[place] for place in group] for group in groups]
    assert all(min(own) >= LEAST_SHARE * max(own) for own in sizes)
    assert all(len(own) == 1 or max(own) * len(own) <= BATCH_TOKENS for own in sizes)
    assert [100, 100, 90] in sizes


def test_a_continuation_from_the_cache_is_that_of_reading_everything_again(tmp_path):
    model = load_model(save_small("Qwen2", tmp_path / "model"), VOCABULARY, length=256)
    ids = torch.randint(0, VOCABULARY, (20,), generator=torch.Generator().manual_seed(3))
    said = list(islice(model.continue_greedily(ids), 12))
    read = ids
    with torch.no_grad():
        for token in said:
            assert int(model.model(input_ids=read[None], use_cache=False).logits[0, -1].argmax()) == token
            read = torch.cat([read, torch.tensor([token])])


@pytest.fixture(scope="module")
def checkpoint_and_data(tmp_path_factory, tokenizer_file):
    """A checkpoint with its tokenizer, and text that was packed with it and weighed."""
    folder = tmp_path_factory.mktemp("model tier")
    model = save_small("Llama", folder / "model", vocab_size=400)
    shutil.copy(tokenizer_file, model / "tokenizer.json")
    text = folder / "text.jsonl"
    words = ["context", "of", "words", "that", "are", "long", "enough", "and", "packed"]
    lines = [" ".join(words[(n * k) % len(words)] for k in range(5 + 7 * (n % 20))) for n in range(1, 200)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(128,)),
    )
    pack([str(text)], options, folder / "data")
    weigh(folder / "data", WeightOptions())
    return model, folder / "data"


def run_model_tier(checkpoint_and_data, out, *more: object) -> subprocess.CompletedProcess[str]:
    model, data = checkpoint_and_data
    command = [sys.executable, "-m", "exact_prep", "validate", "--tier", "model", "--model", model, "--data", data]
    command += ["--held-out", 4, "--device", "cpu", "--workers", 1, "--out", out, *more]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, check=False)


def loss_of(model, data, held_out: int) -> float:
    """Mean loss of the held-out rows' targets, document by document, by the Hugging Face model alone."""
    losses = []
    for batch in open_corpus(data, held_out=held_out).held_out:
        for part in batch.ids.split(batch.edges.diff().tolist()):
            if part.numel() > 1:
                with torch.no_grad():
                    logits = model(input_ids=part[None]).logits[0].log_softmax(-1)
                losses += (-logits[:-1].gather(1, part[1:, None])[:, 0]).tolist()
    return sum(losses) / len(losses)


def test_a_checkpoint_is_continued_by_every_arm_and_kept_with_its_tokenizer(checkpoint_and_data, tmp_path):
    arms = ["--arms", "uniform,exact", "--seeds", "0,1", "--steps", 3, "--tokens-per-step", 256, "--lr", 1e-3]
    done = run_model_tier(checkpoint_and_data, tmp_path / "out", *arms, "--no-text-suite", "--save-models")
    assert done.returncode == 0, done.stderr
    assert "no text suite: --no-text-suite leaves it out" in done.stderr
    results = Results.model_validate_json((tmp_path / "out" / "results.json").read_bytes())
    assert {(run.arm, run.seed, run.steps, run.lr) for run in results.runs} == {
        (arm, seed, 3, 1e-3) for arm in ("uniform", "exact") for seed in (0, 1)
    }
    assert (results.held_out, results.seq_len, results.base_tokens) == (4, 128, 0)
    assert not any(name.startswith(("match", "logp")) for run in results.runs for name in run.measures)
    model, data = checkpoint_and_data
    found = {}
    for run in results.runs:
        home = tmp_path / "out" / "models" / f"{run.arm}-{run.seed}"
        assert (home / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
        kept = transformers.AutoModelForCausalLM.from_pretrained(home, local_files_only=True)
        found[run.arm, run.seed] = run.measures["loss all"]
        assert loss_of(kept, data, 4) == pytest.approx(run.measures["loss all"], rel=1e-5)
    assert len(set(found.values())) == 4


def test_a_checkpoint_is_only_measured_with_intervals_and_the_cost_is_said_first(checkpoint_and_data, tmp_path):
    done = run_model_tier(checkpoint_and_data, tmp_path / "out", "--steps", 0, "--no-text-suite")
    assert done.returncode == 0, done.stderr
    assert "a held-out row took" in done.stderr
    assert "all 4 take about" in done.stderr
    assert "only measured: nothing was compared" in done.stdout
    results = Results.model_validate_json((tmp_path / "out" / "results.json").read_bytes())
    assert [run.arm for run in results.runs] == ["uniform"]
    levels = {level.measure: level for level in results.levels}
    model, data = checkpoint_and_data
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    everything = levels["loss all"]
    assert everything.mean == pytest.approx(loss_of(plain, data, 4), rel=1e-5)
    assert everything.low < everything.mean < everything.high
    assert everything.items == results.held_out == 4
    assert "context 32" in levels
    assert (tmp_path / "out" / "levels.png").stat().st_size > 5000
    assert not (tmp_path / "out" / "models").exists()


def test_the_text_suite_is_announced_and_counted_as_rows_are(checkpoint_and_data, tmp_path):
    done = run_model_tier(checkpoint_and_data, tmp_path / "out", "--steps", 0)
    assert done.returncode == 0, done.stderr
    assert "then come 30 questions of the text suite (--no-text-suite leaves them out)" in done.stderr
    results = Results.model_validate_json((tmp_path / "out" / "results.json").read_bytes())
    assert "logp niah_single@256" in results.runs[0].measures


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_a_hugging_face_model_trains_and_what_it_cannot_read_is_refused(family, tmp_path):
    save_small(family, tmp_path / "model")
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
