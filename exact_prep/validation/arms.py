"""The arms of an experiment: runs that differ in one thing only. They share the initial model and the order of batches.

    uniform    every supervised target has weight 1
    exact      EXACT weights: extra supervision alpha for the tail, more of it for rarer buckets
    flat       the same extra supervision, spread evenly over the tail (gamma 0)
    mirror     the same extra supervision, on the targets below the tail
    permuted   the same weights, at random positions: what the mass alone does
    upsample   uniform weights on rows drawn so that the tail has the share that exact aims at; costs distinct rows
    lr         uniform, learning rate x 1.05
    steps      uniform, 5 % more steps (and data)
    null       uniform, with weights perturbed by 1e-4: the noise of a paired comparison

`exact@1` is `exact` at alpha 1. Every arm that has weights accepts @ALPHA, and so do upsample, lr and steps. For lr and
steps it means the mean weight of `exact@ALPHA`, the factor by which that has more supervision than uniform.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from exact_prep.errors import UsageError
from exact_prep.records.options import WeightOptions
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import weight_table

if TYPE_CHECKING:
    from exact_prep.validation.training_batches import Batch
    from exact_prep.weighing.weights import WeightTable

NAMES = ("uniform", "exact", "flat", "mirror", "permuted", "upsample", "lr", "steps", "null")
WITH_ALPHA = ("exact", "flat", "mirror", "permuted", "upsample", "lr", "steps")
MORE = 1.05
"""Of learning rate or steps, in `lr` and `steps` without an alpha."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of an experiment, ready to weigh batches."""

    name: str
    lut: torch.Tensor
    """Weight by effective left context, float32[L]."""
    mean_weight: float = 1.0
    """Mean weight of a supervised target over the corpus: times the targets of a step, the loss's denominator."""
    permuted: bool = False
    noise: float = 0.0
    """Relative perturbation of every weight."""
    lr_factor: float = 1.0
    steps_factor: float = 1.0
    tail_share: float | None = None
    """Rows are drawn so that the tail has this share of supervised targets; None takes rows as they come."""

    def weights(self, batch: Batch, contexts: torch.Tensor, step: int) -> torch.Tensor:
        """Weights of a batch's targets, float32[T]; 0 for unsupervised ones. `contexts[T]` are left contexts, int64."""
        weights = self.lut.to(contexts.device)[contexts] * batch.supervised
        if self.permuted or self.noise:
            places = batch.supervised.nonzero()[:, 0]
            generator = torch.Generator().manual_seed(step)
            if self.permuted:
                shuffled = places[torch.randperm(places.numel(), generator=generator).to(places.device)]
                weights = weights.index_put((places,), weights[shuffled])
            else:
                noise = torch.randn(places.numel(), generator=generator).to(places.device)
                weights = weights.index_put((places,), weights[places] * (1 + self.noise * noise))
        return weights


def make_arm(name: str, exposure: Exposure, seq_len: int, tail_from: int, *, exact: WeightTable | None = None) -> Arm:
    """Make the arm called `name`. Raises UsageError.

    `exact` is a dataset's own weight table. It replaces the paper's defaults, also for the controls, so that they move
    as much supervision.
    """
    kind, amount = parse_arm(name)
    own = WeightOptions(tail_from=tail_from) if exact is None else exact.options
    alpha = amount if amount is not None else own.alpha if exact is None else exact.extra
    options = WeightOptions(
        tail_from=tail_from,
        alpha=alpha,
        gamma=0.0 if kind == "flat" else own.gamma,
        eps=own.eps,
        supervise_first=own.supervise_first,
        window=own.window,
    )
    table = exact if exact is not None and kind in ("exact", "permuted") and amount is None else None
    table = table or weight_table(exposure, options)
    match kind:
        case "exact" | "flat" | "permuted":
            lut, mean_weight = table.lut(seq_len), find_mean_weight(table, exposure)
        case "mirror":
            table = make_mirror_table(exposure, options)
            lut, mean_weight = table.lut(seq_len), find_mean_weight(table, exposure)
        case _:
            lut, mean_weight = np.ones(seq_len), 1.0
    more = MORE if amount is None else table.mean_weight
    return Arm(
        name=name,
        lut=torch.from_numpy(lut).float(),
        mean_weight=mean_weight,
        permuted=kind == "permuted",
        noise=1e-4 if kind == "null" else 0.0,
        lr_factor=more if kind == "lr" else 1.0,
        steps_factor=more if kind == "steps" else 1.0,
        tail_share=table.weighted_tail_share if kind == "upsample" else None,
    )


def parse_arm(name: str) -> tuple[str, float | None]:
    """The kind of the arm called `name` and its alpha, None if it names none; raises UsageError."""
    kind, _, amount = name.partition("@")
    if kind not in NAMES or (amount and kind not in WITH_ALPHA):
        raise UsageError(
            f"there is no arm {name!r}; arms are {', '.join(NAMES)}; "
            f"{', '.join(WITH_ALPHA)} also accept an alpha, such as exact@1"
        )
    try:
        return kind, float(amount) if amount else None
    except ValueError:
        raise UsageError(f"{name!r}: the part after @ must be a number, alpha, as in exact@1") from None


def find_mean_weight(table: WeightTable, exposure: Exposure) -> float:
    """Mean weight of a supervised target of `exposure`, which need not be the corpus that the table was made for."""
    counts = table.count(exposure)
    return float(counts @ table.by_bucket(counts.size) / counts.sum()) if counts.sum() else 1.0


def make_mirror_table(exposure: Exposure, options: WeightOptions) -> WeightTable:
    """The weights that give the same extra supervision to the buckets below the tail, by inverse frequency as well."""
    below = bucket_edges(exposure.counts.size)[:-1] < options.tail_from
    tail = exposure.counts[~below].sum()
    reflected = Exposure(counts=np.where(below, exposure.counts, 0), segments=exposure.segments, firsts=exposure.firsts)
    short = reflected.supervised(supervise_first=options.supervise_first).sum()
    alpha = options.alpha * float(tail / short) if short else 0.0
    return weight_table(reflected, replace(options, tail_from=0, alpha=alpha))
