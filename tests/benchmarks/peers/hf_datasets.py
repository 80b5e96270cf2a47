"""datasets: `map` to ids, `map` to blocks (group_texts of the language-modelling examples), `save_to_disk`."""

import json
import os
import sys
from itertools import chain
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
from tokenizers import Tokenizer

source, tokenizer_file, out = sys.argv[1:4]
workers, seq_len = map(int, sys.argv[4:6])


def encode(batch):
    tokenizer = Tokenizer.from_file(tokenizer_file)
    return {"input_ids": [e.ids for e in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}


def group_texts(batch):
    ids = list(chain.from_iterable(batch["input_ids"]))
    total = len(ids) // seq_len * seq_len
    return {"input_ids": [ids[i : i + seq_len] for i in range(0, total, seq_len)]}


if __name__ == "__main__":
    files = sorted(map(str, Path(source).glob("*.jsonl")))
    raw = datasets.load_dataset("json", data_files=files, split="train", cache_dir=f"{out}/cache")
    encoded = raw.map(encode, batched=True, num_proc=workers, remove_columns=raw.column_names)
    grouped = encoded.map(group_texts, batched=True, num_proc=workers)
    grouped.save_to_disk(f"{out}/packed", num_proc=workers)
    print(json.dumps({"tokens": len(grouped) * seq_len}))
