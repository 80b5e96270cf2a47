"""Laws of the block mask for flex attention: torch's own, made without looking at L x L pairs."""

from __future__ import annotations

import pytest
from oracle import framework

torch = framework("torch")

from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from exact_prep.integrations.torch import document_block_mask  # noqa: E402


def packed(length, longest, seed=0):
    """Positions of two rows: documents of up to `longest` tokens, and padding at the end of the second."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(2):
        lengths = torch.randint(1, longest + 1, (length,), generator=generator).tolist()
        rows.append(torch.cat([torch.arange(n) for n in lengths])[:length])
    rows[1][-length // 9 :] = 0
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("length", "longest", "block"), [(512, 200, 128), (500, 600, 128), (300, 9, 32), (64, 64, 128)]
)
def test_the_mask_is_torch_s_own(length, longest, block):
    positions = packed(length, longest)
    mask = document_block_mask(positions, block_size=block)
    want = create_block_mask(mask.mask_mod, 2, None, length, length, device="cpu", BLOCK_SIZE=block)
    assert torch.equal(mask.to_dense(), want.to_dense())
    assert torch.equal(mask.kv_num_blocks, want.kv_num_blocks)
    assert torch.equal(mask.full_kv_num_blocks, want.full_kv_num_blocks)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_documents_attend_to_themselves_alone():
    positions = packed(300, 120)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 2, 300, 16, generator=generator) for _ in range(3)]
    document = (positions == 0).cumsum(-1)
    seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    got = flex_attention(*inputs, block_mask=document_block_mask(positions))
    torch.testing.assert_close(got, scaled_dot_product_attention(*inputs, attn_mask=seen), rtol=1e-4, atol=1e-5)
