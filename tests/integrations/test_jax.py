"""Laws of the JAX route: batches and loss are those of plain Python, through optax, flax and grain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracle import bigram_oracle, framework, oracle_loss
from written_dataset import VOCAB, oracle_weights

import exact_prep
from exact_prep.errors import UsageError

jax = framework("jax")
optax = framework("optax")
nn = framework("flax.linen")
grain = framework("grain")

import jax.numpy as jnp  # noqa: E402

from exact_prep.integrations.jax import BatchPolicy, Loader, collate, denominator, weighted_cross_entropy  # noqa: E402

SEQ_LEN = 64


def table():
    return jnp.asarray(np.random.default_rng(1).normal(size=(VOCAB, VOCAB)), jnp.float32)


def bigram_loss(parameters, batch, align="prediction", **options):
    logits = parameters[batch["input_ids"]]
    return weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"], align=align, **options)


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_loss_and_gradient_are_those_of_plain_python(two_rows, weights_file, align):
    batch = collate(list(two_rows), align=align)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p, b: bigram_loss(p, b, align)))(table(), batch)
    want, want_gradient = bigram_oracle(table().tolist(), two_rows, weights_file)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_holds_what_plain_python_derives(two_rows, weights_file):
    batch = collate(list(two_rows))
    for i, row in enumerate(two_rows):
        lengths, ids = row.seq_lengths.tolist(), row.input_ids.tolist()
        weights = oracle_weights(lengths, SEQ_LEN, weights_file)
        assert batch["input_ids"][i].tolist() == ids
        assert batch["loss_weights"][i].tolist() == [*weights[1:], 0.0]
        assert batch["labels"][i].tolist() == [t if w else -100 for t, w in zip(ids[1:], weights[1:], strict=True)] + [
            -100
        ]
    assert {name: str(values.dtype) for name, values in batch.items()} == {
        "input_ids": "int32",
        "position_ids": "int32",
        "labels": "int32",
        "segment_ids": "int32",
        "loss_weights": "float32",
    }


def test_uniform_weights_are_optax_s_own_mean(directory):
    batch = collate(list(exact_prep.open(directory, plain=True)[:4]))
    logits = table()[batch["input_ids"]]
    kept = batch["labels"] >= 0
    own = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(batch["labels"], 0))
    assert float(bigram_loss(table(), batch)) == pytest.approx(float(own.sum(where=kept) / kept.sum()), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulation_changes_no_gradient(dataset, weights_file, steps):
    micro = [collate(list(dataset[i : i + 4 // steps])) for i in range(0, 4, 4 // steps)]
    total = denominator(jnp.stack([batch["loss_weights"] for batch in micro]))
    gradients = [jax.grad(bigram_loss)(table(), batch, denominator=total) for batch in micro]
    _, want = bigram_oracle(table().tolist(), dataset[:4], weights_file)
    np.testing.assert_allclose(sum(gradients), want, rtol=1e-4, atol=1e-6)


def test_devices_that_hold_rows_apart_share_a_denominator(dataset, weights_file):
    rows = [collate([row]) for row in dataset[:4]]
    stacked = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    def on_a_device(batch):
        total = denominator(batch["loss_weights"], axis_name="data")
        return jax.grad(bigram_loss)(table(), batch, denominator=total)

    gradients = jax.vmap(on_a_device, axis_name="data")(stacked).sum(0)
    _, want = bigram_oracle(table().tolist(), dataset[:4], weights_file)
    np.testing.assert_allclose(gradients, want, rtol=1e-4, atol=1e-6)


class TinyAttention(nn.Module):
    """One layer that sees its own document alone."""

    @nn.compact
    def __call__(self, input_ids, position_ids, segment_ids):
        x = nn.Embed(VOCAB, 32)(input_ids) + nn.Embed(SEQ_LEN, 32)(position_ids)
        mask = nn.combine_masks(
            nn.make_causal_mask(input_ids), nn.make_attention_mask(segment_ids, segment_ids, jnp.equal)
        )
        return nn.Dense(VOCAB)(x + nn.MultiHeadDotProductAttention(num_heads=2)(x, mask=mask))


def test_a_flax_model_trains_packed_documents_as_documents_alone(two_rows, weights_file):
    model, batch = TinyAttention(), collate(list(two_rows))
    inputs = [batch[name] for name in ("input_ids", "position_ids", "segment_ids")]
    parameters = model.init(jax.random.key(0), *inputs)

    def packed(own):
        return weighted_cross_entropy(model.apply(own, *inputs), batch["labels"], batch["loss_weights"])

    def alone(own):
        def logits_of(ids):
            positions = jnp.arange(len(ids))[None]
            return model.apply(own, jnp.asarray([ids]), positions, jnp.ones_like(positions))[0]

        return oracle_loss(logits_of, two_rows, weights_file, jax.nn.logsumexp)

    loss, gradient = jax.value_and_grad(packed)(parameters)
    want, want_gradient = jax.value_and_grad(alone)(parameters)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, want_gradient)
    other = np.where(batch["segment_ids"] == 1, (batch["input_ids"] + 1) % VOCAB, batch["input_ids"])
    moved = jnp.abs(model.apply(parameters, other, *inputs[1:]) - model.apply(parameters, *inputs)).max(-1)
    assert moved[batch["segment_ids"] == 1].min() > 1e-3
    assert moved[batch["segment_ids"] != 1].max() == 0


def test_grain_and_our_loader_give_the_same_rows(dataset):
    ours = list(Loader(dataset[:36], BatchPolicy(batch_size=4, epochs=1)))
    theirs = list(grain.MapDataset.source(dataset[:36]).batch(4, batch_fn=collate))
    assert len(ours) == len(theirs)
    for one, another in zip(ours, theirs, strict=True):
        assert isinstance(one["input_ids"], jax.Array)
        for name in one:
            np.testing.assert_array_equal(one[name], another[name])
    shuffled = grain.MapDataset.source(dataset).shuffle(seed=1).batch(1, batch_fn=collate)
    assert sorted(batch["input_ids"].tolist() for batch in shuffled) == sorted(
        [row.input_ids.tolist()] for row in dataset
    )


def test_batches_carry_the_weights_wherever_they_are(weighed):
    directory, table, file = weighed
    rows = exact_prep.open(directory, weights=table).shuffle(1)
    want = [[*oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file)[1:], 0.0] for row in rows]
    batches = [
        Loader(rows, BatchPolicy(batch_size=5, epochs=1)),
        grain.MapDataset.source(rows).batch(5, batch_fn=collate),
    ]
    for loader in batches:
        assert [weights for batch in loader for weights in batch["loss_weights"].tolist()][: len(want)] == want


def test_the_loader_resumes_to_the_batch_and_shares_rows(dataset):
    def first(batches):
        return [batch["input_ids"][:, :8].tolist() for batch in batches]

    policy = BatchPolicy(batch_size=4, seed=3, epochs=1)
    whole = first(Loader(dataset, policy))
    loader = Loader(dataset, policy)
    begun = first(itertools.islice(loader, 2))
    resumed = Loader(dataset, policy)
    resumed.load_state_dict(loader.state_dict())
    assert begun + first(resumed) == whole
    half = BatchPolicy(batch_size=2, seed=3, epochs=1)
    ranks = [first(Loader(dataset, half, rank=r, world_size=2)) for r in range(2)]
    assert sorted(row for rank in ranks for batch in rank for row in batch) == sorted(
        row for batch in whole for row in batch
    )


def test_what_would_lose_weights_is_refused(two_rows):
    batch = collate(list(two_rows))
    logits = table()[batch["input_ids"]]
    with pytest.raises(UsageError, match="integer type has lost the weights"):
        weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"].astype(np.int32))
    with pytest.raises(UsageError, match="must agree"):
        weighted_cross_entropy(logits[:, 1:], batch["labels"], batch["loss_weights"])
    with pytest.raises(UsageError, match="align"):
        weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"], align="left")
    nothing = jnp.zeros_like(batch["loss_weights"])
    assert float(weighted_cross_entropy(logits, batch["labels"], nothing)) == 0
