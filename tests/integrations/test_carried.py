"""Laws of a weight inside its label: lossless for every float16, and whatever moves labels moves the weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import framework

from exact_prep.errors import UsageError

torch = framework("torch")

from exact_prep.integrations.torch import Collator, carried, carry  # noqa: E402

EVERY = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.float16).copy())
"""Every float16 there is: zeros, subnormals, infinities, NaN."""


def bits(weights):
    return weights.to(torch.float16).view(torch.int16)


@pytest.mark.parametrize("token", [0, 1, 151_935, 2**31, 2**32 - 1])
def test_every_float16_comes_back_to_the_bit(token):
    given_labels = torch.full(EVERY.shape, token)
    labels, weights = carried(carry(given_labels, EVERY))
    assert torch.equal(labels, given_labels)
    assert weights.dtype == torch.float32
    numbers = ~EVERY.isnan()
    assert torch.equal(bits(weights)[numbers], bits(EVERY)[numbers])
    assert torch.equal(weights.isnan(), EVERY.isnan())


@given(
    st.lists(
        st.tuples(st.one_of(st.just(-100), st.integers(0, 2**32 - 1)), st.floats(width=16, allow_nan=False)),
        min_size=1,
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_an_ignored_label_stays_and_any_permutation_keeps_pairs(pairs, random):
    labels, weights = torch.tensor([own for own, _ in pairs]), torch.tensor([own for _, own in pairs])
    both = carry(labels, weights)
    assert torch.equal(both == -100, labels == -100)
    order = random.sample(range(len(pairs)), len(pairs))
    got_labels, got_weights = carried(both[order])
    assert got_labels.tolist() == labels[order].tolist()
    assert got_weights.tolist() == weights.masked_fill(labels == -100, 0.0)[order].tolist()


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_a_batch_comes_back_whole_from_both_alignments(two_rows, align):
    batch = Collator(align=align)(list(two_rows))
    labels, weights = carried(carry(batch["labels"], batch["loss_weights"]))
    assert torch.equal(labels, batch["labels"])
    assert torch.equal(weights, batch["loss_weights"])
    assert weights.max() > 1


def test_a_carried_label_is_no_token_of_any_vocabulary():
    both = carry(torch.tensor([3]), torch.tensor([0.0]))
    with pytest.raises(IndexError):
        torch.nn.functional.cross_entropy(torch.zeros(1, 8), both)


def test_decoding_compiles_without_a_graph_break():
    labels, weights = torch.tensor([5, -100, 7]), torch.tensor([1.5, 0.0, 0.25])
    decode = torch.compile(carried, fullgraph=True, backend="eager")
    got_labels, got_weights = decode(carry(labels, weights))
    assert torch.equal(got_labels, labels)
    assert torch.equal(got_weights, weights)
    with pytest.raises(RuntimeError, match="carry no weight"):
        decode(labels)


def test_labels_that_carry_nothing_and_weights_that_would_be_rounded_are_refused():
    labels, weights = torch.tensor([5, -100]), torch.tensor([1.0, 0.0])
    with pytest.raises(UsageError, match="carry no weight"):
        carried(labels)
    for bad, reason in (
        ((labels.int(), weights), "int64 labels"),
        ((labels, weights.long()), "floating-point weights"),
        ((labels, weights[:1]), "same shape"),
        ((labels, weights / 3), "would be rounded"),
        ((torch.tensor([-1, 5]), weights), "neither"),
        ((carry(labels, weights), weights), "carried already"),
    ):
        with pytest.raises(UsageError, match=reason):
            carry(*bad)
