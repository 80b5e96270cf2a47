"""Goes on with an incomplete run, also where its inputs changed meanwhile: only what must be done again is.

A finished task is kept if it would read the same documents again. Files with another size or time than they had are
read again for that, and not tokenized; content decides. What cannot go on is refused with what would be lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exact_prep.errors import DatasetError, UsageError
from exact_prep.pipeline.events import Note
from exact_prep.pipeline.plan import load_plan, save_plan, start
from exact_prep.pipeline.runs import TaskRun, find_differences
from exact_prep.pipeline.tasks import WORKER_BYTES, find_finished, make_task, measure_tasks
from exact_prep.records.tables import encode_plan_tasks
from exact_prep.stages.content import reread_task
from exact_prep.stages.pack import discard_task
from exact_prep.stores import open_store
from exact_prep.stores.local import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exact_prep.pipeline.events import Emit
    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.records.work import Plan, TaskRecord

NAMED = 3
"""Files that a note names, at most."""

FROM_INPUTS = {"inputs_xxh3", "tasks_xxh3", "stdin_xxh3", "left_out", "shard_bytes", "task_bytes", "continued"}
"""What a plan says that follows from its inputs."""

MEASURED = {"parity_texts", "parity_bytes", "parity_differences", "fallback"}
"""What a tokenizer's record says of the sample that it was proven on: other inputs give another sample."""


def start_or_continue(
    planned: PackPlan, *, overwrite: bool, lock: bool = True, workers: int | None = 1, emit: Emit
) -> PackPlan:
    """Make `planned.out` hold the work of a plan and nothing else; returns the plan that is run.

    It is another one than `planned` if the run goes on with other inputs: then it keeps the tasks that it has. Raises
    UsageError if the run on disk cannot go on so and has finished tasks, unless `overwrite`.
    """
    out = planned.out
    try:
        before = load_plan(planned)
    except DatasetError as error:
        lost = len(list(planned.work.path.glob("task-*.json")))
        if lost and not overwrite:
            raise UsageError(
                f"{out} holds an incomplete run whose plan this version cannot read ({error}); "
                f"start again with {explain_overwrite(lost)}"
            ) from None
        before = None
    if before is not None and before.plan == planned.plan:
        emit(Note(text=f"continuing the incomplete run in {out}"))
        return planned
    # A run that has not finished a task has nothing to lose.
    finished = find_finished(before) if before is not None else {}
    if before is not None and finished and not overwrite:
        if differences := find_option_differences(before.plan, planned.plan):
            raise UsageError(
                f"{out} holds an incomplete run with other options: {'; '.join(differences)}. "
                f"Use those again to continue it, or start again with {explain_overwrite(len(finished))}"
            )
        return continue_run(before, planned, finished, lock=lock, workers=workers, emit=emit)
    start(planned, lock=lock)
    return planned


def explain_overwrite(finished: int) -> str:
    """What the option takes."""
    return f"--overwrite, which gives up its {finished:,} finished task{'s' * (finished != 1)}"


def find_option_differences(before: Plan, now: Plan) -> list[str]:
    """In what two plans differ apart from their inputs, in words; empty if one can go on as the other."""
    then, today = dump_options(before), dump_options(now)
    on_error = then["options"]["source"]["on_error"], today["options"]["source"]["on_error"]
    if on_error == ("stop", "reject"):
        # What was finished had nothing to reject.
        then["options"]["source"]["on_error"] = "reject"
    return find_differences(then, today)


def dump_options(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values, without what follows from its inputs."""
    dumped = plan.model_dump(mode="json", exclude=FROM_INPUTS)
    dumped["tokenizer"] = {name: value for name, value in dumped["tokenizer"].items() if name not in MEASURED}
    return dumped


def continue_run(
    before: PackPlan,
    planned: PackPlan,
    finished: Mapping[int, TaskRecord],
    *,
    lock: bool,
    workers: int | None,
    emit: Emit,
) -> PackPlan:
    """Keep what would be read again, discard the rest, and save the plan; returns it."""
    continued = adapt(before, planned)
    changed = find_changes(before, continued)
    kept = find_kept(before, continued, finished, changed, workers=workers, emit=emit)
    if not kept:
        text = f"starting anew in {planned.out}: no finished task would read the same documents"
        emit(Note(text=text + describe_changes(before, continued, changed)))
        start(planned, lock=lock)
        return planned
    lost = finished.keys() - kept
    # Before the plan: a task that is lost must not look finished under the new one.
    for index in sorted(lost):
        homes = [open_store(before.home(seq_len)) for seq_len in before.plan.options.packing.seq_lens]
        discard_task(index, before.keys[index], before.work, homes)
    if continued.plan != before.plan:
        save_plan(continued)
    text = (
        f"continuing the incomplete run in {planned.out}: {len(kept):,} of {len(continued.tasks):,} tasks are finished"
    )
    if lost:
        text += f", {len(lost):,} finished {'ones are' if len(lost) > 1 else 'one is'} done again"
    emit(Note(text=f"{text}{describe_changes(before, continued, changed)}"))
    return continued


def adapt(before: PackPlan, planned: PackPlan) -> PackPlan:
    """The plan of `planned` with the tasks that the run has, as far as the inputs are what they were."""
    tasks = planned.inputs.continue_tasks(before.inputs.files, before.tasks, before.plan.task_bytes)
    then, now = before.plan, planned.plan
    differs = tasks != planned.tasks or then.shard_bytes != now.shard_bytes
    if now.options.source.ids_field is not None:
        # Where documents of ids may be rejected, long ones are held whole, and windows of best-fit end elsewhere.
        differs = differs or then.continued or then.options.source.on_error != now.options.source.on_error
    plan = now.model_copy(
        update={
            "shard_bytes": then.shard_bytes,
            "task_bytes": then.task_bytes,
            "tasks_xxh3": digest([encode_plan_tasks(tasks)]),
            "continued": differs,
        }
    )
    return replace(planned, plan=plan, tasks=tasks)


def find_changes(before: PackPlan, continued: PackPlan) -> set[str]:
    """Paths of files that have another size, time, format or source label than they had, or are new."""
    then = {file.path: file for file in before.inputs.files}
    changed = {file.path for file in continued.inputs.files if then.get(file.path) != file}
    if before.plan.stdin_xxh3 != continued.plan.stdin_xxh3:
        changed.add("-")
    return changed


def find_kept(
    before: PackPlan,
    continued: PackPlan,
    finished: Mapping[int, TaskRecord],
    changed: set[str],
    *,
    workers: int | None,
    emit: Emit,
) -> set[int]:
    """Finished tasks that would read the same documents again."""
    files, kept, doubtful = continued.inputs.files, set[int](), list[int]()
    for index in finished:
        if continued.keys[index] != before.keys[index]:
            continue
        if any(files[one.file].path in changed for one in continued.tasks[index]):
            doubtful.append(index)
        else:
            kept.add(index)
    source = continued.plan.options.source
    if source.limit_docs is not None or source.limit_tokens is not None:
        # A task reads up to what earlier tasks left of the limit.
        first = min((index for index in range(len(before.tasks)) if index not in kept), default=len(before.tasks))
        return {index for index in kept if index < first}
    if doubtful:
        sizes = measure_tasks(continued.inputs, [continued.tasks[index] for index in doubtful])
        run = TaskRun("reading changed inputs", sizes, emit=emit)
        tasks = {place: make_task(continued, index) for place, index in enumerate(doubtful)}
        for place, content in run.each(
            reread_task, tasks, name=lambda task: task.name, workers=workers, bytes_per_worker=WORKER_BYTES
        ):
            if content == finished[doubtful[place]].content_xxh3:
                kept.add(doubtful[place])
    return kept


def describe_changes(before: PackPlan, continued: PackPlan, changed: set[str]) -> str:
    """What happened to the inputs, in words; empty if nothing did."""
    then = {file.path for file in before.inputs.files}
    now = [file.path for file in continued.inputs.files]
    kinds = {
        "changed or touched": [path for path in now if path in changed and path in then],
        "added": [path for path in now if path not in then],
        "removed": sorted(then - set(now)),
    }
    found = [f"{len(paths):,} {kind} ({name_some(paths)})" for kind, paths in kinds.items() if paths]
    return f"; input files: {', '.join(found)}" if found else ""


def name_some(paths: Iterable[str]) -> str:
    """The first few of some paths."""
    paths = list(paths)
    return ", ".join(paths[:NAMED]) + ", ..." * (len(paths) > NAMED)
