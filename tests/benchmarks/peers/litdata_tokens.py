"""litdata: `optimize` with a tokenizing function, chunks of blocks for its TokensLoader."""

import json
import os
import sys
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from litdata import TokensLoader, optimize
from tokenizers import Tokenizer

source, tokenizer_file, out = sys.argv[1:4]
workers, seq_len = map(int, sys.argv[4:6])


def encode(path):
    tokenizer = Tokenizer.from_file(tokenizer_file)
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            ids = tokenizer.encode_batch_fast([json.loads(line)["text"]], add_special_tokens=False)[0].ids
            yield torch.from_numpy(np.array(ids, np.int32))


if __name__ == "__main__":
    files = sorted(map(str, Path(source).glob("*.jsonl")))
    optimize(
        fn=encode,
        inputs=files,
        output_dir=f"{out}/chunks",
        chunk_size=seq_len * 2048,
        item_loader=TokensLoader(block_size=seq_len),
        num_workers=workers,
    )
    chunks = json.loads(Path(f"{out}/chunks/index.json").read_bytes())["chunks"]
    print(json.dumps({"tokens": sum(chunk["dim"] for chunk in chunks)}))
