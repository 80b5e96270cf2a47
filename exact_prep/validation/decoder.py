"""The small decoder: RoPE, attention inside segments, smeared keys. `Shape` describes it completely.

Smeared keys (Olsson et al. 2022, "In-context learning and induction heads") mix each key with the key before it.
Without them, two layers did not learn induction in 3M tokens, and there would be no long-range recall to measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from exact_prep.validation.attention import attend


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a model."""

    vocab_size: int
    layers: int = 2
    width: int = 96
    heads: int = 3
    rope_base: float = 1e4


class Decoder(nn.Module):
    """A causal decoder: token ids in, logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else shape.width**-0.5)
        for block in self.blocks:
            for out in (block.attention.out, block.mlp[-1]):  # type: ignore[union-attr, index]
                nn.init.zeros_(out.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, ids: torch.Tensor, edges: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """`ids[T]` in segments cut at `edges[S + 1]` -> logits[T, V]; the logits at t predict token t + 1.

        With `wanted[N]`, ascending places: logits[N, V] of these alone, most of the work of a small model saved.
        """
        x = self.embed(ids)  # [T, C]
        positions = left_contexts(edges)
        rotation = rotations(positions, self.shape.width // self.shape.heads, self.shape.rope_base)
        for block in self.blocks:
            x = block(x, rotation, positions, edges)
        return self.head(self.norm(x if wanted is None else x[wanted]))


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(shape.width) for _ in range(2))
        self.attention = Attention(shape)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width, bias=False),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width, bias=False),
        )

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor, edges: torch.Tensor
    ) -> torch.Tensor:
        """[T, C] -> [T, C]."""
        x = x + self.attention(self.norms[0](x), rotation, positions, edges)
        return x + self.mlp(self.norms[1](x))


class Attention(nn.Module):
    """Multi-head attention with rotary positions and, per head, a learned smear of the keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.smear = nn.Parameter(torch.zeros(shape.heads))

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor, edges: torch.Tensor
    ) -> torch.Tensor:
        """[T, C] -> [T, C]."""
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.heads, -1).permute(1, 2, 0, 3)  # each [H, T, D]
        # In k's dtype: under autocast k is bfloat16, and attention needs q, k and v of the same dtype.
        share = (torch.sigmoid(self.smear)[:, None, None] * (positions > 0)[None, :, None]).type_as(k)
        k = (1 - share) * k + share * k.roll(1, dims=1)
        mixed = attend(rotate(q, rotation), rotate(k, rotation), v, edges)
        return self.out(mixed.transpose(0, 1).reshape(x.shape))


def left_contexts(edges: torch.Tensor) -> torch.Tensor:
    """Each token's position in its segment, int64[T]: the effective left context of the target at that position."""
    lengths = edges.diff()
    return torch.arange(int(edges[-1]), device=edges.device) - edges[:-1].repeat_interleave(lengths)


def rotations(positions: torch.Tensor, size: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions, each [T, size / 2]."""
    rates = base ** (-torch.arange(0, size, 2, device=positions.device) / size)
    angles = positions[:, None] * rates[None, :]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply rotary positions to x[H, T, D]."""
    cos, sin = rotation
    even, odd = x.chunk(2, dim=-1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1).type_as(x)


def cross_entropy(
    model: nn.Module, ids: torch.Tensor, edges: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of each target, float32[N], at the ascending places `targets[N]` >= 1; None means all but the first."""
    if targets is None:
        targets = torch.arange(1, ids.numel(), device=ids.device)
    logits = model(ids, edges, targets - 1)  # those at t - 1 predict target t
    return functional.cross_entropy(logits.float(), ids[targets], reduction="none")
