"""A decoder of two layers for the torch examples; replace it with yours. A document starts where position_ids is 0."""

import torch
from torch import nn
from torch.nn import functional


class TinyDecoder(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(seq_len, width)
        self.mixing = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.head = nn.Linear(width, vocab_size, bias=False)

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        document = (position_ids == 0).cumsum(-1)
        seen = (document[:, :, None] == document[:, None, :]).tril()
        x = self.tokens(input_ids) + self.positions(position_ids)
        for mix in self.mixing:
            query, key, value = mix(x).chunk(3, -1)
            x = x + functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return x

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(input_ids, position_ids))
