"""Weights for data that `exact-prep measure` read, in the datasets of their own trainers: a table by position.

    exact-prep measure megatron data/web_text_document --seq-len 8k -o found && exact-prep weigh found

No token is copied. Each class or function gives weights that are aligned with the labels of a sample.
"""

from __future__ import annotations

import torch

import exact_prep


def weigh_gpt_dataset(base: type, directory: str) -> type:
    """Megatron's GPTDataset with weights in its `loss_mask`; train with --calculate-per-token-loss.

    Needs --reset-position-ids and --reset-attention-mask: by EOD they keep documents apart.
    """
    weights = exact_prep.load_weights(directory)

    class WeightedGPTDataset(base):
        def __getitem__(self, index: int | None) -> dict[str, torch.Tensor]:
            sample = super().__getitem__(index)
            if not (self.config.reset_position_ids and self.config.reset_attention_mask):
                raise ValueError("documents see each other: set --reset-position-ids --reset-attention-mask")
            ends = sample["tokens"] == self.config.tokenizer.eod
            own = torch.from_numpy(weights.of_predictions(sample["position_ids"].numpy(), ends.numpy()))
            return sample | {"loss_mask": sample["loss_mask"] * own}

    return WeightedGPTDataset


def weigh_windows(positions: torch.Tensor, directory: str) -> torch.Tensor:
    """For datatrove's windows of L + 1 tokens (nanotron): weights of the labels `input_ids[1:]`, float32[L].

    `positions[L + 1]` are those that the dataset gives with `return_positions=True`.
    """
    return torch.from_numpy(exact_prep.load_weights(directory).of_positions(positions[1:].numpy()))


def weigh_rows(doc_lens: torch.Tensor, directory: str) -> torch.Tensor:
    """For OLMo-core's rows (`generate_doc_lengths=True`): weights of the labels `input_ids[1:]`, float32[L - 1]."""
    return torch.from_numpy(exact_prep.load_weights(directory).of_lengths(doc_lens.numpy())[1:])
