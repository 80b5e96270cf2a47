"""`weigh`: exposure of the whole corpus, or of a mixture -> table -> weights.json -> `loss_weights` of every shard.

    weights.json says `incomplete` -> shards are overwritten, each leaves a record in .work -> tables/weights.parquet ->
    weights.json says `complete`

Killed anywhere, the dataset still loads, `verify` calls it half-weighed, and the next `weigh` finishes it. A dataset
without a column of weights (`--loss-weights table`) gets a new weights.json and nothing else; in a store it must be
one. All datasets of a call are checked before the first is touched.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    SPLITS,
    STATE,
    TABLES,
    WEIGHTS,
    WORK,
    Dataset,
    Measured,
    check_outside_datasets,
    find_datasets,
    is_split_in_two,
    make_state,
    open_any,
    open_dataset,
    table_name,
)
from exact_prep.errors import DatasetError, StorageError, UsageError, WeightsError
from exact_prep.pipeline.events import Finished, Note, Phase, ignore
from exact_prep.pipeline.runs import TaskRun, hold, interruptible
from exact_prep.records import encode, fingerprint, is_sealed, parse, seal
from exact_prep.records.tables import encode_weights
from exact_prep.records.weights import WeightsFile
from exact_prep.stages.weigh import WeighedShard, WeighTask, recount_shard, weigh_shard
from exact_prep.stores.local import digest, explained, load, make_directory, read_bytes, remove, save, write_atomically
from exact_prep.stores.paths import Home, StorePath
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import exact_weights, find_divisor, weight_runs
from exact_prep.weighing.mixture import Part, find_rates, keep_shares, mix
from exact_prep.weighing.weights import check_tail_from, float16_runs, resolve_options, weight_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.pipeline.events import Emit
    from exact_prep.records.options import WeightOptions
    from exact_prep.weighing.weights import WeightTable

ROUNDING_TOLERANCE = 0.01
"""Relative error of the extra supervision as stored in float16 from which the user is warned."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One table, and the datasets that will hold it: one, or those of a mixture."""

    datasets: tuple[Dataset | Measured, ...]
    table: WeightTable
    file: WeightsFile
    """weights.json while the job is incomplete."""
    versions: dict[str, str | None]
    """Of datasets in stores, by their tree hash: the version of weights.json that the new one takes the place of."""

    @property
    def identity(self) -> str:
        """Fingerprint of the table."""
        return fingerprint(self.file)

    @property
    def name(self) -> str:
        """Its datasets, for messages."""
        return " + ".join(str(dataset.path) for dataset in self.datasets)


def weigh(
    directories: Home | Sequence[Home],
    options: WeightOptions,
    *,
    rates: Sequence[float] | None = None,
    out: Path | None = None,
    recount: bool = False,
    allow_empty_tail: bool = False,
    workers: int | None = 1,
    lock: bool = True,
    emit: Emit = ignore,
) -> list[WeightsFile]:
    """Write EXACT weights into every dataset of `directories`, or only the table into the file `out`.

    Several directories are one mixture, read at `rates` (shares of the tokens that the trainer reads, normalised; in
    proportion to the tokens of their rows if not given): one table for all, per row length. Returns the weights.json of
    each dataset, in the order of `find_mixtures`. `recount` counts the exposure again from the shards; `workers` None
    starts as many as the work is worth; `lock` False takes the datasets to be free. Raises WeightsError (also for a
    `tail_from` that is not a bucket edge, and for an empty tail unless `allow_empty_tail`), DatasetError, StorageError,
    UsageError, WorkerError; Interrupted, after which the same call continues.
    """
    given = [directories] if isinstance(directories, (Path, StorePath)) else list(directories)
    mixtures = find_mixtures(given)
    check_rates(given, rates)
    if out is not None:
        return [write_table(mixtures, options, rates, out, recount, allow_empty_tail, workers, emit)]
    homes = [home for mixture in mixtures for home in mixture]
    followers = find_followers(given)
    with hold_all([*given, *homes, *followers.values()], lock=lock):
        emit(Phase(text="checking the shards"))
        jobs = [plan_job(mixture, options, rates, allow_empty_tail) for mixture in mixtures]
        # Training rows first: their exposure alone decides the table.
        applied = [
            apply_job(job, dataset, open_dataset(followers[dataset.path]))
            for job in jobs
            for dataset in job.datasets
            if isinstance(dataset, Dataset) and dataset.path in followers
        ]
        for job in [*jobs, *applied]:
            for dataset in job.datasets:
                check_shards(dataset)
        if recount:
            for job in [*jobs, *applied]:
                with interruptible(lambda: "stopped; nothing was written"):
                    recount_exposure(job, workers, emit)
        written = []
        for job in [*jobs, *applied]:
            if job.file.applied_from is None:
                emit_notes(job, emit)
            for dataset in job.datasets:
                with interruptible(lambda home=dataset.path: explain_stop(home)):
                    written.append(weigh_dataset(dataset, job, workers, emit))
    emit(Finished())
    return written


def find_mixtures(directories: Sequence[Home]) -> list[list[Home]]:
    """The datasets that share a table: those of one row length, one of each directory; in the order of row lengths.

    Raises UsageError if the directories do not hold the same row lengths, or one of them comes twice; DatasetError.
    """
    found = [leave_out_followers(find_datasets(directory)) for directory in directories]
    if len(found) == 1:
        return [[home] for home in found[0]]
    lengths = [[open_any(home).seq_len for home in homes] for homes in found]
    if any(own != lengths[0] for own in lengths):
        listed = "; ".join(
            f"{directory}: {', '.join(f'{length:,}' for length in own)}"
            for directory, own in zip(directories, lengths, strict=True)
        )
        raise UsageError(f"the datasets of a mixture have rows of the same lengths, and these differ ({listed})")
    return [list(mixture) for mixture in zip(*found, strict=True)]


def leave_out_followers(homes: Sequence[Home]) -> list[Home]:
    """Datasets without the validation rows that come with their training rows."""
    kept = set(homes)
    return [
        home
        for home in homes
        if home.name != SPLITS[1] or home.parent / SPLITS[0] not in kept or not is_split_in_two(home.parent)
    ]


def find_followers(directories: Sequence[Home]) -> dict[Home, Home]:
    """The validation rows that were found with training rows, by the absolute path of these."""
    found = {}
    for directory in directories:
        homes = find_datasets(directory)
        kept = leave_out_followers(homes)
        found |= {(home.parent / SPLITS[0]).absolute(): home for home in homes if home not in kept}
    return found


def apply_job(job: Job, train: Dataset, validation: Dataset) -> Job:
    """What gives validation rows the table of the training rows beside them."""
    divisor = find_divisor(job.file, train.manifest.tree_hash)
    weighed = validation.described.model_copy(update={"divisor": divisor})
    file = job.file.model_copy(update={"datasets": (weighed,), "applied_from": train.manifest.tree_hash})
    return Job(datasets=(validation,), table=job.table, file=file, versions=find_versions([validation]))


def find_versions(datasets: Sequence[Dataset | Measured]) -> dict[str, str | None]:
    """The versions of weights.json of datasets in stores, by their tree hashes."""
    return {
        dataset.manifest.tree_hash: dataset.store.version(WEIGHTS)
        for dataset in datasets
        if isinstance(dataset, Dataset) and not isinstance(dataset.path, Path)
    }


def check_rates(directories: Sequence[Home], rates: Sequence[float] | None) -> None:
    """Raise UsageError unless there is a rate above 0 for each directory of a mixture."""
    if rates is None:
        return
    if len(rates) != len(directories):
        raise UsageError(
            f"--rates names {len(rates)} rates for {len(directories)} directories; give one for each, in their order"
        )
    for directory, rate in zip(directories, rates, strict=True):
        if not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"--rates: {rate:g} for {directory}; a rate is above 0. Leave out what is not read")


@contextmanager
def hold_all(places: Sequence[Home], *, lock: bool) -> Iterator[None]:
    """Hold every directory; in a store nothing is held, see `weigh_in_store`."""
    with ExitStack() as held:
        for place in dict.fromkeys(place for place in places if isinstance(place, Path)):
            held.enter_context(hold(place, place / WORK, place / TABLES, lock=lock))
        yield


def explain_stop(home: Home) -> str:
    """What a stopped `weigh` left."""
    state = f"{home} is half-weighed until" if (home / WORK).exists() else f"nothing was written to {home};"
    return f"stopped; {state} the same command, started again, finishes it"


def plan_job(
    homes: Sequence[Home], options: WeightOptions, rates: Sequence[float] | None, allow_empty_tail: bool
) -> Job:
    """What will be done for the datasets of one table; raises WeightsError, DatasetError, StorageError, UsageError."""
    datasets = tuple(open_any(home) for home in homes)
    if options.tail_from is not None:
        check_tail_from(options.tail_from)
    records = [dataset.described for dataset in datasets]
    check_alike(datasets)
    seq_len = datasets[0].seq_len
    parts = [
        Part(exposure=Exposure.from_record(record.exposure), tokens=record.rows * seq_len, rate=rate)
        for record, rate in zip(records, rates or [None] * len(records), strict=True)
    ]
    table = weight_table(mix(parts), resolve_options(options, seq_len))
    if not table.in_tail.any() and not allow_empty_tail:
        raise WeightsError(explain_empty_tail(datasets, table))
    divisors = keep_shares([part.exposure for part in parts], table) if options.keep_mixture else [1.0] * len(parts)
    weighed = [
        record.model_copy(update={"rate": rate, "divisor": divisor})
        for record, rate, divisor in zip(records, find_rates(parts), divisors, strict=True)
    ]
    for divisor in divisors:
        float16_runs(table, seq_len, divisor=divisor)  # raises for a weight beyond float16
    file = exact_weights(table, weighed, seq_len, state="incomplete")
    return Job(datasets=datasets, table=table, file=file, versions=find_versions(datasets))


def check_alike(datasets: Sequence[Dataset | Measured]) -> None:
    """Raise UsageError for datasets that cannot be one mixture: the same data twice, or several tokenizers."""
    seen: dict[str, Dataset | Measured] = {}
    for dataset in datasets:
        twin = seen.setdefault(dataset.described.id, dataset)
        if twin is not dataset:
            what = "tree hash" if isinstance(dataset, Dataset) else "fingerprint"
            raise UsageError(
                f"{twin.path} and {dataset.path} hold the same rows ({what} {dataset.described.id}); "
                "name one of them, with a higher rate if it is to be read more often"
            )
    known: dict[str, Dataset | Measured] = {}
    for dataset in datasets:
        if sha256 := dataset.described.tokenizer:
            known.setdefault(sha256, dataset)
    if len(known) > 1:
        listed = "; ".join(f"{one.path}: {one.tokenizer_name or sha256}" for sha256, one in known.items())
        raise UsageError(f"the datasets of a mixture were packed with one tokenizer, and these differ ({listed})")


def explain_empty_tail(datasets: Sequence[Dataset | Measured], table: WeightTable) -> str:
    """Why there is nothing to weigh, and what can be done."""
    window = table.options.window
    within = f" within the window of {window:,}" if window else ""
    longest = max(dataset.longest_context for dataset in datasets)
    longest = min(longest, window or longest)
    names = ", ".join(str(dataset.path) for dataset in datasets)
    if not table.counts.sum() and any(dataset.described.rows for dataset in datasets):
        return (
            f"{names}: no target carries loss: every segment has one token, and all weights would be 0; pack longer "
            "documents, let first tokens carry loss with --supervise-first, or write the 0 with --allow-empty-tail"
        )
    return (
        f"{names}: no target has an effective context of {table.tail_start:,} or more (the longest has "
        f"{longest:,}{within}), so there is nothing to weigh; lower --tail-from, pack longer documents, "
        "or write weights of 1 with --allow-empty-tail"
    )


def write_table(
    mixtures: Sequence[Sequence[Home]],
    options: WeightOptions,
    rates: Sequence[float] | None,
    out: Path,
    recount: bool,
    allow_empty_tail: bool,
    workers: int | None,
    emit: Emit,
) -> WeightsFile:
    """Write the table alone to the file `out`, and touch no dataset."""
    if len(mixtures) > 1:
        lengths = ", ".join(mixture[0].name for mixture in mixtures)
        raise UsageError(
            f"--out FILE holds one table, and {mixtures[0][0].parent} holds datasets of several row lengths "
            f"({lengths}); name one of them"
        )
    check_table_path(out)
    job = plan_job(mixtures[0], options, rates, allow_empty_tail)
    if recount:
        recount_exposure(job, workers, emit)
    emit_notes(job, emit)
    complete = seal(job.file.model_copy(update={"state": "complete"}))
    make_directory(out.parent)
    write_atomically(out, encode(complete))
    emit(Finished())
    return complete


def check_table_path(out: Path) -> None:
    """Raise UsageError unless a table may be written to `out`: a new file, or another table, outside of datasets."""
    if out.is_dir():
        raise UsageError(
            f"{out} is a directory; --out names the file of the table, such as {out / 'weights-alpha-0.3.json'}. "
            "To copy a dataset use cp -r"
        )
    check_outside_datasets(out)
    if out.exists() and not is_table(out):
        raise UsageError(f"{out} exists and is not a table of weights; choose another --out")


def is_table(path: Path) -> bool:
    """Whether a file is a table that `weigh --out` wrote."""
    data = read_bytes(path)
    try:
        parse(WeightsFile, data, path)
    except DatasetError:
        return False
    return is_sealed(data)


def weigh_dataset(dataset: Dataset | Measured, job: Job, workers: int | None, emit: Emit) -> WeightsFile:
    """Weigh one dataset of a job in place."""
    if isinstance(dataset, Measured):
        complete = seal(job.file.model_copy(update={"state": "complete"}))
        save(complete, dataset.path / WEIGHTS)
        return complete
    home, manifest, shards = dataset.path, dataset.manifest, dataset.shards
    names = [shard.file for shard in shards]
    if not isinstance(home, Path):
        return weigh_in_store(dataset, job)
    if manifest.loss_weights == "table":
        # Incomplete until state.json follows: killed in between, the dataset is half-weighed like any other.
        save(seal(job.file), home / WEIGHTS)
        write_atomically(home / STATE, make_state(names, manifest.tree_hash, job.identity))
        complete = seal(job.file.model_copy(update={"state": "complete"}))
        save(complete, home / WEIGHTS)
        return complete
    edges, values = weight_runs(job.file, manifest.tree_hash)
    done = find_weighed(home, job.identity)
    make_directory(home / WORK)
    save(seal(job.file), home / WEIGHTS)
    write_atomically(home / STATE, make_state(names, manifest.tree_hash, job.identity, "incomplete"))
    finished = [index for index, name in enumerate(names) if name in done]
    run = TaskRun(f"weigh {home}", [shard.bytes for shard in shards], finished, emit=emit)
    tasks = {
        index: WeighTask(
            path=home / names[index],
            edges=edges,
            values=values,
            table=job.identity,
            record=home / WORK / f"{names[index]}.json",
        )
        for index in run.missing
    }
    for index, checksum in run.each(weigh_shard, tasks, name=lambda task: task.name, workers=workers):
        done[names[index]] = checksum
    return finish(home, dataset, job, {name: done[name] for name in names})


def weigh_in_store(dataset: Dataset, job: Job) -> WeightsFile:
    """Weigh a dataset in a store: one conditional write, so that a reader sees the old weights or the new ones.

    state.json follows, by which Hugging Face tells one state from another. Raises StorageError if somebody else weighed
    the dataset meanwhile.
    """
    complete = seal(job.file.model_copy(update={"state": "complete"}))
    if not dataset.store.replace(WEIGHTS, encode(complete), job.versions[dataset.manifest.tree_hash]):
        raise StorageError(f"{dataset.path} was weighed by another run meanwhile; nothing was written, run it again")
    names = [shard.file for shard in dataset.shards]
    dataset.store.write(STATE, make_state(names, dataset.manifest.tree_hash, job.identity))
    return complete


def finish(home: Path, dataset: Dataset, job: Job, checksums: dict[str, str]) -> WeightsFile:
    """Record that all shards are weighed."""
    manifest = dataset.manifest
    table = encode_weights(checksums)
    dataset.store.write(table_name("weights"), table)
    complete = seal(job.file.model_copy(update={"state": "complete", "weights_xxh3": digest([table])}))
    write_atomically(home / STATE, make_state(list(checksums), manifest.tree_hash, job.identity))
    save(complete, home / WEIGHTS)
    remove(home / WORK)
    return complete


def find_weighed(home: Path, identity: str) -> dict[str, str]:
    """Checksums of shards that hold this table already, by their records; records of other tables are removed."""
    done = {}
    for path in sorted((home / WORK).glob("data-*.arrow.json")):
        try:
            record = load(WeighedShard, path)
        except DatasetError:
            record = None
        if record and record.table == identity and (home / record.file).is_file():
            done[record.file] = record.weights_xxh3
        else:
            remove(path)
    return done


def check_shards(dataset: Dataset | Measured) -> None:
    """Before anything is touched: raise DatasetError or StorageError unless all shards are there and may be written.

    A shard that is a link, or has several names, is refused: what is written to it would change other copies too, such
    as the blobs of a Hugging Face cache, which several snapshots share.
    """
    if isinstance(dataset, Measured):
        return
    column = dataset.has_column
    home = dataset.path
    if not isinstance(home, Path):
        check_stored_shards(dataset)
        return
    for shard in dataset.shards:
        path = home / shard.file
        with explained("read", path):
            status = path.stat()
        size = status.st_size
        if column and (path.is_symlink() or status.st_nlink > 1):
            kind = "a symbolic link" if path.is_symlink() else f"one of {status.st_nlink} names of a file"
            raise DatasetError(
                f"{path} is {kind}, and weights written to it would change the other copies; copy the dataset first "
                f"(cp -rL {dataset.path} COPY) and weigh the copy, or use `exact-prep weigh --out FILE.json`"
            )
        if size != shard.bytes:
            raise DatasetError(
                f"{path}: {size:,} bytes, the table of shards says {shard.bytes:,}; `exact-prep verify` says more"
            )
        if column and not os.access(path, os.R_OK | os.W_OK):
            with explained("write", path):
                raise PermissionError(13, "Permission denied")


def check_stored_shards(dataset: Dataset) -> None:
    """The same for a dataset in a store; raises UsageError for one whose shards hold the weights."""
    if dataset.has_column:
        raise UsageError(
            f"{dataset.path} holds its weights in a column of the shards, and shards in a store are not rewritten;\n"
            "pack with --loss-weights table, or weigh a copy on this machine; `weigh --out FILE.json` writes the table"
        )
    for shard in dataset.shards:
        found = dataset.shard_files.get(shard.file)
        if found is None or found.bytes != shard.bytes:
            raise DatasetError(
                f"{dataset.path / shard.file}: {'it is missing' if found is None else f'{found.bytes:,} bytes'}, the "
                f"table of shards says {shard.bytes:,} bytes; copy the dataset again"
            )


def recount_exposure(job: Job, workers: int | None, emit: Emit) -> None:
    """Count the exposure of each dataset from its shards and compare it with the manifest's; raises DatasetError."""
    for dataset in job.datasets:
        if isinstance(dataset, Measured):
            raise UsageError(f"--recount counts from shards, and {dataset.path} is measured; use `exact-prep verify`")
        home, shards = dataset.path, dataset.shards
        run = TaskRun(f"recount {home}", [shard.bytes for shard in shards], emit=emit)
        paths: dict[int, Home] = {index: home / shard.file for index, shard in enumerate(shards)}
        counted = Exposure()
        for _, record in run.each(recount_shard, paths, name=str, workers=workers):
            counted += Exposure.from_record(record)
        if counted.to_record() != dataset.manifest.exposure:
            raise DatasetError(
                f"{home}: the shards' exposure is not the manifest's; `exact-prep verify {home}` says where"
            )


def emit_notes(job: Job, emit: Emit) -> None:
    """Say what the user should know about a table."""
    table, options, rounding = job.table, job.table.options, job.file.rounding
    if len(job.datasets) > 1 and (unknown := [one for one in job.datasets if not one.described.tokenizer]):
        names = ", ".join(str(dataset.path) for dataset in unknown)
        emit(
            Note(text=f"{names}: the tokenizer is not known, so nobody can check that it is the same for all datasets")
        )
    if not table.counts.sum():
        emit(
            Note(
                text=f"{job.name}: no target carries loss: all weights are 0, and a trainer that divides by them fails"
            )
        )
    elif not table.in_tail.any():
        emit(Note(text=f"{job.name}: no target is in the tail (from {table.tail_start:,}): all weights are 1"))
    elif options.alpha - table.extra > 1e-9 * max(options.alpha, 1.0):
        emit(
            Note(
                text=f"{job.name}: clipping took {options.alpha - table.extra:.4g} of the extra supervision "
                f"{options.alpha:g}"
            )
        )
    if rounding and table.extra and abs(rounding.extra_relative_error) > ROUNDING_TOLERANCE:
        emit(
            Note(
                text=f"{job.name}: as float16 the extra supervision is {rounding.extra_float16:.4g} instead of "
                f"{table.extra:.4g} ({rounding.extra_relative_error:+.1%}); "
                "choose a larger --alpha, or --normalize none"
            )
        )
