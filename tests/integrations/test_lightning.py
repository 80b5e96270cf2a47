"""Laws of the Lightning route in examples/lightning_module.py: the oracle's gradient, however rows are split."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from oracle import bigram_oracle, framework

import exact_prep

torch = framework("torch")
lightning = framework("lightning")

from torch_models import Bigram  # noqa: E402

from exact_prep.integrations.torch import BatchPolicy, Collator, ContextWatch, Loader  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from lightning_module import Weighted  # noqa: E402


class Sgd(Weighted):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def moved(rows, per_row, steps, path):
    """By how much one optimizer step over `rows`, in `steps` microbatches, moves the bigram table."""
    module = Sgd(Bigram(), per_row)
    before = module.model.table.detach().clone()
    loader = torch.utils.data.DataLoader(rows, batch_size=len(rows) // steps, collate_fn=Collator())
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    trainer.fit(module, loader)
    return before - module.model.table.detach()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulation_gives_the_oracle_s_gradient_over_a_constant(dataset, weights_file, tmp_path, steps):
    rows = dataset[:4]
    _, gradient = bigram_oracle(Bigram().table.tolist(), rows, weights_file)
    weights = sum(float(row.loss_weights.astype("f8").sum()) for row in rows)
    scale = weights / (4 * dataset.weight_per_row)
    got = moved(rows, dataset.weight_per_row, steps, tmp_path)
    torch.testing.assert_close(got, torch.tensor(gradient) * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_gradient_is_the_oracle_s_wherever_weights_are(weighed, tmp_path):
    directory, table, file = weighed
    whole = exact_prep.open(directory, weights=table)
    rows = whole[:4]
    _, gradient = bigram_oracle(Bigram().table.tolist(), rows, file)
    weights = sum(float(row.loss_weights.astype("f8").sum()) for row in rows)
    got = moved(rows, whole.weight_per_row, 2, tmp_path)
    scale = weights / (4 * whole.weight_per_row)
    torch.testing.assert_close(got, torch.tensor(gradient) * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_uniform_weights_are_lightning_s_own_loss(directory, tmp_path):
    plain = exact_prep.open(directory, plain=True)

    class Own(Sgd):
        def training_step(self, batch, index):
            logits = self.model(batch["input_ids"])
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    rows = plain[:4]
    targets = sum(int((row.labels() != -100).sum()) for row in rows)
    ours = moved(rows, targets / 4, 1, tmp_path)
    module = Own(Bigram(), 1.0)
    before = module.model.table.detach().clone()
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).fit(module, torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=Collator()))
    torch.testing.assert_close(ours, before - module.model.table.detach(), rtol=1e-4, atol=1e-7)


def test_weight_per_row_is_the_mean_over_the_corpus(weighed, directory):
    path, table, _ = weighed
    dataset = exact_prep.open(path, weights=table)
    sums = [float(row.loss_weights.astype("f8").sum()) for row in dataset]
    assert dataset.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-9)
    plain = exact_prep.open(directory, plain=True)
    assert plain.weight_per_row == pytest.approx(sum(float(row.loss_weights.sum()) for row in plain) / len(plain))


def read_by_lightning(module, loader, path, steps, checkpoint=None):
    """The rows that Lightning trained on, up to `steps`; the run leaves a checkpoint."""
    seen = []

    class Watched(module):
        def training_step(self, batch, index):
            seen.extend(batch["input_ids"][:, :8].tolist())
            return super().training_step(batch, index)

    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    trainer.fit(Watched(Bigram(), 1.0), loader, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(path / "last.ckpt")
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("epochs", "stop"), [(None, 3), (None, 5), (None, 8), (2, 3), (2, 8)])
def test_a_resumed_run_continues_with_the_next_batch(dataset, tmp_path, epochs, stop):
    # 17 rows, 4 a batch: without epochs, an epoch of Lightning ends after 5 batches; with two, the only one after 9.
    rows, policy = dataset[:17], BatchPolicy(batch_size=4, seed=5, epochs=epochs)
    last = 9 if epochs else 12
    want = [row for batch in itertools.islice(Loader(rows, policy), last) for row in batch["input_ids"][:, :8].tolist()]
    assert read_by_lightning(Sgd, Loader(rows, policy), tmp_path, stop) == want[: 4 * stop]
    rest = read_by_lightning(Sgd, Loader(rows, policy), tmp_path, last, tmp_path / "last.ckpt")
    assert rest == want[4 * stop :]


@pytest.mark.filterwarnings("ignore")
def test_the_loss_by_context_is_logged(dataset, tmp_path):
    module = Sgd(Bigram(), 1.0, ContextWatch(dataset))
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(module, torch.utils.data.DataLoader(dataset[:4], batch_size=4, collate_fn=Collator()))
    logged = trainer.callback_metrics
    share = sum(float(row.loss_weights[row.position_ids >= 16].astype("f8").sum()) for row in dataset[:4])
    whole = sum(float(row.loss_weights.astype("f8").sum()) for row in dataset[:4])
    assert float(logged["tail share"]) == pytest.approx(share / whole, rel=1e-5)
    assert float(logged["loss/context 32-63"]) > 1
