"""What the weighted loss cannot be right with: settings, batches and models that the mixin refuses."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from exact_prep.errors import UsageError
from exact_prep.integrations.torch import assert_documents_isolated

PROBE = 128
"""Tokens per row of the batch that the isolation check runs on: two documents of 64 tokens."""

LARGE_MASK = 4 * 10**9
"""Bytes of a boolean mask from which on the mixin warns: a row of 64K tokens."""

LOSS_OPTIONS = {
    "label_smoothing_factor": "label smoothing ignores the weights; set label_smoothing_factor=0",
    "use_liger_kernel": (
        "Liger's fused loss ignores the weights; set use_liger_kernel=False, or "
        "liger_kernel_config={'fused_linear_cross_entropy': False}"
    ),
    "loss_type": "another loss than the weighted one; set loss_type='nll'",
    "completion_only_loss": (
        "which targets carry loss was decided when the dataset was packed; leave completion_only_loss at None"
    ),
    "assistant_only_loss": (
        "which targets carry loss was decided when the dataset was packed; set assistant_only_loss=False"
    ),
}
"""Options of TrainingArguments and SFTConfig that replace the loss, or which targets it counts: why, and the remedy."""


def check_loss_options(arguments: Any) -> None:
    """Raises UsageError for options that replace the loss."""
    liger = getattr(arguments, "liger_kernel_config", None) or {}
    fused = liger.get("fused_linear_cross_entropy", True) or liger.get("cross_entropy", False)
    asked = {name: getattr(arguments, name, None) for name in LOSS_OPTIONS}
    asked["use_liger_kernel"] = asked["use_liger_kernel"] and fused
    if asked["loss_type"] in ("nll", "chunked_nll"):  # TRL's defaults; both are the plain loss
        asked["loss_type"] = None
    for name, value in asked.items():
        if value:
            raise UsageError(f"{name}={value}: {LOSS_OPTIONS[name]}")


def count_rows(accelerator: Any, rows: int) -> int:
    """How many of this rank's `rows` are to be counted in evaluation: accelerate repeats some to complete a last batch.

    Raises UsageError if several ranks evaluate rows whose number is not known.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder == 0:
        return rows
    if state.remainder < 0:
        raise UsageError(
            "the evaluation rows have no length, so those repeated in the last batch cannot be told; pass an "
            "eval_dataset with a length, as exact_prep.open gives"
        )
    return min(max(state.remainder - accelerator.process_index * rows, 0), rows)


def prepare_sft(arguments: Any) -> None:
    """Stop TRL from tokenizing, packing or truncating packed rows; raises UsageError for options that would."""
    for option in ("packing", "eval_packing", "padding_free"):
        if getattr(arguments, option, False):
            raise UsageError(f"{option}=True packs the packed rows again and cuts documents; set {option}=False")
    arguments.dataset_kwargs = {**(arguments.dataset_kwargs or {}), "skip_prepare_dataset": True}


def check_settings(trainer: Any, head_chunk: int | None) -> None:
    """Raises UsageError for settings with which the weighted loss would be wrong."""
    config = getattr(trainer.accelerator, "parallelism_config", None)
    refused = {
        "compute_loss_func never sees the weights; leave it out": trainer.compute_loss_func is not None,
        "DataParallel splits batches within a step; start one process per GPU (torchrun, accelerate launch)": (
            trainer.args.n_gpu > 1
        ),
        "sequence, context and tensor parallelism split or repeat rows; use data parallelism or FSDP": (
            config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("cp", "sp", "tp"))
        ),
        "torch_compile also compiles the head, where the chunked loss is computed; set head_chunk = None": (
            trainer.args.torch_compile and head_chunk is not None
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise UsageError(reason)


def check_batch(batch: dict[str, Any]) -> None:
    """Raises UsageError for a batch without weights, or one in which documents would see each other."""
    missing = [name for name in ("labels", "loss_weights", "position_ids") if batch.get(name) is None]
    if missing:
        raise UsageError(
            f"the batch has no {', '.join(missing)}; use exact_prep.integrations.torch.Collator as data_collator"
        )
    if batch.get("attention_mask") is not None:
        raise UsageError(
            "the batch has an attention_mask: with one, models ignore position_ids and documents see each other; "
            "use exact_prep.integrations.torch.Collator as data_collator"
        )


def check_row_length(model: Any, length: int) -> None:
    """Raises UsageError for rows of more tokens than the model knows positions."""
    config = getattr(model, "config", None)
    known = getattr(config and config.get_text_config(), "max_position_embeddings", None)
    if known is not None and length > known:
        raise UsageError(
            f"rows of {length:,} tokens, but the model knows {known:,} positions (max_position_embeddings); extend the "
            f"model (rope scaling) and its config, or pack with --seq-len {known}"
        )


def reads_edges(model: Any) -> bool:
    """Whether the model's attention takes the edges of documents (cu_seq_lens): FlashAttention in all its versions."""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None) or ""
    return "flash" in str(attention) or "varlen" in str(attention)


def warn_of_mask(model: Any, inputs: dict[str, Any]) -> None:
    """Warn, before it is tried, of the memory that attention masks of long rows take."""
    rows, length = inputs["input_ids"].shape
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if attention not in ("sdpa", "eager") or rows * length * length < LARGE_MASK:
        return
    size = rows * length**2 / 1e9
    warnings.warn(
        f"{attention} attention makes a mask of {rows} x {length:,} x {length:,}: {size:.1f} GB as booleans, more in "
        "the kernel; load the model with attn_implementation='flash_attention_2' or 'flex_attention'",
        UserWarning,
        stacklevel=2,
    )


def check_isolation(model: Any, inputs: dict[str, Any]) -> None:
    """Check that the model isolates documents, on two documents per row made from the batch's own tokens."""
    ids = inputs["input_ids"][:, :PROBE]
    length, half = ids.shape[1], -(-ids.shape[1] // 2)
    positions = torch.arange(length, device=ids.device) % half
    batch = {"input_ids": ids, "position_ids": positions.expand_as(ids)}
    edges: dict[str, Any] = {}
    if "cu_seq_lens_q" in inputs:
        cut = torch.tensor([0, half, length], dtype=torch.int32, device=ids.device)
        edges = {"cu_seq_lens_q": cut, "cu_seq_lens_k": cut, "max_length_q": half, "max_length_k": half}
    # Explicit use_cache=False, because a model wrapped by DDP has no config attribute to detect the cache by.
    assert_documents_isolated(model, batch, forward=lambda own: model(**own, **edges, use_cache=False))
