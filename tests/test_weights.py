"""Laws of exposure and weights: the specification's vectors, slow obvious twins, and the invariants of the paper."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_prep.batches import Rows
from exact_prep.errors import DatasetError, WeightsError
from exact_prep.kernels.contexts import fill_by_position
from exact_prep.records.options import WeightOptions
from exact_prep.weighing.context import bucket_edges, edge_at_or_above, find_bucket, nearest_edges, visible
from exact_prep.weighing.exposure import Exposure, measure_groups, measure_lengths, measure_rows
from exact_prep.weighing.weights import (
    audit_rounding,
    check_tail_from,
    default_tail_from,
    float16_runs,
    plain_runs,
    resolve_options,
    weight_table,
)

VECTORS = json.loads((Path(__file__).parent / "exact-weights-vectors.json").read_text())
segment_lengths = st.lists(st.integers(1, 5000), max_size=40)
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
    exposure = measure_lengths(lengths)
    counts = np.array(vector["counts"], np.int64)
    assert exposure == Exposure(counts=counts, segments=lengths.size, firsts=lengths.size)
    table = weight_table(
        exposure, WeightOptions(**{name: vector[name] for name in ("tail_from", "alpha", "gamma", "eps")})
    )
    stored = np.empty((len(rows), seq_len), np.uint16)
    splits = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    fill_by_position(lengths, splits, *float16_runs(table, seq_len), stored)
    lut = table.lut(seq_len)
    for row, runs, found in zip(rows, vector["weight_runs"], stored.view(np.float16), strict=True):
        expected = np.repeat(*(np.array(column) for column in zip(*runs, strict=True)))
        exact = np.concatenate([*(lut[:length] for length in row), np.zeros(seq_len - sum(row))])
        np.testing.assert_allclose(exact, expected, rtol=1e-9)
        np.testing.assert_array_equal(found, expected.astype(np.float16))


@given(segment_lengths)
def test_exposure_equals_counting_target_by_target(lengths):
    exposure = measure_lengths(np.array(lengths, np.int32))
    assert {b: c for b, c in enumerate(exposure.counts.tolist()) if c} == slow_exposure(lengths)
    assert exposure.segments == exposure.firsts == len(lengths)
    assert exposure.targets == sum(length - 1 for length in lengths)


@given(segment_lengths, st.integers(0, 40))
def test_exposures_merge_by_addition(lengths, cut):
    parts = measure_lengths(np.array(lengths[:cut], np.int32)) + measure_lengths(np.array(lengths[cut:], np.int32))
    assert parts == measure_lengths(np.array(lengths, np.int32))


@given(st.integers(0, 2**40))
def test_a_context_lies_between_the_edges_of_its_bucket(context):
    bucket = find_bucket(context)
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
    exposure = Exposure(counts=np.array(counts, np.int64), segments=3, firsts=3)
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
        measure_lengths(np.array(lengths, np.int32)), WeightOptions(tail_from=seq_len // 4, supervise_first=first)
    )
    lut = table.lut(seq_len).astype(np.float16)
    out = np.full((len(rows), seq_len), 7, np.uint16)
    edges, values = float16_runs(table, seq_len)
    splits = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    used = fill_by_position(np.array([n for row in rows for n in row], np.int32), splits, edges, values, out)
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
        ({"alpha": math.inf}, "alpha"),
        ({"alpha": "0.1"}, "alpha"),
        ({"gamma": -1}, "gamma"),
        ({"eps": -1e-6}, "eps"),
        ({"eps": math.inf}, "eps"),
        ({"tail_from": -1}, "tail_from"),
        ({"tail_from": 2**31}, "tail_from"),
        ({"tail_from": 8.5}, "tail_from"),
        ({"tail_from": math.nan}, "tail_from"),
        ({"window": 0}, "window"),
        ({"window": -4}, "window"),
        ({"window": 2**31}, "window"),
        ({"window": 512.0}, "window"),
        ({"normalize": "median"}, "normalize must be one of none, mean"),
        ({"normalize": "mean", "keep_mixture": True}, "keep_mixture and normalize mean"),
        ({"max_weight": math.nan}, "max_weight"),
        ({"max_weight": 0.5}, "max_weight"),
        ({"max_weight": 1e6}, "max_weight"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_name(options, says):
    with pytest.raises(WeightsError, match=says):
        WeightOptions(**{"tail_from": 8, **options})


def test_the_default_tail_begins_at_the_edge_from_a_quarter_of_the_row_or_window_on():
    assert [default_tail_from(n) for n in (4096, 8192, 16384, 2, 36)] == [1024, 2048, 4096, 0, 16]
    assert [default_tail_from(16384, window) for window in (1, 32, 1000, 4096, 16384, 10**6)] == [
        0, 8, 256, 1024, 4096, 4096,
    ]  # fmt: skip


@given(st.integers(2, 2**27), st.none() | st.integers(1, 2**30))
def test_the_default_tail_is_the_first_edge_from_there_on_and_needs_no_change(seq_len, window):
    tau = default_tail_from(seq_len, window)
    quarter = min(seq_len, window or seq_len) // 4
    assert tau == min(edge for edge in EDGES if edge >= quarter)
    check_tail_from(tau)
    assert resolve_options(WeightOptions(window=window), seq_len) == WeightOptions(tail_from=tau, window=window)
    typed = WeightOptions(tail_from=24, window=window)
    assert resolve_options(typed, seq_len) == typed


def test_a_table_needs_a_resolved_tail():
    with pytest.raises(WeightsError, match=r"tail_from is not set.*resolve_options"):
        weight_table(Exposure(counts=np.array([1])), WeightOptions())


EDGES = [0, *(8 << k for k in range(40))]


@given(st.integers(-5, 2**35) | st.sampled_from(EDGES).flatmap(lambda edge: st.integers(edge - 1, edge + 1)))
def test_the_nearest_edges_are_those_a_search_finds(context):
    above = min(edge for edge in EDGES if edge >= context)
    below = max((edge for edge in EDGES if edge <= context), default=0)
    assert edge_at_or_above(context) == above
    assert nearest_edges(context) == (below, above)
    if context >= 0:
        assert find_bucket(context) == EDGES.index(below)


@given(st.integers(0, 2**31 - 1) | st.sampled_from(EDGES[:28]))
def test_a_typed_tail_that_is_no_edge_is_refused_with_the_two_nearest(tau):
    if tau in EDGES:
        check_tail_from(tau)
        return
    below, above = nearest_edges(tau)
    with pytest.raises(WeightsError, match=rf"--tail-from {tau} is not .* {below} or --tail-from {above}$"):
        check_tail_from(tau)


# Windows.


def slow_window_exposure(lengths: list[int], window: int) -> dict[int, int]:
    counts: dict[int, int] = {}
    for length in lengths:
        for position in range(1, length):
            bucket = slow_bucket(min(position, window))
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


windows = st.integers(1, 6000) | st.sampled_from([1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 1023, 1024, 4096])


@given(segment_lengths, windows)
def test_a_window_limits_every_context(lengths, window):
    full = measure_lengths(np.array(lengths, np.int32))
    seen = full.within(window)
    assert {b: c for b, c in enumerate(seen.counts.tolist()) if c} == slow_window_exposure(lengths, window)
    assert (seen.segments, seen.firsts, seen.targets) == (full.segments, full.firsts, full.targets)
    assert full.within(None) == full.within(10**6) == full
    assert seen.within(window) == seen
    assert visible(np.arange(20), window).tolist() == [min(position, window) for position in range(20)]
    assert visible(np.arange(20), None).tolist() == list(range(20))


@given(segment_lengths, windows, st.integers(2, 6000), st.booleans())
def test_under_a_window_the_weight_of_a_position_is_that_of_its_visible_context(lengths, window, seq_len, first):
    """lut[min(position, W)], for W on and off edges, shorter and longer than the row."""
    exposure = measure_lengths(np.array([min(length, seq_len) for length in lengths], np.int32))
    options = WeightOptions(tail_from=8, alpha=1.0, gamma=1.0, window=window, supervise_first=first)
    table = weight_table(exposure, options)
    full = weight_table(exposure.within(window), replace(options, window=None))
    np.testing.assert_array_equal(table.counts, full.counts)
    np.testing.assert_array_equal(table.weights, full.weights)
    lut, visible_weights = table.lut(seq_len), full.lut(seq_len)
    for position in range(seq_len):
        assert lut[position] == visible_weights[min(position, window)]
    edges, values = float16_runs(table, seq_len)
    assert edges[0] == 0
    assert edges[-1] == seq_len
    np.testing.assert_array_equal(np.repeat(values, np.diff(edges)), lut.astype(np.float16).view(np.uint16))
    # Neighbours differ: there are no more runs than weights.
    assert (values[1:] != values[:-1]).all()


def test_plain_runs_are_0_and_then_1():
    for seq_len in (2, 3, 4096):
        edges, values = plain_runs(seq_len)
        weights = np.repeat(values, np.diff(edges)).view(np.float16)
        assert weights.tolist() == [0.0] + [1.0] * (seq_len - 1)


# Groups and masks.


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 4)), max_size=40))
def test_exposures_by_group_are_those_of_each_group_alone(pairs):
    lengths, groups = (np.array([pair[k] for pair in pairs], dtype) for k, dtype in ((0, np.int32), (1, np.int16)))
    found = measure_groups(lengths, groups, 5)
    for group, exposure in enumerate(found):
        assert exposure == measure_lengths(lengths[groups == group])
    assert sum(found, Exposure()) == measure_lengths(lengths)


@pytest.mark.parametrize("group", [-1, 2, 300])
def test_a_group_out_of_bounds_is_refused_before_it_is_counted(group):
    with pytest.raises(DatasetError, match="known are 0 to 1"):
        measure_groups(np.array([5, 5], np.int32), np.array([0, group], np.int16), 2)


@st.composite
def masked_rows(draw) -> tuple[Rows, list[list[tuple[int, list[bool]]]]]:
    """Rows of 64 tokens, and per segment its source and whether each of its targets is masked."""
    truth, runs = [], []
    for _ in range(draw(st.integers(1, 6))):
        row, own, position = [], [], 0
        for length in draw(st.lists(st.integers(1, 32), min_size=1, max_size=4)):
            length = min(length, 64 - position)
            if length == 0:
                break
            pattern = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=5))
            bits = [on for on, count in pattern for _ in range(count)][:length]
            bits += [False] * (length - len(bits))
            row.append((draw(st.integers(0, 2)), bits))
            for on, group in itertools.groupby(enumerate(bits, position), key=lambda pair: pair[1]):
                places = [place for place, _ in group]
                own += [places[0], places[-1] + 1] if on else []
            position += length
        truth.append(row)
        runs.append(own)
    segments = [segment for row in truth for segment in row]
    rows = Rows(
        input_ids=np.zeros((len(truth), 64), np.int32),
        row_splits=np.cumsum([0, *map(len, truth)], dtype=np.int32),
        seq_lengths=np.array([len(bits) for _, bits in segments], np.int32),
        doc_ids=np.arange(len(segments)),
        doc_offsets=np.zeros(len(segments), np.int64),
        sources=np.array([source for source, _ in segments], np.int16),
        mask_splits=np.cumsum([0, *map(len, runs)], dtype=np.int32),
        masked_runs=np.array([value for own in runs for value in own], np.int32),
    )
    return rows, truth


@given(masked_rows())
def test_masked_targets_are_in_no_bucket_and_masked_firsts_are_no_firsts(case):
    rows, truth = case
    found = measure_rows(rows, 3)
    for source in range(3):
        counts: dict[int, int] = {}
        segments = firsts = 0
        for own, bits in (segment for row in truth for segment in row):
            if own != source:
                continue
            segments += 1
            firsts += not bits[0]
            for position, masked in enumerate(bits):
                if position and not masked:
                    bucket = slow_bucket(position)
                    counts[bucket] = counts.get(bucket, 0) + 1
        exposure = found[source]
        assert {b: c for b, c in enumerate(exposure.counts.tolist()) if c} == counts
        assert (exposure.segments, exposure.firsts) == (segments, firsts)
        supervised = exposure.supervised(supervise_first=True)
        assert supervised.sum() == sum(counts.values()) + firsts
        assert Exposure.from_record(exposure.to_record()) == exposure
    bare = replace(rows, mask_splits=None, masked_runs=None)
    assert measure_rows(bare, 3) == measure_groups(rows.seq_lengths, rows.sources, 3)


# Large exponents.


def exact_weights_of(counts: list[int], alpha: float, gamma: float, eps: float) -> list[Decimal]:
    """The formula in 200 digits, with room for any exponent."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 200, MAX_EMAX, MIN_EMIN
        whole = Decimal(sum(counts))
        q = [Decimal(count) / whole for count in counts]
        r = [(-Decimal(gamma) * (share + Decimal(eps)).ln()).exp() if share else Decimal(0) for share in q]
        mean = sum((a * b for a, b in zip(q, r, strict=True)), Decimal(0))
        return [1 + Decimal(alpha) * one / mean if one else Decimal(1) for one in r]


@pytest.mark.parametrize("gamma", [0.5, 50, 500, 1e4, 1e6])
@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=10), alpha=st.floats(1e-3, 10))
@settings(max_examples=40)
def test_no_gamma_is_too_large(gamma, counts, alpha):
    """Finite, equal to the formula in 200 digits, and the extra is alpha unless clipping took some."""
    options = WeightOptions(tail_from=0, alpha=alpha, gamma=gamma)
    table = weight_table(Exposure(counts=np.array(counts, np.int64)), options)
    assert np.isfinite(table.weights).all()
    if not sum(counts):
        return
    expected = exact_weights_of(counts, alpha, gamma, options.eps)
    clipped = [min(float(weight), 65504.0) for weight in expected]
    # A float64 logarithm errs by 2**-53 or so, which the exponent multiplies.
    np.testing.assert_allclose(table.weights, clipped, rtol=1e-12 + 1e-14 * gamma)
    if max(expected) < 65504:
        assert table.extra == pytest.approx(alpha, rel=1e-9)
    else:
        assert table.extra <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("gamma", [1e200, 1.7e308])
def test_the_largest_gamma_gives_all_to_the_rarest_bucket(gamma):
    table = weight_table(
        Exposure(counts=np.array([600, 0, 300, 100, 100])), WeightOptions(tail_from=0, gamma=gamma, alpha=0.5)
    )
    np.testing.assert_allclose(table.weights, [1, 1, 1, 3.75, 3.75], rtol=1e-12)
    assert table.extra == pytest.approx(0.5)


@given(exposures, st.floats(0, 2), st.floats(0, 60))
def test_the_rarer_of_two_buckets_weighs_no_less(counts, alpha, gamma):
    table = weight_table(
        Exposure(counts=np.array(counts, np.int64)), WeightOptions(tail_from=0, alpha=alpha, gamma=gamma)
    )
    tail = sorted((count, -weight) for count, weight in zip(counts, table.weights.tolist(), strict=True) if count)
    assert [weight for _, weight in tail] == sorted(weight for _, weight in tail)


# Rounding.


@given(
    exposures,
    st.sampled_from([0, 8, 64, 1024]),
    st.floats(0, 2),
    st.sampled_from(["none", "mean"]),
    st.none() | st.floats(1, 60),
)
def test_the_extra_as_stored_is_that_of_float16_weights_over_float16_plain_ones(counts, tau, alpha, normalize, limit):
    options = WeightOptions(tail_from=tau, alpha=alpha, normalize=normalize, max_weight=limit)
    table = weight_table(Exposure(counts=np.array(counts, np.int64)), options)
    audit = audit_rounding(table)
    tail = [b for b, count in enumerate(counts) if count and EDGES[b] >= tau]
    if not tail:
        assert (audit.extra_float16, audit.extra_relative_error) == (0.0, 0.0)
        return
    whole = sum(counts[b] for b in tail)
    # What plain targets weigh is stored in float16 too.
    plain = Fraction(float(np.float16(1 / table.scale)))
    stored = sum(Fraction(counts[b], whole) * Fraction(float(np.float16(table.weights[b]))) for b in tail) / plain - 1
    assert audit.extra_float16 == pytest.approx(float(stored), rel=1e-9, abs=1e-12)
    before = sum(Fraction(counts[b], whole) * (Fraction(table.weights[b]) * Fraction(table.scale) - 1) for b in tail)
    assert table.extra == pytest.approx(float(before), rel=1e-6, abs=1e-12)
    if table.extra == 0:
        assert audit.extra_relative_error == 0
    else:
        error = (audit.extra_float16 - table.extra) / table.extra
        assert audit.extra_relative_error == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_a_small_alpha_is_lost_in_float16_and_the_audit_says_so():
    """1 + 0.0001 is 1 in float16: nothing of the extra is stored."""
    table = weight_table(Exposure(counts=np.array([0, 90, 10])), WeightOptions(tail_from=8, alpha=1e-4, gamma=0))
    audit = audit_rounding(table)
    assert table.extra == pytest.approx(1e-4)
    assert (audit.extra_float16, audit.extra_relative_error) == (0.0, -1.0)


def test_the_extra_under_normalize_mean_is_compared_with_the_plain_weight_as_stored():
    counts = [700, 200, 74]
    options = WeightOptions(tail_from=8, alpha=0.15, gamma=0.5, normalize="mean")
    table = weight_table(Exposure(counts=np.array(counts)), options)
    audit = audit_rounding(table)
    assert table.mean_weight == pytest.approx(1)
    base = float(np.float16(1 / table.scale))
    stored = sum(c * float(np.float16(w)) for c, w in zip(counts[1:], table.weights[1:], strict=True)) / 274 / base - 1
    assert audit.extra_float16 == pytest.approx(stored)
    assert audit.extra_float16 == pytest.approx(0.15, rel=0.01)


@given(exposures, st.floats(0, 2), st.sampled_from([0, 64]), st.booleans())
def test_a_mean_of_1_changes_no_ratio_of_weights(counts, alpha, tau, first):
    exposure = Exposure(counts=np.array(counts, np.int64), segments=5, firsts=4)
    options = WeightOptions(tail_from=tau, alpha=alpha, supervise_first=first)
    plain, mean = (weight_table(exposure, replace(options, normalize=way)) for way in ("none", "mean"))
    np.testing.assert_allclose(mean.weights * mean.scale, plain.weights, rtol=1e-12)
    assert mean.scale == pytest.approx(plain.mean_weight)
    assert mean.extra == plain.extra
    assert mean.lut(10**4)[-1] * mean.scale == pytest.approx(plain.lut(10**4)[-1])


def test_a_divisor_that_leaves_a_weight_beyond_float16_is_refused():
    table = weight_table(Exposure(counts=np.array([10**9, 10])), WeightOptions(tail_from=8, alpha=1e6))
    with pytest.raises(WeightsError, match=r"beyond float16.*--max-weight"):
        float16_runs(table, 16, divisor=0.5)
    edges, values = float16_runs(table, 16, divisor=2.0)
    assert np.repeat(values, np.diff(edges)).view(np.float16)[8] == np.float16(65504 / 2)
