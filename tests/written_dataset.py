"""A small packed and weighed dataset on disk, made by the real pipeline, and slow oracles for what a reader derives."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep import packing
from exact_prep.pipeline import WeighOptions, pack, weigh
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 97
PAD = 0


def documents(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Token ids 1..VOCAB-1, lengths from 1 to `longest`, most of them short."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(1, (longest * random.random(count) ** 3)).astype(int)
    return [random.integers(1, VOCAB, n).tolist() for n in lengths]


def write_dataset(path: Path, docs: list[list[int]], *, seq_len: int, shards: int = 2, rows_per_batch: int = 3) -> Path:
    """Pack `docs` best-fit into `shards` shards under `path`, in record batches of `rows_per_batch`."""
    inputs = path.with_name(f"{path.name}-ids")
    inputs.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(docs)), shards)):
        ids = pa.array([docs[d] for d in part], pa.list_(pa.int32()))
        pq.write_table(pa.table({"input_ids": ids}), inputs / f"{number}.parquet")
    options = PackOptions(
        source=SourceOptions(ids_field="input_ids", task_bytes=1),
        tokenizer=TokenizerOptions(pad_token=str(PAD)),
        packing=PackingOptions(seq_lens=(seq_len,), packing="best-fit"),
    )
    with patch.object(packing, "BATCH_TOKENS", rows_per_batch * seq_len):
        pack([str(inputs)], options, path)
    return path


def weigh_dataset(path: Path, **options: object) -> Path:
    """Write EXACT weights into the shards of `path`, and weights.json."""
    weigh(path, WeighOptions(**options))
    return path


def oracle_weights(seq_lengths: list[int], seq_len: int, file: dict) -> list[float]:
    """Token-aligned weights of a row from weights.json alone, in plain Python."""
    weights = []
    for length in seq_lengths:
        for left in range(length):
            if left == 0 and not file["supervise_first"]:
                weights.append(0.0)
                continue
            bucket = next((b for b, (a, z) in enumerate(edges(file)) if a <= left < z), None)
            exact = 1 / file["scale"] if bucket is None else file["weights"][bucket]
            weights.append(float(np.float16(exact)))
    return weights + [0.0] * (seq_len - len(weights))


def edges(file: dict) -> list[tuple[int, int]]:
    return list(zip(file["bucket_edges"][:-1], file["bucket_edges"][1:], strict=True))
