"""`dataset.resample`: rows drawn so that the tail has a given share, against a count token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from runs import make_texts, pack_here, read_rows, weigh_here, write_jsonl

import exact_prep
from exact_prep.errors import UsageError


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer_file):
    base = tmp_path_factory.mktemp("resample")
    texts = make_texts(900)
    short = [text[:30] or "a" for text in texts[:870]]
    pack_here([write_jsonl(base / "in.jsonl", [*short, *texts[870:]])], base / "out", tokenizer_file)
    weigh_here(base / "out")
    return base / "out"


def count_targets(home, low: int) -> np.ndarray:
    """Supervised targets of each row with a context of `low` or more."""
    return np.array([sum(max(n - max(low, 1), 0) for n in row["seq_lengths"]) for row in read_rows(home)])


@pytest.mark.parametrize("plain", [False, True])
def test_the_tail_gets_its_share(home, plain):
    dataset = exact_prep.open(home, plain=plain)
    targets, tail = count_targets(home, 1), count_targets(home, 16)
    before = tail.sum() / targets.sum()
    assert dataset.drawing is None
    for wanted in (before, before + 0.02, before + 0.05):
        drawn = dataset.resample(tail_share=wanted, seed=3)
        rows = np.asarray(drawn.rows)
        assert len(drawn) == len(dataset)
        share = tail[rows].sum() / targets[rows].sum()
        assert share == pytest.approx(wanted, abs=0.01)
        assert drawn.drawing.tail_share == pytest.approx(share, rel=1e-12)
        assert drawn.drawing.tail_share_before == pytest.approx(before, rel=1e-12)
        counts = Counter(rows.tolist())
        assert drawn.drawing.distinct_rows == len(counts)
        assert drawn.drawing.repeats == pytest.approx(len(rows) / len(counts))
        assert drawn[0].input_ids.tolist() == read_rows(home)[rows[0]]["input_ids"]
    assert len(set(np.asarray(dataset.resample(tail_share=before, seed=3).rows).tolist())) == len(dataset)


def test_rows_are_drawn_by_their_mean_weight(home):
    """As often as their mean weight under the alpha that it found says, within one."""
    dataset = exact_prep.open(home)
    drawn = dataset.resample(tail_share=count_targets(home, 16).sum() / count_targets(home, 1).sum() + 0.05, seed=1)
    table = dataset.loaded_weights.table
    extra = (table.weights - 1) / table.options.alpha
    edges = [0, 8, 16, 32, 64]
    means = []
    for row in read_rows(home):
        gains = [extra[np.searchsorted(edges, c, "right") - 1] for n in row["seq_lengths"] for c in range(1, n)]
        means.append(1 + drawn.drawing.alpha * (np.mean(gains) if gains else 0))
    expected = np.array(means) / sum(means) * len(dataset)
    times = np.bincount(np.asarray(drawn.rows), minlength=len(dataset))
    assert np.abs(times - expected).max() < 1 + 1e-6


def test_a_seed_gives_one_order_and_more_rows_may_be_asked_for(home):
    dataset = exact_prep.open(home)
    wanted = count_targets(home, 16).sum() / count_targets(home, 1).sum() + 0.05
    one, again, other = (dataset.resample(tail_share=wanted, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.rows, again.rows)
    assert not np.array_equal(one.rows, other.rows)
    assert len(dataset.resample(tail_share=wanted, seed=1, rows=7)) == 7
    assert len(dataset.resample(tail_share=wanted, seed=1, rows=3 * len(dataset))) == 3 * len(dataset)


@pytest.mark.parametrize("share", [0.0, 0.999999, 1.5, float("nan")])
def test_a_share_that_cannot_be_reached_is_refused_with_what_can(share, home):
    with pytest.raises(UsageError, match=r"gives the tail 0\.\d+ of supervised targets, each row once, to 0\.\d+"):
        exact_prep.open(home).resample(tail_share=share, seed=0)
