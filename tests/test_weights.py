"""Laws of exposure and weights: the specification's vectors, slow obvious twins, and the invariants of the paper."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_prep.errors import WeightsError
from exact_prep.kernels.contexts import fill_by_left_context
from exact_prep.weighing.exposure import Exposure, bucket_edges, bucket_of, measure
from exact_prep.weighing.weights import WeightOptions, audit_rounding, default_tail_from, float16_runs, weight_table

VECTORS = json.loads((Path(__file__).parent / "exact-weights-vectors.json").read_text())
lengths_of = st.lists(st.integers(1, 5000), max_size=40)
exposures = st.lists(st.integers(0, 10**12), min_size=1, max_size=14)


def slow_bucket(context: int) -> int:
    bucket, upper = 0, 8
    while context >= upper:
        bucket, upper = bucket + 1, upper * 2
    return bucket


def slow_exposure(lengths: list[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for length in lengths:
        for context in range(1, length):
            bucket = slow_bucket(context)
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def slow_weights(counts: list[int], tau: int, alpha: float, gamma: float, eps: float) -> list[float]:
    lows = [0, *(2 ** (k + 2) for k in range(1, len(counts)))]
    tail = [b for b, count in enumerate(counts) if count > 0 and lows[b] >= tau]
    whole = math.fsum(counts[b] for b in tail)
    r = {b: (counts[b] / whole + eps) ** -gamma for b in tail}
    mean = math.fsum(counts[b] / whole * r[b] for b in tail)
    return [1 + alpha * r[b] / mean if b in r else 1.0 for b in range(len(counts))]


@pytest.mark.parametrize("vector", VECTORS["exposures"], ids=lambda v: f"tau={v['tail_from']} alpha={v['alpha']}")
def test_exposures_give_the_specified_weights(vector):
    exposure = Exposure(counts=np.array(vector["counts"], np.int64))
    options = WeightOptions(**{name: vector[name] for name in ("tail_from", "alpha", "gamma", "eps")})
    got = np.minimum(vector["weights"], 65504.0)
    np.testing.assert_allclose(weight_table(exposure, options).weights, got, rtol=1e-9)


def test_the_vectors_cover_rows():
    rows = [key for key in VECTORS if key not in {"about", "exposures"}]
    assert rows == ["rows"]
    assert VECTORS["rows"]


@pytest.mark.parametrize("case", range(len(VECTORS["rows"])))
def test_rows_give_the_specified_weight_at_every_position(case):
    vector = VECTORS["rows"][case]
    rows, seq_len = vector["seq_lengths"], vector["seq_len"]
    lengths = np.array([length for row in rows for length in row], np.int32)
    exposure = measure(lengths)
    assert exposure == Exposure(counts=np.array(vector["counts"], np.int64), segments=lengths.size)
    table = weight_table(
        exposure, WeightOptions(**{name: vector[name] for name in ("tail_from", "alpha", "gamma", "eps")})
    )
    stored = np.empty((len(rows), seq_len), np.uint16)
    per_row = np.array([*map(len, rows)], np.int32)
    fill_by_left_context(lengths, per_row, *float16_runs(table, seq_len), stored)
    lut = table.lut(seq_len)
    for row, runs, found in zip(rows, vector["weight_runs"], stored.view(np.float16), strict=True):
        expected = np.repeat(*(np.array(column) for column in zip(*runs, strict=True)))
        exact = np.concatenate([*(lut[:length] for length in row), np.zeros(seq_len - sum(row))])
        np.testing.assert_allclose(exact, expected, rtol=1e-9)
        np.testing.assert_array_equal(found, expected.astype(np.float16))


@given(lengths_of)
def test_exposure_equals_counting_target_by_target(lengths):
    exposure = measure(np.array(lengths, np.int32))
    assert {b: c for b, c in enumerate(exposure.counts.tolist()) if c} == slow_exposure(lengths)
    assert exposure.segments == len(lengths)
    assert exposure.targets == sum(length - 1 for length in lengths)


@given(lengths_of, st.integers(0, 40))
def test_exposures_merge_by_addition(lengths, cut):
    parts = measure(np.array(lengths[:cut], np.int32)) + measure(np.array(lengths[cut:], np.int32))
    assert parts == measure(np.array(lengths, np.int32))


@given(st.integers(0, 2**40))
def test_a_context_lies_between_the_edges_of_its_bucket(context):
    bucket = bucket_of(context)
    edges = bucket_edges(bucket + 1)
    assert edges[bucket] <= context < edges[bucket + 1]
    assert bucket == slow_bucket(context)


@given(exposures, st.integers(0, 70000), st.floats(0, 2), st.floats(0, 1.5))
def test_weights_equal_the_formula_and_keep_the_extra_supervision_fixed(counts, tau, alpha, gamma):
    table = weight_table(
        Exposure(counts=np.array(counts, np.int64)), WeightOptions(tail_from=tau, alpha=alpha, gamma=gamma)
    )
    expected = slow_weights(counts, tau, alpha, gamma, 1e-6)
    np.testing.assert_allclose(table.weights, np.minimum(expected, 65504), rtol=1e-9)
    if table.in_tail.any() and max(expected) < 65504:
        assert table.extra == pytest.approx(alpha, rel=1e-9)


@given(exposures, st.integers(0, 70000), st.booleans(), st.sampled_from(["none", "mean"]))
def test_every_table_is_finite_and_positive_where_supervised(counts, tau, first, normalize):
    exposure = Exposure(counts=np.array(counts, np.int64), segments=3)
    table = weight_table(exposure, WeightOptions(tail_from=tau, supervise_first=first, normalize=normalize))
    assert np.isfinite(table.weights).all()
    assert (table.weights > 0).all()
    lut = table.lut(5000)
    assert (lut[1:] > 0).all()
    assert bool(lut[0]) is first
    if normalize == "mean":
        assert table.mean_weight == pytest.approx(1.0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(2, 300), st.booleans())
def test_runs_fill_what_the_lookup_table_says_position_by_position(lengths, seq_len, first):
    lengths = [min(length, seq_len) for length in lengths]
    rows: list[list[int]] = [[]]
    for length in lengths:
        if sum(rows[-1]) + length > seq_len:
            rows.append([])
        rows[-1].append(length)
    table = weight_table(
        measure(np.array(lengths, np.int32)), WeightOptions(tail_from=seq_len // 4, supervise_first=first)
    )
    lut = table.lut(seq_len).astype(np.float16)
    out = np.full((len(rows), seq_len), 7, np.uint16)
    edges, values = float16_runs(table, seq_len)
    used = fill_by_left_context(
        np.array([n for row in rows for n in row], np.int32), np.array([*map(len, rows)], np.int32), edges, values, out
    )
    assert used == len(lengths)
    for row, got in zip(rows, out.view(np.float16), strict=True):
        expected = [lut[i] for n in row for i in range(n)]
        assert got.tolist() == expected + [0.0] * (seq_len - len(expected))


def test_the_worked_example_of_the_paper():
    counts = [726, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 74]
    table = weight_table(Exposure(counts=np.array(counts, np.int64)), WeightOptions(tail_from=4096))
    np.testing.assert_allclose(table.weights[-2:], [1.127777, 1.210063], atol=1e-6)
    assert table.tail_share == pytest.approx(0.274)
    assert table.weighted_tail_share == pytest.approx(0.3027, abs=5e-5)


def test_a_tail_that_begins_between_edges_begins_at_the_next():
    table = weight_table(Exposure(counts=np.full(12, 10)), WeightOptions(tail_from=3000))
    assert table.tail_start == 4096
    assert bucket_edges(12)[:-1][table.in_tail].min() == 4096


def test_an_empty_tail_leaves_plain_weights():
    table = weight_table(Exposure(counts=np.array([5, 5])), WeightOptions(tail_from=1 << 20))
    assert table.weights.tolist() == [1.0, 1.0]
    assert table.extra == 0.0


def test_one_bucket_in_the_tail_weighs_one_plus_alpha():
    table = weight_table(Exposure(counts=np.array([50, 3])), WeightOptions(tail_from=8, alpha=0.4, gamma=0.9))
    assert table.weights[1] == pytest.approx(1.4)


def test_weights_beyond_float16_are_clipped_and_the_loss_is_stated():
    options = WeightOptions(tail_from=8, alpha=1000.0, gamma=1.5)
    table = weight_table(Exposure(counts=np.array([5, 10**12, 1])), options)
    assert table.weights.max() == 65504.0
    assert table.extra < options.alpha
    edges, values = float16_runs(table, 64)
    assert np.isfinite(values.view(np.float16)).all()
    assert edges[-1] == 64


def test_the_rounding_audit_equals_float16_arithmetic():
    table = weight_table(Exposure(counts=np.array([100, 0, 30, 7])), WeightOptions(tail_from=16))
    audit = audit_rounding(table)
    errors = [abs(float(np.float16(w)) - w) / w for w, c in zip(table.weights, table.counts, strict=True) if c]
    assert audit.max_relative_error == pytest.approx(max(errors))
    assert audit.mean_weight == pytest.approx(table.mean_weight)
    assert audit.zeros == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"gamma": math.nan}, "gamma"),
        ({"eps": 0.0}, "eps"),
        ({"tail_from": -1}, "tail_from"),
        ({"max_weight": 0.5}, "max_weight"),
        ({"max_weight": 1e6}, "max_weight"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(options, says):
    with pytest.raises(WeightsError, match=says):
        WeightOptions(**{"tail_from": 8, **options})


def test_the_default_tail_begins_at_a_quarter_of_the_row():
    assert [default_tail_from(n) for n in (4096, 8192, 16384, 2)] == [1024, 2048, 4096, 1]
