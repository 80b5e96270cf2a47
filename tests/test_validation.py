"""Laws of the paired experiment: attention, weights of arms, probes, statistics, and a real small run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exact_prep
from exact_prep.errors import DatasetError, UsageError
from exact_prep.pipeline.events import Event, Finished, Note, Progress, Started, TaskDone
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.validation import attention, decoder, differences, measurements, nolima, probes, ruler
from exact_prep.validation.arms import make_arm
from exact_prep.validation.attention import attend_dense, attend_flex, attend_loop
from exact_prep.validation.budget import fit_to_time
from exact_prep.validation.decoder import Decoder, Shape, cross_entropy, left_contexts
from exact_prep.validation.experiment import run_experiment
from exact_prep.validation.items import Items, take_means
from exact_prep.validation.jobs import Experiment, Job
from exact_prep.validation.packed_data import ShortenedStream, open_corpus
from exact_prep.validation.plots import plot, plot_levels, plot_primary
from exact_prep.validation.results import SCHEMA, Results, Run, Settings, schema_file
from exact_prep.validation.synthetic_data import (
    KEY_COUNT,
    KEYS,
    START,
    VALUES,
    VOCABULARY,
    SyntheticStream,
    make_document,
)
from exact_prep.validation.tiers import SMOKE
from exact_prep.validation.training import Schedule, train
from exact_prep.validation.training_batches import make_batch
from exact_prep.weighing.exposure import measure_lengths
from exact_prep.weighing.weights import weight_table

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(Shape(vocab_size=VOCABULARY, width=48, heads=3))


def stream(steps: int = 6) -> SyntheticStream:
    return SyntheticStream(seq_len=128, rows_per_step=4, steps=steps, seed=3)


def state(model: Decoder) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_attention_by_segment_equals_a_dense_mask_forward_and_backward(lengths):
    edges = torch.tensor([0, *np.cumsum(lengths).tolist()])
    torch.manual_seed(sum(lengths))
    first = [torch.randn(3, int(edges[-1]), 16, requires_grad=True) for _ in range(3)]
    second = [x.detach().clone().requires_grad_() for x in first]
    upstream = torch.randn(3, int(edges[-1]), 16)
    outputs = [attend(*inputs, edges) for attend, inputs in ((attend_loop, first), (attend_dense, second))]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.backward(upstream)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("lengths", [[1], [5, 1, 30], [130, 127, 3, 60]])
def test_the_attention_of_a_gpu_sees_what_a_dense_mask_sees(lengths, monkeypatch):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    monkeypatch.setattr(attention, "flex", lambda: (flex_attention, create_block_mask))  # compiling needs a compiler
    edges = torch.tensor([0, *np.cumsum(lengths).tolist()])
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, int(edges[-1]), 16) for _ in range(3))
    with torch.no_grad():
        torch.testing.assert_close(attend_flex(q, k, v, edges), attend_dense(q, k, v, edges), atol=1e-5, rtol=1e-5)


def test_under_autocast_attention_gets_one_dtype(monkeypatch):
    seen = []
    monkeypatch.setattr(decoder, "attend", lambda q, k, v, edges: (seen.append({q.dtype, k.dtype, v.dtype}), v)[1])
    with torch.autocast("cpu", torch.bfloat16):
        small()(torch.zeros(9, dtype=torch.int64), torch.tensor([0, 4, 9]))
    assert seen == [{torch.bfloat16}] * 2


def test_a_document_sees_only_itself():
    model = small()
    ids = torch.randint(0, VOCABULARY, (60,), generator=torch.Generator().manual_seed(1))
    edges = torch.tensor([0, 25, 60])
    together = model(ids, edges)
    torch.testing.assert_close(together[25:], model(ids[25:], torch.tensor([0, 35])), atol=1e-5, rtol=1e-4)
    assert left_contexts(edges).tolist() == [*range(25), *range(35)]


def test_the_loss_of_a_target_is_that_of_the_logits_before_it():
    model, ids, edges = small(), torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 3, 5])
    logits = model(ids, edges)
    for targets in (None, torch.tensor([1, 4]), torch.tensor([3])):
        losses = cross_entropy(model, ids, edges, targets)
        places = [1, 2, 3, 4] if targets is None else targets.tolist()
        expected = [-logits[t - 1].log_softmax(-1)[ids[t]].item() for t in places]
        assert losses.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 9, 600, 2000])
def test_synthetic_documents_answer_for_themselves(length):
    tokens, facts = make_document(np.random.default_rng(5), length)
    last: dict[int, int] = {}
    asked = []
    for place, token in enumerate(tokens.tolist()):
        assert (token == START) == (place == 0)
        if KEYS <= token < VALUES:
            assert VALUES <= tokens[place + 1] < VOCABULARY
            if token in last:
                assert tokens[place + 1] == tokens[last[token] + 1]
                asked.append((place + 1, place - last[token]))
            last[token] = place
    assert tokens.size == length
    assert asked == list(zip(facts.positions, facts.distances, strict=True))
    assert len(asked) >= length // 12
    assert len(last) <= min(KEY_COUNT, length // 2)


def test_arms_move_the_supervision_they_claim_to_move():
    source = stream(20)
    batches = [source.batch(step) for step in range(20)]
    contexts = [left_contexts(batch.edges) for batch in batches]

    def mass(name: str) -> tuple[float, float, list[float]]:
        arm = make_arm(name, source.exposure, 128, 32)
        weights = [arm.weights(b, c, step) for step, (b, c) in enumerate(zip(batches, contexts, strict=True))]
        for batch, weight in zip(batches, weights, strict=True):
            assert (weight[~batch.supervised] == 0).all()
        tail = sum(float(w[c >= 32].sum()) for w, c in zip(weights, contexts, strict=True))
        return sum(float(w.sum()) for w in weights), tail, sorted(torch.cat(weights).tolist())

    total, tail, _ = mass("uniform")
    exact, exact_tail, multiset = mass("exact")
    assert exact_tail / tail == pytest.approx(1.15, rel=1e-4)
    assert exact - exact_tail == pytest.approx(total - tail, rel=1e-6)
    assert mass("flat")[0] == pytest.approx(exact, rel=1e-4)
    mirror, mirror_tail, _ = mass("mirror")
    assert mirror == pytest.approx(exact, rel=1e-4)
    assert mirror_tail == pytest.approx(tail, rel=1e-6)
    permuted, _, same = mass("permuted")
    assert permuted == pytest.approx(exact, rel=1e-5)
    assert same == pytest.approx(multiset, rel=1e-5)
    assert mass("null")[0] == pytest.approx(total, rel=1e-4)
    assert mass("exact@1")[1] / tail == pytest.approx(2, rel=1e-4)


def test_arms_of_a_dataset_move_as_much_as_its_own_weights():
    source = stream(20)
    options = WeightOptions(tail_from=32, alpha=0.6, gamma=0.8, normalize="mean", supervise_first=True)
    table = weight_table(source.exposure, options)
    lengths = torch.cat([source.batch(step).edges.diff() for step in range(20)])
    contexts = torch.cat([torch.arange(n) for n in lengths.tolist()])  # first tokens carry loss too

    def moved(name: str) -> tuple[float, float]:
        """How much more than uniform the tail gets, and what is below it, with what a plain target weighs as 1."""
        lut = make_arm(name, source.exposure, 128, 32, exact=table).lut
        lut = lut * table.scale if name == "exact" else lut
        tail = contexts >= 32
        return (lut[contexts[tail]].sum().item() - tail.sum().item()) / tail.sum().item(), (
            lut[contexts[~tail]].sum().item() - (~tail).sum().item()
        ) / tail.sum().item()

    assert moved("exact") == pytest.approx((0.6, 0), abs=1e-4)
    assert moved("flat") == pytest.approx((0.6, 0), abs=1e-4)
    assert moved("mirror") == pytest.approx((0, 0.6), abs=1e-4)
    assert moved("exact@1") == pytest.approx((1, 0), abs=1e-4)
    own = make_arm("exact", source.exposure, 128, 32, exact=table).lut * table.scale - 1
    one = make_arm("exact@1", source.exposure, 128, 32, exact=table).lut - 1
    torch.testing.assert_close(own[1:] / 0.6, one[1:], atol=1e-5, rtol=1e-5)  # the dataset's gamma
    assert torch.equal(make_arm("permuted", source.exposure, 128, 32, exact=table).lut, own.add(1).div(table.scale))


@pytest.mark.parametrize("name", ["exakt", "uniform@2", "exact@much", ""])
def test_arms_that_do_not_exist_are_refused_by_name(name):
    with pytest.raises(UsageError, match=r"arm|alpha"):
        make_arm(name, stream().exposure, 128, 32)


def test_alpha_zero_is_bitwise_uniform_and_the_same_run_twice_is_the_same():
    source = stream()
    models = []
    for name in ("uniform", "uniform", "exact@0", "exact"):
        model = small()
        train(model, source, make_arm(name, source.exposure, 128, 32), Schedule(steps=6, lr=1e-3))
        models.append(state(model))
    for one, two, zero, other in zip(*models, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, zero)
        assert one.dim() < 2 or not torch.equal(one, other)


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path):
    source = stream()
    arm = make_arm("exact", source.exposure, 128, 32)
    whole, parts = small(), small()
    losses = train(whole, source, arm, Schedule(steps=6, lr=1e-3))
    path = tmp_path / "checkpoint"
    first = train(parts, source, arm, Schedule(steps=6, lr=1e-3), checkpoint=path, every=2, stop_after=3)
    resumed = small(seed=9)
    second = train(resumed, source, arm, Schedule(steps=6, lr=1e-3), checkpoint=path, every=2)
    assert first[:2] + second == losses
    assert all(torch.equal(one, other) for one, other in zip(state(whole), state(resumed), strict=True))


def test_a_run_killed_after_its_last_step_has_a_step_to_make(tmp_path):
    source = stream()
    arm = make_arm("uniform", source.exposure, 128, 32)
    schedule = Schedule(steps=4, lr=1e-3)
    losses = train(small(), source, arm, schedule, checkpoint=tmp_path / "checkpoint", every=2)
    assert train(small(seed=9), source, arm, schedule, checkpoint=tmp_path / "checkpoint", every=2) == losses[2:]


class Oracle(torch.nn.Module):
    """Knows the synthetic language: says the value that followed the last mention of a key, else guesses."""

    def forward(self, ids, edges):
        logits = torch.zeros(ids.numel(), VOCABULARY)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            values = {}
            for t in range(start, stop):
                token = int(ids[t])
                if KEYS <= token < VALUES:
                    if token in values:
                        logits[t, values[token]] = 8.0
                    if t + 1 < stop:
                        values[token] = int(ids[t + 1])
        return logits


def test_probes_measure_what_an_oracle_knows_and_a_blind_model_does_not():
    recall = take_means(probes.recall_by_distance(Oracle(), 700, 4, seed=1))
    assert set(recall.values()) == {1.0}
    found = take_means(probes.evidence_ablation(Oracle(), (40, 300), seed=1))
    expected = 8 - np.log(VOCABULARY - 1 + np.e**8) + np.log(VOCABULARY)
    assert found["gain 40"] == pytest.approx(expected, rel=1e-3)
    assert found["margin 300"] == pytest.approx(8, rel=1e-3)
    blind = take_means(probes.evidence_ablation(lambda_model(), (40,), seed=1))
    assert blind["gain 40"] == pytest.approx(0, abs=1e-6)


def lambda_model() -> torch.nn.Module:
    class Blind(torch.nn.Module):
        def forward(self, ids, edges):
            return torch.zeros(ids.numel(), VOCABULARY)

    return Blind()


def test_loss_by_bucket_equals_counting_target_by_target():
    model = small().eval()
    lengths = np.array([40, 9, 30], np.int32)
    row = np.random.default_rng(0).integers(0, VOCABULARY, 90).astype(np.int32)
    batch = make_batch([(row, lengths)])
    with torch.no_grad():
        logits = model(batch.ids, batch.edges)
    sums: dict[str, list[float]] = {}
    start = 0
    for length in lengths.tolist():
        for context in range(1, length):
            low = 0 if context < 8 else 2 ** (context.bit_length() - 1)
            loss = -float(logits[start + context - 1].log_softmax(-1)[row[start + context]])
            sums.setdefault(f"loss {low}-{max(2 * low, 8) - 1}", []).append(loss)
        start += length
    measures = take_means(probes.measure_rows(model, [batch], 16))
    found = {name: mean for name, mean in measures.items() if name.startswith("loss")}
    everything = found.pop("loss all")
    assert found == pytest.approx({name: np.mean(values) for name, values in sums.items()}, rel=1e-5)
    assert everything == pytest.approx(np.mean([v for values in sums.values() for v in values]), rel=1e-5)
    mixture = {name: mean for name, mean in measures.items() if name.startswith("mixture")}
    below = sums["loss 0-7"] + sums["loss 8-15"]
    assert mixture == pytest.approx({"mixture all": everything, "mixture short": np.mean(below)}, rel=1e-5)


class Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i % 256 for i in ids).decode(errors="replace")


class Parrot(torch.nn.Module):
    """Continues as the text went on after the last place that ended with the same 12 bytes."""

    def forward(self, ids, edges, wanted):
        logits = torch.zeros(ids.numel(), 256)
        text = bytes(ids.tolist())
        for t in range(12, len(text)):
            found = text.rfind(text[t - 11 : t + 1], 0, t)
            if found >= 0 and found + 12 < len(text):
                logits[t, text[found + 12]] = 20.0
        return logits[wanted]


def test_the_text_suite_makes_items_that_fit_and_that_their_own_answers_satisfy():
    codec = Bytes()
    for make in ruler.MAKERS.values():
        for length in (8000, 16000):
            item = ruler.fit_item(make, length, (3,), codec)
            assert item is not None
            size = len(codec.encode(item.prompt + " " + " ".join(item.answers)))
            assert 0.5 * length < size <= length
            assert all(answer.lower() in item.prompt.lower() for answer in item.answers)
    item = ruler.fit_item(ruler.cwe, 16000, (1,), codec)
    counts = {word: item.prompt.split().count(word) for word in item.prompt.split()}
    assert {word for word, count in counts.items() if count == 30} == set(item.answers)
    assert ruler.fit_item(ruler.cwe, 500, (1,), codec) is None
    assert len(set(ruler.draw_words(np.random.default_rng(0), 9000))) == 9000


def test_a_model_that_copies_answers_needles_in_part():
    scores = take_means(ruler.run_suite(Parrot(), Bytes(), (600,), 3, seed=1))
    assert set(scores) >= {"match niah_single@600", "logp niah_single@600"}
    assert 0 <= scores["match niah_single@600"] <= 1
    read: list[int] = []
    ruler.run_suite(Parrot(), Bytes(), (300, 600), 2, seed=1, answered=read.append)
    assert read == [300] * 2 * len(ruler.MAKERS) + [600] * 2 * len(ruler.MAKERS)
    item = ruler.Item("the number for abcdefghijkl is: 7654321. Again, the number for abcdefghijkl is:", ("7654321",))
    match, logp = ruler.score(Parrot(), Bytes(), item, "cpu")
    assert match == 1.0
    assert logp > -0.1


NEEDLES = [
    {
        "id": "1",
        "task_template": "Read: {haystack} Question: {question}",
        "needle": "Once, {CHAR} painted {1}.",
        "questions": {"onehop": "Who has been to {2}?", "twohop": "Who has been to {3}?"},
        "character_set": ["Ada", "Bo"],
        "tests": {"T1": {"input_args": ["the old bridge", "Mostar", "Herzegovina"]}},
    }
]


def test_needles_of_the_user_lie_in_haystacks_of_the_user_and_do_not_name_what_is_asked(tmp_path):
    (tmp_path / "needle_set.json").write_text(json.dumps(NEEDLES))
    with pytest.raises(UsageError, match="no haystack"):
        nolima.load_makers(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("It rained again. " * 30)
    makers = nolima.load_makers(tmp_path)
    assert set(makers) == {"nolima_onehop", "nolima_twohop"}
    for kind, place in (("nolima_onehop", "Mostar"), ("nolima_twohop", "Herzegovina")):
        item = ruler.fit_item(makers[kind], 3000, (0,), Bytes())
        assert item is not None
        assert f"Once, {item.answers[0]} painted the old bridge." in item.prompt
        assert item.prompt.endswith(f"Question: Who has been to {place}?\nAnswer:")
        assert item.prompt.count(place) == 1
        assert 2500 < len(item.prompt) <= 3000
    (tmp_path / "needle_set.json").write_text('[{"id": 1}]')
    with pytest.raises(UsageError, match="not a NoLiMa needle set"):
        nolima.load_makers(tmp_path)
    with pytest.raises(UsageError, match=r"no needle_set\.json"):
        nolima.load_makers(tmp_path / "books")


def test_intervals_are_those_of_students_t():
    values = [0.3, 0.1, 0.26, 0.22]
    d = differences.make_difference("exact", "uniform", "recall 256-511", seeds_only(values))
    half = 3.182446 * np.std(values, ddof=1) / 2  # the 97.5 % quantile of t with 3 degrees of freedom
    assert (d.mean, d.low, d.high) == pytest.approx((0.22, 0.22 - half, 0.22 + half), rel=1e-5)
    assert d.reading == "better"
    assert differences.make_difference("exact", "uniform", "loss 256-511", seeds_only(values)).reading == "worse"
    none = differences.make_difference("exact", "uniform", "gain 768", seeds_only([0.1, -0.1, 0.05]))
    assert none.reading == "shows nothing"
    one = differences.make_difference("exact", "uniform", "gain 768", seeds_only([0.1]))
    assert (one.reading, one.p, one.low) == ("one seed", None, 0.1)


def seeds_only(values: list[float]) -> list[Items]:
    """A measure of which only the mean is known, by seed."""
    return [Items(np.array([value]), np.ones(1)) for value in values]


def test_the_noise_of_items_is_inside_the_intervals_as_a_bootstrap_over_seeds_and_items_has_it():
    random = np.random.default_rng(0)
    seeds, items = 6, 40
    counts = random.integers(1, 30, items).astype(float)
    means = random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 1, items) + random.normal(0, 0.2, (seeds, items))
    values = [Items(own * counts, counts) for own in means]
    drawn = []
    for _ in range(20_000):
        chosen = random.integers(items, size=items)
        weights = counts[chosen]
        drawn.append(np.mean([means[s, chosen] @ weights / weights.sum() for s in random.integers(seeds, size=seeds)]))
    # The closed form also corrects for the few seeds: 6 / 5 of their variance.
    assert np.std(drawn) < differences.standard_error(values) < 1.15 * np.std(drawn)
    alone = differences.standard_error(seeds_only(means.mean(1).tolist()))
    assert differences.standard_error(values) > 1.3 * alone


def test_the_level_of_one_model_has_the_interval_of_a_mean_of_rows_and_of_several_that_of_their_means():
    values = np.array([2.0, 2.4, 1.9, 2.2, 2.1])
    counts = np.array([50.0, 50, 0, 50, 50])  # a row without such targets is no item
    alone = differences.make_level("uniform", "loss 8-15", [Items(values * counts, counts)])
    known = values[counts > 0]
    half = 3.182446 * known.std(ddof=1) / 2  # the 97.5 % quantile of t with 3 degrees of freedom
    assert (alone.mean, alone.low, alone.high) == pytest.approx(
        (known.mean(), known.mean() - half, known.mean() + half), rel=1e-6
    )
    assert (alone.items, alone.targets, alone.seeds) == (4, 200, 1)
    several = differences.make_level("uniform", "loss 8-15", seeds_only([2.0, 2.4, 1.9, 2.2]))
    half = 3.182446 * np.std([2.0, 2.4, 1.9, 2.2], ddof=1) / 2
    assert (several.mean, several.high, several.seeds) == pytest.approx((2.125, 2.125 + half, 4), rel=1e-6)
    one = differences.make_level("uniform", "harness piqa acc", seeds_only([0.6]))
    assert (one.low, one.mean, one.high, one.items) == (0.6, 0.6, 0.6, 1)


def test_a_difference_that_is_called_detectable_is_found_in_four_of_five_experiments():
    random = np.random.default_rng(1)
    true = differences.find_detectable(1 / np.sqrt(5), 4)
    samples = random.normal(true, 1, (4000, 5))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(5))
    assert np.mean(t > 2.776445) == pytest.approx(0.8, abs=0.02)


def test_holm_corrects_step_by_step():
    assert differences.correct_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert differences.correct_by_holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert differences.correct_by_holm([]) == []


def test_exact_helps_only_in_the_tail_and_only_if_it_beats_both_controls():
    setup = Settings(
        tool_version="0",
        tier="smoke",
        data="synthetic",
        data_checksum="",
        model="small",
        device="cpu",
        nolima="",
        sizes={},
    )

    def runs(arm: str, near: float, far: float, farther: float) -> list[Run]:
        return [
            Run(
                settings=setup,
                arm=arm,
                seed=seed,
                steps=1,
                lr=1e-3,
                tokens=1,
                distinct_tokens=1,
                final_loss=1.0,
                measures={"gain 128": near + d, "gain 384": far + d, "gain 768": farther + d},
            )
            for seed, d in enumerate((0.0, 0.001, 0.0005))
        ]

    found = differences.compare_arms(
        [*runs("uniform", 1, 1, 1), *runs("lr", 1, 1.3, 1), *runs("exact", 2, 1.2, 1.2 + 1e-9)]
    )
    verdicts = {reading.measure: reading.helps for reading in differences.read_differences(found, 256)}
    assert verdicts == {"gain 384": False, "gain 768": True}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Results, object]:
    out = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "exact_prep", "validate", "--tier", "smoke", "--out", out, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return Results.model_validate_json((out / "results.json").read_bytes()), (out, done)


@pytest.mark.xdist_group("smoke")
def test_extra_supervision_moves_loss_where_it_was_put(smoke):
    results, _ = smoke
    loss = {run.arm: run.measures for run in results.runs}
    tail, short = "loss 512-1023", "loss 0-7"
    assert loss["exact@1"][tail] < loss["uniform"][tail] < loss["mirror@1"][tail]
    assert loss["exact@1"][short] > loss["uniform"][short] > loss["mirror@1"][short]


@pytest.mark.xdist_group("smoke")
def test_an_experiment_leaves_results_plots_and_a_plain_verdict(smoke):
    _, (out, done) = smoke
    found = json.loads((out / "results.json").read_text())
    assert found["arms"] == ["uniform", "exact@1", "mirror@1"]
    committed = (Path(__file__).parents[1] / "schemas" / SCHEMA).read_bytes()
    assert committed == schema_file(), "run python -m exact_prep.validation.results schemas"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))
    jsonschema.validate(found, json.loads(committed))
    assert (out / "differences.png").stat().st_size > 10_000
    assert (out / "differences.svg").read_text().lstrip().startswith("<?xml")
    assert "not tested: one seed, no lr" in done.stdout
    assert "exact@1 helps" not in done.stdout
    again = subprocess.run(done.args, capture_output=True, text=True, timeout=100, check=True)
    assert "arms: 3 of 3 tasks were finished already" in again.stderr
    assert again.stdout == done.stdout
    other = [*done.args, "--device", "cpu", "--model", "/nowhere"]
    refused = subprocess.run(other, capture_output=True, text=True, timeout=100, check=False)
    assert refused.returncode == 2
    assert "another experiment (model differ" in refused.stderr


def test_the_results_that_are_shown_follow_the_schema():
    home = Path(__file__).parents[1]
    schema = json.loads((home / "schemas" / SCHEMA).read_bytes())
    shown = sorted((home / "examples" / "validation").glob("*.json"))
    assert {"results.json", "gpu-results.json"} <= {path.name for path in shown}
    for path in shown:
        jsonschema.validate(json.loads(path.read_bytes()), schema)


def test_a_dataset_that_exact_prep_packed_trains_through_the_reader(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(120, 400), seq_len=256))
    tier = replace(SMOKE, bases=2, base_len=32, base_steps=3, steps=3, tokens_per_step=512, held_out=4, width=24)
    experiment = Experiment(
        tier_name="smoke", tier=tier, arms=("uniform", "exact"), seeds=(0, 1), out=tmp_path / "out", data=data
    )
    events: list[Event] = []
    results = run_experiment(experiment, emit=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0] == "no text suite: the smoke tier is too small for it"
    assert [note for note in notes if "done (" in note] == [
        "base 0: done (1 of 2)",
        "base 1: done (2 of 2)",
        "uniform, seed 0: done (1 of 4)",
        "exact, seed 0: done (2 of 4)",
        "uniform, seed 1: done (3 of 4)",
        "exact, seed 1: done (4 of 4)",
    ]
    assert started(events) == [("base models", 2, 0, "tasks"), ("arms", 4, 0, "tasks")]
    assert [event.done for event in events if isinstance(event, TaskDone)] == [1, 2, 1, 2, 3, 4]
    assert isinstance(events[-1], Finished)
    assert {run.arm for run in results.runs} == {"uniform", "exact"}
    assert results.tail_from == 64
    assert all("loss 128-255" in run.measures for run in results.runs)
    plot(results, tmp_path / "plot.png")
    with pytest.raises(UsageError, match=r"--nolima needs the text suite|needle_set"):
        run_experiment(replace(experiment, out=tmp_path / "other", nolima=tmp_path))
    larger = replace(experiment, tier=replace(tier, base_steps=4))
    with pytest.raises(UsageError, match=r"another experiment \(sizes differ"):
        run_experiment(larger)
    # Killed before its last arm, the experiment continues there and ends the same.
    (tmp_path / "out" / "run-exact-1.json").unlink()
    events.clear()
    assert run_experiment(experiment, emit=events.append) == results
    assert started(events) == [("base models", 2, 2, "tasks"), ("arms", 4, 3, "tasks")]


def started(events: list[Event]) -> list[tuple[str, int, int, str]]:
    return [(event.what, event.tasks, event.done, event.unit) for event in events if isinstance(event, Started)]


def tiny_experiment(path: Path, data: Path, **more: object) -> Experiment:
    tier = replace(SMOKE, base_len=32, base_steps=2, steps=2, tokens_per_step=512, held_out=2, width=24)
    return Experiment(tier_name="smoke", tier=tier, arms=("exact",), seeds=(0,), out=path, data=data, **more)


def test_a_table_takes_the_place_of_a_dataset_s_own_weights(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset, write_table

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 400), seq_len=128))
    table = write_table(data, tmp_path / "other.json", alpha=4.0, gamma=0.0, tail_from=16)
    own, other = tiny_experiment(tmp_path / "own", data), tiny_experiment(tmp_path / "other", data, weights=table)
    assert own.settings.data_checksum == exact_prep.load_weights(data).file.checksum
    assert other.settings.data_checksum == exact_prep.load_weights(table).file.checksum
    arms = {}
    for experiment, tail_from in ((own, 32), (other, 16)):
        job = Job(experiment, "exact", 0)
        assert job.tail_from == tail_from
        arms[experiment] = job.make_arm("exact").lut
        lut = exact_prep.load_weights(experiment.weights or data).lut
        # Rounded to float16; its last position is that of rows of one token more.
        np.testing.assert_allclose(arms[experiment][1 : lut.size - 1].numpy(), lut[1:-1], rtol=1e-3)
    assert float(arms[other].max()) == pytest.approx(5, rel=1e-6)
    results = {experiment: run_experiment(experiment) for experiment in (own, other)}
    losses = {key: {run.arm: run.final_loss for run in found.runs} for key, found in results.items()}
    assert losses[own]["uniform"] == losses[other]["uniform"]
    assert losses[own]["exact"] != losses[other]["exact"]
    assert (results[own].tail_from, results[other].tail_from) == (32, 16)
    with pytest.raises(UsageError, match=r"another experiment \(data_checksum differ"):
        run_experiment(replace(own, weights=table))


def test_a_table_serves_a_dataset_that_was_not_weighed_and_one_from_elsewhere_is_refused(tmp_path):
    from written_dataset import documents, write_dataset, write_table

    data = write_dataset(tmp_path / "data", documents(60, 400), seq_len=128)
    table = write_table(data, tmp_path / "own.json")
    assert Job(tiny_experiment(tmp_path / "out", data, weights=table), "exact", 0).tail_from == 32
    other = write_dataset(tmp_path / "other", documents(60, 400, seed=1), seq_len=128)
    elsewhere = write_table(other, tmp_path / "elsewhere.json")
    with pytest.raises(DatasetError, match="made for other datasets"):
        run_experiment(tiny_experiment(tmp_path / "out", data, weights=elsewhere))
    assert not (tmp_path / "out" / "experiment.json").exists()
    meant = tiny_experiment(tmp_path / "out", data, weights=elsewhere, weights_from_elsewhere=True)
    assert Job(meant, "exact", 0).tail_from == 32


def test_the_text_suite_reads_the_tokenizer_that_the_dataset_keeps(tmp_path, tokenizer_file):
    from tokenizers import Tokenizer

    from exact_prep.pipeline.pack import pack

    tokenizer = shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "a context of words " * n}) + "\n" for n in range(1, 40)))
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(64,)),
    )
    pack([str(text)], options, tmp_path / "data")
    Path(tokenizer).rename(tmp_path / "elsewhere.json")  # it was moved away: the dataset has its own
    codec = measurements.load_codec(tmp_path / "data")
    assert codec is not None
    ids = Tokenizer.from_file(str(tmp_path / "elsewhere.json")).encode("the long context", add_special_tokens=False).ids
    assert codec.encode("the long context") == ids
    assert codec.decode(ids) == "the long context"
    notes: list[str] = []
    experiment = tiny_experiment(tmp_path / "out", tmp_path / "data")
    large = replace(experiment, tier=replace(experiment.tier, ruler_items=1))
    measurements.check_text_suite(large, notes.append)
    assert notes == []
    measurements.check_text_suite(experiment, notes.append)
    assert notes == ["no text suite: the smoke tier is too small for it"]
    kept = tmp_path / "data" / "tokenizer" / "tokenizer.json"
    kept.write_bytes(kept.read_bytes() + b" ")
    with pytest.raises(DatasetError, match=r"tokenizer/tokenizer\.json was changed"):
        measurements.check_text_suite(large, notes.append)
    kept.unlink()
    with pytest.raises(DatasetError, match=r"tokenizer/tokenizer\.json is missing"):
        measurements.check_text_suite(large, notes.append)


def test_models_of_a_dataset_of_ids_read_no_text(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 200), seq_len=64))
    experiment = tiny_experiment(tmp_path / "out", data)
    notes: list[str] = []
    large = replace(experiment, tier=replace(experiment.tier, ruler_items=1))
    measurements.check_text_suite(large, notes.append)
    assert notes == ["no text suite: the dataset was packed from ids, without a tokenizer"]


def test_a_base_sees_no_context_longer_than_its_rows(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(40, 300), seq_len=128))
    corpus = open_corpus(data, held_out=2)
    stream = corpus.stream(corpus.arms, 256, 0)
    whole, short = next(stream.batches(0)), next(ShortenedStream(stream, 32).batches(0))
    assert torch.equal(whole.ids, short.ids)
    assert int(short.edges.diff().max()) <= 32
    assert not short.supervised[left_contexts(short.edges) == 0].any()
    contexts = left_contexts(whole.edges)
    assert measure_lengths(whole.edges.diff().int().numpy()).targets >= int((contexts > 0).sum())


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_masked_targets_are_trained_on_by_no_arm(tmp_path, loss_weights):
    from written_dataset import documents, mask_dataset, weigh_dataset, write_dataset

    def first_half(rows, row):
        return [(0, int(rows.seq_lengths[rows.row_splits[row]]) // 2 + 1)]

    path = write_dataset(tmp_path / "data", documents(40, 300), seq_len=128, loss_weights=loss_weights)
    weigh_dataset(mask_dataset(path, first_half), supervise_first=True)
    corpus = open_corpus(path, held_out=2)
    supervised = firsts = 0
    for batch in [*islice(corpus.stream(corpus.arms, 256, 0).batches(0), 5), *corpus.held_out]:
        assert batch.supervised.numel() == batch.ids.numel()
        firsts += int(batch.supervised[batch.edges[:-1]].sum())
        for start in range(0, batch.ids.numel(), 128):
            length = int(batch.edges[batch.edges > start].min()) - start
            assert not batch.supervised[start : start + length // 2 + 1].any()
            supervised += int(batch.supervised[start : start + 128].sum())
    assert supervised > firsts > 0  # --supervise-first reaches the arms


def validated(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exact_prep", "validate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_what_cannot_be_run_is_refused_at_once_and_takes_no_place(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset, write_table

    out = tmp_path / "out"
    plain = write_dataset(tmp_path / "plain", documents(60, 200), seq_len=64)
    table = write_table(plain, tmp_path / "plain.json")
    tailless = weigh_dataset(write_dataset(tmp_path / "zero", documents(120, 200), seq_len=64), tail_from=0)
    for arguments, message in (
        (["--data", plain], "not weighed; run `exact-prep weigh"),
        (["--data", tailless], "everything is tail"),
        (["--data", tailless, "--weights", table], "made for other datasets"),
        (["--weights", table], "--weights needs --data"),
        (["--seeds", "0,-1"], "--seeds 0,-1: numbers with commas between"),
        (["--arms", "uniform,exakt"], "there is no arm 'exakt'"),
        (["--steps", "0", "--minutes", "5"], "choose --held-out instead"),
    ):
        done = validated("--out", out, *arguments)
        assert done.returncode in (1, 2), done.stderr
        assert message in done.stderr
        assert "internal error" not in done.stderr
        assert not (out / "experiment.json").exists()


def test_a_dataset_of_ids_is_read_once_for_its_largest(tmp_path, monkeypatch):
    from written_dataset import VOCAB, documents, weigh_dataset, write_dataset

    from exact_prep.reader.rows import PackedDataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(40, 300), seq_len=128))
    seen = []
    read = PackedDataset._row
    monkeypatch.setattr(PackedDataset, "_row", lambda self, number: (seen.append(number), read(self, number))[1])
    for seed in range(3):
        assert open_corpus(data, held_out=2, base_tokens=128 * seed).vocab_size == VOCAB
    assert len(seen) <= len(exact_prep.open(data)) + 3 * 2


def test_what_is_measured_on_bases_and_arms_share_no_document(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(80, 300), seq_len=128))
    corpus = open_corpus(data, held_out=4, base_tokens=6 * 128)
    held = {row.tobytes() for batch in corpus.held_out for row in batch.ids.numpy().reshape(-1, 128)}
    opened = exact_prep.open(data)
    places = {opened[place].input_ids.astype(np.int64).tobytes(): place for place in range(len(opened))}
    task = np.repeat([s.task for s in opened.files.shards], [s.rows for s in opened.files.shards])

    def named(rows: list[int]) -> set[tuple[int, int]]:
        return {(int(task[row]), document) for row in rows for document in opened[row].doc_ids.tolist()}

    out = [places[row] for row in held]
    base, arms = list(map(int, corpus.base.rows)), list(map(int, corpus.arms.rows))
    assert len(base) == 6
    assert not set(base) & set(arms)
    assert not named(out) & named(base + arms)
    assert len(out) + len(base) + len(arms) + corpus.left_out == len(opened)


def test_the_learning_rate_is_tuned_on_rows_that_share_no_document_with_those_measured(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(80, 300), seq_len=128))
    corpus, alone = open_corpus(data, held_out=4, tune=True), open_corpus(data, held_out=4)
    measured, tuning = ({row.ids.numpy().tobytes() for row in rows} for rows in (corpus.held_out, corpus.tuning))
    assert measured == {row.ids.numpy().tobytes() for row in alone.held_out}  # a given rate changes nothing
    assert alone.tuning == []
    opened = exact_prep.open(data)
    places = {opened[place].input_ids.astype(np.int64).tobytes(): place for place in range(len(opened))}
    task = np.repeat([s.task for s in opened.files.shards], [s.rows for s in opened.files.shards])

    def named(rows: list[int]) -> set[tuple[int, int]]:
        return {(int(task[row]), document) for row in rows for document in opened[row].doc_ids.tolist()}

    parts = [[places[row] for row in rows] for rows in (measured, tuning)] + [list(map(int, corpus.arms.rows))]
    assert [len(part) for part in parts[:2]] == [4, 4]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not named(parts[one]) & named(parts[other])
    assert sum(map(len, parts)) + corpus.left_out == len(opened)
    other = weigh_dataset(write_dataset(tmp_path / "other", documents(30, 300, seed=1), seq_len=128))
    beside = open_corpus(data, held_out=4, held_out_from=other, tune=True)
    assert (len(beside.held_out), len(beside.tuning), len(beside.arms)) == (4, 4, len(opened))
    few = weigh_dataset(write_dataset(tmp_path / "few", [[1, 2] * 130], seq_len=64, shards=1))
    with pytest.raises(UsageError, match="no row to tune the learning rate on"):
        open_corpus(few, held_out=1, tune=True)
    assert len(open_corpus(few, held_out=2, trains=False).held_out) == 2


def test_context_gain_equals_cutting_the_context_target_by_target():
    model = small().eval()
    ids = torch.randint(0, VOCABULARY, (90,), generator=torch.Generator().manual_seed(1))
    batch = make_batch([(ids.numpy(), np.array([30, 60], np.int32))])
    gains = []
    with torch.no_grad():
        for start, stop in ((0, 30), (30, 90)):
            whole = model(ids[start:stop], torch.tensor([0, stop - start])).log_softmax(-1)
            for target in range(start + 12, stop):  # a quarter of four targets share a window: each has its own
                part = model(ids[target - 4 : target + 1], torch.tensor([0, 5])).log_softmax(-1)
                gains.append(float(whole[target - start - 1, ids[target]] - part[-2, ids[target]]))
    found = probes.measure_rows(model, [batch], 8, visible=(4,))["context 4"]
    assert found.counts.sum() == len(gains)
    assert found.mean == pytest.approx(np.mean(gains), abs=1e-5)
    assert len(gains) == 18 + 48
    some = probes.measure_rows(model, [batch], 8, visible=(4,), gain_targets=6)["context 4"]
    assert some.counts.sum() == 6
    taken = [gains[place] for place in (5, 16, 27, 38, 49, 60)]  # the middles of six equal parts
    assert some.mean == pytest.approx(np.mean(taken), abs=1e-5)


def test_a_run_that_diverges_is_a_result(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 400), seq_len=128))
    experiment = tiny_experiment(tmp_path / "out", data)
    wild = replace(experiment, tier=replace(experiment.tier, lr=1e30, steps=12))
    results = run_experiment(wild)
    assert {run.diverged for run in results.runs} == {True}
    assert {run.final_loss for run in results.runs} == {None}
    assert results.differences == results.readings == ()


def test_uniform_is_tuned_on_the_mixture_and_every_arm_trains_at_its_best_rate(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 400), seq_len=128))
    experiment = tiny_experiment(tmp_path / "out", data)
    tuned = replace(
        experiment, arms=("exact@1", "lr@1", "upsample@0.05"), tier=replace(experiment.tier, sweep=(0.5, 1, 8), steps=6)
    )
    results = run_experiment(tuned)
    best = min(results.sweep, key=lambda point: point.loss or np.inf)
    lr = {run.arm: run.lr for run in results.runs}
    assert lr["uniform"] == lr["exact@1"] == best.lr == results.lr
    assert lr["lr@1"] == pytest.approx(best.lr * (1 + results.tail_share), rel=1e-6)
    drawn = next(run for run in results.runs if run.arm == "upsample@0.05")
    assert drawn.distinct_tokens <= drawn.tokens == 6 * 512


def test_steps_shrink_to_the_time_there_is_and_an_experiment_that_was_begun_keeps_them(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 400), seq_len=128))
    experiment = tiny_experiment(tmp_path / "out", data)
    long = replace(experiment, tier=replace(experiment.tier, base_steps=10**6, steps=10**6))
    fitted = fit_to_time(long, tmp_path / "none", 0.5, 1)
    assert 20 <= fitted.tier.steps == fitted.tier.base_steps < 10**5
    with pytest.raises(UsageError, match="give more, or fewer"):
        fit_to_time(long, tmp_path / "none", 1e-4, 1)
    begun = run_experiment(replace(experiment, tier=replace(experiment.tier, steps=3)))
    assert run_experiment(experiment, minutes=1).runs == begun.runs


def test_without_a_step_a_model_is_only_measured(tmp_path):
    from written_dataset import documents, weigh_dataset, write_dataset

    data = weigh_dataset(write_dataset(tmp_path / "data", documents(60, 400), seq_len=128))
    experiment = tiny_experiment(tmp_path / "out", data)
    tier = replace(experiment.tier, steps=0, context_gain=True, sweep=(1, 2))
    events: list[Event] = []
    results = run_experiment(replace(experiment, tier=tier), emit=events.append)
    measuring = events[max(place for place, event in enumerate(events) if isinstance(event, Started)) :]
    assert measuring[0] == Started(what="measuring", tasks=1, done=0, total_bytes=2, done_bytes=0, unit="tasks")
    assert [event.bytes - measuring[1].bytes for event in measuring if isinstance(event, Progress)] == [0, 1, 2]
    assert sum("a held-out row took" in event.text for event in measuring if isinstance(event, Note)) == 1
    (run,) = results.runs
    assert (run.arm, run.steps, run.lr, run.final_loss) == ("uniform", 0, 0, None)
    assert {"context 32", "loss 32-63"} <= run.measures.keys()
    assert results.sweep == results.differences == ()
    assert {level.measure: level.mean for level in results.levels} == pytest.approx(run.measures)
    assert all(level.low < level.mean < level.high for level in results.levels if level.items > 1)
    plot_levels(results, tmp_path / "levels.png")
    assert (tmp_path / "levels.png").stat().st_size > 5000


def test_text_found_on_the_machine_is_divided_by_file_and_trains_every_arm(tmp_path):
    tier = replace(
        SMOKE, width=24, base_len=16, base_steps=2, seq_len=128, steps=2, tokens_per_step=512, held_out=4,
        text_bytes=1_000_000, vocab_size=300, context_gain=True,
    )  # fmt: skip
    arms = ("exact", "exact@1", "flat@1", "upsample@0.2", "mirror@1", "permuted@1", "lr", "lr@1", "steps@1")
    experiment = Experiment(tier_name="smoke", tier=tier, arms=arms, seeds=(0, 1), out=tmp_path, found_text=True)
    results = run_experiment(experiment)
    assert results.arms == ("uniform", *arms)
    assert results.primary == "context 32"
    assert results.settings.data == "text"
    rows = [exact_prep.open(tmp_path / "text" / name, plain=True) for name in ("train", "held-out")]
    assert len(rows[0]) > len(rows[1]) > 0
    found = {(d.arm, d.against) for d in results.differences}
    assert {("exact@1", "upsample@0.2"), ("exact@1", "lr@1"), ("mirror@1", "uniform")} <= found
    assert {reading.against for reading in results.readings} <= {("uniform", "lr"), ("uniform", "lr@1")}
    assert plot_primary(results, tmp_path / "primary.pdf")
