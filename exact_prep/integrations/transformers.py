"""Weighted training with the Hugging Face Trainer and TRL. Needs `transformers`, and `trl` for SFTTrainer.

    class Weighted(WeightedLossMixin, Trainer): ...       # transformers.Trainer or trl.SFTTrainer

    Weighted(model=model, args=args, train_dataset=exact_prep.open(DIR)).train()

The mixin sets what the weighted loss needs (collator, unused columns, scaling over accumulation and ranks). It refuses
settings with which weights would be lost or documents would see each other. The formulas are in torch/loss.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from exact_prep.errors import UsageError
from exact_prep.integrations.torch import (
    Collator,
    assert_documents_isolated,
    weighted_cross_entropy,
)
from exact_prep.integrations.torch import (
    denominator as step_denominator,
)
from exact_prep.integrations.torch.head import loss_at_head
from exact_prep.integrations.torch.loss import CHUNK
from exact_prep.reader.columns import IGNORED, position_ids
from exact_prep.reader.rows import PackedDataset, open  # noqa: A004

if TYPE_CHECKING:
    from os import PathLike

    import datasets
    from torch import Tensor

PROBE = 128
"""Tokens per row of the batch that the isolation check runs on: two documents of 64 tokens."""


def hugging_face_dataset(path: str | PathLike[str] | PackedDataset) -> datasets.Dataset:
    """The dataset in `path` as a `datasets.Dataset` over the mapped shards, for trainers that accept only that (TRL).

    Rows are NumPy arrays; `loss_weights` is float32. An opened dataset keeps its order of rows and its weights: plain
    ones, a table given to `exact_prep.open`, and those of a dataset that stores none are computed as rows are read.
    Raises DatasetError as `exact_prep.open` does.
    """
    from datasets import Dataset, concatenate_datasets

    dataset = path if isinstance(path, PackedDataset) else open(path)
    parts = [Dataset.from_file(str(dataset.path / record.file)) for record in dataset.files.shards]
    whole = concatenate_datasets(parts)
    rows = dataset.rows
    if not (isinstance(rows, range) and rows == range(len(whole))):
        whole = whole.select(rows)
    if dataset.has_stored_weights:
        return whole.with_format("numpy")
    if "loss_weights" in whole.column_names:
        whole = whole.remove_columns("loss_weights")  # other weights, which a view of some columns would show
    return whole.with_transform(ComputedWeights(*dataset.runs, dataset.seq_len, masked=dataset.manifest.masked))


class ComputedWeights:
    """Gives rows of a `datasets.Dataset` weights from a table."""

    def __init__(self, edges: np.ndarray, bits: np.ndarray, seq_len: int, *, masked: bool) -> None:
        """The table as runs by position: `edges[K + 1]`, float16 bit patterns `bits[K]`."""
        self._lut = np.repeat(bits.view(np.float16).astype(np.float32), np.diff(edges))
        self._seq_len = seq_len
        self._needed = {"seq_lengths", "masked_runs"} if masked else {"seq_lengths"}

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[np.ndarray]]:
        """The columns of some rows as arrays, with loss_weights float32[L]; without, if a column they need is not read.

        The collator refuses rows without weights.
        """
        columns = {name: [np.asarray(value) for value in values] for name, values in batch.items()}
        if not self._needed <= columns.keys():
            return columns
        columns["loss_weights"] = [self._weigh(lengths) for lengths in columns["seq_lengths"]]
        if "masked_runs" in columns:
            for weights, runs in zip(columns["loss_weights"], columns["masked_runs"], strict=True):
                for start, stop in runs.astype(np.int64).reshape(-1, 2).tolist():
                    weights[start:stop] = 0
        return columns

    def _weigh(self, lengths: np.ndarray) -> np.ndarray:
        weights = self._lut[position_ids(lengths, self._seq_len)]
        weights[int(lengths.sum()) :] = 0
        return weights


class WeightedLossMixin:
    """Trains on `loss_weights`: a mixin to put before `transformers.Trainer` or `trl.SFTTrainer`.

    loss = sum of weight * CE / denominator, summed over all microbatches and ranks of an optimizer step, and in
    evaluation over all batches and ranks. Before the first step, it checks that the model isolates documents. It raises
    UsageError, with a remedy, for: a collator without weights or with an attention mask, rows longer than the model's
    positions, every option that replaces the loss (label smoothing, Liger's fused loss, TRL's loss types),
    `compute_loss_func` (it never sees weights), DataParallel, and sequence or tensor parallelism.
    """

    denominator: Literal["weights", "targets"] = "weights"
    """Divide by the sum of weights (the paper's loss) or by the number of supervised targets."""
    head_chunk: int | None = CHUNK
    """Targets per chunk of the loss at the output head, so that full logits are never made. None: use full logits."""
    loss_is_scaled_for_ga = True
    """Tells the Trainer not to divide by the accumulation steps again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; the default collator is `Collator()`."""
        if len(args) < 3:
            kwargs["data_collator"] = kwargs.get("data_collator") or Collator()
        arguments = args[1] if len(args) > 1 else kwargs.get("args")
        _check_loss_options(arguments)
        if hasattr(arguments, "dataset_kwargs"):
            _prepare_sft(arguments)
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.args.remove_unused_columns = False
        # Older versions of transformers have this attribute instead of loss_is_scaled_for_ga.
        trainer.model_accepts_loss_kwargs = True
        self._isolation_checked = False
        self._evaluated: list[Tensor] | None = None
        _check_settings(trainer, self.head_chunk)

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
        return samples, step_denominator([own.to(device) for own in counted])

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
        if self._evaluated is not None:
            own = _rows_to_count(self.accelerator, len(labels))  # type: ignore[attr-defined]
            labels, weights = labels.clone(), weights.clone()
            labels[own:], weights[own:] = IGNORED, 0.0
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
            loss = made.checked_loss(outputs.logits)
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
        """As the Trainer's, but the loss is over all batches together; the Trainer's is a mean over batches."""
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
        """As the Trainer's; if only the loss is wanted, full logits are not made."""
        trainer: Any = super()
        if not prediction_loss_only:
            return trainer.prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            loss = self.compute_loss(model, self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        return loss.detach(), None, None

    def _router_loss(self, outputs: Any) -> Tensor | float:
        """The load-balancing loss of a mixture of experts; a model that gets no labels does not add it itself."""
        router = getattr(outputs, "aux_loss", None)
        trainer: Any = self
        if router is None:
            return 0.0
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        return trainer.model.config.get_text_config().router_aux_loss_coef * router / steps


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


def _check_loss_options(arguments: Any) -> None:
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


def _rows_to_count(accelerator: Any, rows: int) -> int:
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


def _prepare_sft(arguments: Any) -> None:
    """Stop TRL from tokenizing, packing or truncating packed rows; raises UsageError for options that would."""
    for option in ("packing", "eval_packing", "padding_free"):
        if getattr(arguments, option, False):
            raise UsageError(f"{option}=True packs the packed rows again and cuts documents; set {option}=False")
    arguments.dataset_kwargs = {**(arguments.dataset_kwargs or {}), "skip_prepare_dataset": True}


def _check_settings(trainer: Any, head_chunk: int | None) -> None:
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


def _check_batch(batch: dict[str, Any]) -> None:
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


def _check_row_length(model: Any, inputs: dict[str, Any]) -> None:
    """Raises UsageError for rows with more positions than the model knows."""
    length = inputs["input_ids"].shape[1]
    config = getattr(model, "config", None)
    known = getattr(config and config.get_text_config(), "max_position_embeddings", None)
    if known is not None and length > known:
        raise UsageError(
            f"rows of {length:,} tokens, but the model knows {known:,} positions (max_position_embeddings); extend the "
            f"model (rope scaling) and its config, or pack with --seq-len {known}"
        )


def _check_isolation(model: Any, inputs: dict[str, Any]) -> None:
    """Check that the model isolates documents, on two documents per row made from the batch's own tokens."""
    ids = inputs["input_ids"][:, :PROBE]
    positions = torch.arange(ids.shape[1], device=ids.device) % -(-ids.shape[1] // 2)
    batch = {"input_ids": ids, "position_ids": positions.expand_as(ids)}
    # Explicit use_cache=False, because a model wrapped by DDP has no config attribute to detect the cache by.
    assert_documents_isolated(model, batch, forward=lambda own: model(**own, use_cache=False))
