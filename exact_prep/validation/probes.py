"""Probes of a trained model, by effective context or by distance of the evidence.

    loss      held-out loss by bucket of effective left context, also beyond the trained length; lower is better
    mixture   held-out loss on rows as in training, lower is better: of all targets (`all`), and of those below the tail
              (`short`), which shows whether short contexts get worse
    recall    share of correct values for keys seen before, by distance of the last mention (synthetic data)
    gain      evidence ablation, by distance: log-probability of the correct value with its evidence in the context,
              minus that with the evidence replaced by noise; half of the distances lie beyond the trained length
    margin    by distance: log-probability of the correct value minus that of a wrong one, with the evidence present

A measure is `kind low-high` or `kind distance`, such as `loss 256-511` and `gain 768`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from exact_prep.validation.decoder import cross_entropy, left_contexts
from exact_prep.validation.synthetic_data import KEY_COUNT, KEYS, START, VALUE_COUNT, VALUES, draw_filler, make_document
from exact_prep.validation.training_batches import Batch, make_batch
from exact_prep.weighing.context import bucket_edges, find_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def loss_by_bucket(model: nn.Module, batches: Iterable[Batch], device: str = "cpu") -> dict[str, float]:
    """Mean loss per bucket of effective left context, and over all supervised targets."""
    sums, counts = sum_losses(model, batches, device)
    edges = bucket_edges(64).tolist()
    measures = {f"loss {edges[b]}-{edges[b + 1] - 1}": float(sums[b] / counts[b]) for b in range(60) if counts[b] > 0}
    return measures | {"loss all": float(sums.sum() / counts.sum())}


def mixture_loss(model: nn.Module, batches: Iterable[Batch], tail_from: int, device: str = "cpu") -> dict[str, float]:
    """Mean loss of all supervised targets, and of those in buckets below the tail."""
    sums, counts = sum_losses(model, batches, device)
    short = torch.from_numpy(bucket_edges(64)[:-1] < tail_from)
    return {
        "mixture short": float(sums[short].sum() / counts[short].sum()),
        "mixture all": float(sums.sum() / counts.sum()),
    }


@torch.no_grad()
def sum_losses(model: nn.Module, batches: Iterable[Batch], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of losses and number of supervised targets per bucket, each float64[64]."""
    sums, counts = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    model.eval()
    for batch in batches:
        on = batch.to(device)
        losses = cross_entropy(model(on.ids, on.edges), on.ids).double().cpu()
        contexts = left_contexts(batch.edges)
        buckets = (contexts.clamp(min=4).log2().floor().long() - 2).clamp(min=0)
        sums.index_add_(0, buckets[batch.supervised], losses[batch.supervised])
        counts.index_add_(0, buckets[batch.supervised], torch.ones_like(losses[batch.supervised]))
    return sums, counts


@torch.no_grad()
def recall_by_distance(
    model: nn.Module, length: int, documents: int, seed: int, device: str = "cpu"
) -> dict[str, float]:
    """Share of correct values for repeated keys of held-out documents, per bucket of distance."""
    rng = np.random.default_rng([seed, 1])
    right: dict[int, list[bool]] = {}
    model.eval()
    for _ in range(documents):
        tokens, targets = make_document(rng, length)
        batch = make_batch([(tokens, np.array([length], np.int32))]).to(device)
        said = model(batch.ids, batch.edges)[:, VALUES : VALUES + VALUE_COUNT].argmax(-1).cpu() + VALUES
        for place, distance in zip(targets.positions, targets.distances, strict=True):
            right.setdefault(find_bucket(distance), []).append(int(said[place - 1]) == int(tokens[place]))
    edges = bucket_edges(64).tolist()
    return {f"recall {edges[b]}-{edges[b + 1] - 1}": float(np.mean(right[b])) for b in sorted(right)}


@torch.no_grad()
def evidence_ablation(
    model: nn.Module, distances: Iterable[int], seed: int, device: str = "cpu", *, questions: int = 48
) -> dict[str, float]:
    """Gain and margin of evidence at each distance, measured on documents made by `make_question`."""
    measures = {}
    model.eval()
    for distance in distances:
        rng = np.random.default_rng([seed, 2, distance])
        gains, margins = [], []
        for _ in range(questions):
            with_evidence, without, value, foil = make_question(rng, distance)
            rows = make_batch([(row, np.array([row.size], np.int32)) for row in (with_evidence, without)]).to(device)
            asked = model(rows.ids, rows.edges)[rows.edges[1:] - 1]
            present, ablated = asked.float().log_softmax(-1).cpu()
            gains.append(float(present[value] - ablated[value]))
            margins.append(float(present[value] - present[foil]))
        measures[f"gain {distance}"] = float(np.mean(gains))
        measures[f"margin {distance}"] = float(np.mean(margins))
    return measures


def make_question(rng: np.random.Generator, distance: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """A document that ends with a key in question, the same without its evidence, the correct value and a wrong one.

    Other pairs are scattered in the document as in training; none has this key or one of these values.
    """
    key, other = rng.choice(KEY_COUNT, 2, replace=False)
    value, foil = rng.choice(VALUE_COUNT, 2, replace=False)
    before = int(rng.integers(8, 40))
    tokens = np.concatenate([[START], draw_filler(rng, before + distance)]).astype(np.int32)
    place = before + 3
    while place + 1 < tokens.size:
        distractor, answer = int(rng.integers(KEY_COUNT)), int(rng.integers(VALUE_COUNT))
        if distractor not in (key, other) and answer not in (value, foil):
            tokens[place], tokens[place + 1] = KEYS + distractor, VALUES + answer
        place += 2 + int(rng.integers(0, 6))
    with_evidence = np.append(tokens, KEYS + key).astype(np.int32)
    without = with_evidence.copy()
    start = with_evidence.size - 1 - distance
    with_evidence[start : start + 2] = KEYS + key, VALUES + value
    without[start : start + 2] = draw_filler(rng, 2)
    return with_evidence, without, VALUES + int(value), VALUES + int(foil)
