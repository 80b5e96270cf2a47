"""`verify`: a dataset compared with its own records, from the bytes.

Every byte is covered: the manifest by its seal, weights.json by its own, tables and side files by the manifest's
checksums, shards by theirs; state.json is recomputed. README.md may be edited.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.dataset import (
    SPLITS,
    WEIGHTS,
    Dataset,
    documents_name,
    explain_other_train,
    find_datasets,
    is_measured,
    load_manifest,
    load_weights_file,
    open_any,
    open_dataset,
    open_measured,
)
from exact_prep.errors import ExactPrepError, StorageError
from exact_prep.pipeline.consistency import (
    Records,
    check_measured,
    check_records,
    check_table_file,
    load_checksums,
    load_records,
)
from exact_prep.pipeline.events import Finished, Phase, ignore
from exact_prep.pipeline.measure import find_differences_to, measure_again
from exact_prep.pipeline.runs import TaskRun
from exact_prep.records.manifest import DocumentCounts
from exact_prep.stages.lengths import sum_lengths
from exact_prep.stages.verify import VerifyTask, verify_shards
from exact_prep.stores.local import find_holder, identify_file
from exact_prep.stores.paths import Home, StorePath
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import compute_table, find_divisor, identify
from exact_prep.weighing.weights import float16_runs, plain_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.pipeline.events import Emit
    from exact_prep.records.manifest import Manifest
    from exact_prep.records.weights import WeightsFile


def verify(
    directories: Home | Sequence[Home],
    *,
    quick: bool = False,
    workers: int | None = 1,
    weights: Home | None = None,
    emit: Emit = ignore,
) -> list[str]:
    """Check every dataset of `directories`; returns findings, one sentence each, empty if nothing is wrong.

    Shards in a store are copied to temporary files, one at a time for each worker.
    `quick` looks at sizes and structure alone; `workers` None starts as many as the work is worth. `weights` is a table
    that should fit the dataset: it is checked too. Raises DatasetError if there is no dataset at all, WorkerError.
    """
    findings = []
    given = [directories] if isinstance(directories, (Path, StorePath)) else directories
    homes = [home for directory in given for home in find_datasets(directory)]
    for home in homes:
        if holder := find_holder(home):
            raise StorageError(f"{home} is in use by {holder}; verify it when that has ended")
        before = identify_file(home / WEIGHTS)
        if isinstance(home, Path) and is_measured(home):
            found = verify_measured(home, quick=quick, workers=workers, weights=weights, emit=emit)
        else:
            found = verify_dataset(home, quick=quick, workers=workers, weights=weights, emit=emit)
        if found and ((holder := find_holder(home)) or identify_file(home / WEIGHTS) != before):
            raise StorageError(
                f"{home} was weighed while it was verified{f' by {holder}' if holder else ''}; verify it again"
            )
        findings += found
    findings += check_splits(homes)
    findings += check_mixtures(homes)
    emit(Finished())
    return findings


def check_splits(homes: Sequence[Home]) -> Iterator[str]:
    """Findings about validation rows beside training rows: one run of `pack` made both."""
    for home in homes:
        train = home.with_name(SPLITS[0])
        if home.name != SPLITS[1] or train not in homes:
            continue
        with suppress(ExactPrepError):  # what cannot be read was said already
            held, other = load_manifest(home), load_manifest(train)
            if held.split and held.train_hash != other.tree_hash:
                yield explain_other_train(home, train)


def check_mixtures(homes: Sequence[Home]) -> Iterator[str]:
    """Findings about datasets that were weighed as one mixture: all hold the same table."""
    held: dict[str, tuple[Home, WeightsFile]] = {}
    for home in homes:
        # What cannot be read was said already.
        with suppress(ExactPrepError):
            held[open_any(home).described.id] = home, load_weights_file(home / WEIGHTS)
    for id_, (home, file) in held.items():
        if file.applied_from in held and identify_table(file) != identify_table(held[file.applied_from][1]):
            train = held[file.applied_from][0]
            yield f"{home} holds the weights of {train}, which holds other ones now; weigh {home.parent} again"
        for other in file.datasets:
            if other.id == id_ or other.id not in held:
                continue
            there, theirs = held[other.id]
            if identify(theirs) != identify(file):
                yield (
                    f"{home} was weighed in a mixture with {there}, which holds other weights now; weigh them together "
                    "again"
                )


def identify_table(file: WeightsFile) -> tuple[Any, Any]:
    """What two weights.json with the same weights have in common."""
    return file.options, file.table


def verify_dataset(home: Home, *, quick: bool, workers: int | None, weights: Home | None, emit: Emit) -> list[str]:
    """The findings about one dataset."""
    emit(Phase(text=f"checking the records of {home}"))
    try:
        dataset = open_dataset(home)
        records = load_records(dataset)
        file = load_weights_file(home / WEIGHTS)
    except ExactPrepError as error:
        return list(dict.fromkeys([str(error), *list_damage(home)]))
    findings = [f"{home}: {text}" for text in check_records(dataset, records, file)]
    if weights is not None:
        findings += [f"{weights}: {text}" for text in check_table_file(dataset, weights)]
    return findings + check_shards(dataset, records, file, quick=quick, workers=workers, emit=emit)


def verify_measured(home: Path, *, quick: bool, weights: Home | None, workers: int | None, emit: Emit) -> list[str]:
    """The findings about a measurement: its records, and, unless `quick`, what reading the data again gives."""
    try:
        measured = open_measured(home)
        findings = list(check_measured(measured, load_weights_file(home / WEIGHTS), home / WEIGHTS))
        if weights is not None:
            findings += check_measured(measured, load_weights_file(weights), weights)
        if not quick:
            again = measure_again(measured.record, workers=workers, emit=emit)
            findings += [f"{home}: {text}" for text in find_differences_to(again, measured.record)]
    except ExactPrepError as error:
        return [str(error)]
    return findings


def list_damage(home: Home) -> list[str]:
    """Files beside the shards that are missing or changed, where the manifest can be read."""
    try:
        dataset = open_dataset(home)
    except ExactPrepError:
        return []
    found = []
    for name in dataset.manifest.digests:
        try:
            dataset.read(name)
        except ExactPrepError as error:
            found.append(str(error))
    return found


def check_shards(
    dataset: Dataset, records: Records, weights: WeightsFile, *, quick: bool, workers: int | None, emit: Emit
) -> list[str]:
    """Findings about the shards, and about what they add up to."""
    home, manifest = dataset.path, dataset.manifest
    tasks = make_tasks(dataset, records, weights, quick=quick)
    sizes = [sum(shard.bytes for shard in task.shards) for task in tasks.values()]
    run = TaskRun(f"verify {home}", sizes, emit=emit)
    numbers = list(tasks)
    findings: dict[int, list[str]] = {}
    sums = Sums(len(records.source_rows))
    for index, verified in run.each(
        verify_shards, dict(enumerate(tasks.values())), name=lambda task: task.name, workers=workers
    ):
        findings[index] = verified.findings
        if not quick and not verified.findings:
            sums.add(verified, records.sources[numbers[index]] if records.sources else [])
    found = [finding for index in sorted(findings) for finding in findings[index]]
    if not quick and not found:
        found += [f"{home}: {text}" for text in sums.check(manifest, records)]
    return found


def make_tasks(dataset: Dataset, records: Records, weights: WeightsFile, *, quick: bool) -> dict[int, VerifyTask]:
    """What is checked together: the shards of each task of `pack`, by its number."""
    manifest = dataset.manifest
    edges, values = plain_runs(manifest.seq_len)
    checksums: dict[str, str | None] = dict.fromkeys(shard.file for shard in records.shards)
    # What is wrong with the weights was said by `check_weights_file`.
    with suppress(ExactPrepError):
        if weights.kind == "exact":
            divisor = find_divisor(weights, manifest.tree_hash)
            edges, values = float16_runs(compute_table(weights), manifest.seq_len, divisor=divisor)
        if weights.weights_xxh3 is not None:
            checksums |= load_checksums(dataset, weights)
    tasks = {}
    last = records.shards[-1].task if records.shards else 0
    for number, group in itertools.groupby(records.shards, key=lambda shard: shard.task):
        if number >= len(records.documents) and number > 0:
            continue
        documents = records.documents[number] if records.documents else DocumentCounts()
        shards = tuple(group)
        tasks[number] = VerifyTask(
            directory=dataset.path,
            seq_len=manifest.seq_len,
            pad_id=manifest.tokenizer.pad_id,
            vocab_size=manifest.tokenizer.vocab_size,
            bos_id=manifest.tokenizer.bos_id,
            eos_id=manifest.tokenizer.eos_id,
            records=documents.records,
            documents=documents.packed,
            padding_rows=manifest.padding_rows if number == last else 0,
            own_ids=find_own_ids(dataset, records, number),
            own_ids_xxh3=records.documents_xxh3[number] if records.documents_xxh3 else "",
            sources=len(records.sources[number]) if records.sources else 0,
            masked=manifest.masked,
            weights=manifest.loss_weights == "column",
            shards=shards,
            edges=edges,
            values=values,
            weights_xxh3=tuple(checksums[shard.file] for shard in shards),
            quick=quick,
        )
    return tasks


def find_own_ids(dataset: Dataset, records: Records, task: int) -> Home | None:
    """The table of documents' own ids of a task, if it has one."""
    known = task < len(records.documents_xxh3) and records.documents_xxh3[task]
    return dataset.path / documents_name(task) if known else None


class Sums:
    """What was counted from all shards together, by source."""

    def __init__(self, sources: int) -> None:
        self._exposures = [Exposure() for _ in range(sources)]
        self._documents, self._tokens = [0] * sources, [0] * sources
        self._lengths = np.zeros((3, 0), np.int64)
        self._cut = self._longest = 0

    def add(self, verified: Any, places: list[int]) -> None:
        """Add the counts of one task; `places` are its sources' rows in the table of sources."""
        for place, exposure, documents, tokens in zip(
            places, verified.exposures, verified.documents, verified.tokens, strict=True
        ):
            self._exposures[place] += exposure
            self._documents[place] += documents
            self._tokens[place] += tokens
        source, length, count = verified.lengths
        self._lengths = sum_lengths([self._lengths, np.stack([np.array(places, np.int64)[source], length, count])])
        self._cut += verified.documents_cut
        self._longest = max(self._longest, verified.longest_context)

    def check(self, manifest: Manifest, records: Records) -> Iterator[str]:
        """Findings about what was counted."""
        if sum(self._exposures, Exposure()).to_record() != manifest.exposure:
            yield "the exposure counted from the shards is not the manifest's"
        if self._cut != manifest.documents_cut:
            yield f"{self._cut:,} documents are cut, the manifest says {manifest.documents_cut:,}"
        if self._longest != manifest.longest_context:
            yield f"the longest context is {self._longest:,}, the manifest says {manifest.longest_context:,}"
        rows = zip(records.source_rows, self._exposures, self._documents, self._tokens, strict=True)
        for row, exposure, documents, tokens in rows:
            said = Exposure(counts=np.array(row["counts"], np.int64), segments=row["segments"], firsts=row["firsts"])
            if (said, row["documents"], row["tokens"]) != (exposure, documents, tokens):
                yield f"the source {row['label']!r} has other counts than the table of sources says"
                break
        if not np.array_equal(self._lengths, records.lengths):
            yield "the document lengths counted from the shards are not those of the table"
