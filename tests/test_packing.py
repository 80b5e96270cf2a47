"""Laws of packing, against slow obvious packers and over every way of batching the same documents."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_prep import packing
from exact_prep.batches import Rows, TokenBatch
from exact_prep.packing import Packer, pack_best_fit
from exact_prep.shuffle import permutation

PAD = -7

document_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=25)
seq_lens = st.integers(2, 33)


def document(doc: int, length: int) -> list[int]:
    return [doc * 1000 + i for i in range(length)]


def token_batches(lengths: list[int], cuts: list[int]) -> list[TokenBatch]:
    """The documents as one token stream cut at arbitrary token positions, also inside documents."""
    total = sum(lengths)
    edges = sorted({c % total for c in cuts} | {0, total})
    tokens = [(d, i, length) for d, length in enumerate(lengths) for i in range(length)]
    batches = []
    for low, high in itertools.pairwise(edges):
        runs = [list(group) for _, group in itertools.groupby(tokens[low:high], key=lambda t: t[0])]
        batches.append(
            TokenBatch(
                ids=np.array([d * 1000 + i for d, i, _ in tokens[low:high]], np.int32),
                offsets=np.cumsum([0, *map(len, runs)]),
                doc_ids=np.array([run[0][0] for run in runs], np.int64),
                doc_offsets=np.array([run[0][1] for run in runs], np.int64),
                continues=runs[-1][-1][1] + 1 < runs[-1][-1][2],
            )
        )
    return batches


def run(packer: Packer, batches: list[TokenBatch]) -> list[Rows]:
    packed = [rows for batch in batches for rows in packer.add(batch)]
    return packed + list(packer.finish())


def read_rows(packed: list[Rows]) -> list[list[tuple[int, int, list[int]]]]:
    """Each row as segments (document, offset, tokens); checks padding on the way."""
    rows = []
    for batch in packed:
        splits = batch.row_splits.tolist()
        assert splits[0] == 0
        assert batch.sources.tolist() == [0] * batch.seq_lengths.size
        for row, (start, stop) in zip(batch.input_ids.tolist(), itertools.pairwise(splits), strict=True):
            position, segments = 0, []
            for s in range(start, stop):
                length = int(batch.seq_lengths[s])
                assert length > 0
                tokens = row[position : position + length]
                segments.append((int(batch.doc_ids[s]), int(batch.doc_offsets[s]), tokens))
                position += length
            assert set(row[position:]) <= {PAD}
            rows.append(segments)
        assert splits[-1] == batch.seq_lengths.size
    return rows


def concat_oracle(lengths: list[int], seq_len: int) -> list[list[tuple[int, int, list[int]]]]:
    stream = [(d, i) for d, length in enumerate(lengths) for i in range(length)]
    rows = []
    for start in range(0, len(stream), seq_len):
        groups = itertools.groupby(stream[start : start + seq_len], key=lambda token: token[0])
        rows.append([(d, ts[0][1], [d * 1000 + i for _, i in ts]) for d, g in groups for ts in [list(g)]])
    return rows


def best_fit_oracle(lengths: list[int], capacity: int, most: int) -> list[list[int]]:
    """Bins of item numbers: the fullest bin that still holds the item, the one that got so last among equals."""
    bins: list[list[int]] = []
    free: list[int] = []
    touched: list[int] = []
    for clock, item in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [b for b in range(len(bins)) if free[b] >= lengths[item] and len(bins[b]) < most]
        if fitting:
            chosen = min(fitting, key=lambda b: (free[b], -touched[b]))
        else:
            chosen = len(bins)
            bins.append([])
            free.append(capacity)
            touched.append(0)
        bins[chosen].append(item)
        free[chosen] -= lengths[item]
        touched[chosen] = clock
    return bins


@given(document_lengths, seq_lens, st.lists(st.integers(0, 2000), max_size=6))
def test_concat_is_the_stream_cut_at_row_edges_however_it_arrives(lengths, seq_len, cuts):
    packer = Packer(packing="concat", seq_len=seq_len, pad_id=PAD)
    assert read_rows(run(packer, token_batches(lengths, cuts))) == concat_oracle(lengths, seq_len)
    starts = np.cumsum([0, *lengths])
    cut = [a // seq_len != (b - 1) // seq_len for a, b in itertools.pairwise(starts.tolist())]
    assert packer.documents_cut == sum(cut)


@given(document_lengths, seq_lens, st.lists(st.integers(0, 2000), max_size=6), st.integers(1, 5))
def test_concat_ends_a_row_at_its_limit_of_segments_however_it_arrives(lengths, seq_len, cuts, most):
    packer = Packer(packing="concat", seq_len=seq_len, pad_id=PAD, max_segments=most)
    want: list[list[tuple[int, int, list[int]]]] = [[]]
    for d, length in enumerate(lengths):
        offset = 0
        while offset < length:
            space = seq_len - sum(len(ids) for _, _, ids in want[-1])
            if not space or len(want[-1]) == most:
                want.append([])
                continue
            taken = min(space, length - offset)
            want[-1].append((d, offset, document(d, length)[offset : offset + taken]))
            offset += taken
    assert read_rows(run(packer, token_batches(lengths, cuts))) == [row for row in want if row]


@given(document_lengths, seq_lens, st.integers(1, 5), st.none() | st.integers(0, 3))
def test_best_fit_with_a_limit_of_segments_packs_the_same_segments(lengths, seq_len, most, seed):
    shuffle = None if seed is None else (seed, 0)
    rows = [
        read_rows(
            run(
                Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD, shuffle=shuffle, max_segments=limit),
                token_batches(lengths, []),
            )
        )
        for limit in (most, None)
    ]
    assert sorted(one for row in rows[0] for one in row) == sorted(one for row in rows[1] for one in row)
    assert all(len(row) <= most for row in rows[0])


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 200), st.none() | st.integers(1, 4))
def test_best_fit_decreasing_equals_the_slow_one(lengths, capacity, most):
    lengths = [min(length, capacity) for length in lengths]
    got = pack_best_fit(np.array(lengths, np.int32), capacity, most)
    bins = best_fit_oracle(lengths, capacity, most or len(lengths))
    assert got.tolist() == [next(b for b, items in enumerate(bins) if i in items) for i in range(len(lengths))]


@given(document_lengths, seq_lens, st.lists(st.integers(0, 2000), max_size=6), st.none() | st.integers(0, 3))
def test_best_fit_cuts_only_documents_longer_than_a_row_into_full_rows_and_a_remainder(lengths, seq_len, cuts, seed):
    shuffle = None if seed is None else (seed, 0)
    packer = Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD, shuffle=shuffle)
    rows = read_rows(run(packer, token_batches(lengths, cuts)))
    segments = sorted(segment for row in rows for segment in row)
    want = [
        (d, offset, document(d, length)[offset : offset + seq_len])
        for d, length in enumerate(lengths)
        for offset in range(0, length, seq_len)
    ]
    assert segments == want
    assert packer.documents_cut == sum(length > seq_len for length in lengths)
    if shuffle is None:
        assert [row[0][:2] for row in rows] == sorted(row[0][:2] for row in rows)
        assert all(row == sorted(row) for row in rows)


@pytest.mark.parametrize("packing_name", ["concat", "best-fit"])
@given(
    lengths=document_lengths, seq_len=seq_lens, cuts=st.lists(st.integers(0, 2000), max_size=9), seed=st.integers(0, 5)
)
def test_every_token_lies_in_exactly_one_row_with_small_windows_too(packing_name, lengths, seq_len, cuts, seed):
    shuffle = (seed, 3) if seed else None
    packer = Packer(packing=packing_name, seq_len=seq_len, pad_id=PAD, shuffle=shuffle, window_tokens=40)
    rows = read_rows(run(packer, token_batches(lengths, cuts)))
    tokens = sorted(token for row in rows for _, _, tokens in row for token in tokens)
    assert tokens == [token for d, length in enumerate(lengths) for token in document(d, length)]
    assert all(tokens[0] == d * 1000 + offset for row in rows for d, offset, tokens in row)


def test_shuffling_permutes_and_repeats_for_the_same_seed():
    lengths = list(range(1, 60))
    batches = token_batches(lengths, [])

    def rows(seed):
        return read_rows(run(Packer(packing="concat", seq_len=16, pad_id=PAD, shuffle=seed), batches))

    assert rows((1, 0)) == rows((1, 0))
    assert rows((1, 0)) != rows((2, 0)) != rows((1, 1)) != rows(None)


def test_a_permutation_is_the_same_for_ever():
    assert permutation(8, 7, 0, 0, 1).tolist() == [6, 0, 5, 7, 1, 2, 3, 4]
    assert sorted(permutation(1000, 3).tolist()) == list(range(1000))


def test_windows_are_at_least_64_rows():
    assert Packer(packing="best-fit", seq_len=1 << 20, pad_id=0).window_tokens == 64 << 20
    assert Packer(packing="best-fit", seq_len=4096, pad_id=0).window_tokens == packing.WINDOW_TOKENS
    assert Packer(packing="concat", seq_len=4096, pad_id=0, shuffle=(1, 0)).window_tokens == packing.WINDOW_TOKENS


@given(document_lengths, seq_lens)
def test_a_smaller_window_gives_other_rows_of_the_same_tokens(lengths, seq_len):
    """Rows depend on the window and the batches alone; packing end to end without shuffling has no window."""
    batches = token_batches(lengths, [])
    concat = [Packer(packing="concat", seq_len=seq_len, pad_id=PAD, window_tokens=size) for size in (None, 1, 40)]
    assert len({repr(read_rows(run(packer, batches))) for packer in concat}) == 1
    small = [Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD, window_tokens=size) for size in (1, 1, 10**6)]
    first, again, whole = (read_rows(run(packer, batches)) for packer in small)
    assert first == again
    assert sorted(segment for row in first for segment in row) == sorted(segment for row in whole for segment in row)


@given(document_lengths, seq_lens, st.integers(1, 7))
def test_rows_handed_out_in_other_pieces_are_the_same_rows(lengths, seq_len, rows_at_once):
    whole = run(Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD), token_batches(lengths, []))
    with patch.object(packing, "BATCH_TOKENS", rows_at_once * seq_len):
        parts = run(Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD), token_batches(lengths, []))
    assert all(len(part) <= rows_at_once for part in parts)
    assert read_rows(parts) == read_rows(whole)
