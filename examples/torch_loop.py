"""Plain PyTorch: python torch_loop.py DIR [STEPS], or on two processes: torchrun --nproc-per-node 2 torch_loop.py DIR.

Accumulates two microbatches; full logits are never in memory. The loss is computed inside the forward of the module
that is wrapped: DDP and FSDP neither gather nor reduce parameters that are used outside of it, and DDP does not say so.
"""

import itertools
import os
import sys

import torch
from tiny_model import TinyDecoder
from torch import distributed, nn

import exact_prep
from exact_prep.integrations.torch import (
    BatchPolicy,
    Loader,
    assert_documents_isolated,
    denominator,
    linear_weighted_cross_entropy,
)

MICROBATCHES = 2


class WithLoss(nn.Module):
    """A model and its loss: wrap this in DDP or fully_shard, and call nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch, total):
        return linear_weighted_cross_entropy(
            self.model.hidden(batch["input_ids"], batch["position_ids"]),
            self.model.head.weight,
            batch["labels"],
            batch["loss_weights"],
            denominator=total,
        )


def main(directory: str, steps: int = 3) -> None:
    torch.manual_seed(0)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        distributed.init_process_group()
    dataset = exact_prep.open(directory)
    model = TinyDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len)
    train = nn.parallel.DistributedDataParallel(WithLoss(model)) if several else WithLoss(model)
    optimizer = torch.optim.AdamW(train.parameters(), lr=1e-3)
    batches = iter(Loader(dataset, BatchPolicy(batch_size=2, seed=0)))
    for step in range(steps):
        micro = list(itertools.islice(batches, MICROBATCHES))
        if step == 0:
            assert_documents_isolated(model, micro[0])
        total = denominator([batch["loss_weights"] for batch in micro])
        loss = torch.zeros(())
        for batch in micro:
            part = train(batch, total)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}")
    if several:
        del train  # before its process group: the other way round, gloo can hang
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
