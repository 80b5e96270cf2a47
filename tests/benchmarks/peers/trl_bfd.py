"""TRL: `datasets.map` to ids, `pack_dataset` with its default strategy (bfd), `save_to_disk`."""

import json
import os
import sys
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
from tokenizers import Tokenizer
from trl import pack_dataset

source, tokenizer_file, out = sys.argv[1:4]
workers, seq_len = map(int, sys.argv[4:6])


def encode(batch):
    tokenizer = Tokenizer.from_file(tokenizer_file)
    return {"input_ids": [e.ids for e in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}


if __name__ == "__main__":
    files = sorted(map(str, Path(source).glob("*.jsonl")))
    raw = datasets.load_dataset("json", data_files=files, split="train", cache_dir=f"{out}/cache")
    encoded = raw.map(encode, batched=True, num_proc=workers, remove_columns=raw.column_names)
    packed = pack_dataset(encoded, seq_len, "bfd", map_kwargs={"num_proc": workers})
    packed.save_to_disk(f"{out}/packed", num_proc=workers)
    print(json.dumps({"tokens": sum(map(len, packed["input_ids"]))}))
