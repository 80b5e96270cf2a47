"""Tiny torch models for the laws: one whose gradient plain Python can write down, one with attention."""

from __future__ import annotations

import torch
from torch import nn
from written_dataset import VOCAB


class Bigram(nn.Module):
    """logits[t] = table[input_ids[t]]; ignores positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)))

    def forward(self, input_ids, position_ids=None):
        return self.table[input_ids]


class TinyAttention(nn.Module):
    """One attention layer; documents are told by position_ids, unless it leaks on purpose."""

    def __init__(self, *, leaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.leaks = leaks
        self.embedding = nn.Embedding(VOCAB, 32)
        self.positions = nn.Embedding(512, 32)
        self.mixing = nn.Linear(32, 96)
        self.head = nn.Linear(32, VOCAB, bias=False)

    def hidden(self, input_ids, position_ids):
        x = self.embedding(input_ids) + self.positions(position_ids)
        document = (position_ids == 0).cumsum(-1)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if not self.leaks:
            seen = seen & (document[:, :, None] == document[:, None, :])
        query, key, value = self.mixing(x).chunk(3, -1)
        return x + nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    def forward(self, input_ids, position_ids):
        return self.head(self.hidden(input_ids, position_ids))
