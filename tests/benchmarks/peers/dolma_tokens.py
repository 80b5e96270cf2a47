"""dolma: the `tokens` command, as a user would call it."""

import json
import subprocess
import sys
from pathlib import Path

source, tokenizer_file, out, workers, seq_len = sys.argv[1:6]
vocabulary = len(json.loads(Path(tokenizer_file).read_bytes())["model"]["vocab"])
dtype = "uint16" if vocabulary < 65536 else "uint32"
command = [
    *(sys.executable, "-m", "dolma.cli.__main__", "tokens", "--documents", f"{source}/*.jsonl"),
    *("--destination", f"{out}/tokens", "--tokenizer.name_or_path", tokenizer_file),
    *("--tokenizer.eos_token_id", "0", "--tokenizer.pad_token_id", "0", "--dtype", dtype),
    *("--processes", workers, "--max_size", str(4 << 30), "--ring_size", "4"),
]
subprocess.run(command, check=True)
size = sum(path.stat().st_size for path in Path(out).glob("tokens/**/*.npy"))
print(json.dumps({"tokens": size * 8 // int(dtype[4:])}))
