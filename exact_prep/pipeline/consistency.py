"""What the records of a dataset say of each other and of the files beside the shards: findings of `verify`.

No shard is opened here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.dataset import (
    REJECTED,
    STATE,
    WEIGHTS,
    Dataset,
    Measured,
    belongs_to,
    describe,
    documents_name,
    is_named,
    load_weights_file,
    make_state,
    table_name,
    tree_hash,
)
from exact_prep.errors import DatasetError, ExactPrepError, WeightsError
from exact_prep.records import fingerprint
from exact_prep.records.manifest import DocumentCounts
from exact_prep.records.tables import SCHEMAS, decode_weights, read_numbers, readable
from exact_prep.stores.local import digest, digest_file, read_bytes
from exact_prep.weighing.files import compute_table, exact_weights, identify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.records.manifest import Manifest
    from exact_prep.records.weights import WeighedDataset, WeightsFile
    from exact_prep.records.work import ShardRecord
    from exact_prep.stores.paths import Home


@dataclass(frozen=True)
class Records:
    """The tables of a dataset that the checks need."""

    shards: tuple[ShardRecord, ...]
    documents: list[DocumentCounts]
    """Of each task."""
    first_records: list[int]
    sources: list[list[int]]
    """Of each task: rows of the table of sources."""
    documents_xxh3: list[str]
    """Of each task: checksum of the table of documents' own ids, empty if there is none."""
    source_rows: list[dict[str, Any]]
    input_files: int
    """Rows of the table of inputs."""
    lengths: np.ndarray
    """The histogram of document lengths, int64[3, N]."""


def load_records(dataset: Dataset) -> Records:
    """The tables of a dataset; raises DatasetError, StorageError."""
    tasks, path = dataset.table("tasks").to_pylist(), dataset.path / table_name("tasks")
    lengths, source_rows = dataset.table("document_lengths"), dataset.table("sources").to_pylist()
    for number, row in enumerate(tasks):
        if wrong := [place for place in row["sources"] if not 0 <= place < len(source_rows)]:
            raise DatasetError(
                f"{path}: task {number} has a source that is not in the table of sources: row {wrong[0]}, there are "
                f"{len(source_rows)}"
            )
    shards = [
        shard.model_copy(update={"batches": batches})
        for shard, batches in zip(dataset.shards, dataset.batches(), strict=True)
    ]
    with readable(path):
        documents = [DocumentCounts(**{name: row[name] for name in DocumentCounts.model_fields}) for row in tasks]
    return Records(
        shards=tuple(shards),
        documents=documents,
        first_records=[row["first_record"] for row in tasks],
        sources=[row["sources"] for row in tasks],
        documents_xxh3=[row["documents_xxh3"] for row in tasks],
        source_rows=source_rows,
        input_files=dataset.table("inputs").num_rows,
        lengths=np.stack([read_numbers(lengths, name) for name in SCHEMAS["document_lengths"]]),
    )


def check_records(dataset: Dataset, records: Records, weights: WeightsFile) -> Iterator[str]:
    """Findings about the records: what they say of each other and of the directory."""
    manifest, shards = dataset.manifest, records.shards
    ledger = manifest.ledger
    if ledger.balance():
        yield f"the token ledger does not add up: {ledger.balance():+,} tokens"
    if ledger.row_tokens != sum(shard.tokens for shard in shards) or manifest.rows != sum(s.rows for s in shards):
        yield "the shards' rows and tokens do not sum to the manifest's"
    if not manifest.masked and sum(manifest.exposure.counts) + manifest.exposure.segments != ledger.row_tokens:
        yield "the exposure does not sum to the tokens in rows"
    if manifest.tree_hash != tree_hash(shards):
        yield "the tree hash is not that of the shards' checksums"
    if ledger.padding != manifest.rows * manifest.seq_len - ledger.row_tokens:
        yield f"the ledger says {ledger.padding:,} padding tokens, rows and tokens leave another number"
    packing = manifest.options.packing
    own = (manifest.seq_len in packing.seq_lens, manifest.packing, manifest.loss_weights)
    if own != (True, packing.packing, manifest.options.loss_weights):
        yield "its options are not those of its rows (seq_len, packing, loss_weights)"
    if records.input_files != manifest.input_files:
        yield f"the table of inputs does not list {manifest.input_files:,} files, as the manifest says"
    sizes = (len(shards), len(records.documents), len(records.source_rows))
    if sizes != (manifest.shards, manifest.tasks, manifest.sources):
        yield "the tables have another number of shards, tasks or sources than the manifest"
    yield from check_documents(manifest, records)
    yield from check_files(dataset, records, weights)
    yield from check_weights_file(dataset, weights)


def check_documents(manifest: Manifest, records: Records) -> Iterator[str]:
    """Findings about counts of documents: what tasks say of themselves and of each other, and what all have in common.

    Of those about tasks, the first is enough.
    """
    sums, before = Counter[str](), 0
    holders = {shard.task for shard in records.shards}
    wrong: list[str] = []
    for number, counts in enumerate(records.documents):
        if counts.records != counts.packed + counts.empty + counts.rejected + counts.held_out:
            wrong.append(
                f"task {number}: not all of its {counts.records:,} records were packed, empty, rejected or held out"
            )
        if records.first_records[number] != before:
            wrong.append(
                f"task {number}: its first record is {records.first_records[number]:,}, "
                f"the tasks before it read {before:,}"
            )
        if counts.packed and number not in holders:
            wrong.append(f"task {number}: it packed {counts.packed:,} documents, and has no shard")
        before += counts.records
        sums.update(counts.model_dump())
    if beyond := holders - set(range(len(records.documents))) - {0}:
        wrong.insert(0, f"a shard of task {min(beyond)}, there are {len(records.documents)} tasks")
    yield from wrong[:1]
    if dict(sums) != manifest.documents.model_dump() and records.documents:
        yield "the tasks' documents do not sum to the manifest's"
    tokenizer, ledger = manifest.tokenizer, manifest.ledger
    for name, token, counted in (
        ("BOS", tokenizer.bos_id, ledger.bos_tokens),
        ("EOS", tokenizer.eos_id, ledger.eos_tokens),
    ):
        if counted != (0 if token is None else manifest.documents.packed):
            yield f"the ledger says {counted:,} {name} tokens for {manifest.documents.packed:,} documents"


def check_files(dataset: Dataset, records: Records, weights: WeightsFile) -> Iterator[str]:
    """Findings about the files beside the shards: checksums, shards that are not listed, state.json."""
    home, manifest = dataset.path, dataset.manifest
    for name in manifest.digests:
        if not (home / name).is_file():
            yield f"{name} is missing"
        elif digest_file(home / name) != manifest.digests[name]:
            yield f"{name} is not the file that was written (checksum)"
    if (REJECTED in manifest.digests) != bool(manifest.documents.rejected):
        yield f"{REJECTED} is listed, or not, against the count of rejected documents"
    if REJECTED not in manifest.digests and (home / REJECTED).exists():
        yield f"{REJECTED} does not belong to this dataset: none of its documents was rejected"
    if any(map(bool, records.documents_xxh3)) != (manifest.options.source.id_field is not None):
        yield "the table of tasks has documents' own ids, or has not, against the manifest"
    known = {documents_name(task) for task, checksum in enumerate(records.documents_xxh3) if checksum}
    tables = (home / documents_name(0)).parent
    for name in sorted(path.name for path in tables.glob("documents-*.parquet")):
        file = f"{documents_name(0).rpartition('/')[0]}/{name}"
        if file not in known:
            yield f"{file} is not a table of this dataset"
    listed = {shard.file for shard in records.shards}
    for name in sorted(path.name for path in home.glob("data-*.arrow")):
        if name not in listed:
            yield f"{name} is not a shard of this dataset"
    identity = [manifest.tree_hash]
    if weights.kind == "exact":
        identity.append(fingerprint(identify(weights)))
    expected = json.loads(make_state([shard.file for shard in records.shards], *identity))
    if weights.state != "complete":
        # Stopped before or after the fingerprint was changed: either is right.
        del expected["_fingerprint"]
    try:
        found = json.loads(read_bytes(home / STATE))
    except (ExactPrepError, ValueError) as error:
        yield f"{STATE} cannot be read: {error}"
        return
    wrong = [key for key in expected if not isinstance(found, dict) or found.get(key, STATE) != expected[key]]
    if wrong:
        yield f"{STATE}: {wrong[0]} is not what the manifest calls for"


def check_weights_file(dataset: Dataset, weights: WeightsFile) -> Iterator[str]:
    """Findings about weights.json: whose it is, whether it is complete, whether its table follows from its exposure."""
    manifest = dataset.manifest
    if not belongs_to(weights, manifest):
        yield f"{WEIGHTS} belongs to another dataset; run `exact-prep weigh` again"
        return
    if weights.state != "complete":
        yield "half-weighed: some shards hold the weights of weights.json, others do not; run `exact-prep weigh` again"
    elif (weights.weights_xxh3 is not None) != (manifest.loss_weights == "column"):
        yield f"{WEIGHTS} lists checksums of a column, or does not, against the manifest"
    elif weights.weights_xxh3 is not None:
        try:
            load_checksums(dataset, weights)
        except ExactPrepError as error:
            yield str(error)
    yield from check_table(weights, describe(manifest))


def check_measured(measured: Measured, weights: WeightsFile, path: Home) -> Iterator[str]:
    """Findings about the weights of a measurement."""
    if not is_named(weights, measured):
        yield f"{path} belongs to other data; run `exact-prep weigh {measured.path}`"
        return
    yield from (f"{measured.path}: {text}" for text in check_table(weights, measured.described))


def check_table(weights: WeightsFile, described: WeighedDataset) -> Iterator[str]:
    """Findings about the table: it follows from the exposures and options beside it, and these are the dataset's."""
    own = next((dataset for dataset in weights.datasets if dataset.id == described.id), None)
    if own is not None and own.model_copy(update={"rate": 1.0, "divisor": 1.0}) != described:
        yield f"{WEIGHTS}: its exposure is not that of the dataset"
        return
    if weights.kind == "plain":
        return
    try:
        expected = exact_weights(compute_table(weights), weights.datasets, weights.seq_len)
    except WeightsError as error:
        yield f"{WEIGHTS}: {error}"
        return
    for name in ("options", "table", "rounding"):
        if not is_close(dump(expected, name), dump(weights, name)):
            yield f"{WEIGHTS}: its {name} does not follow from its exposure and options"


def check_table_file(dataset: Dataset, path: Home) -> Iterator[str]:
    """Findings about a table beside the dataset."""
    try:
        weights = load_weights_file(path)
    except ExactPrepError as error:
        yield str(error)
        return
    if not belongs_to(weights, dataset.manifest):
        yield f"its table was not made for {dataset.path}"
        return
    yield from check_table(weights, dataset.described)


def dump(weights: WeightsFile, name: str) -> Any:
    """One field of weights.json as JSON values."""
    return weights.model_dump(mode="json", include={name})[name]


def load_checksums(dataset: Dataset, weights: WeightsFile) -> dict[str, str]:
    """Checksums of `loss_weights` by shard; raises DatasetError if the table is not the one that weights.json names."""
    name = table_name("weights")
    if dataset.store.size(name) is None:
        raise DatasetError(f"{name} is missing; run `exact-prep weigh` again")
    data = dataset.store.read(name)
    if digest([data]) != weights.weights_xxh3:
        raise DatasetError(f"{name} is not the table that {WEIGHTS} names (checksum); run `exact-prep weigh` again")
    found = decode_weights(data, dataset.path / name)
    if list(found) != [shard.file for shard in dataset.shards]:
        raise DatasetError(f"{name} does not list the shards of the dataset; run `exact-prep weigh` again")
    return found


def is_close(one: object, another: object) -> bool:
    """Whether two values are the same but for the last digits of floats, which another machine may round otherwise."""
    if isinstance(one, float) and isinstance(another, float):
        return math.isclose(one, another, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, dict) and isinstance(another, dict):
        return one.keys() == another.keys() and all(is_close(value, another[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(another, list):
        return len(one) == len(another) and all(map(is_close, one, another))
    return one == another
