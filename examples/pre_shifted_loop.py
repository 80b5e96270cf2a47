"""Trainers with shifted labels (torchtitan, OLMo-core): python pre_shifted_loop.py DIR [STEPS].

Such a trainer computes cross_entropy(logits, labels) per token and divides by the number of tokens. Multiply by the
weights instead, and divide by their sum.
"""

import itertools
import sys

import torch
from tiny_model import TinyDecoder
from torch.nn.functional import cross_entropy

import exact_prep
from exact_prep.integrations.torch import BatchPolicy, Collator, Loader


def main(directory: str, steps: int = 3) -> None:
    torch.manual_seed(0)
    dataset = exact_prep.open(directory)
    model = TinyDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = Loader(dataset, BatchPolicy(batch_size=2, seed=0), collate=Collator(align="prediction"))
    for step, batch in enumerate(itertools.islice(loader, steps)):
        logits = model(batch["input_ids"], batch["position_ids"])
        losses = cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="none")
        loss = (losses * batch["loss_weights"].flatten()).sum() / batch["loss_weights"].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
