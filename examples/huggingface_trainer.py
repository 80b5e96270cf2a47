"""Hugging Face Trainer: python huggingface_trainer.py DIR [STEPS]."""

import sys
import tempfile

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import exact_prep
from exact_prep.integrations.transformers import WeightedLossMixin


class WeightedTrainer(WeightedLossMixin, Trainer):
    pass


def main(directory: str, steps: int = 3) -> None:
    dataset = exact_prep.open(directory)
    config = LlamaConfig(
        vocab_size=dataset.manifest.tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=dataset.seq_len,
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    WeightedTrainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=dataset).train()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
