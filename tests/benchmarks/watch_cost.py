"""What watching costs: python watch_cost.py. One ContextWatch beside one step of a small transformer on CPU."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace

import torch
from torch import nn

from exact_prep.integrations.torch import ContextWatch, linear_weighted_cross_entropy

LENGTH, WIDTH, LAYERS, VOCAB = 2048, 256, 4, 8192


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True), LAYERS, enable_nested_tensor=False
    )
    head = nn.Parameter(torch.randn(VOCAB, WIDTH) / WIDTH)
    watch = ContextWatch(SimpleNamespace(loaded_weights=None, seq_len=LENGTH))  # type: ignore[arg-type]
    inputs = torch.randn(1, LENGTH, WIDTH)
    batch = {"position_ids": torch.arange(LENGTH)[None] % 1500}
    labels, weights = torch.randint(0, VOCAB, (1, LENGTH)), torch.ones(1, LENGTH)
    weights[:, 0] = 0
    steps, spent = [], []

    def observe(losses: torch.Tensor, factors: torch.Tensor) -> None:
        started = time.perf_counter()
        watch.on(batch)(losses, factors)
        spent.append(time.perf_counter() - started)

    for _ in range(5):
        started = time.perf_counter()
        linear_weighted_cross_entropy(layers(inputs), head, labels, weights, observe=observe).backward()
        steps.append(time.perf_counter() - started)
    step, own = statistics.median(steps), statistics.median(spent)
    print(f"step {step:.3f} s, watching {own * 1000:.2f} ms: {own / step:.3%}")


if __name__ == "__main__":
    main()
