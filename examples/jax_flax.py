"""JAX, with flax and optax, batches through grain: python jax_flax.py DIR [STEPS]."""

import sys

import grain
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import exact_prep
from exact_prep.integrations.jax import collate, weighted_cross_entropy


class TinyDecoder(nn.Module):
    vocab_size: int
    seq_len: int
    width: int = 64

    @nn.compact
    def __call__(self, input_ids, position_ids, segment_ids):
        x = nn.Embed(self.vocab_size, self.width)(input_ids) + nn.Embed(self.seq_len, self.width)(position_ids)
        mask = nn.combine_masks(
            nn.make_causal_mask(input_ids), nn.make_attention_mask(segment_ids, segment_ids, jnp.equal)
        )
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=1)(nn.LayerNorm()(x), mask=mask)
        return nn.Dense(self.vocab_size, use_bias=False)(x)


def main(directory: str, steps: int = 3) -> None:
    dataset = exact_prep.open(directory)
    batches = grain.MapDataset.source(dataset).shuffle(seed=0).repeat().batch(2, batch_fn=collate)
    model = TinyDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len)
    optimizer = optax.adamw(1e-3)

    def compute_loss(parameters, batch):
        logits = model.apply(parameters, batch["input_ids"], batch["position_ids"], batch["segment_ids"])
        return weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"])

    @jax.jit
    def train(parameters, state, batch):
        loss, gradients = jax.value_and_grad(compute_loss)(parameters, batch)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, loss

    first = batches[0]
    inputs = (first["input_ids"], first["position_ids"], first["segment_ids"])
    parameters = model.init(jax.random.key(0), *inputs)
    state = optimizer.init(parameters)
    for step in range(steps):
        parameters, state, loss = train(parameters, state, batches[step])
        print(f"step {step}: loss {loss:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
