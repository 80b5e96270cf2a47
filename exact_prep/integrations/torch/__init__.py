"""Weighted training in PyTorch. Needs the extra `torch`.

    data.py        Collator and Loader: rows to batches of tensors, sharded over ranks, with exact resume
    loss.py        weighted_cross_entropy, linear_weighted_cross_entropy (never makes the full logits), denominator
    head.py        computes the weighted loss at the output head of someone else's model (used by transformers.py)
    require.py     checks of values that do not wait for an accelerator
    linear.py      the chunked loss as one operator, for torch.compile
    carried.py     carry, carried: a weight inside its int64 label, for trainers that move labels but no other column
    flex.py        document_block_mask: isolation of documents in rows of 64K tokens and more, for flex attention
    watch.py       ContextWatch: loss by effective context and the tail's share, during training
    isolation.py   assert_documents_isolated: packed documents must not see each other

For map-style loading no wrapper is needed: `DataLoader(exact_prep.open(DIR), collate_fn=Collator(), ...)`.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("exact_prep.integrations.torch needs torch: pip install 'exact-prep[torch]'") from error

from exact_prep.integrations.torch.carried import carried, carry
from exact_prep.integrations.torch.data import Collator, Loader
from exact_prep.integrations.torch.flex import document_block_mask
from exact_prep.integrations.torch.isolation import assert_documents_isolated
from exact_prep.integrations.torch.loss import denominator, linear_weighted_cross_entropy, weighted_cross_entropy
from exact_prep.integrations.torch.watch import ContextWatch
from exact_prep.reader.order import BatchPolicy

__all__ = [
    "BatchPolicy",
    "Collator",
    "ContextWatch",
    "Loader",
    "assert_documents_isolated",
    "carried",
    "carry",
    "denominator",
    "document_block_mask",
    "linear_weighted_cross_entropy",
    "weighted_cross_entropy",
]
