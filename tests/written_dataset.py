"""A small packed and weighed dataset on disk, made of the real parts, and slow oracles for what a reader derives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep import storage
from exact_prep.batches import TokenBatch
from exact_prep.config import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from exact_prep.exposure import Exposure, bucket_edges, measure
from exact_prep.manifest import (
    DocumentCounts,
    ExposureRecord,
    Manifest,
    RoundingRecord,
    ShardWeights,
    TokenizerRecord,
    TokenLedger,
    WeightsFile,
)
from exact_prep.packing import Packer
from exact_prep.shards import ShardWriter, opened
from exact_prep.weights import WeightOptions, audit_rounding, float16_runs, weight_table

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
    """Pack `docs` best-fit into `shards` shards under `path`, and write the manifest."""
    path.mkdir(parents=True)
    records, exposure, tokens = [], Exposure(), 0
    for number, part in enumerate(np.array_split(np.arange(len(docs)), shards)):
        packer = Packer(packing="best-fit", seq_len=seq_len, pad_id=PAD)
        chosen = [docs[d] for d in part]
        batch = TokenBatch(
            ids=np.concatenate(chosen).astype(np.int32),
            offsets=np.cumsum([0, *map(len, chosen)]),
            doc_ids=part.astype(np.int64),
            doc_offsets=np.zeros(len(chosen), np.int64),
        )
        name = f"data-{number:05d}-of-{shards:05d}.arrow"
        writer = ShardWriter(path / name, seq_len)
        for packed in [*packer.add(batch), *packer.finish()]:
            splits = np.concatenate([[0], np.cumsum(packed.segments_per_row)])
            for row in range(0, packed.segments_per_row.size, rows_per_batch):
                per_row = packed.segments_per_row[row : row + rows_per_batch]
                here = slice(splits[row], splits[row + per_row.size])
                writer.write(
                    type(packed)(
                        input_ids=packed.input_ids[row : row + rows_per_batch],
                        segments_per_row=per_row,
                        seq_lengths=packed.seq_lengths[here],
                        doc_ids=packed.doc_ids[here],
                        doc_offsets=packed.doc_offsets[here],
                    )
                )
            exposure += measure(packed.seq_lengths)
        records.append(writer.close(file=name, task=number))
        tokens += sum(map(len, chosen))
    rows = sum(record.rows for record in records)
    storage.save(
        Manifest(
            tool_version="0",
            seq_len=seq_len,
            packing="best-fit",
            options=PackOptions(
                source=SourceOptions(),
                tokenizer=TokenizerOptions(),
                packing=PackingOptions(seq_lens=(seq_len,), packing="best-fit"),
            ),
            tokenizer=TokenizerRecord(
                name="",
                sha256="",
                vocab_size=VOCAB,
                eos_id=None,
                bos_id=None,
                pad_id=PAD,
                special_tokens_in_text="text",
                backend="none",
                backend_version="",
                reference_version="",
                parity_texts=0,
                parity_bytes=0,
                parity_differences=0,
            ),
            inputs=(),
            tasks=(),
            documents=DocumentCounts(records=len(docs), packed=len(docs)),
            text_bytes=0,
            documents_cut=0,
            longest_context=0,
            ledger=TokenLedger(text_tokens=tokens, row_tokens=tokens, padding=rows * seq_len - tokens),
            exposure=ExposureRecord(counts=tuple(exposure.counts.tolist()), segments=exposure.segments),
            rows=rows,
            shards=tuple(records),
            tree_hash=storage.digest(*(record.content_xxh3.encode() for record in records)),
        ),
        path / "manifest.json",
    )
    return path


def weigh_dataset(path: Path, **options: object) -> Path:
    """Write EXACT weights into the shards of `path`, and weights.json."""
    manifest = storage.load(Manifest, path / "manifest.json")
    seq_len = manifest.seq_len
    exposure = Exposure(counts=np.array(manifest.exposure.counts), segments=manifest.exposure.segments)
    table = weight_table(exposure, WeightOptions(**{"tail_from": seq_len // 4, **options}))
    runs = float16_runs(table, seq_len)
    filled = []
    for record in manifest.shards:
        with opened(path / record.file, writable=True) as shard:
            filled.append(ShardWeights(file=record.file, weights_xxh3=shard.fill_weights(*runs)))
    audit = audit_rounding(table)
    asked = table.options
    storage.save(
        WeightsFile(
            tool_version="0",
            state="complete",
            dataset_tree_hash=manifest.tree_hash,
            seq_len=seq_len,
            alpha=asked.alpha,
            gamma=asked.gamma,
            tail_from=asked.tail_from,
            tail_start=table.tail_start,
            eps=asked.eps,
            max_weight=asked.max_weight,
            supervise_first=asked.supervise_first,
            normalize=asked.normalize,
            bucket_edges=tuple(bucket_edges(table.weights.size).tolist()),
            exposure=manifest.exposure,
            counts=tuple(table.counts.tolist()),
            in_tail=tuple(table.in_tail.tolist()),
            weights=tuple(table.weights.tolist()),
            scale=table.scale,
            extra=table.extra,
            tail_share=table.tail_share,
            weighted_tail_share=table.weighted_tail_share,
            rounding=RoundingRecord(**vars(audit)),
            shards=tuple(filled),
        ),
        path / "weights.json",
    )
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
