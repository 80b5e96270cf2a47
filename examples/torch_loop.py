"""Plain PyTorch: python torch_loop.py DIR [STEPS]. Accumulates two microbatches; full logits are never in memory."""

import itertools
import sys

import torch
from tiny_model import TinyDecoder

import exact_prep
from exact_prep.integrations.torch import (
    BatchPolicy,
    Loader,
    assert_documents_isolated,
    denominator,
    linear_weighted_cross_entropy,
)

MICROBATCHES = 2


def main(directory: str, steps: int = 3) -> None:
    torch.manual_seed(0)
    dataset = exact_prep.open(directory)
    model = TinyDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = iter(Loader(dataset, BatchPolicy(batch_size=2, seed=0)))
    for step in range(steps):
        micro = list(itertools.islice(batches, MICROBATCHES))
        if step == 0:
            assert_documents_isolated(model, micro[0])
        total = denominator([batch["loss_weights"] for batch in micro])
        loss = torch.zeros(())
        for batch in micro:
            part = linear_weighted_cross_entropy(
                model.hidden(batch["input_ids"], batch["position_ids"]),
                model.head.weight,
                batch["labels"],
                batch["loss_weights"],
                denominator=total,
            )
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
