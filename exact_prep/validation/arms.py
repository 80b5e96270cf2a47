"""The arms of an experiment: runs that differ in one thing only. They share the initial model and the order of batches.

    uniform    every supervised target has weight 1
    exact      EXACT weights: extra supervision alpha for the tail, more of it for rarer buckets
    flat       the same extra supervision, spread evenly over the tail (gamma 0)
    mirror     the same extra supervision, on the targets below the tail
    permuted   the same weights, at random positions
    lr         uniform, learning rate x 1.05
    steps      uniform, 5 % more steps (and data)
    null       uniform, with weights perturbed by 1e-4: the noise of a paired comparison

`exact@1` is `exact` at alpha 1. Every arm that has weights accepts @ALPHA.
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

NAMES = ("uniform", "exact", "flat", "mirror", "permuted", "lr", "steps", "null")
WEIGHTED = ("exact", "flat", "mirror", "permuted")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of an experiment, ready to weigh batches."""

    name: str
    lut: torch.Tensor
    """Weight by effective left context, float32[L]."""
    permuted: bool = False
    noise: float = 0.0
    """Relative perturbation of every weight."""
    lr_factor: float = 1.0
    steps_factor: float = 1.0

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
    kind, _, amount = name.partition("@")
    if kind not in NAMES or (amount and kind not in WEIGHTED):
        raise UsageError(
            f"there is no arm {name!r}; arms are {', '.join(NAMES)}; "
            f"{', '.join(WEIGHTED)} also accept an alpha, such as exact@1"
        )
    own = WeightOptions(tail_from=tail_from) if exact is None else exact.options
    try:
        alpha = float(amount) if amount else own.alpha if exact is None else exact.extra
    except ValueError:
        raise UsageError(f"{name!r}: the part after @ must be a number, alpha, as in exact@1") from None
    gamma = 0.0 if kind == "flat" else own.gamma
    options = WeightOptions(tail_from=tail_from, alpha=alpha, gamma=gamma, eps=own.eps)
    table = exact if exact is not None and kind in ("exact", "permuted") and not amount else None
    table = table or weight_table(exposure, options)
    uniform = np.ones(seq_len)
    match kind:
        case "exact" | "flat" | "permuted":
            lut = table.lut(seq_len)
        case "mirror":
            lut = make_mirror_table(exposure, options).lut(seq_len)
        case _:
            lut = uniform
    return Arm(
        name=name,
        lut=torch.from_numpy(lut).float(),
        permuted=kind == "permuted",
        noise=1e-4 if kind == "null" else 0.0,
        lr_factor=1.05 if kind == "lr" else 1.0,
        steps_factor=1.05 if kind == "steps" else 1.0,
    )


def make_mirror_table(exposure: Exposure, options: WeightOptions) -> WeightTable:
    """The weights that give the same extra supervision to the buckets below the tail, by inverse frequency as well."""
    below = bucket_edges(exposure.counts.size)[:-1] < options.tail_from
    short, tail = exposure.counts[below].sum(), exposure.counts[~below].sum()
    reflected = Exposure(counts=np.where(below, exposure.counts, 0), segments=exposure.segments)
    alpha = options.alpha * float(tail / short) if short else 0.0
    return weight_table(reflected, replace(options, tail_from=0, alpha=alpha))
