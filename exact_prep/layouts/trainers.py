"""How trainers read data that others tokenized: what `measure --for` sets, and what it cannot know."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from exact_prep.choices import DocumentsBy, MeasuredLayout, Order, RowCut, Trainer


class Habits(NamedTuple):
    """What a trainer does unless it is told otherwise."""

    layout: tuple[MeasuredLayout, ...]
    """Layouts that it reads."""
    rows: RowCut | None
    """None: as the layout's trainers usually cut."""
    documents: DocumentsBy | None
    """None: as the layout's documents are usually told apart."""
    order: Order
    isolates: bool
    """Whether it can keep documents apart."""
    note: str
    """What must be set in the trainer for documents to be kept apart, or why they are not."""


TRAINERS: dict[Trainer, Habits] = {
    "megatron": Habits(
        ("megatron",),
        "shared",
        "index",
        "expected",
        True,
        "Megatron keeps documents apart with --reset-position-ids --reset-attention-mask (by EOD), and not by default",
    ),
    "olmo": Habits(
        ("olmo",),
        "disjoint",
        "eos",
        "file",
        True,
        "OLMo-core keeps documents apart with generate_doc_lengths=True, and not by default",
    ),
    "nanotron": Habits(
        ("datatrove",),
        "windows",
        "index",
        "file",
        True,
        "nanotron keeps documents apart where its collator resets positions (document masking), and not by default",
    ),
    "trl": Habits(
        ("huggingface",),
        "stored",
        None,
        "file",
        True,
        "TRL keeps documents apart with packing_strategy bfd and FlashAttention; `wrapped` does not",
    ),
    "axolotl": Habits(
        ("huggingface",), "stored", "position_ids", "file", True, "Axolotl keeps documents apart with sample_packing"
    ),
    "llama-factory": Habits(
        ("huggingface",),
        "stored",
        "attention_mask",
        "file",
        True,
        "LLaMA-Factory keeps documents apart with neat_packing, and not with packing alone",
    ),
    "llm-foundry": Habits(
        ("mds",),
        "stored",
        "eos",
        "file",
        True,
        "llm-foundry keeps documents apart with eos_token_id in the dataset's and attn_uses_sequence_id in the model's "
        "config, and not by default",
    ),
    "nanogpt": Habits(("tokens",), "crops", "eos", "expected", False, "nanoGPT never keeps documents apart"),
}
