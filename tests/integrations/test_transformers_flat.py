"""Laws of the mixin with variable-length attention: batches are one sequence, and edges alone isolate documents."""

from __future__ import annotations

import itertools

import pytest
from oracle import framework

torch = framework("torch")
transformers = framework("transformers")

from test_transformers import (  # noqa: E402
    WeightedTrainer,
    arguments,
    assert_trains_as,
    oracle_evaluation,
    tiny_model,
)

from exact_prep.errors import UsageError  # noqa: E402
from exact_prep.integrations.torch import Collator  # noqa: E402
from exact_prep.integrations.transformers import checks  # noqa: E402


def attend_within_edges(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention that knows documents by cu_seq_lens alone, as FlashAttention's kernels do; causal over all without."""
    edges = kwargs.get("cu_seq_lens_q")
    cuts = [0, query.shape[2]] if edges is None else edges.tolist()
    made = [
        torch.nn.functional.scaled_dot_product_attention(
            *(own[:, :, start:stop] for own in (query, key, value)), is_causal=True, scale=scaling
        )
        for start, stop in itertools.pairwise(cuts)
    ]
    return torch.cat(made, 2).transpose(1, 2), None


transformers.AttentionInterface.register("varlen_by_hand", attend_within_edges)


def varlen_model():
    return tiny_model(attn_implementation="varlen_by_hand")


@pytest.mark.parametrize("steps", [1, 2])
def test_flattened_rows_train_as_their_documents_alone(dataset, weights_file, tmp_path, steps):
    rows = dataset[:4]
    asked = arguments(tmp_path, per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps)
    trainer = WeightedTrainer(varlen_model(), asked, train_dataset=rows, eval_dataset=rows)
    # The oracle gives one document at a time, without edges: the same attention, causal over all.
    assert_trains_as(trainer, rows, weights_file)


@pytest.mark.parametrize("size", [1, 3])
def test_flattened_rows_are_evaluated_as_documents_alone(dataset, weights_file, tmp_path, size):
    rows = dataset[:5]
    asked = arguments(tmp_path, per_device_eval_batch_size=size)
    trainer = WeightedTrainer(varlen_model(), asked, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(oracle_evaluation(rows, weights_file)["weights"], rel=1e-5)


def test_rows_that_are_not_flattened_would_leak_and_are_refused(two_rows, tmp_path):
    asked = arguments(tmp_path)
    trainer = WeightedTrainer(varlen_model(), asked, train_dataset=two_rows, data_collator=Collator())
    with pytest.raises(UsageError, match="see each other"):
        trainer.train()


def test_a_flattened_batch_is_no_longer_row_to_the_model(dataset, weights_file, tmp_path):
    model = varlen_model()
    model.config.max_position_embeddings = 64
    assert_trains_as(WeightedTrainer(model, arguments(tmp_path), train_dataset=dataset[:4]), dataset[:4], weights_file)
    model.config.max_position_embeddings = 32
    with pytest.raises(UsageError, match="rows of 64 tokens, but the model knows 32"):
        WeightedTrainer(model, arguments(tmp_path), train_dataset=dataset[:4]).train()


def test_the_memory_of_a_mask_is_told_before_it_is_made():
    ids = torch.zeros(1, 1, dtype=torch.int64).expand(1, 131_072)
    with pytest.warns(UserWarning, match="1 x 131,072 x 131,072: 17.2 GB as booleans"):
        checks.warn_of_mask(tiny_model(attn_implementation="sdpa"), {"input_ids": ids})
    checks.warn_of_mask(varlen_model(), {"input_ids": ids})
    checks.warn_of_mask(tiny_model(), {"input_ids": ids[:, :4096]})
