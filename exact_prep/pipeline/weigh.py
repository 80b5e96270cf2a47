"""`weigh`: exposure of the whole corpus -> table -> weights.json -> `loss_weights` of every shard.

    weights.json says `under way`  ->  shards are overwritten, each leaves a record in .work  ->  it says `complete`

Killed anywhere, the dataset still loads, `verify` calls it half-weighed, and the next `weigh` finishes it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    INFO,
    MANIFEST,
    REJECTED,
    WEIGHTS,
    WORK,
    children_of,
    datasets_in,
    is_unfinished,
    is_unfinished_copy,
    load_manifest,
    load_weights_file,
    write_state,
)
from exact_prep.engines import crew, run
from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.pipeline.events import Finished, Note, Started, TaskDone, Watcher
from exact_prep.pipeline.work import WORKER_BYTES, claim_copy
from exact_prep.records import fingerprint, sealed
from exact_prep.stages.weigh import WeighedShard, WeighTask, recount_shard, weigh_shard
from exact_prep.stores.local import explained, load, locked, make_directory, read_bytes, remove, save, write_atomically
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import begun, exposure_of, record_of, weights_file
from exact_prep.weighing.weights import WeightOptions, WeightTable, default_tail_from, float16_runs, weight_table

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.choices import Normalize
    from exact_prep.pipeline.events import Emit
    from exact_prep.records.manifest import Manifest, ShardWeights, WeightsFile


@dataclass(frozen=True, kw_only=True)
class WeighOptions:
    """What the user asks; `weights.WeightOptions` with tau still open."""

    alpha: float = 0.15
    gamma: float = 0.5
    tail_from: int | None = None
    """tau in tokens; None is a quarter of each dataset's row length."""
    eps: float = 1e-6
    max_weight: float | None = None
    supervise_first: bool = False
    normalize: Normalize = "none"
    recount: bool = False
    """Count the exposure again from the shards."""

    def at(self, seq_len: int) -> WeightOptions:
        """The options for rows of `seq_len` tokens; raises WeightsError."""
        asked = {name: value for name, value in asdict(self).items() if name not in {"recount", "tail_from"}}
        tail_from = default_tail_from(seq_len) if self.tail_from is None else self.tail_from
        return WeightOptions(tail_from=tail_from, **asked)


def weigh(
    directory: Path,
    options: WeighOptions,
    *,
    out: Path | None = None,
    workers: int | None = 1,
    overwrite: bool = False,
    emit: Emit = lambda event: None,
) -> list[WeightsFile]:
    """Write EXACT weights into every dataset of `directory`, or into copies under `out`; returns their weights.json.

    `workers` None starts as many as the work is worth.
    Raises WeightsError, DatasetError, StorageError, UsageError, WorkerError; Interrupted, after which the same call
    continues.
    """
    homes = datasets_in(directory)
    targets = [home if out is None else out if home == directory else out / home.name for home in homes]
    if out is not None:
        refuse_sources(homes, out, targets)
    written = []
    with ExitStack() as held:
        for place in dict.fromkeys([out or directory, *targets]):
            held.enter_context(locked(place))
        if out is not None and out not in targets:
            if (out / MANIFEST).exists():
                raise UsageError(f"{out} holds a dataset, {directory} holds several; choose another --out")
            if is_unfinished(out) or is_unfinished_copy(out):
                raise UsageError(f"{out} holds an unfinished run; choose another --out")
        jobs = [job_of(home, target, options) for home, target in zip(homes, targets, strict=True)]
        for job in jobs:
            check_source(job)
        copied = {job.target: file for job in jobs if job.is_copy and (file := finished_copy(job))}
        if len(copied) == len(jobs) and not any((job.target / WORK).exists() for job in jobs):
            # Nothing is left to be continued: this is another call, which may replace them only if it says so.
            copied = {}
        for job in jobs:
            if job.target in copied:
                remove(job.target / WORK)
                written.append(copied[job.target])
                continue
            try:
                if options.recount:
                    recount(job.home, job.manifest, workers, emit)
                if job.is_copy:
                    claim_copy(job.target, job.manifest.tree_hash, overwrite=overwrite)
                    check_room(job)
                written.append(weigh_dataset(job, workers, emit))
            except (KeyboardInterrupt, Interrupted):
                begun = (job.target / WORK).exists()
                state = f"{job.target} is half-weighed until" if begun else f"nothing was written to {job.target};"
                raise Interrupted(f"stopped; {state} the same command, started again, finishes it") from None
    emit(Finished())
    return written


def refuse_sources(homes: list[Path], out: Path, targets: list[Path]) -> None:
    """Raise UsageError if a dataset of `homes` lies where its copies go: `--overwrite` would remove it first."""
    sources = {home.resolve() for home in homes}
    for target in (out, *targets):
        if target.is_dir() and sources & {place.resolve() for place in (target, *children_of(target))}:
            raise UsageError(
                f"--out {out} is or holds the dataset itself; choose another --out, or leave it away to weigh in place"
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One dataset, the table it is to hold, and where."""

    home: Path
    target: Path
    """The same as `home`, or where its weighed copy goes."""
    manifest: Manifest
    table: WeightTable
    file: WeightsFile
    """weights.json while the job is under way."""

    @property
    def is_copy(self) -> bool:
        """Whether the weights go into a copy."""
        return self.home != self.target

    @property
    def identity(self) -> str:
        """Fingerprint of the table."""
        return fingerprint(self.file)


def job_of(home: Path, target: Path, options: WeighOptions) -> Job:
    """What is to be done for one dataset; raises WeightsError, DatasetError, StorageError."""
    manifest = load_manifest(home)
    table = weight_table(exposure_of(manifest.exposure), options.at(manifest.seq_len))
    return Job(home=home, target=target, manifest=manifest, table=table, file=weights_file(table, manifest))


def weigh_dataset(job: Job, workers: int | None, emit: Emit) -> WeightsFile:
    """Weigh one dataset."""
    manifest, target = job.manifest, job.target
    for note in remarks(job.table, manifest):
        emit(Note(text=note))
    edges, values = float16_runs(job.table, manifest.seq_len)
    done = weighed_shards(target, job.identity)
    make_directory(target / WORK)
    save(sealed(job.file), target / WEIGHTS)
    if not job.is_copy:
        write_state(target, manifest.shards, manifest.tree_hash, job.identity, "under way")
    tasks = [
        WeighTask(
            source=job.home / shard.file,
            target=target / shard.file,
            edges=edges,
            values=values,
            table=job.identity,
            record=target / WORK / f"{shard.file}.json",
        )
        for shard in manifest.shards
        if shard.file not in done
    ]
    sizes = {shard.file: shard.bytes for shard in manifest.shards}
    emit(
        Started(
            what=f"weigh {target}",
            tasks=len(manifest.shards),
            done=len(done),
            total_bytes=sum(sizes.values()),
            done_bytes=sum(sizes[name] for name in done),
        )
    )
    workers = workers or crew(sum(sizes[task.target.name] for task in tasks), WORKER_BYTES)
    for index, weights in run(weigh_shard, tasks, workers=workers, name=lambda t: t.name, observer=Watcher(emit)):
        done[tasks[index].target.name] = weights
        emit(TaskDone(done=len(done), tasks=len(manifest.shards)))
    return finish(job, tuple(done[shard.file] for shard in manifest.shards))


def finish(job: Job, shards: tuple[ShardWeights, ...]) -> WeightsFile:
    """Say that all shards are weighed; a copy gets the rest of its files, its manifest last."""
    target = job.target
    complete = sealed(job.file.model_copy(update={"state": "complete", "shards": shards}))
    write_state(target, job.manifest.shards, job.manifest.tree_hash, job.identity)
    for name in taken_along(job):
        write_atomically(target / name, read_bytes(job.home / name))
    save(complete, target / WEIGHTS)
    if job.is_copy:
        save(job.manifest, target / MANIFEST)
    remove(target / WORK)
    return complete


def finished_copy(job: Job) -> WeightsFile | None:
    """weights.json of the copy that this job would make, if an earlier call has made it."""
    if not (job.target / MANIFEST).exists() or load_manifest(job.target) != job.manifest:
        return None
    weights = load_weights_file(job.target)
    if weights is None or weights.state != "complete":
        return None
    return weights if begun(weights) == job.file else None


def weighed_shards(target: Path, identity: str) -> dict[str, ShardWeights]:
    """Shards that hold this table already, by their records; records of other tables are removed."""
    done = {}
    for path in sorted((target / WORK).glob("*.arrow.json")):
        try:
            record = load(WeighedShard, path)
        except DatasetError:
            record = None
        if record and record.table == identity and (target / record.weights.file).is_file():
            done[record.weights.file] = record.weights
        else:
            remove(path)
    return done


def taken_along(job: Job) -> list[str]:
    """The files of a dataset that a copy gets as they are."""
    if not job.is_copy:
        return []
    return [INFO, REJECTED] if job.manifest.rejected_xxh3 else [INFO]


def check_source(job: Job) -> None:
    """Before anything is touched: raise DatasetError or StorageError unless all that is weighed or copied is there."""
    for shard in job.manifest.shards:
        path = job.home / shard.file
        with explained("read", path):
            size = path.stat().st_size
        if size != shard.bytes:
            raise DatasetError(
                f"{path}: {size:,} bytes, the manifest says {shard.bytes:,}; `exact-prep verify` says more"
            )
        if not os.access(path, os.R_OK if job.is_copy else os.R_OK | os.W_OK):
            with explained("read" if job.is_copy else "write", path):
                raise PermissionError(13, "Permission denied")
    for path in (job.home / name for name in taken_along(job)):
        if not path.is_file():
            raise DatasetError(f"{path} is missing, the copy would lack it too; `exact-prep verify` says more")


def check_room(job: Job) -> None:
    """Raise StorageError if the shards that are missing in a copy do not fit on its device."""
    with explained("copy to", job.target):
        free = shutil.disk_usage(job.target).free
        need = sum(shard.bytes for shard in job.manifest.shards if not (job.target / shard.file).exists())
        if need > free:
            raise OSError(28, f"{need:,} bytes are needed, {free:,} are free; make room, or weigh in place")


def recount(home: Path, manifest: Manifest, workers: int | None, emit: Emit) -> None:
    """Count the exposure from the shards and hold it against the manifest's; raises DatasetError."""
    paths = [home / shard.file for shard in manifest.shards]
    size = sum(shard.bytes for shard in manifest.shards)
    emit(Started(what=f"recount {home}", tasks=len(paths), done=0, total_bytes=size, done_bytes=0))
    workers, counted = workers or crew(size, WORKER_BYTES), Exposure()
    for count, (_, record) in enumerate(
        run(recount_shard, paths, workers=workers, name=str, observer=Watcher(emit)), start=1
    ):
        counted += exposure_of(record)
        emit(TaskDone(done=count, tasks=len(paths)))
    if record_of(counted) != manifest.exposure:
        raise DatasetError(f"{home}: the shards' exposure is not the manifest's; `exact-prep verify {home}` says where")


def remarks(table: WeightTable, manifest: Manifest) -> list[str]:
    """What the user should know about a table."""
    options, notes = table.options, []
    if table.tail_start != options.tail_from:
        notes.append(f"--tail-from {options.tail_from} is no bucket edge: the tail begins at {table.tail_start}")
    if not table.in_tail.any():
        notes.append(
            f"no target has an effective context of {table.tail_start} or more (the longest has "
            f"{manifest.longest_context}): all weights are 1; lower --tail-from, or pack longer documents"
        )
    elif options.alpha - table.extra > 1e-9 * max(options.alpha, 1.0):
        notes.append(f"clipping took {options.alpha - table.extra:.4g} of the extra supervision {options.alpha:g}")
    return notes
