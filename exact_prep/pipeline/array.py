"""`pack` as an array of jobs: planned once, its tasks done by members that know nothing of each other, then finished.

    plan_array      writes the plan, under the lock
    run_member      does tasks I, I + N, I + 2N, ... of it; takes no lock
    finish_array    sums the records and publishes, under the lock; says what is missing

A member may be killed, requeued, and started twice at once: a task's record is written last, and two attempts write the
same bytes under the same names. So the result is that of a single run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exact_prep.errors import TasksMissing, UsageError
from exact_prep.pipeline.events import Note, ignore
from exact_prep.pipeline.pack import (
    begin,
    check_options,
    check_sources,
    complete,
    explain_stop,
    written_directories,
)
from exact_prep.pipeline.plan import open_plan
from exact_prep.pipeline.publish import remove_strays
from exact_prep.pipeline.rejections import parse_limit
from exact_prep.pipeline.runs import TaskRun, find_differences, hold, interruptible
from exact_prep.pipeline.tasks import find_finished, make_task, measure_tasks, worker_bytes
from exact_prep.stages.pack import pack_task
from exact_prep.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from exact_prep.pipeline.events import Emit
    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.records.manifest import Manifest
    from exact_prep.records.options import PackOptions

NAMED = 20
"""Missing tasks that a message names, at most."""


def plan_array(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    overwrite: bool = False,
    lock: bool = True,
    space_check: bool = True,
    stdin: BinaryIO | None = None,
    store_options: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> int:
    """Write the plan of a run into `out`; returns how many tasks it has. Raises as `pack` does at its start."""
    check_options(options, out)
    if options.source.limit_docs is not None or options.source.limit_tokens is not None:
        raise UsageError("--limit-docs and --limit-tokens do tasks one after the other; leave them out of an array")
    with hold(out, *written_directories(out), lock=lock), interruptible(lambda: explain_stop(out)):
        planned = begin(
            inputs,
            options,
            out,
            stdin=stdin,
            overwrite=overwrite,
            lock=lock,
            space_check=space_check,
            workers=1,
            store_options=store_options,
            emit=emit,
        )
        remove_unfinished(planned)
    return len(planned.tasks)


def remove_unfinished(planned: PackPlan) -> None:
    """Remove shards that no record names: members take one that is there for theirs, and it may be of other inputs."""
    records = find_finished(planned).values()
    for seq_len in planned.plan.options.packing.seq_lens:
        names = {shard.file for record in records for shard in record.packed[seq_len].shards}
        remove_strays(LocalStore(planned.home(seq_len)), names)


def check_plan(out: Path, options: PackOptions) -> None:
    """Raise UsageError if the plan in `out` was made with other options."""
    planned = open_plan(out)
    if differences := find_differences(planned.plan.options.model_dump(mode="json"), options.model_dump(mode="json")):
        raise UsageError(
            f"the plan in {out} has other options: {'; '.join(differences)}. Leave the options out here: members read "
            "them from the plan"
        )


def run_member(
    out: Path,
    index: int,
    count: int,
    *,
    workers: int | None = 1,
    store_options: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> tuple[int, int]:
    """Do the tasks `index`, `index + count`, ... of the plan in `out`, but those that are finished.

    Returns how many tasks are this member's, and how many it did now. `store_options` are not in the plan. Raises
    UsageError if there is no plan, and what `pack` raises for its tasks; Interrupted, after which the same call
    continues.
    """
    check_member(index, count)
    with interruptible(lambda: f"stopped; finished tasks are kept in {out}, start the same member again to continue"):
        planned = open_plan(out)
        planned = replace(planned, inputs=replace(planned.inputs, store_options=dict(store_options or {})))
        own = range(index, len(planned.tasks), count)
        done = find_finished(planned, own)
        sizes = measure_tasks(planned.inputs, [planned.tasks[task] for task in own])
        places = {task: place for place, task in enumerate(own)}
        run = TaskRun(f"pack, member {index} of {count}", sizes, [places[task] for task in done], emit=emit)
        tasks = {place: make_task(planned, own[place], alone=False) for place in run.missing}
        labels = {label for record in done.values() for label in record.labels}
        for _, found in run.each(
            pack_task, tasks, name=lambda task: task.name, workers=workers, bytes_per_worker=worker_bytes(planned)
        ):
            labels |= set(found)
            check_sources(labels)
    return len(own), len(tasks)


def check_member(index: int, count: int) -> None:
    """Raise UsageError for a member that there cannot be."""
    if count < 1:
        raise UsageError(f"--task-count {count}: an array has at least 1 member")
    if not 0 <= index < count:
        raise UsageError(
            f"--task-index {index}: members of an array of {count} are 0 to {count - 1}; start the array at 0, or give "
            f"a larger --task-count"
        )


def finish_array(
    out: Path, *, max_rejected: str | None = None, lock: bool = True, emit: Emit = ignore
) -> list[Manifest]:
    """Publish the datasets of a run whose tasks members have done; returns their manifests.

    Raises TasksMissing if some are not finished, and what `pack` raises at its end.
    """
    limit = parse_limit(max_rejected)
    open_plan(out)  # before anything is made: a wrong directory is not locked
    with hold(out, *written_directories(out), lock=lock), interruptible(lambda: explain_stop(out)):
        planned = open_plan(out)
        done = find_finished(planned)
        if missing := [task for task in range(len(planned.tasks)) if task not in done]:
            named = ", ".join(map(str, missing[:NAMED])) + ", ..." * (len(missing) > NAMED)
            raise TasksMissing(
                f"{out}: {len(missing):,} of {len(planned.tasks):,} tasks are not finished: {named}. Task T belongs to "
                "the member T modulo --task-count; start these members again, or plain `exact-prep pack`, which does "
                "what is missing"
            )
        emit(Note(text=f"all {len(planned.tasks):,} tasks are finished"))
        records = [done[task] for task in range(len(planned.tasks))]
        check_sources(label for record in records for label in record.labels)
        return complete(planned, records, limit, emit)
