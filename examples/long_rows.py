"""Rows of 64K tokens and more: python long_rows.py DIR [STEPS].

torch's flex attention, with a block mask made from document edges, never makes anything of L x L. On a GPU it is
compiled; on a CPU it has no backward pass, so there the example uses a dense mask, which fits short rows only.
"""

import itertools
import sys

import torch
from tiny_model import TinyDecoder
from torch.nn.attention.flex_attention import flex_attention

import exact_prep
from exact_prep.integrations.torch import BatchPolicy, Loader, document_block_mask, linear_weighted_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
attend = torch.compile(flex_attention)


class LongDecoder(TinyDecoder):
    """The tiny model with flex attention on 4 heads."""

    def hidden(self, input_ids, position_ids):
        if input_ids.device.type == "cpu":
            return super().hidden(input_ids, position_ids)
        mask = document_block_mask(position_ids)
        x = self.tokens(input_ids) + self.positions(position_ids)
        for mix in self.mixing:
            query, key, value = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in mix(x).chunk(3, -1))
            x = x + attend(query, key, value, block_mask=mask).transpose(1, 2).flatten(2)
        return x


def main(directory: str, steps: int = 3) -> None:
    torch.manual_seed(0)
    dataset = exact_prep.open(directory)
    model = LongDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = Loader(dataset, BatchPolicy(batch_size=1, seed=0), pin_memory=True)
    for step, batch in enumerate(itertools.islice(batches, steps)):
        batch = {name: own.to(DEVICE, non_blocking=True) for name, own in batch.items()}
        hidden = model.hidden(batch["input_ids"], batch["position_ids"])
        loss = linear_weighted_cross_entropy(hidden, model.head.weight, batch["labels"], batch["loss_weights"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
