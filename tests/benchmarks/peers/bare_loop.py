"""The bare loop: read texts, encode them with the fast library, write rows of ids to an Arrow stream. Nothing else.

With several workers, several bare loops run side by side, each over its share of the files. This shows how much the
machine gains from another core.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

import fastokens
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

source, tokenizer_file, out, workers, seq_len = Path(sys.argv[1]), sys.argv[2], *sys.argv[3:4], *map(int, sys.argv[4:6])
files = sorted(source.iterdir())
Path(out).mkdir(exist_ok=True)
if len(sys.argv) == 6 and workers > 1:
    loops = [
        subprocess.Popen([sys.executable, *sys.argv, str(share)], stdout=subprocess.PIPE) for share in range(workers)
    ]
    said = [loop.communicate()[0] for loop in loops]
    if any(loop.returncode for loop in loops):
        sys.exit("a loop failed")
    print(json.dumps({"tokens": sum(json.loads(lines)["tokens"] for lines in said)}))
    sys.exit()
share = int(sys.argv[6]) if len(sys.argv) > 6 else 0

tokenizer = fastokens.Tokenizer.from_file(tokenizer_file)
decode = msgspec.json.Decoder(msgspec.defstruct("Line", [("text", str)])).decode


def batches():
    for path in files[share::workers]:
        if path.suffix == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(batch_size=512, columns=["text"]):
                yield batch.column(0).to_pylist()
        else:
            with path.open("rb") as lines:
                while held := lines.readlines(4 << 20):
                    yield [decode(line).text for line in held]


schema = pa.schema([pa.field("input_ids", pa.list_(pa.int32(), seq_len))])
rest, tokens = np.empty(0, np.int32), 0
with pa.OSFile(f"{out}/data-{share}.arrow", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
    for texts in batches():
        ids, _ = tokenizer.encode_batch_flat(texts, add_special_tokens=False)
        ids = np.concatenate([rest, np.frombuffer(ids, np.int32)])
        tokens += ids.size - rest.size
        whole = ids.size // seq_len * seq_len
        rows = pa.FixedSizeListArray.from_arrays(pa.array(ids[:whole]), seq_len)
        writer.write_batch(pa.record_batch([rows], schema=schema))
        rest = ids[whole:]
print(json.dumps({"tokens": tokens}))
