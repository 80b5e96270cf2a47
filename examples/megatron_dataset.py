"""Megatron-LM: a GPTDataset that returns exported rows unchanged.

First run `exact-prep export DIR --to megatron --out OUT`. Then, in pretrain_gpt.py, pass PackedGPTDataset instead of
GPTDataset to BlendedMegatronDatasetBuilder, with --data-path OUT/data and the dataset's row length as --seq-length.
Train with --calculate-per-token-loss: without it, each microbatch is divided by its own int(sum of weights).
"""

import numpy
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset


class PackedGPTDataset(GPTDataset):
    """The rows of an export. Documents do not see each other; the weights are the loss mask."""

    @staticmethod
    def numel_low_level_dataset(low_level_dataset):
        return len(low_level_dataset.document_indices) - 1

    def _build_document_sample_shuffle_indices(self):
        wanted = self.num_samples or len(self.indices)
        rng = numpy.random.RandomState(self.config.random_seed)
        epochs = [rng.permutation(self.indices) for _ in range(-(-wanted // len(self.indices)))]
        rows = self.numel_low_level_dataset(self.dataset)
        self.weights = numpy.memmap(f"{self.dataset_path}_loss_weights.bin", numpy.float16, "r").reshape(rows, -1)
        if self.weights.shape[1] != self.config.sequence_length:
            raise ValueError(f"rows have {self.weights.shape[1]} tokens: train with this --seq-length")
        return None, numpy.arange(wanted + 1), numpy.concatenate(epochs)[:wanted]

    def __getitem__(self, idx):
        row = self.shuffle_index[idx or 0]
        first, last = self.dataset.document_indices[row : row + 2]
        segments = [torch.from_numpy(self.dataset[i].astype(numpy.int64)) for i in range(first, last)]
        number = torch.cat([torch.full((len(own),), i) for i, own in enumerate(segments)])
        tokens = torch.cat(segments)
        loss_mask = torch.from_numpy(self.weights[row].astype(numpy.float32))
        sample = {
            "tokens": tokens,
            "labels": torch.roll(tokens, -1),
            "loss_mask": loss_mask if idx is not None else torch.zeros_like(loss_mask),
            "position_ids": torch.cat([torch.arange(len(own)) for own in segments]),
        }
        if self.config.create_attention_mask:
            sample["attention_mask"] = ~(number[:, None] == number).tril()[None]
        return sample
