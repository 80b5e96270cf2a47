"""datatrove: JsonlReader and DocumentTokenizer, one task per file, shuffling off."""

import json
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

source, tokenizer_file, out, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

if __name__ == "__main__":
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(source),
            DocumentTokenizer(
                f"{out}/tokens", tokenizer_name_or_path=tokenizer_file, eos_token=None, shuffle_documents=False
            ),
        ],
        tasks=len(list(Path(source).glob("*.jsonl"))),
        workers=workers,
        logging_dir=f"{out}/logs",
    ).run()
    sizes = [path.stat().st_size for path in Path(out).glob("tokens/**/*.ds")]
    vocabulary = len(json.loads(Path(tokenizer_file).read_bytes())["model"]["vocab"])
    print(json.dumps({"tokens": sum(sizes) // (2 if vocabulary < 65536 else 4)}))
