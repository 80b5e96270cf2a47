"""Lightning: python lightning_module.py DIR [STEPS].

Lightning averages losses over accumulated batches and ranks. If each batch were divided by its own sum of weights, a
batch of short documents would count as much as one of long documents. So every batch is divided by the average sum of
weights of a batch.
"""

import sys

import lightning
import torch
from tiny_model import TinyDecoder

import exact_prep
from exact_prep.integrations.torch import BatchPolicy, ContextWatch, Loader, weighted_cross_entropy


class Weighted(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module, weight_per_row: float, watch: ContextWatch | None = None) -> None:
        super().__init__()
        self.model, self.weight_per_row, self.watch = model, weight_per_row, watch

    def training_step(self, batch, index):
        logits = self.model(batch["input_ids"], batch["position_ids"])
        loss = weighted_cross_entropy(
            logits,
            batch["labels"],
            batch["loss_weights"],
            denominator=len(logits) * self.weight_per_row,
            observe=self.watch and self.watch.on(batch),
        )
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs, batch, index):
        if self.watch and (self.global_step % self.trainer.log_every_n_steps == 0 or self.trainer.is_last_batch):
            self.log_dict(self.watch.read())  # loss by effective context, and the tail's share; the same on all ranks

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(directory: str, steps: int = 3) -> None:
    lightning.seed_everything(0)
    dataset = exact_prep.open(directory)
    model = TinyDecoder(dataset.manifest.tokenizer.vocab_size, dataset.seq_len)
    # The loader's state is in Lightning's checkpoints; a resumed run continues with the next batch.
    loader = Loader(dataset, BatchPolicy(batch_size=2, seed=0))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(Weighted(model, dataset.weight_per_row, ContextWatch(dataset)), loader)
    print(f"step {steps - 1}: loss {trainer.callback_metrics['loss']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
