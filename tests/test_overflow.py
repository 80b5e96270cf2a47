"""Counts beyond 32 bits, up to the edge of 64, are carried exactly or refused by name; none wraps around."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from exact_prep.batches import TokenBatch
from exact_prep.errors import LedgerError
from exact_prep.packing import Packer
from exact_prep.records.manifest import ExposureRecord, TokenLedger
from exact_prep.records.options import WeightOptions
from exact_prep.records.work import ShardRecord
from exact_prep.tokenization.bos_eos import BosEosInserter
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure, measure_lengths
from exact_prep.weighing.mixture import Part, mix
from exact_prep.weighing.weights import weight_table

HUGE = 2**33 + 5


def test_segments_of_more_than_two_billion_targets_are_counted():
    """Three segments of 2**30 tokens, and one as long as an int32 can say."""
    lengths = np.array([2**30] * 3 + [2**31 - 1], np.int32)
    exposure = measure_lengths(lengths)
    edges = bucket_edges(exposure.counts.size).tolist()
    for b, count in enumerate(exposure.counts.tolist()):
        low, high = max(edges[b], 1), edges[b + 1]
        assert count == sum(max(min(int(length), high) - low, 0) for length in lengths)
    assert exposure.targets == 3 * (2**30 - 1) + 2**31 - 2


def test_merged_counts_are_those_of_python_and_refused_where_64_bits_end():
    parts = [Exposure(counts=np.array([HUGE, 2**40, 7], np.int64), segments=2**35)] * 5
    merged = sum(parts, Exposure())
    assert merged.counts.tolist() == [5 * HUGE, 5 * 2**40, 35]
    assert merged.segments == 5 * 2**35
    assert merged.firsts == 0
    half = Exposure(counts=np.array([2**62], np.int64))
    with pytest.raises(LedgerError, match="more than can be counted"):
        half + half
    with pytest.raises(ValueError, match="more targets than 2"):
        ExposureRecord(counts=(2**62, 2**62), segments=0, firsts=0)
    with pytest.raises(ValueError, match="more targets than 2"):
        ExposureRecord(counts=(2**62, 2**62 - 1), segments=1, firsts=0)
    assert ExposureRecord(counts=(2**62, 2**62 - 1), segments=0, firsts=0).counts[0] == 2**62
    with pytest.raises(ValueError, match="less than or equal to"):
        TokenLedger(text_tokens=2**63)
    with pytest.raises(ValueError, match="less than or equal to"):
        ShardRecord.model_validate(
            dict.fromkeys(("task", "rows", "segments", "tokens"), 2**63)
            | {"file": "a.arrow", "bytes": 0, "batches": ()}
            | dict.fromkeys(("content_xxh3", "rest_xxh3", "weights_xxh3"), "0" * 32)
        )


def test_a_table_over_a_quadrillion_targets_keeps_the_extra_supervision():
    counts = [2**50, 2**49 + 3, HUGE, 2**47, 2**41 + 11, 2**46]
    table = weight_table(
        Exposure(counts=np.array(counts, np.int64)), WeightOptions(tail_from=32, alpha=0.15, gamma=1.0)
    )
    tail = [b for b, low in enumerate(bucket_edges(len(counts))[:-1].tolist()) if low >= 32]
    whole = sum(counts[b] for b in tail)
    shares = {b: Fraction(counts[b], whole) for b in tail}
    raw = {b: 1 / (shares[b] + Fraction(1, 10**6)) for b in tail}
    norm = sum(shares[b] * raw[b] for b in tail)
    for b in range(len(counts)):
        want = 1 + Fraction(15, 100) * raw[b] / norm if b in tail else 1
        assert table.weights[b] == pytest.approx(float(want), rel=1e-9)
    assert table.extra == pytest.approx(0.15, rel=1e-9)


def test_a_document_goes_on_beyond_four_billion_tokens():
    """Its pieces come batch by batch; only the offset tells how far in it they are."""
    inserter = BosEosInserter(bos=None, eos=1)
    inserter.emitted = HUGE
    ids, offsets, records = np.arange(10, dtype=np.int32), np.array([0, 10]), np.array([2**40])
    batch = inserter.insert(ids, offsets, records, continues=False)
    assert batch is not None
    assert batch.doc_offsets.tolist() == [HUGE]
    assert batch.doc_ids.tolist() == [2**40]


def test_a_mixture_of_huge_datasets_is_refused_or_exact():
    """Plain sums stay integers; rates make float64, which has room for any sum of counts."""
    counts = [2**62, HUGE]
    parts = [Part(exposure=Exposure(counts=np.array(counts, np.int64)), tokens=2**62)] * 2
    with pytest.raises(LedgerError, match="more than can be counted"):
        mix(parts)
    rated = [Part(exposure=part.exposure, tokens=part.tokens, rate=0.5) for part in parts]
    np.testing.assert_allclose(mix(rated).counts, [2.0 * count for count in counts], rtol=1e-15)
    window = Exposure(counts=np.array([0, 2**61, HUGE, 2**61], np.int64)).within(9)
    assert window.counts.tolist() == [0, 2**62 + HUGE]


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_segments_far_inside_a_document_keep_their_place(packing):
    batch = TokenBatch(
        ids=np.arange(20, dtype=np.int32),
        offsets=np.array([0, 20]),
        doc_ids=np.array([2**40], np.int64),
        doc_offsets=np.array([HUGE], np.int64),
        continues=False,
    )
    packer = Packer(packing=packing, seq_len=8, pad_id=0)
    packed = [*packer.add(batch), *packer.finish()]
    places = [
        (int(d), int(o), int(n))
        for p in packed
        for d, o, n in zip(p.doc_ids, p.doc_offsets, p.seq_lengths, strict=True)
    ]
    assert sorted(places) == [(2**40, HUGE, 8), (2**40, HUGE + 8, 8), (2**40, HUGE + 16, 4)]
