"""A small packed and weighed dataset on disk, made by the real pipeline, and slow oracles for what a reader derives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep import shards as shard_files
from exact_prep.batches import Rows
from exact_prep.dataset import (
    INFO,
    MANIFEST,
    STATE,
    WEIGHTS,
    make_info,
    make_state,
    open_dataset,
    table_name,
    tree_hash,
)
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.publish import describe
from exact_prep.pipeline.weigh import weigh
from exact_prep.records import encode, seal
from exact_prep.records.options import (
    PackingOptions,
    PackOptions,
    SourceOptions,
    TokenizerOptions,
    WeightOptions,
)
from exact_prep.records.tables import SCHEMAS, encode_batches, encode_shards, encode_table, encode_weights
from exact_prep.shards import ShardWriter, open_shard
from exact_prep.stores.local import digest
from exact_prep.weighing.exposure import Exposure, measure_rows
from exact_prep.weighing.files import plain_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import LossWeights

VOCAB = 97
PAD = 0


def documents(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Token ids 1..VOCAB-1, lengths from 1 to `longest`, most of them short."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(1, (longest * random.random(count) ** 3)).astype(int)
    return [random.integers(1, VOCAB, n).tolist() for n in lengths]


def write_dataset(
    path: Path,
    docs: list[list[int]],
    *,
    seq_len: int,
    shards: int = 2,
    rows_per_batch: int = 3,
    loss_weights: LossWeights = "column",
    pad: int = PAD,
) -> Path:
    """Pack `docs` best-fit into `shards` shards under `path`, in record batches of `rows_per_batch`.

    Document d carries the source label `even` or `odd`.
    """
    inputs = path.with_name(f"{path.name}-ids")
    inputs.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(docs)), shards)):
        ids = pa.array([docs[d] for d in part], pa.list_(pa.int32()))
        labels = pa.array(["odd" if d % 2 else "even" for d in part])
        pq.write_table(pa.table({"input_ids": ids, "kind": labels}), inputs / f"{number}.parquet")
    options = PackOptions(
        source=SourceOptions(ids_field="input_ids", task_bytes=1, source_from="field:kind"),
        tokenizer=TokenizerOptions(pad_token=str(pad)),
        packing=PackingOptions(seq_lens=(seq_len,), packing="best-fit"),
        loss_weights=loss_weights,
    )
    with patch.object(shard_files, "BATCH_TOKENS", rows_per_batch * seq_len):
        pack([str(inputs)], options, path)
    return path


def weigh_dataset(path: Path, *, allow_empty_tail: bool = False, **options: object) -> Path:
    """Write EXACT weights into the dataset in `path`: its shards, and weights.json."""
    weigh(path, WeightOptions(**options), allow_empty_tail=allow_empty_tail)
    return path


def write_table(path: Path, out: Path, **options: object) -> Path:
    """Write the table of other weights for the dataset in `path` to the file `out`, as `weigh --out` does."""
    weigh(path, WeightOptions(**options), out=out)
    return out


def mask_dataset(path: Path, find_runs: Callable[[Rows, int], list[tuple[int, int]]]) -> Path:
    """Mask targets of a packed dataset that was not weighed, in place.

    `find_runs(rows, r)` gives the masked runs of row r of some rows, as (start, stop) in the row. Shards are written
    anew by the real writer.
    """
    dataset = open_dataset(path)
    column = dataset.manifest.loss_weights == "column"
    sources, tasks = dataset.table("sources").to_pydict(), dataset.table("tasks").to_pylist()
    records, exposures = [], [Exposure() for _ in sources["label"]]
    for record in dataset.shards:
        shard = open_shard(path / record.file)
        writer = ShardWriter(path / f"{record.file}.new", shard.seq_len, masked=True, weights=column)
        for rows in shard.batches:
            masked = with_masks(rows, [find_runs(rows, row) for row in range(len(rows))])
            writer.write(masked)
            own = tasks[record.task]["sources"]
            for place, exposure in zip(own, measure_rows(masked, len(own)), strict=True):
                exposures[place] += exposure
        records.append(writer.close(file=record.file, task=record.task))
        writer.path.replace(path / record.file)
    files = {table_name("shards"): encode_shards(records), table_name("batches"): encode_batches(records)}
    sources["counts"] = [exposure.trimmed().tolist() for exposure in exposures]
    sources["firsts"] = [exposure.firsts for exposure in exposures]
    files[table_name("sources")] = encode_table(SCHEMAS["sources"], sources)
    whole = sum(exposures, Exposure()).to_record()
    update = {"masked": True, "exposure": whole, "tree_hash": tree_hash(records)}
    manifest = dataset.manifest.model_copy(update=update)
    files[INFO] = make_info(manifest)
    digests = dict(manifest.digests) | {name: digest([data]) for name, data in files.items()}
    manifest = seal(manifest.model_copy(update={"digests": digests}))
    weights = plain_weights(describe(manifest), manifest.seq_len)
    if column:
        files[table_name("weights")] = encode_weights({one.file: one.weights_xxh3 or "" for one in records})
        weights = weights.model_copy(update={"weights_xxh3": digest([files[table_name("weights")]])})
    state = make_state([one.file for one in records], manifest.tree_hash)
    files |= {STATE: state, WEIGHTS: encode(seal(weights)), MANIFEST: encode(manifest)}
    for name, data in files.items():
        dataset.store.write(name, data)
    return path


def first_thirds(rows: Rows, row: int) -> list[tuple[int, int]]:
    """Masked runs of a row: the first third of each document, as a prompt would be."""
    runs, start = [], 0
    for length in rows.seq_lengths[rows.row_splits[row] : rows.row_splits[row + 1]].tolist():
        if length >= 3:
            runs.append((start, start + length // 3))
        start += length
    return runs


def with_masks(rows: Rows, runs: list[list[tuple[int, int]]]) -> Rows:
    """Rows with the masked runs of each row."""
    flat = [edge for own in runs for run in own for edge in run]
    return Rows(
        input_ids=rows.input_ids,
        row_splits=rows.row_splits,
        seq_lengths=rows.seq_lengths,
        doc_ids=rows.doc_ids,
        doc_offsets=rows.doc_offsets,
        sources=rows.sources,
        mask_splits=np.cumsum([0, *(2 * len(own) for own in runs)]).astype(np.int32),
        masked_runs=np.array(flat, np.int32),
    )


def read_weights_file(path: Path) -> dict:
    """A weights.json, or a table that `weigh --out` wrote, as plain data."""
    return json.loads(path.read_text())


def oracle_weights(seq_lengths: list[int], seq_len: int, file: dict | None) -> list[float]:
    """Token-aligned weights of a row from weights.json alone, in plain Python; plain weights if it is None."""
    weights = [oracle_weight(left, file) for length in seq_lengths for left in range(length)]
    return weights + [0.0] * (seq_len - len(weights))


def oracle_weight(left: int, file: dict | None) -> float:
    """The weight of a target with `left` tokens of its document before it."""
    if left == 0 and not (file and file["options"]["supervise_first"]):
        return 0.0
    if file is None:
        return 1.0
    table = file["table"]
    window = file["options"]["window"]
    context = left if window is None else min(left, window)
    edges = zip(table["bucket_edges"][:-1], table["bucket_edges"][1:], strict=True)
    bucket = next((b for b, (start, stop) in enumerate(edges) if start <= context < stop), None)
    return float(np.float16(1 / table["scale"] if bucket is None else table["weights"][bucket]))
