"""Document isolation for torch's flex attention on long rows: a block mask made from document edges, never L x L."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad


def document_block_mask(position_ids: Tensor, *, block_size: int = 128) -> BlockMask:
    """Causal attention inside documents, for `flex_attention(query, key, value, block_mask=...)`.

    A document starts where `position_ids[B, L]` is 0 (the Collator's). Made in (L / block_size)^2 steps: torch's
    `create_block_mask` looks at all L^2 pairs, which for a row of 128K tokens are 17 GB. Blocks inside one document are
    computed without a mask, blocks that share no document are skipped.
    """
    document = (position_ids == 0).cumsum(-1, dtype=torch.int32)
    length = document.shape[-1]
    blocks = -(-length // block_size)
    # Documents are numbered in order, so a block holds those from its first to its last token.
    edges = pad(document, (0, blocks * block_size - length), mode="replicate").unflatten(-1, (blocks, block_size))
    first, last = edges[..., 0], edges[..., -1]
    before = torch.ones(blocks, blocks, dtype=torch.bool, device=document.device).tril(-1)
    some = (last[:, None, :] >= first[:, :, None]) & before.logical_or(torch.eye(blocks, device=document.device).bool())
    full = (first[:, None, :] == last[:, :, None]) & before
    full[:, length // block_size :] = False  # a block that the row does not fill

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[batch, query] == document[batch, key])

    lists = *_list_blocks(some & ~full), *_list_blocks(full)
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block_size, mask_mod=sees, seq_lengths=(length, length))


def _list_blocks(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of `chosen[B, Q, K]`, how many key blocks each query block has, int32[B, 1, Q], and which come first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None].contiguous()
