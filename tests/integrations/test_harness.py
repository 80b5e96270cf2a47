"""Laws of the lm-evaluation-harness adapter: the real harness, on a local task, scores as the chain rule does."""

from __future__ import annotations

import json
import math

import pytest
from oracle import framework
from written_dataset import VOCAB

from exact_prep.errors import UsageError

torch = framework("torch")
framework("lm_eval")

import lm_eval.api.task  # noqa: E402

from exact_prep.validation.decoder import Decoder, Shape  # noqa: E402
from exact_prep.validation.harness import evaluate, make_adapter  # noqa: E402


class Letters:
    """A character a token."""

    def encode(self, text):
        return [ord(letter) % VOCAB for letter in text]

    def decode(self, ids):
        return "".join(chr(i + VOCAB) if i + VOCAB < 123 else chr(i) for i in ids)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    made = Decoder(Shape(vocab_size=VOCAB, layers=1, width=24, heads=2))
    torch.nn.init.normal_(made.head.weight, std=1.0)
    return made


def chain(model, context, continuation):
    """Log-probability of the continuation, one forward pass per token."""
    ids = Letters().encode(context + continuation)
    total, greedy = 0.0, True
    for t in range(max(len(context), 1), len(ids)):
        logits = model(torch.tensor(ids[:t]), torch.tensor([0, t]))[-1]
        total += float(logits[ids[t]] - logits.logsumexp(-1))
        greedy &= int(logits.argmax()) == ids[t]
    return total, greedy


class Request:
    def __init__(self, *args):
        self.args = args


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_follow_the_chain_rule(model):
    lm = make_adapter(model, Letters(), "cpu")
    pairs = [("the capital of France is", " Paris"), ("a", "b"), ("", "whole text"), ("x ", "y")]
    for (context, continuation), (logp, greedy) in zip(
        pairs, lm.loglikelihood([Request(*pair) for pair in pairs]), strict=True
    ):
        seam = len(context) - len(context.rstrip())
        want = chain(model, context.rstrip(), " " * seam + continuation)
        assert logp == pytest.approx(want[0], rel=1e-4)
        assert greedy == want[1]
    assert lm.loglikelihood_rolling([Request("whole text")])[0] == pytest.approx(chain(model, "w", "hole text")[0])


@pytest.mark.filterwarnings("ignore")
def test_text_is_greedy_and_ends_before_the_stop(model):
    lm = make_adapter(model, Letters(), "cpu")
    ids, said = Letters().encode("begin"), ""
    for _ in range(6):
        ids.append(int(model(torch.tensor(ids), torch.tensor([0, len(ids)]))[-1].argmax()))
        said += Letters().decode(ids[-1:])
    assert lm.generate_until([Request("begin", {"max_gen_toks": 6})]) == [said]
    stop = said[3]
    assert lm.generate_until([Request("begin", {"max_gen_toks": 6, "until": [stop]})]) == [said[: said.index(stop)]]
    with pytest.raises(UsageError, match="greedily"):
        lm.generate_until([Request("begin", {"temperature": 0.7})])


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_the_real_harness(model, tmp_path):
    questions = [
        {"question": f"{a} plus {b} is", "choices": [" small", " large", " odd"], "answer": (a + b) % 3}
        for a in range(4)
        for b in range(3)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    task = lm_eval.api.task.ConfigurableTask(
        config={
            "task": "sums",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}, "cache_dir": str(tmp_path)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    found = evaluate(model, Letters(), [task])
    right = 0
    for q in questions:
        scores = [chain(model, q["question"], choice)[0] for choice in q["choices"]]
        right += scores.index(max(scores)) == q["answer"]
    assert found == {"harness sums acc": pytest.approx(right / len(questions))}
    assert not math.isnan(found["harness sums acc"])


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_does_not_exist_is_refused(model):
    with pytest.raises(UsageError, match="cannot run no_such_task"):
        evaluate(model, Letters(), ["no_such_task"])
