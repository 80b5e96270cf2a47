"""Weighted training in JAX: batches with NumPy or grain, and the weighted loss. Needs `jax`; `grain` is optional.

    loader = Loader(exact_prep.open(DIR), BatchPolicy(batch_size=8, seed=0))
    loss = weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"])

For grain, the dataset is a source: `grain.MapDataset.source(dataset).shuffle(0).batch(8, batch_fn=collate)`.
Arrays are int32 and float32. By default `labels` and `loss_weights` are aligned with predictions (shifted), as in
MaxText, Levanter and the optax examples. With `align="target"`, the loss shifts them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from exact_prep.errors import UsageError
from exact_prep.reader import collate as rows_to_arrays
from exact_prep.reader.columns import IGNORED, check_align
from exact_prep.reader.loader import RankLoader
from exact_prep.reader.order import BatchPolicy  # noqa: TC001  callers import it from here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.reader.columns import Align
    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.rows import PackedDataset, Row


def collate(rows: Sequence[Row], *, align: Align = "prediction", segment_ids: bool = True) -> dict[str, np.ndarray]:
    """Collate B rows of L tokens into NumPy arrays, which JAX accepts and grain can pass between processes.

    input_ids, position_ids, labels and segment_ids are int32[B, L], loss_weights is float32[B, L]. Labels are -100
    where the weight is 0. Segments are numbered from 1; 0 is padding. Raises UsageError for rows of different lengths.
    """
    return rows_to_arrays.collate(rows, align=align, segment_ids=segment_ids, ids=np.int32)


class Loader(RankLoader[dict[str, jax.Array]]):
    """Batches of JAX arrays for one process: shuffled, sharded over processes, resumable at any batch.

    See `RankLoader` for what iterating again, `len` and `state_dict` mean.
    """

    def __init__(
        self,
        dataset: PackedDataset | MixedDataset,
        policy: BatchPolicy,
        *,
        align: Align = "prediction",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """`rank` and `world_size` are JAX's process index and count unless given."""
        check_align(align)
        self.align: Align = align

        def place() -> tuple[int, int]:
            return (
                jax.process_index() if rank is None else rank,
                jax.process_count() if world_size is None else world_size,
            )

        super().__init__(dataset, policy, self._collate, place)

    def _collate(self, rows: list[Row]) -> dict[str, jax.Array]:
        return {name: jnp.asarray(values) for name, values in collate(rows, align=self.align).items()}


def weighted_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    denominator: Any = None,
    align: Align = "prediction",
) -> jax.Array:
    """Sum of weight * cross-entropy, divided by `denominator`, in float32; 0 if no target has weight. Can be jitted.

    `logits[..., L, V]`, `labels[..., L]` (-100 carries no loss), `weights[..., L]`. The default of `denominator` is the
    sum of weights of this call. Pass `denominator(...)` over all microbatches of a step; with `axis_name` it also
    covers all devices if each sees its own rows (shard_map, pmap). Raises UsageError if shapes differ.
    """
    labels, weights = _aligned(logits.shape[:-1], labels, weights, align)
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    losses = jax.nn.logsumexp(logits, -1) - chosen
    total = weights.sum() if denominator is None else denominator
    return jnp.where(weights == 0, 0.0, losses * weights).sum() / jnp.where(total == 0, 1.0, total)


def denominator(weights: jax.Array, *, align: Align = "prediction", axis_name: str | None = None) -> jax.Array:
    """The sum of `weights[..., L]` of all microbatches of a step.

    Pass `axis_name` if each device sees its own rows (shard_map, pmap): the sum is then over that axis too. Under jit
    with sharded arrays, the sum covers all devices without it. With `align="target"`, the first token of a row is not
    counted.
    """
    check_align(align)
    total = (weights[..., 1:] if align == "target" else weights).sum(dtype=jnp.float32)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _aligned(
    shape: tuple[int, ...], labels: jax.Array, weights: jax.Array, align: Align
) -> tuple[jax.Array, jax.Array]:
    """Labels and float32 weights, aligned with predictions; a target without a label gets weight 0."""
    check_align(align)
    if not shape == labels.shape == weights.shape:
        raise UsageError(
            f"the shapes of logits (without vocabulary) {shape}, labels {labels.shape} and weights {weights.shape} "
            "must agree"
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise UsageError(
            f"weights are {weights.dtype}: an integer type has lost the weights; pass floating-point weights"
        )
    if align == "target":
        shift = partial(jnp.pad, pad_width=[(0, 0)] * (labels.ndim - 1) + [(0, 1)])
        labels = shift(labels[..., 1:], constant_values=IGNORED)
        weights = shift(weights[..., 1:])
    return labels, jnp.where(labels == IGNORED, 0.0, weights.astype(jnp.float32))
