"""`weigh`: exposure of the whole corpus -> table -> weights.json -> `loss_weights` of every shard.

    weights.json says `under way`  ->  shards are overwritten, each leaves a record in .work  ->  it says `complete`

Killed anywhere, the dataset still loads, `verify` calls it half-weighed, and the next `weigh` finishes it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    INFO,
    MANIFEST,
    REJECTED,
    WEIGHTS,
    WORK,
    datasets_in,
    load_manifest,
    write_state,
)
from exact_prep.engines import run
from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.exposure import Exposure
from exact_prep.manifest import Manifest, ShardWeights, WeightsFile, fingerprint
from exact_prep.pipeline.events import Finished, Note, Started, TaskDone, Watcher
from exact_prep.stages.weigh import WeighedShard, WeighTask, recount_shard, weigh_shard
from exact_prep.storage import explained, load, locked, make_directory, read_bytes, remove, save, write_atomically
from exact_prep.tables import exposure_of, record_of, weights_file
from exact_prep.weights import WeightOptions, WeightTable, default_tail_from, float16_runs, weight_table

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.choices import Normalize
    from exact_prep.pipeline.events import Emit


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
    workers: int = 1,
    overwrite: bool = False,
    emit: Emit = lambda event: None,
) -> list[WeightsFile]:
    """Write EXACT weights into every dataset of `directory`, or into copies under `out`; returns their weights.json.

    Raises WeightsError, DatasetError, StorageError, UsageError, WorkerError; Interrupted, after which the same call
    continues.
    """
    written = []
    homes = datasets_in(directory)
    if out is not None and out.resolve() in {directory.resolve(), *(home.resolve() for home in homes)}:
        raise UsageError(f"--out {out} is the dataset itself; leave --out away to weigh in place")
    for home in homes:
        manifest = load_manifest(home)
        target = home if out is None else out if home == directory else out / home.name
        with locked(target):
            if target != home:
                begin_copy(home, target, manifest, overwrite=overwrite)
            try:
                written.append(weigh_dataset(home, target, manifest, options, workers, emit))
            except (KeyboardInterrupt, Interrupted):
                raise Interrupted(
                    f"stopped; {target} is half-weighed until the same command, started again, finishes it"
                ) from None
    emit(Finished())
    return written


def weigh_dataset(
    home: Path, target: Path, manifest: Manifest, options: WeighOptions, workers: int, emit: Emit
) -> WeightsFile:
    """Weigh one dataset."""
    if options.recount:
        recount(home, manifest, workers, emit)
    table = weight_table(exposure_of(manifest.exposure), options.at(manifest.seq_len))
    for note in remarks(table, manifest):
        emit(Note(text=note))
    edges, values = float16_runs(table, manifest.seq_len)
    file = weights_file(table, manifest)
    identity = fingerprint(file)
    done = weighed_shards(target, identity)
    make_directory(target / WORK)
    write_state(target, manifest.shards, manifest.tree_hash, identity, "under way")
    save(file, target / WEIGHTS)
    tasks = [
        WeighTask(
            source=home / shard.file,
            target=target / shard.file,
            edges=edges,
            values=values,
            table=identity,
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
    for index, weights in run(weigh_shard, tasks, workers=workers, name=lambda t: t.name, observer=Watcher(emit)):
        done[tasks[index].target.name] = weights
        emit(TaskDone(done=len(done), tasks=len(manifest.shards)))
    if target != home:
        write_state(target, manifest.shards, manifest.tree_hash, identity, "under way")
    complete = file.model_copy(
        update={"state": "complete", "shards": tuple(done[shard.file] for shard in manifest.shards)}
    )
    write_state(target, manifest.shards, manifest.tree_hash, identity)
    save(complete, target / WEIGHTS)
    if target != home:
        save(manifest, target / MANIFEST)
    remove(target / WORK)
    return complete


def weighed_shards(target: Path, identity: str) -> dict[str, ShardWeights]:
    """Shards that hold this table already, by their records; records of other tables are removed."""
    done = {}
    for path in sorted((target / WORK).glob("*.arrow.json")):
        record = load(WeighedShard, path)
        if record.table == identity and (target / record.weights.file).is_file():
            done[record.weights.file] = record.weights
        else:
            remove(path)
    return done


def begin_copy(home: Path, target: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Make `target` ready to receive a copy of `home`: all but shards, weights and manifest. Raises UsageError."""
    if (target / MANIFEST).exists():
        if not overwrite:
            raise UsageError(f"{target} holds a dataset already; choose another --out, or replace it with --overwrite")
        remove(target / MANIFEST)
        remove(target / WORK)
    elif not (target / WORK).exists() and any(not path.name.startswith(".lock") for path in target.iterdir()):
        raise UsageError(f"{target} is not empty; choose another --out")
    for name in (INFO, REJECTED):
        if (home / name).exists():
            write_atomically(target / name, read_bytes(home / name))
    free = shutil.disk_usage(target).free
    need = sum(shard.bytes for shard in manifest.shards if not (target / shard.file).exists())
    if need > free:
        with explained("copy to", target):
            raise OSError(28, f"{need:,} bytes are needed, {free:,} are free; make room, or weigh in place")


def recount(home: Path, manifest: Manifest, workers: int, emit: Emit) -> None:
    """Count the exposure from the shards and hold it against the manifest's; raises DatasetError."""
    paths = [home / shard.file for shard in manifest.shards]
    size = sum(shard.bytes for shard in manifest.shards)
    emit(Started(what=f"recount {home}", tasks=len(paths), done=0, total_bytes=size, done_bytes=0))
    counted = Exposure()
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
