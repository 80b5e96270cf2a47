"""Probes of a trained model, by effective context or by distance of the evidence.

    context   context gain, for any text and model: held-out loss with only the last k tokens visible, minus the loss
              with all visible, on targets that have a given number of tokens before these k. `context 256` is what
              tokens 256 and more back are worth, in nats; the primary measure is the one at tau
    loss      held-out loss by bucket of effective left context; lower is better
    mixture   held-out loss on rows as in training, lower is better: of all targets (`all`), and of those below the tail
              (`short`), which shows whether short contexts get worse
    recall    share of correct values for keys seen before, by distance of the last mention (synthetic data)
    gain      evidence ablation, by distance: log-probability of the correct value with its evidence in the context,
              minus that with the evidence replaced by noise; half of the distances lie beyond the trained length
    margin    by distance: log-probability of the correct value minus that of a wrong one, with the evidence present

A measure is `kind low-high` or `kind distance`, such as `loss 256-511` and `gain 768`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from exact_prep.validation.decoder import cross_entropy, left_contexts
from exact_prep.validation.items import Items, group_items, make_items
from exact_prep.validation.synthetic_data import KEY_COUNT, KEYS, START, VALUE_COUNT, VALUES, draw_filler, make_document
from exact_prep.validation.training_batches import Batch, make_batch
from exact_prep.weighing.context import bucket_edges, find_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

WINDOW_TOKENS = 1 << 14
"""Tokens of shortened contexts that the model reads at once."""


@torch.no_grad()
def measure_rows(
    model: nn.Module,
    rows: Iterable[Batch],
    tail_from: int,
    device: str = "cpu",
    *,
    visible: Sequence[int] = (),
    gain_targets: int = 0,
    measured: Callable[[], None] = lambda: None,
) -> dict[str, Items]:
    """Loss by bucket of effective left context, of all targets and of the mixture; context gain for `visible`.

    Items are rows. `gain_targets` limits the targets of context gain of a row; 0 measures all. `measured` is called
    after each row.
    """
    sums, counts = [], []
    gains: dict[int, list[tuple[float, float]]] = {k: [] for k in visible}
    model.eval()
    for row in rows:
        on = row.to(device)
        losses = find_losses(model, on)
        contexts = left_contexts(row.edges)[row.supervised].clamp(min=4)
        buckets = (contexts.log2().floor().long() - 2).clamp(min=0).numpy()
        sums.append(np.bincount(buckets, losses[row.supervised].numpy(), 64))
        counts.append(np.bincount(buckets, minlength=64).astype(np.float64))
        for k, found in gains.items():
            found.append(find_gain(model, on, losses, k, tail_from, gain_targets))
        measured()
    worth = {f"context {k}": Items(*np.array(found).T) for k, found in gains.items() if any(n for _, n in found)}
    return worth | name_losses(np.array(sums), np.array(counts), tail_from)


def find_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of each supervised target, 0 for the others, float64[T] on the CPU; `batch` is on the model's device."""
    losses = torch.zeros(batch.ids.numel(), dtype=torch.float64)
    places = batch.supervised.nonzero()[:, 0]
    if places.numel():
        losses[places.cpu()] = cross_entropy(model, batch.ids, batch.edges, places).double().cpu()
    return losses


def name_losses(sums: np.ndarray, counts: np.ndarray, tail_from: int) -> dict[str, Items]:
    """Measures from the sums of losses and numbers of targets by row and bucket, each float64[N, 64]."""
    edges = bucket_edges(64).tolist()
    losses = {
        f"loss {edges[b]}-{edges[b + 1] - 1}": Items(sums[:, b], counts[:, b]) for b in range(60) if counts[:, b].any()
    }
    every = Items(sums.sum(1), counts.sum(1))
    short = bucket_edges(64)[:-1] < tail_from
    mixture = {"mixture short": Items(sums[:, short].sum(1), counts[:, short].sum(1)), "mixture all": every}
    return losses | {"loss all": every} | mixture


def find_gain(
    model: nn.Module, batch: Batch, losses: torch.Tensor, visible: int, hidden: int, limit: int = 0
) -> tuple[float, float]:
    """A row's context gain for k = `visible`: the sum over its targets, and their number.

    `losses[T]` are those with everything visible. Targets are those with at least k + `hidden` tokens before them. A
    quarter of k targets share a window, so between k and 1.25 k tokens are visible: windows that began anew for each
    target would cost k tokens per target, not 5. With a `limit` of targets, windows are taken evenly over the row.
    """
    windows = list(cut_windows(batch.edges, visible, hidden))
    if limit:
        windows = pick_evenly(windows, math.ceil(limit / max(visible // 4, 1)))
    short, places = shortened_losses(model, batch, windows)
    return float((short - losses[places]).sum()), float(places.numel())


def cut_windows(edges: torch.Tensor, visible: int, hidden: int) -> Iterator[tuple[int, int, int]]:
    """Windows as (start, first target, stop): k = `visible` tokens, and then the targets that are scored there."""
    step = max(visible // 4, 1)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        for first in range(start + visible + hidden, stop, step):
            yield first - visible, first, min(first + step, stop)


def pick_evenly(windows: list[tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    """`count` of the windows, evenly spaced, or all of them if there are no more."""
    if len(windows) <= count:
        return windows
    return [windows[(2 * place + 1) * len(windows) // (2 * count)] for place in range(count)]


def shortened_losses(
    model: nn.Module, batch: Batch, windows: list[tuple[int, int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the windows' supervised targets with nothing visible before their window, float64[N]; their places.

    `batch` is on the model's device, the results are on the CPU; places are int64[N].
    """
    losses, places = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    supervised = batch.supervised.cpu()
    while windows:
        fits = int(np.searchsorted(np.cumsum([stop - start for start, _, stop in windows]), WINDOW_TOKENS))
        some, windows = windows[: max(fits, 1)], windows[max(fits, 1) :]
        taken = torch.cat([torch.arange(start, stop) for start, _, stop in some])
        scored = torch.cat([torch.arange(start, stop) >= first for start, first, stop in some]) & supervised[taken]
        if not scored.any():
            continue
        ids = batch.ids[taken.to(batch.ids.device)]
        edges = torch.tensor([0, *np.cumsum([stop - start for start, _, stop in some]).tolist()]).to(ids.device)
        losses.append(cross_entropy(model, ids, edges, scored.nonzero()[:, 0].to(ids.device)).double().cpu())
        places.append(taken[scored])
    return torch.cat(losses), torch.cat(places)


@torch.no_grad()
def recall_by_distance(
    model: nn.Module, length: int, documents: int, seed: int, device: str = "cpu"
) -> dict[str, Items]:
    """Share of correct values for repeated keys of held-out documents, per bucket of distance. Items are documents."""
    rng = np.random.default_rng([seed, 1])
    right: dict[int, list[list[float]]] = {}
    model.eval()
    for document in range(documents):
        tokens, targets = make_document(rng, length)
        batch = make_batch([(tokens, np.array([length], np.int32))]).to(device)
        said = model(batch.ids, batch.edges)[:, VALUES : VALUES + VALUE_COUNT].argmax(-1).cpu() + VALUES
        for place, distance in zip(targets.positions, targets.distances, strict=True):
            own = right.setdefault(find_bucket(distance), [[] for _ in range(documents)])
            own[document].append(float(said[place - 1] == tokens[place]))
    edges = bucket_edges(64).tolist()
    return {f"recall {edges[b]}-{edges[b + 1] - 1}": group_items(right[b]) for b in sorted(right)}


@torch.no_grad()
def evidence_ablation(
    model: nn.Module, distances: Iterable[int], seed: int, device: str = "cpu", *, questions: int = 48
) -> dict[str, Items]:
    """Gain and margin of evidence at each distance, on documents made by `make_question`. Items are questions."""
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
        measures[f"gain {distance}"] = make_items(gains)
        measures[f"margin {distance}"] = make_items(margins)
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
