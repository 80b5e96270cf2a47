"""Laws of mixtures: one exposure for several datasets, shares of supervision, and weights.json made from them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exact_prep.errors import WeightsError
from exact_prep.records import encode, is_sealed, parse, seal
from exact_prep.records.options import WeightOptions
from exact_prep.records.weights import WeighedDataset, WeightsFile
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import (
    compute_table,
    exact_weights,
    find_divisor,
    identify,
    load_table,
    plain_weights,
    weight_runs,
)
from exact_prep.weighing.mixture import Part, keep_shares, mix, normalize_rates
from exact_prep.weighing.weights import float16_runs, plain_runs, weight_table

SEQ_LEN = 1024


@st.composite
def exposures(draw) -> Exposure:
    """What a dataset of rows of 1024 tokens may hold, up to 10**9 targets per bucket."""
    segments = draw(st.integers(0, 10**6))
    return Exposure(
        counts=np.array(draw(st.lists(st.integers(0, 10**9), max_size=8)), np.int64),
        segments=segments,
        firsts=draw(st.integers(0, segments)),
    )


@st.composite
def datasets(draw) -> tuple[Exposure, int]:
    """An exposure and its rows: at least as many tokens as it has targets."""
    exposure = draw(exposures())
    least = -(-(exposure.targets + exposure.segments) // SEQ_LEN)
    return exposure, max(1, least + draw(st.integers(0, 1000)))


mixtures = st.lists(datasets(), min_size=1, max_size=5)
rate_lists = st.lists(st.integers(1, 1000), min_size=5, max_size=5)


def make_parts(pairs, rates=None) -> list[Part]:
    rates = [None] * len(pairs) if rates is None else rates[: len(pairs)]
    return [
        Part(exposure=exposure, tokens=rows * SEQ_LEN, rate=rate)
        for (exposure, rows), rate in zip(pairs, rates, strict=True)
    ]


def slow_mixture(parts: list[Part]) -> list[Fraction]:
    """The sum (sum_i N_i) sum_i p_i c^i / N_i in fractions, bucket by bucket; then segments and firsts."""
    whole = sum(part.tokens for part in parts)
    total = sum(Fraction(part.rate) for part in parts)
    size = max(part.exposure.counts.size for part in parts)
    sums = [Fraction(0)] * (size + 2)
    for part in parts:
        padded = part.exposure.counts.tolist() + [0] * (size - part.exposure.counts.size)
        for place, count in enumerate([*padded, part.exposure.segments, part.exposure.firsts]):
            sums[place] += whole * Fraction(part.rate) / total * count / part.tokens
    return sums


@given(mixtures)
def test_without_rates_a_mixture_is_the_plain_sum_in_integers(pairs):
    mixture = mix(make_parts(pairs))
    size = max(exposure.counts.size for exposure, _ in pairs)
    sums = [sum(int(e.counts[b]) for e, _ in pairs if b < e.counts.size) for b in range(size)]
    assert mixture.counts.dtype == np.int64
    assert mixture.counts.tolist()[:size] == sums
    assert mixture.segments == sum(exposure.segments for exposure, _ in pairs)
    assert mixture.firsts == sum(exposure.firsts for exposure, _ in pairs)


@given(mixtures, rate_lists)
def test_rates_weigh_the_exposure_of_a_token_of_each_dataset(pairs, rates):
    parts = make_parts(pairs, rates)
    mixture = mix(parts)
    *counts, segments, firsts = map(float, slow_mixture(parts))
    np.testing.assert_allclose(mixture.counts, counts, rtol=1e-12)
    assert mixture.segments == pytest.approx(segments, rel=1e-12)
    assert mixture.firsts == pytest.approx(firsts, rel=1e-12)


@given(mixtures)
def test_rates_in_proportion_to_tokens_are_the_default(pairs):
    rated = mix(make_parts(pairs, [rows for _, rows in pairs]))
    plain = mix(make_parts(pairs))
    np.testing.assert_allclose(rated.counts, plain.counts[: rated.counts.size], rtol=1e-12)
    assert rated.segments == pytest.approx(plain.segments, rel=1e-12)


@given(mixtures, rate_lists, st.integers(-6, 6))
def test_scaling_rates_changes_nothing(pairs, rates, exponent):
    scaled = mix(make_parts(pairs, [rate * 10.0**exponent for rate in rates]))
    np.testing.assert_allclose(scaled.counts, mix(make_parts(pairs, rates)).counts, rtol=1e-12)
    doubled = mix(make_parts(pairs, [rate * 2.0**exponent for rate in rates]))
    assert doubled.counts.tolist() == mix(make_parts(pairs, rates)).counts.tolist()


@given(datasets(), st.floats(1e-3, 1e3))
def test_one_dataset_is_its_own_mixture_at_any_rate(pair, rate):
    exposure, _ = pair
    mixture = mix(make_parts([pair], [rate]))
    np.testing.assert_allclose(mixture.counts, exposure.counts, rtol=1e-12)


@given(datasets(), datasets(), st.integers(1, 100))
def test_a_dataset_at_rate_0_counts_for_nothing(first, second, rate):
    mixture = mix(make_parts([first, second], [rate, 0]))
    alone = mix(make_parts([first], [1]))
    both = first[1] + second[1]
    size = first[0].counts.size
    # The whole of the mixture is as many tokens as both hold.
    np.testing.assert_allclose(mixture.counts[:size], alone.counts * both / first[1], rtol=1e-12)
    assert not mixture.counts[size:].any()


@given(mixtures, rate_lists, st.sampled_from([0, 8, 64]), st.floats(0, 2), st.floats(0, 2))
def test_weights_depend_on_the_shares_of_a_mixture_alone(pairs, rates, tau, alpha, gamma):
    """A table of float64 counts is that of any multiple of them."""
    options = WeightOptions(tail_from=tau, alpha=alpha, gamma=gamma)
    parts = make_parts(pairs, rates)
    counts = np.array([float(count) for count in slow_mixture(parts)[:-2]])
    table, scaled = weight_table(mix(parts), options), weight_table(Exposure(counts=counts * 1024), options)
    np.testing.assert_allclose(table.weights, scaled.weights, rtol=1e-9)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ([1, None], "1 rates for 2 datasets; give one for each, or none"),
        ([0.5, -0.1], "finite, not negative"),
        ([0, 0], "not all 0"),
        ([math.inf, 1], "finite"),
        ([math.nan, 1], "finite"),
        ([1, math.nan], "finite"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(rates, says):
    with pytest.raises(WeightsError, match=says):
        mix(make_parts([(Exposure(), 1)] * 2, rates))


def test_rates_are_normalised_to_1():
    assert normalize_rates(make_parts([(Exposure(), 1)] * 3, [1, 2, 1])) == [0.25, 0.5, 0.25]
    assert normalize_rates(make_parts([(Exposure(), 1)] * 3)) is None


def sum_supervision(exposure: Exposure, weights: np.ndarray, first: bool, beyond: float) -> tuple[float, float]:
    """Supervised targets of a dataset and the sum of their weights, bucket by bucket."""
    counts = exposure.counts.tolist()
    if first:
        counts = counts or [0]
        counts[0] += exposure.firsts
    supervision = sum(count * (weights[b] if b < len(weights) else beyond) for b, count in enumerate(counts))
    return sum(counts), supervision


@given(
    mixtures, rate_lists, st.sampled_from([0, 8, 64]), st.floats(0, 5), st.booleans(), st.none() | st.integers(1, 1200)
)
def test_kept_shares_of_supervision_are_the_shares_of_supervised_targets(pairs, rates, tau, alpha, first, window):
    options = WeightOptions(
        tail_from=tau, alpha=alpha, gamma=1.0, supervise_first=first, window=window, keep_mixture=True
    )
    parts = make_parts(pairs, rates)
    mixture = mix(parts)
    assume(mixture.targets > 0)
    table = weight_table(mixture, options)
    found = keep_shares([part.exposure for part in parts], table)
    assert len(found) == len(parts)
    for part, divisor in zip(parts, found, strict=True):
        targets, supervision = sum_supervision(part.exposure.within(window), table.weights, first, 1.0)
        if targets == 0:
            assert divisor == 1
            continue
        # Its supervision, divided, is as many as its targets: at any rates, the shares are those of targets.
        assert supervision / divisor == pytest.approx(targets, rel=1e-9)
        assert divisor >= 1 - 1e-12


@given(exposures(), st.floats(0, 2))
def test_a_dataset_alone_is_divided_by_its_mean_weight(exposure, alpha):
    assume(exposure.targets > 0)
    table = weight_table(exposure, WeightOptions(tail_from=8, alpha=alpha))
    assert keep_shares([exposure], table)[0] == pytest.approx(table.mean_weight)


def test_buckets_beyond_the_table_weigh_as_much_as_plain_targets():
    """A table made elsewhere may be shorter than a dataset; `lut` gives 1 there, and so does the divisor."""
    table = weight_table(Exposure(counts=np.array([10, 10])), WeightOptions(tail_from=8, alpha=1.0))
    assert table.lut(64)[40] == 1
    longer = Exposure(counts=np.array([0, 10, 0, 10]))
    assert keep_shares([longer], table) == [pytest.approx((10 * table.weights[1] + 10) / 20)]
    assert keep_shares([Exposure()], table) == [1.0]


def test_the_extra_supervision_that_remains_when_shares_are_kept_is_smaller():
    """The long dataset is damped: its tail weighs less beyond the rest of the mixture than alpha says."""
    short, long = Exposure(counts=np.array([900, 100])), Exposure(counts=np.array([100, 100, 800]))
    table = weight_table(short + long, WeightOptions(tail_from=16, alpha=1.0, keep_mixture=True))
    divisors = keep_shares([short, long], table)
    assert divisors == [1.0, pytest.approx((200 + 800 * 2) / 1000)]
    tail = 800 * table.weights[2] / divisors[1] / 800
    rest = (1000 * 1 / divisors[0] + 200 / divisors[1]) / 1200
    assert 0 < tail / rest - 1 < 1.0


# weights.json.


def weigh_mixture(pairs, rates, options: WeightOptions) -> WeightsFile:
    """weights.json of a mixture, as a command would make it."""
    parts = make_parts(pairs, rates)
    table = weight_table(mix(parts), options)
    divisors = keep_shares([part.exposure for part in parts], table) if options.keep_mixture else [1.0] * len(parts)
    return exact_weights(
        table,
        [
            WeighedDataset(
                id=f"{number:032x}",
                rate=rate,
                rows=rows,
                tokenizer="",
                exposure=exposure.to_record(),
                divisor=divisor,
            )
            for number, ((exposure, rows), rate, divisor) in enumerate(
                zip(pairs, normalize_rates(parts) or [1.0] * len(parts), divisors, strict=True)
            )
        ],
        SEQ_LEN,
    )


@given(mixtures, rate_lists, st.sampled_from(["none", "mean", "keep"]), st.none() | st.integers(1, 2000))
def test_a_table_follows_from_its_file_and_is_read_back_from_it(pairs, rates, way, window):
    options = WeightOptions(
        tail_from=8,
        alpha=0.5,
        window=window,
        normalize="mean" if way == "mean" else "none",
        keep_mixture=way == "keep",
    )
    file = weigh_mixture(pairs, rates[: len(pairs)], options)
    data = encode(seal(file))
    assert is_sealed(data)
    again = parse(WeightsFile, data, "weights.json")
    assert again == seal(file)
    stored, computed = load_table(again), compute_table(again)
    np.testing.assert_allclose(computed.counts, stored.counts, rtol=1e-12)
    np.testing.assert_allclose(computed.weights, stored.weights, rtol=1e-9)
    assert stored.options == computed.options == options
    assert stored.in_tail.tolist() == computed.in_tail.tolist()
    assert computed.scale == pytest.approx(stored.scale)
    for number in range(len(pairs)):
        name = f"{number:032x}"
        edges, values = weight_runs(again, name)
        exact = stored.lut(SEQ_LEN) / find_divisor(again, name)
        np.testing.assert_allclose(
            np.repeat(values, np.diff(edges)).view(np.float16), exact.astype(np.float16), rtol=2**-10, atol=2**-24
        )
    assert find_divisor(again, "f" * 32) == 1.0


def test_one_dataset_keeps_integers_in_its_file():
    exposure = Exposure(counts=np.array([5, 3, 2**53 + 1]), segments=4, firsts=4)
    file = weigh_mixture([(exposure, 2**44)], None, WeightOptions(tail_from=16))
    assert file.table is not None
    assert file.table.counts == (5, 3, 2**53 + 1)
    again = parse(WeightsFile, encode(file), "weights.json")
    assert again.table is not None
    assert all(isinstance(count, int) for count in again.table.counts)
    assert compute_table(again).counts.tolist() == [5, 3, 2**53 + 1]
    expected = float16_runs(weight_table(exposure, WeightOptions(tail_from=16)), SEQ_LEN)
    for got, want in zip(weight_runs(again, "0" * 32), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_weights_applied_from_elsewhere_are_those_of_their_table():
    """The datasets named are not where the counts come from."""
    made = weigh_mixture([(Exposure(counts=np.array([50, 30, 20])), 1)], None, WeightOptions(tail_from=8))
    other = WeighedDataset(
        id="a" * 32, rows=7, tokenizer="", exposure=Exposure(counts=np.array([1, 0, 0, 9])).to_record()
    )
    applied = made.model_copy(update={"datasets": (other,), "applied_from": made.datasets[0].id})
    np.testing.assert_array_equal(compute_table(applied).weights, load_table(made).weights)
    np.testing.assert_array_equal(weight_runs(applied, "a" * 32)[1], weight_runs(made, "0" * 32)[1])


def test_plain_weights_have_no_table():
    dataset = WeighedDataset(id="0" * 32, rows=1, tokenizer="", exposure=Exposure().to_record())
    file = plain_weights(dataset, SEQ_LEN)
    for read in (load_table, compute_table):
        with pytest.raises(WeightsError, match="plain"):
            read(file)
    for got, want in zip(weight_runs(file, "0" * 32), plain_runs(SEQ_LEN), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_file_is_the_same_while_incomplete_and_when_complete():
    pairs = [(Exposure(counts=np.array([50, 30, 20])), 1)]
    options = WeightOptions(tail_from=8)
    complete = weigh_mixture(pairs, None, options)
    table, sets = load_table(complete), complete.datasets
    incomplete = exact_weights(table, sets, SEQ_LEN, state="incomplete")
    done = seal(complete.model_copy(update={"weights_xxh3": "1" * 32}))
    assert encode(identify(done)) == encode(identify(incomplete)) == encode(incomplete)
    assert encode(identify(weigh_mixture(pairs, None, WeightOptions(tail_from=16)))) != encode(incomplete)
