"""Weighted training with the Hugging Face Trainer and TRL. Needs `transformers`, and `trl` for SFTTrainer.

    class Weighted(WeightedLossMixin, Trainer): ...       # transformers.Trainer or trl.SFTTrainer

    Weighted(model=model, args=args, train_dataset=exact_prep.open(DIR)).train()

The mixin sets what must be set (collator, unused columns, scaling over accumulation and ranks) and refuses what would
let weights be lost or documents see each other. No formula lives here (torch/loss.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from exact_prep.errors import UsageError
from exact_prep.integrations.torch import (
    Collator,
    assert_documents_isolated,
    weighted_cross_entropy,
)
from exact_prep.integrations.torch import (
    denominator as denominator_of,
)
from exact_prep.integrations.torch.head import loss_at_head
from exact_prep.integrations.torch.loss import CHUNK
from exact_prep.reader.columns import IGNORED
from exact_prep.reader.rows import PackedDataset, open  # noqa: A004

if TYPE_CHECKING:
    from os import PathLike

    import datasets
    from torch import Tensor

PROBE = 128
"""Tokens per row of the batch that the isolation check runs on: two documents of 64 tokens."""


def hugging_face_dataset(path: str | PathLike[str] | PackedDataset) -> datasets.Dataset:
    """The dataset in `path` as a `datasets.Dataset` over the mapped shards, for trainers that take nothing else (TRL).

    Rows come as NumPy arrays; `loss_weights` as float32. Raises DatasetError as `exact_prep.open` does. An opened
    dataset keeps its order of rows and, if it is plain, its plain weights are NOT carried over: it is refused.
    """
    from datasets import Dataset, concatenate_datasets

    dataset = path if isinstance(path, PackedDataset) else open(path)
    if dataset.loaded_weights is None:
        raise UsageError("a datasets.Dataset reads the weights in the shards; for plain weights train on rows instead")
    parts = [Dataset.from_file(str(dataset.path / record.file)) for record in dataset.manifest.shards]
    whole = concatenate_datasets(parts).with_format("numpy")
    rows = dataset.rows
    return whole if isinstance(rows, range) and len(rows) == len(whole) else whole.select(rows)


class WeightedLossMixin:
    """Put in front of `transformers.Trainer` or `trl.SFTTrainer`: trains on `loss_weights`.

    loss = sum of weight * CE / denominator, summed over all microbatches and ranks of an optimizer step, and in
    evaluation over all batches and ranks. Before the first step it checks that the model isolates documents. Refused,
    each with its remedy: a collator without weights or with an attention mask, rows longer than the model's positions,
    label smoothing, `compute_loss_func` (it never sees weights), DataParallel, and sequence or tensor parallelism.
    """

    denominator: Literal["weights", "targets"] = "weights"
    """Divide by the sum of weights (the paper's loss) or by the number of supervised targets."""
    head_chunk: int | None = CHUNK
    """Targets per chunk of the loss at the output head: full logits are never made. None makes them."""
    loss_is_scaled_for_ga = True
    """Tells the Trainer not to divide by the accumulation steps again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; the collator is ours unless given."""
        if len(args) < 3:
            kwargs["data_collator"] = kwargs.get("data_collator") or Collator()
        arguments = args[1] if len(args) > 1 else kwargs.get("args")
        if hasattr(arguments, "dataset_kwargs"):
            _prepare_sft(arguments)
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.args.remove_unused_columns = False
        # Before loss_is_scaled_for_ga existed, this attribute told the same.
        trainer.model_accepts_loss_kwargs = True
        self._isolation_checked = False
        self._evaluated: list[Tensor] | None = None
        _refuse_what_loses_weights(trainer, self.head_chunk)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The microbatches of one optimizer step, and the denominator of its loss over all ranks."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if not samples:
            return samples, items
        for batch in samples:
            _check_batch(batch)
        counted = [
            batch["loss_weights"] if self.denominator == "weights" else batch["labels"] != IGNORED for batch in samples
        ]
        return samples, denominator_of([own.to(device) for own in counted])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The weighted loss of one microbatch, over the denominator of its optimizer step."""
        _check_batch(inputs)
        inputs = {**inputs, "use_cache": False}
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        training = model.training
        if training and not self._isolation_checked:
            _check_row_length(self.accelerator.unwrap_model(model), inputs)  # type: ignore[attr-defined]
            _check_isolation(model, inputs)
            self._isolation_checked = True
        counted = weights if self.denominator == "weights" else labels != IGNORED
        total = num_items_in_batch if training else None
        if total is None:
            total = counted[..., 1:].sum(dtype=torch.float32)
        if self.head_chunk is None or return_outputs:
            outputs = model(**inputs)
            loss = weighted_cross_entropy(outputs.logits, labels, weights, denominator=total)
        else:
            head = self.accelerator.unwrap_model(model).get_output_embeddings()  # type: ignore[attr-defined]
            with loss_at_head(head, labels, weights, denominator=total, chunk=self.head_chunk) as made:
                outputs = model(**inputs)
            loss = made.checked(outputs.logits)
        loss = loss + self._router_loss(outputs)
        if self._evaluated is not None:
            self._evaluated.append(torch.stack([loss.detach() * total, total]))
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the Trainer's, but the loss is over all batches together; the Trainer's is a mean of their means."""
        trainer, accelerator = super(), self.accelerator  # type: ignore[attr-defined]
        self._evaluated = [torch.zeros(2, device=accelerator.device)]
        output = trainer.evaluation_loop(  # type: ignore[misc]
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        loss, total = accelerator.reduce(torch.stack(self._evaluated).sum(0), reduction="sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / total if total else 0.0
        self._evaluated = None
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As the Trainer's; where only the loss is wanted, full logits are not made."""
        trainer: Any = super()
        if not prediction_loss_only:
            return trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            loss = self.compute_loss(model, self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        return loss.detach(), None, None

    def _router_loss(self, outputs: Any) -> Tensor | float:
        """The load-balancing loss of a mixture of experts, which the model leaves out when it gets no labels."""
        router = getattr(outputs, "aux_loss", None)
        trainer: Any = self
        if router is None:
            return 0.0
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        return trainer.model.config.get_text_config().router_aux_loss_coef * router / steps


def _prepare_sft(arguments: Any) -> None:
    """Keep TRL from tokenizing, packing or truncating packed rows; raises UsageError for options that would."""
    for option in ("packing", "eval_packing", "padding_free"):
        if getattr(arguments, option, False):
            raise UsageError(f"{option}=True packs again what is packed, and cuts documents; set {option}=False")
    arguments.dataset_kwargs = {**(arguments.dataset_kwargs or {}), "skip_prepare_dataset": True}


def _refuse_what_loses_weights(trainer: Any, head_chunk: int | None) -> None:
    """Raises UsageError for settings under which the weighted loss would be wrong."""
    config = getattr(trainer.accelerator, "parallelism_config", None)
    refused = {
        "label smoothing knows no weights; set label_smoothing_factor=0": trainer.label_smoother is not None,
        "compute_loss_func never sees the weights; leave it out": trainer.compute_loss_func is not None,
        "DataParallel splits batches within a step; start one process per GPU (torchrun, accelerate launch)": (
            trainer.args.n_gpu > 1
        ),
        "sequence, context and tensor parallelism split or repeat rows; use data parallelism or FSDP": (
            config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("cp", "sp", "tp"))
        ),
        "torch_compile compiles the head, where the chunked loss is computed; set head_chunk = None": (
            trainer.args.torch_compile and head_chunk is not None
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise UsageError(reason)


def _check_batch(batch: dict[str, Any]) -> None:
    """Raises UsageError for a batch without weights, or one whose documents the model would not tell apart."""
    missing = [name for name in ("labels", "loss_weights", "position_ids") if batch.get(name) is None]
    if missing:
        raise UsageError(
            f"the batch has no {', '.join(missing)}: use exact_prep.integrations.torch.Collator as data_collator"
        )
    if batch.get("attention_mask") is not None:
        raise UsageError(
            "the batch has an attention_mask: with one, models ignore position_ids and documents see each other; "
            "use exact_prep.integrations.torch.Collator as data_collator"
        )


def _check_row_length(model: Any, inputs: dict[str, Any]) -> None:
    """Raises UsageError for rows longer than the positions a model knows."""
    length = inputs["input_ids"].shape[1]
    config = getattr(model, "config", None)
    known = getattr(config and config.get_text_config(), "max_position_embeddings", None)
    if known is not None and length > known:
        raise UsageError(
            f"rows of {length:,} tokens, but the model knows {known:,} positions (max_position_embeddings): extend it "
            f"(rope scaling) and its config, or pack with --seq-len {known}"
        )


def _check_isolation(model: Any, inputs: dict[str, Any]) -> None:
    """Try on two documents per row, made of the batch's own tokens, that the model keeps them apart."""
    ids = inputs["input_ids"][:, :PROBE]
    positions = torch.arange(ids.shape[1], device=ids.device) % -(-ids.shape[1] // 2)
    batch = {"input_ids": ids, "position_ids": positions.expand_as(ids)}
    # Wrapped by DDP a model shows no config, and nothing else would know that it makes a cache.
    assert_documents_isolated(model, batch, forward=lambda own: model(**own, use_cache=False))
