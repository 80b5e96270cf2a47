"""What a framework must compute: every document alone through the model, the loss token by token in plain Python.

Built from input_ids, seq_lengths and weights.json; it shares nothing with the readers but the stored columns.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import pytest
from written_dataset import oracle_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def framework(name: str):
    """The module `name`, or a skip with its reason; what it warns of at import is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def documents_of(row, weights_file: dict | None) -> Iterator[tuple[list[int], list[float]]]:
    """Each document of a row: its ids, and the weights of its targets (plain without weights.json).

    With `masked` in the weights, the first third of each document carries no loss.
    """
    ids, lengths = row.input_ids.tolist(), row.seq_lengths.tolist()
    start = 0
    for length in lengths:
        if weights_file is None:
            weights = [0.0] + [1.0] * (length - 1)
        else:
            weights = oracle_weights([length], length, weights_file)
        if weights_file is not None and weights_file.get("masked"):
            weights = [0.0] * (length // 3) + weights[length // 3 :]
        yield ids[start : start + length], weights
        start += length


def oracle_loss(logits_of: Callable, rows, weights_file: dict | None, logsumexp: Callable):
    """Sum of w * CE over sum of w, over all documents of all rows.

    `logits_of(ids)` gives one row of logits per token of one document; `logsumexp` reduces one such row.
    """
    total, weight_sum = 0.0, 0.0
    for row in rows:
        for ids, weights in documents_of(row, weights_file):
            logits = logits_of(ids)
            for t in range(1, len(ids)):
                total = total + weights[t] * (logsumexp(logits[t - 1]) - logits[t - 1][ids[t]])
                weight_sum += weights[t]
    return total / weight_sum


def bigram_oracle(table: list[list[float]], rows, weights_file: dict | None):
    """Loss and gradient of a bigram model, `table[previous][next]` logits, in floats alone."""
    gradient = [[0.0] * len(table) for _ in table]
    pairs = [
        (ids[t - 1], ids[t], weights[t])
        for row in rows
        for ids, weights in documents_of(row, weights_file)
        for t in range(1, len(ids))
    ]
    weight_sum = sum(weight for _, _, weight in pairs)
    loss = 0.0
    for previous, target, weight in pairs:
        norm = math.log(sum(math.exp(logit) for logit in table[previous]))
        loss += weight * (norm - table[previous][target]) / weight_sum
        for token, logit in enumerate(table[previous]):
            gradient[previous][token] += weight * (math.exp(logit - norm) - (token == target)) / weight_sum
    return loss, gradient
