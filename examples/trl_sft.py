"""TRL's SFTTrainer: python trl_sft.py DIR [STEPS]. The tokenizer is the one that the dataset keeps."""

import sys
import tempfile

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import exact_prep
from exact_prep.integrations.transformers import WeightedLossMixin, hugging_face_dataset


class WeightedSFTTrainer(WeightedLossMixin, SFTTrainer):
    pass


def main(directory: str, steps: int = 3) -> None:
    manifest = exact_prep.open(directory).manifest
    tokenizer = AutoTokenizer.from_pretrained(f"{directory}/tokenizer")
    config = LlamaConfig(
        vocab_size=manifest.tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=manifest.seq_len,
        eos_token_id=manifest.tokenizer.eos_id,
    )
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    WeightedSFTTrainer(
        model=LlamaForCausalLM(config),
        args=arguments,
        train_dataset=hugging_face_dataset(directory),
        processing_class=tokenizer,
    ).train()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
