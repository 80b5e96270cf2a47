"""Rows that trainers cut: the exposure from lengths alone against every target counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_prep.weighing.context import find_bucket
from exact_prep.weighing.cuts import Cutter, DocumentLengths, Pieces, expect

STREAMED = ["disjoint", "shared", "windows"]


def walk(lengths: list[int], cut: str, seq_len: int, offset: int = 0) -> tuple[dict[int, int], int, int]:
    """Targets by context, targets with context 0, and rows: token by token, as a trainer would read them.

    `offset` tokens of the stream are left out at its start (a random phase).
    """
    starts: list[int] = []
    for length in lengths:
        starts += [len(starts)] * length
    starts = [start - offset for start in starts[offset:]]
    step = seq_len + (cut == "windows")
    size = seq_len + (cut in ("windows", "shared"))
    found: dict[int, int] = {}
    zero = rows = 0
    while rows * step + size <= len(starts):
        row = starts[rows * step : rows * step + size]
        for place, start in enumerate(row):
            if cut != "disjoint" and place == 0:
                continue  # an input alone
            context = place - max(start - rows * step, 0)
            if context == 0:
                zero += 1
            else:
                found[context] = found.get(context, 0) + 1
        rows += 1
    return found, zero, rows


def by_bucket(found: dict[int, int], seq_len: int) -> list[int]:
    counts = [0] * (find_bucket(seq_len - 1) + 1)
    for context, number in found.items():
        counts[find_bucket(min(context, seq_len - 1))] += number
    while counts and not counts[-1]:
        counts.pop()
    return counts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 70), max_size=30),
    st.sampled_from(STREAMED),
    st.sampled_from([2, 3, 8, 9, 16, 20]),
    st.integers(1, 5),
)
def test_a_stream_cut_from_lengths_is_the_stream_cut_token_by_token(lengths, cut, seq_len, chunks):
    cutter = Cutter(cut, seq_len, sum(lengths))
    for part in np.array_split(np.array(lengths, np.int64), chunks):
        cutter.add(part)
    found, zero, rows = walk(lengths, cut, seq_len)
    exposure = cutter.pieces.expose(seq_len)
    assert cutter.rows == rows
    assert exposure.trimmed().tolist() == by_bucket(found, seq_len)
    assert exposure.segments == exposure.firsts == zero
    if cut == "shared":  # every token but the first of all is a target once
        assert exposure.targets + exposure.segments == rows * seq_len
    assert sum(walk(lengths, cut, seq_len)[0].values()) == exposure.targets
    assert cutter.pieces.longest == max(found, default=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 70), max_size=30), st.sampled_from([2, 8, 9, 16]))
def test_documents_cut_each_by_itself(lengths, seq_len):
    whole, head = Cutter("fragment", seq_len, 0), Cutter("truncate", seq_len, 0)
    for cutter in (whole, head):
        cutter.add(np.array(lengths, np.int64))
    pieces = [min(seq_len, length - start) for length in lengths for start in range(0, length, seq_len)]
    found: dict[int, int] = {}
    for piece in pieces:
        for context in range(1, piece):
            found[context] = found.get(context, 0) + 1
    assert whole.pieces.expose(seq_len).trimmed().tolist() == by_bucket(found, seq_len)
    assert whole.pieces.segments == len(pieces)
    assert whole.pieces.cut == sum(length > seq_len for length in lengths)
    assert whole.used == sum(lengths)
    heads: dict[int, int] = {}
    for length in lengths:
        for context in range(1, min(length, seq_len)):
            heads[context] = heads.get(context, 0) + 1
    assert head.pieces.expose(seq_len).trimmed().tolist() == by_bucket(heads, seq_len)
    assert head.used == sum(min(length, seq_len) for length in lengths)


@pytest.mark.parametrize("cut", STREAMED)
@pytest.mark.parametrize("seq_len", [8, 12, 16, 64])
def test_the_formula_is_the_mean_over_all_places_of_the_first_row(cut, seq_len):
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 90, 400)
    width = seq_len + (cut == "windows")
    phases, firsts = np.zeros(60), 0.0
    for offset in range(width):
        found, zero, _ = walk(lengths.tolist(), cut, seq_len, offset)
        counts = by_bucket(found, seq_len)
        phases[: len(counts)] += counts
        firsts += zero
    expected = expect(DocumentLengths.count(lengths, seq_len + 1), cut, seq_len)
    # What is left out at both ends is up to two rows of the 18,000 tokens.
    np.testing.assert_allclose(expected.counts, (phases / width)[: expected.counts.size], rtol=0.02, atol=8)
    assert not phases[expected.counts.size :].any()
    assert expected.firsts == pytest.approx(firsts / width, rel=0.02)


@pytest.mark.parametrize("cut", STREAMED)
def test_the_formula_is_exact_for_every_length_and_place(cut):
    """One document among others so long that no row ends in them: every place in the row once."""
    seq_len = 12
    width, size = seq_len + (cut == "windows"), seq_len + (cut != "disjoint")
    for length in range(1, 40):
        total = np.zeros(60)
        firsts = 0
        for place in range(width, 2 * width):  # not in the first row, which has none before it
            rows = -(-(place + length) // width) + 1
            for row in range(rows):
                for t in range(row * width + (cut != "disjoint"), row * width + size):
                    context = t - max(place, row * width)
                    if place <= t < place + length:
                        if context:
                            total[find_bucket(min(context, seq_len - 1))] += 1
                        else:
                            firsts += 1
        one = DocumentLengths.count(np.array([length] * width), seq_len + 1)
        expected = expect(one, cut, seq_len)
        assert expected.counts.tolist() == total[: expected.counts.size].tolist(), length
        assert expected.firsts == firsts, length


def test_lengths_merge_and_long_documents_are_summed_up():
    lengths = np.array([1, 5, 5, 300, 0, 70, 1000], np.int64)
    whole = DocumentLengths.count(lengths, 64)
    parts = DocumentLengths.count(lengths[:3], 64) + DocumentLengths.count(lengths[3:], 64)
    for one in (whole, parts):
        assert (one.documents, one.tokens, one.long, one.long_tokens, one.longest) == (6, 1381, 3, 1370, 1000)
    big = DocumentLengths.count(lengths, 2000)
    for cut in STREAMED:
        assert expect(whole, cut, 63) == expect(big, cut, 63)


def test_context_l_counts_as_the_context_before_it():
    """One document that fills windows of 9 tokens: their last target has context 8, alone beyond the edge of [0, 7]."""
    cutter = Cutter("shared", 8, 8 * 5 + 1)
    cutter.add(np.array([41], np.int64))
    assert cutter.pieces.longest == 8
    assert cutter.pieces.expose(8).counts.tolist() == [40]
    assert expect(DocumentLengths.count(np.array([41]), 9), "shared", 8).counts.size == 1


def test_nothing_gives_nothing():
    for cut in [*STREAMED, "fragment", "truncate"]:
        cutter = Cutter(cut, 8, 0)
        cutter.add(np.zeros(0, np.int64))
        assert cutter.rows == cutter.used == 0
        assert cutter.pieces.expose(8).targets == 0
        assert expect(DocumentLengths.count(np.zeros(0, np.int64), 9), cut, 8).targets == 0
    assert isinstance(Cutter("shared", 8, 0).pieces + Cutter("shared", 8, 0).pieces, Pieces)
