"""A weight inside its label: for trainers whose data and loss can be replaced, but not the path between them.

Bits 32 to 47 of an int64 label hold the float16 weight, bits 0 to 31 the token, and bit 48 marks the label as carried.
What slices, permutes or pipes labels (context parallelism, pipeline stages, another collator) so carries the weight
too, and `labels != -100` still counts supervised targets. Decode before any cross-entropy: an embedding or a loss that
sees a carried label fails, because no vocabulary has that many tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from exact_prep.errors import UsageError
from exact_prep.integrations.torch.require import require
from exact_prep.reader.columns import IGNORED

WEIGHT, MARK = 32, 48
"""The lowest bit of the weight, and the bit that is set in every carried label."""


def carry(labels: Tensor, weights: Tensor) -> Tensor:
    """`labels[...]` with `weights[...]` inside, int64[...]; -100 stays -100, in either alignment.

    Labels are int64, below 2**32 or -100. Weights are those of the Collator: floating point, each exactly a float16.
    Raises UsageError otherwise.
    """
    if labels.dtype != torch.int64 or labels.shape != weights.shape or not weights.is_floating_point():
        raise UsageError(
            f"labels are {labels.dtype}{list(labels.shape)}, weights {weights.dtype}{list(weights.shape)}; carry needs "
            "int64 labels and floating-point weights of the same shape, as exact_prep's Collator gives them"
        )
    half = weights.to(torch.float16)
    if not torch.equal(half.to(weights.dtype).nan_to_num(-1.0), weights.nan_to_num(-1.0)):
        raise UsageError("some weights are no float16 values and would be rounded; carry weights as they are stored")
    ignored = labels == IGNORED
    if bool(((labels >> WEIGHT != 0) & ~ignored).any()):
        raise UsageError(f"some labels are neither {IGNORED} nor in [0, 2**32); are they carried already?")
    bits = half.view(torch.int16).to(torch.int64) & 0xFFFF
    return torch.where(ignored, labels, labels | bits << WEIGHT | 1 << MARK)


def carried(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels int64[...] and weights float32[...] of `labels[...]` made by `carry`; the weight at a -100 is 0.

    Raises UsageError for labels that carry no weight; inside torch.compile and on accelerators, RuntimeError.
    """
    ignored = labels == IGNORED
    whole = ((labels >> MARK == 1) | ignored).all()
    require(
        whole,
        "some labels carry no weight: the data did not go through exact_prep.integrations.torch.carry, or something "
        "replaced labels on the way",
    )
    weights = (labels >> WEIGHT & 0xFFFF).to(torch.int16).view(torch.float16).to(torch.float32)
    return torch.where(ignored, labels, labels & 0xFFFFFFFF), weights.masked_fill(ignored, 0.0)
