"""Tokens/s and memory of the Trainer on long rows, plain against weighted: python trainer_long_rows.py DIR [DIR ...].

Pack and weigh first, once per row length:
    exact-prep pack corpus/ --tokenizer tokenizer.json --seq-len 32k --seq-len 128k -o long
    exact-prep weigh long/32768 && exact-prep weigh long/131072
    python tests/benchmarks/trainer_long_rows.py long/32768 long/131072 --attention flash_attention_2
`--attention varlen` takes torch's own kernel, where the flash-attn package is not installed. A random model of 0.5B
parameters (Qwen2 shape), one row per step. Each kind runs in a process of its own, in turns; the medians of steps after
the third count. On a CPU use --attention sdpa --layers 2 --width 64 and short rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

KINDS = ("plain", "weighted")


def register_varlen() -> None:
    """Give transformers torch's own variable-length attention, under the name `varlen`."""
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface, AttentionMaskInterface

    # torch 2.10 says that it is causal in another way than the releases after it.
    causal = {"window_size": (-1, 0)} if "window_size" in signature(varlen_attn).parameters else {"is_causal": True}

    def attend(module, query, key, value, attention_mask, *, cu_seq_lens_q, max_length_q, scaling=None, **kwargs):
        # The heads of keys and values are repeated: not every torch that has the kernel groups them.
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
        query, key, value = (one.squeeze(0).transpose(0, 1).contiguous() for one in (query, key, value))
        splits, longest = cu_seq_lens_q, int(max_length_q)
        out = varlen_attn(query, key, value, splits, splits, longest, longest, scale=scaling, **causal)
        return out.unsqueeze(0), None

    AttentionInterface.register("varlen", attend)
    AttentionMaskInterface.register("varlen", lambda *args, **kwargs: None)


def measure(directory: str, kind: str, steps: int, attention: str, layers: int, width: int) -> dict[str, float]:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    import exact_prep
    from exact_prep.integrations.torch import Collator
    from exact_prep.integrations.transformers import WeightedLossMixin

    class Weighted(WeightedLossMixin, Trainer):
        """As in the README."""

    class Clock(TrainerCallback):
        times: list[float] = []

        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def without_weights(rows):
        batch = Collator(flatten="flash" in attention or "varlen" in attention)(rows)
        del batch["loss_weights"]
        return batch

    if attention == "varlen":
        register_varlen()
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    dataset = exact_prep.open(directory, plain=kind == "plain")
    heads = max(width // 64, 1)
    config = Qwen2Config(
        vocab_size=dataset.manifest.tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=width * 38 // 7,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 7, 1),
        max_position_embeddings=dataset.seq_len,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = Qwen2ForCausalLM._from_config(
        config, attn_implementation=attention, dtype=torch.bfloat16 if gpu else torch.float32
    )
    asked = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_checkpointing=gpu,
        bf16=gpu,
        use_cpu=not gpu,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    rows = dataset.select([number % len(dataset) for number in range(steps)])
    given = {"model": model, "args": asked, "train_dataset": rows, "callbacks": [Clock()]}
    trainer = Trainer(**given, data_collator=without_weights) if kind == "plain" else Weighted(**given)
    trainer.train()
    spent = [after - before for before, after in zip(Clock.times[2:], Clock.times[3:], strict=False)]
    return {
        "parameters": sum(own.numel() for own in model.parameters()),
        "tokens_per_s": dataset.seq_len / statistics.median(spent),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attention", default="flash_attention_2")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--kind", choices=KINDS)
    asked = parser.parse_args()
    for directory in asked.directories:
        if asked.kind:
            print(json.dumps(measure(directory, asked.kind, asked.steps, asked.attention, asked.layers, asked.width)))
            continue
        found = {}
        for kind in KINDS:
            options = ["--steps", asked.steps, "--attention", asked.attention, "--layers", asked.layers]
            command = [sys.executable, __file__, directory, "--kind", kind, *options, "--width", asked.width]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{kind}: {done.stderr}")
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(directory, kind, *(f"{name} {value:,.2f}" for name, value in found[kind].items()))
        ratio = found["weighted"]["tokens_per_s"] / found["plain"]["tokens_per_s"]
        print(f"{directory}: weighted runs at {ratio:.3f} of the speed of plain")


if __name__ == "__main__":
    main()
