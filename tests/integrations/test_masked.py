"""Prompts without loss, in every trainer: gradients are those of the targets that carry loss, and of no others."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import bigram_oracle, framework
from test_jax import bigram_loss, table
from test_lightning import moved
from test_megatron import build
from test_transformers import (
    WeightedLossMixin,
    WeightedTrainer,
    arguments,
    assert_trains_as,
    hugging_face_dataset,
    tiny_model,
    tokenizer,
)
from torch_models import Bigram

import exact_prep
from exact_prep.integrations.jax import collate
from exact_prep.integrations.torch import Collator, weighted_cross_entropy
from exact_prep.pipeline.export import export

torch = framework("torch")


@pytest.fixture(scope="module")
def rows(masked):
    path, _ = masked
    chosen = exact_prep.open(path)[:4]
    assert any(int((row.loss_weights == 0).sum()) > len(row.seq_lengths) + 8 for row in chosen), "something is masked"
    return chosen


def test_the_oracle_sees_the_masks(masked, rows):
    _, file = masked
    with_masks, _ = bigram_oracle(Bigram().table.tolist(), rows, file)
    without, _ = bigram_oracle(Bigram().table.tolist(), rows, file | {"masked": False})
    assert with_masks != pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_torch(masked, rows, align):
    model, batch = Bigram(), Collator(align=align)(list(rows))
    logits = model(batch["input_ids"])
    loss = weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"], align=align)
    loss.backward()
    want, gradient = bigram_oracle(model.table.tolist(), rows, masked[1])
    assert loss.item() == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(model.table.grad, torch.tensor(gradient), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("chunk", [None, 10])
def test_transformers(masked, rows, tmp_path, chunk):
    trainer = WeightedTrainer(tiny_model(), arguments(tmp_path), train_dataset=rows)
    trainer.head_chunk = chunk
    assert_trains_as(trainer, rows, masked[1])


# TRL passes arguments that Transformers renames.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_trl(masked, rows, tmp_path):
    trl = framework("trl")

    class WeightedSFTTrainer(WeightedLossMixin, trl.SFTTrainer):
        """As in the README."""

    asked = arguments(tmp_path, trl.SFTConfig, max_length=16)
    theirs = hugging_face_dataset(rows)
    trainer = WeightedSFTTrainer(tiny_model(), asked, train_dataset=theirs, processing_class=tokenizer())
    assert_trains_as(trainer, rows, masked[1])


@pytest.mark.filterwarnings("ignore")
def test_lightning(masked, rows, tmp_path):
    path, file = masked
    whole = exact_prep.open(path)
    _, gradient = bigram_oracle(Bigram().table.tolist(), rows, file)
    scale = sum(float(row.loss_weights.astype("f8").sum()) for row in rows) / (4 * whole.weight_per_row)
    got = moved(rows, whole.weight_per_row, 2, tmp_path)
    torch.testing.assert_close(got, torch.tensor(gradient) * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_jax(masked, rows, align):
    jax = framework("jax")
    batch = collate(list(rows), align=align)
    loss, gradient = jax.value_and_grad(bigram_loss)(table(), batch, align)
    want, want_gradient = bigram_oracle(table().tolist(), rows, masked[1])
    assert float(loss) == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_megatron(masked, rows, tmp_path):
    path, file = masked
    export(path, "megatron", tmp_path / "out")
    train = build(tmp_path / "out" / "data", len(exact_prep.open(path)))
    by_row = {tuple(sample["tokens"].tolist()): sample for sample in (train[i] for i in range(len(train)))}
    batch = torch.utils.data.default_collate([by_row[tuple(row.input_ids.tolist())] for row in rows])
    model = Bigram()
    logits = model(batch["tokens"]).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
    loss = (losses * batch["loss_mask"].view(-1)).sum() / batch["loss_mask"].sum()
    loss.backward()
    want, gradient = bigram_oracle(model.table.tolist(), rows, file)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(model.table.grad, torch.tensor(gradient), rtol=1e-4, atol=1e-7)
