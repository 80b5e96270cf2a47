"""The weighted loss inside the Hugging Face Trainer. Formulas are in torch/loss.py, what is refused in checks.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from exact_prep.integrations.torch import Collator, ContextWatch, weighted_cross_entropy
from exact_prep.integrations.torch import denominator as step_denominator
from exact_prep.integrations.torch.head import loss_at_head
from exact_prep.integrations.torch.loss import CHUNK
from exact_prep.integrations.transformers.checks import (
    check_batch,
    check_isolation,
    check_loss_options,
    check_row_length,
    check_settings,
    count_rows,
    prepare_sft,
    reads_edges,
    warn_of_mask,
)
from exact_prep.reader.columns import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


ROWS = "exact_prep_rows"
"""Of a flattened batch: how many rows it has; taken out before the model sees it."""


def flatten_rows(rows: list[Any]) -> dict[str, Any]:
    """`Collator(flatten=True)`, and how many rows there are."""
    return {**Collator(flatten=True)(rows), ROWS: len(rows)}


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
    watch: ContextWatch | None = None
    """If set, what is logged during training has the loss by effective context and the tail's share of supervision."""
    loss_is_scaled_for_ga = True
    """Tells the Trainer not to divide by the accumulation steps again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; the default collator is `Collator()`, or for variable-length attention `flatten_rows`."""
        chosen = len(args) > 2 or kwargs.get("data_collator") is not None
        if not chosen:
            kwargs["data_collator"] = Collator()
        arguments = args[1] if len(args) > 1 else kwargs.get("args")
        check_loss_options(arguments)
        if hasattr(arguments, "dataset_kwargs"):
            prepare_sft(arguments)
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if not chosen and reads_edges(trainer.model):
            trainer.data_collator = flatten_rows
        trainer.args.remove_unused_columns = False
        # Older versions of transformers have this attribute instead of loss_is_scaled_for_ga.
        trainer.model_accepts_loss_kwargs = True
        self._isolation_checked = False
        self._evaluated: list[Tensor] | None = None
        check_settings(trainer, self.head_chunk)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The microbatches of one optimizer step, and the denominator of its loss over all ranks."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if not samples:
            return samples, items
        for batch in samples:
            check_batch(batch)
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
        check_batch(inputs)
        inputs = {**inputs, "use_cache": False}
        rows = inputs.pop(ROWS, None) or len(inputs["labels"])
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        if self._evaluated is not None:
            own = count_rows(self.accelerator, rows)  # type: ignore[attr-defined]
            labels, weights = labels.clone(), weights.clone()
            labels.view(rows, -1)[own:], weights.view(rows, -1)[own:] = IGNORED, 0.0
        training = model.training
        if training and not self._isolation_checked:
            check_row_length(self.accelerator.unwrap_model(model), weights.numel() // rows)  # type: ignore[attr-defined]
            warn_of_mask(self.accelerator.unwrap_model(model), inputs)  # type: ignore[attr-defined]
            check_isolation(model, inputs)
            self._isolation_checked = True
        counted = weights if self.denominator == "weights" else labels != IGNORED
        total = num_items_in_batch if training else None
        if total is None:
            total = counted[..., 1:].sum(dtype=torch.float32)
        observe = self.watch.on(inputs) if self.watch is not None and training else None
        if self.head_chunk is None or return_outputs:
            outputs = model(**inputs)
            loss = weighted_cross_entropy(outputs.logits, labels, weights, denominator=total, observe=observe)
        else:
            head = self.accelerator.unwrap_model(model).get_output_embeddings()  # type: ignore[attr-defined]
            with loss_at_head(head, labels, weights, denominator=total, chunk=self.head_chunk, observe=observe) as made:
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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the means of `watch` since training was last logged. Every rank logs."""
        if self.watch is not None and "loss" in logs:
            logs = {**logs, **self.watch.read()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _router_loss(self, outputs: Any) -> Tensor | float:
        """The load-balancing loss of a mixture of experts; a model that gets no labels does not add it itself."""
        router = getattr(outputs, "aux_loss", None)
        trainer: Any = self
        if router is None:
            return 0.0
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        return trainer.model.config.get_text_config().router_aux_loss_coef * router / steps
