"""Causal attention that stops at segment edges: one function per device, with the same signature.

`attend(q, k, v, edges)`: q, k, v [H, T, D], segments [edges[s], edges[s + 1]) of the T tokens; returns [H, T, D].

CPU: a loop of causal SDPA over segments, 3 to 7 times faster than a dense mask (4096 tokens: 47 ms, not 352 ms).
CUDA: FlexAttention with a block mask; it has no backward on CPU (torch 2.13).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Attention inside segments, on the device of the tensors."""
    return attend_flex(q, k, v, edges) if q.is_cuda else attend_loop(q, k, v, edges)


def attend_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """One causal SDPA per segment: the work is the sum of the squared segment lengths."""
    # `split`, because its backward pass joins the gradients once; that of each slice would fill all T tokens.
    segments = zip(*(x[None].split(edges.diff().tolist(), dim=2) for x in (q, k, v)), strict=True)
    parts = [scaled_dot_product_attention(*own, is_causal=True)[0] for own in segments]
    return torch.cat(parts, dim=1)


def attend_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """The reference implementation: a mask over all pairs of tokens."""
    token = torch.arange(q.shape[1], device=q.device)
    segment = torch.searchsorted(edges[1:].contiguous(), token, right=True)
    mask = (segment[:, None] == segment[None, :]) & (token[:, None] >= token[None, :])
    return scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]


def attend_flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """FlexAttention, compiled once; blocks without a visible pair of tokens are skipped."""
    flex_attention, create_block_mask = flex()
    token = torch.arange(q.shape[1], device=q.device)
    segment = torch.searchsorted(edges[1:].contiguous(), token, right=True)

    def visible(batch: Any, head: Any, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        return (segment[here] == segment[there]) & (here >= there)

    mask = create_block_mask(visible, None, None, q.shape[1], q.shape[1], device=str(q.device))
    return flex_attention(q[None], k[None], v[None], block_mask=mask)[0]


@cache
def flex() -> tuple[Any, Any]:
    """FlexAttention's two functions, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=True), torch.compile(create_block_mask, dynamic=True)
