"""`verify`: a dataset held against its own records, from the bytes."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import (
    INFO,
    REJECTED,
    STATE,
    WEIGHTS,
    datasets_in,
    load_manifest,
    load_weights_file,
    tree_hash,
)
from exact_prep.engines import run
from exact_prep.errors import ExactPrepError
from exact_prep.exposure import Exposure
from exact_prep.pipeline.events import Finished, Started, TaskDone, Watcher
from exact_prep.shards import features, runs_of_plain_weights
from exact_prep.stages.verify import VerifyTask, verify_shards
from exact_prep.tables import record_of, table_of
from exact_prep.weights import float16_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.manifest import Manifest, WeightsFile
    from exact_prep.pipeline.events import Emit


def verify(directory: Path, *, quick: bool = False, workers: int = 1, emit: Emit = lambda event: None) -> list[str]:
    """Check every dataset of `directory`; returns findings, one sentence each, empty if all is well.

    `quick` looks at sizes and structure alone. Raises DatasetError if there is no dataset at all, WorkerError.
    """
    findings = []
    for home in datasets_in(directory):
        try:
            manifest = load_manifest(home)
            weights = load_weights_file(home)
        except ExactPrepError as error:
            findings.append(str(error))
            continue
        findings += [f"{home}: {text}" for text in records_of(home, manifest, weights)]
        findings += shards_of(home, manifest, weights, quick=quick, workers=workers, emit=emit)
    emit(Finished())
    return findings


def records_of(home: Path, manifest: Manifest, weights: WeightsFile | None) -> Iterator[str]:
    """Findings about the records: what they say of each other and of the directory."""
    ledger = manifest.ledger
    shards = manifest.shards
    if ledger.balance():
        yield f"the token ledger does not add up: {ledger.balance():+,} tokens"
    if ledger.row_tokens != sum(shard.tokens for shard in shards) or manifest.rows != sum(s.rows for s in shards):
        yield "the shards' rows and tokens do not sum to the manifest's"
    if sum(manifest.exposure.counts) + manifest.exposure.segments != ledger.row_tokens:
        yield "the exposure does not sum to the tokens in rows"
    if manifest.tree_hash != tree_hash(shards):
        yield "the tree hash is not that of the shards' checksums"
    listed = {shard.file for shard in shards}
    for path in sorted(home.glob("*.arrow")):
        if path.name not in listed:
            yield f"{path.name} is no shard of this dataset"
    if manifest.documents.rejected:
        path = home / REJECTED
        lines = path.read_bytes().count(b"\n") if path.is_file() else 0
        if lines != manifest.documents.rejected:
            yield f"{REJECTED} lists {lines} documents, the manifest says {manifest.documents.rejected}"
    yield from hugging_face(home, manifest)
    if weights:
        yield from weights_of(manifest, weights)


def hugging_face(home: Path, manifest: Manifest) -> Iterator[str]:
    """Findings about the files that make `datasets.load_from_disk` work."""
    for name, key, expected in (
        (STATE, "_data_files", [{"filename": shard.file} for shard in manifest.shards]),
        (INFO, "features", features(manifest.seq_len)),
    ):
        try:
            found = json.loads((home / name).read_bytes())
        except (OSError, ValueError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        if not isinstance(found, dict) or found.get(key) != expected:
            yield f"{name}: {key} is not what the manifest calls for"


def weights_of(manifest: Manifest, weights: WeightsFile) -> Iterator[str]:
    """Findings about weights.json: whose it is, whether it is finished, whether its table follows from its exposure."""
    if weights.dataset_tree_hash != manifest.tree_hash or weights.seq_len != manifest.seq_len:
        yield f"{WEIGHTS} belongs to another dataset; run `exact-prep weigh` again"
        return
    if weights.state != "complete":
        yield "half-weighed: some shards hold the weights of weights.json, others do not; run `exact-prep weigh` again"
    elif [shard.file for shard in weights.shards] != [shard.file for shard in manifest.shards]:
        yield f"{WEIGHTS} does not list the shards of the manifest"
    if weights.exposure != manifest.exposure:
        yield f"{WEIGHTS}: its exposure is not the manifest's"
    table = table_of(weights)
    same = table.weights.size == len(weights.weights) and np.allclose(table.weights, weights.weights, rtol=1e-9, atol=0)
    if not same or table.counts.tolist() != list(weights.counts):
        yield f"{WEIGHTS}: its table does not follow from its exposure and parameters"


def shards_of(
    home: Path, manifest: Manifest, weights: WeightsFile | None, *, quick: bool, workers: int, emit: Emit
) -> list[str]:
    """Findings about the shards, and whether their exposure is the manifest's."""
    edges, values = runs_of_plain_weights(manifest.seq_len)
    checksums: dict[str, str | None] = {shard.file: shard.weights_xxh3 for shard in manifest.shards}
    if weights:
        edges, values = float16_runs(table_of(weights), manifest.seq_len)
        checksums = dict.fromkeys(checksums) | {shard.file: shard.weights_xxh3 for shard in weights.shards}
    tasks = []
    for index, group in itertools.groupby(manifest.shards, key=lambda shard: shard.task):
        shards = tuple(group)
        tasks.append(
            VerifyTask(
                directory=home,
                seq_len=manifest.seq_len,
                pad_id=manifest.tokenizer.pad_id,
                vocab_size=manifest.tokenizer.vocab_size,
                records=manifest.tasks[index].documents.records,
                documents=manifest.tasks[index].documents.packed,
                shards=shards,
                edges=edges,
                values=values,
                weights_xxh3=tuple(checksums[shard.file] for shard in shards),
                quick=quick,
            )
        )
    size = sum(shard.bytes for shard in manifest.shards)
    emit(Started(what=f"verify {home}", tasks=len(tasks), done=0, total_bytes=size, done_bytes=0))
    findings: dict[int, list[str]] = {}
    exposure = Exposure()
    for index, verified in run(
        verify_shards, tasks, workers=workers, name=lambda task: task.name, observer=Watcher(emit)
    ):
        findings[index] = verified.findings
        exposure += verified.exposure
        emit(TaskDone(done=len(findings), tasks=len(tasks)))
    found = [finding for index in sorted(findings) for finding in findings[index]]
    if not quick and not found and record_of(exposure) != manifest.exposure:
        found.append(f"{home}: the exposure counted from the shards is not the manifest's")
    return found
