"""`pack`: find inputs, choose the tokenizer's backend, plan tasks, run those that are missing, publish datasets.

Killed anywhere, the same command continues: every step finds out from the disk whether it was done.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from exact_prep.choices import MAX_SOURCES
from exact_prep.dataset import PLAN, SPLITS, SPOOL, TABLES, TOKENIZER, WORK, documents_name, find_home
from exact_prep.engines import count_workers
from exact_prep.errors import UsageError
from exact_prep.pipeline.continuation import start_or_continue
from exact_prep.pipeline.estimate import check_space, estimate_run
from exact_prep.pipeline.events import Finished, Note, Phase, ignore
from exact_prep.pipeline.plan import PackPlan, check_out
from exact_prep.pipeline.publish import publish_both
from exact_prep.pipeline.rejections import check_rejected, find_surprises, parse_limit
from exact_prep.pipeline.runs import TaskRun, check_free, hold, interruptible
from exact_prep.pipeline.tasks import find_finished, make_task, measure_tasks, worker_bytes
from exact_prep.pipeline.validation import pack_validation
from exact_prep.records.tables import encode_inputs, encode_plan_tasks
from exact_prep.records.work import Plan
from exact_prep.sources import find_inputs
from exact_prep.sources.labels import TOO_MANY
from exact_prep.stages.pack import pack_task
from exact_prep.stores import check_local
from exact_prep.stores.local import digest, digest_file, explained, publish, remove, temporary_path
from exact_prep.tokenization import choose, locate, make_tokenizer_files, resolve_special_tokens
from exact_prep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from exact_prep.pipeline.estimate import Estimate
    from exact_prep.pipeline.events import Emit
    from exact_prep.records.manifest import Manifest
    from exact_prep.records.options import PackOptions
    from exact_prep.records.work import TaskRecord

SHARD_BYTES = 1 << 30
"""A task begins a new shard when the one it writes holds this much, or more where the corpus is very large."""

MOST_SHARDS = 15_000
"""Shards that are begun because one is full, about. With as many tasks a dataset stays below 32,000 shards: Linux maps
at most 65,530 files per process."""

EXPANSION = 10
"""Bytes of text in a byte of a compressed file, at most about."""

BYTES_PER_TOKEN = 6
"""Of a shard: an id and a weight. A byte of input gives at most about one token."""


def pack(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    workers: int | None = 1,
    overwrite: bool = False,
    lock: bool = True,
    max_rejected: str | None = None,
    space_check: bool = True,
    stdin: BinaryIO | None = None,
    store_options: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> list[Manifest]:
    """Tokenize and pack `inputs` into `out`, one dataset per row length; returns their manifests.

    `max_rejected` is how many records may be rejected, `N` or `P%`; see `parse_limit`. The plan does not hold it: a run
    that rejected too many is published by the same call with a higher limit. With `space_check`, a run that the disk
    cannot hold does not start; see `check_space`. `stdin` is read if an input is `-`; `workers` None starts as many as
    the work is worth; `lock` False takes `out` to be free. `store_options` say how inputs in stores are reached, and
    are kept nowhere.
    Raises UsageError, SourceError, TokenizerError, StorageError, WorkerError, LedgerError; Interrupted on
    Ctrl-C or SIGTERM, after which the same call continues.
    """
    check_options(options, out)
    limit = parse_limit(max_rejected)
    with hold(out, *written_directories(out), lock=lock), interruptible(lambda: explain_stop(out)):
        planned = begin(
            inputs,
            options,
            out,
            stdin=stdin,
            overwrite=overwrite,
            lock=lock,
            space_check=space_check,
            workers=workers,
            store_options=store_options,
            emit=emit,
        )
        records = run_tasks(planned, workers, emit)
        return complete(planned, records, limit, emit)


def begin(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    stdin: BinaryIO | None,
    overwrite: bool,
    lock: bool,
    space_check: bool,
    workers: int | None,
    store_options: Mapping[str, str] | None,
    emit: Emit,
) -> PackPlan:
    """Write the plan of a run into `out`, or find the one that goes on; `out` is held."""
    seq_lens = options.packing.seq_lens
    splits = (None,) if options.validation is None else SPLITS
    homes = dict.fromkeys(find_home(out, seq_lens, seq_len, split) for seq_len in seq_lens for split in splits)
    children = [place for place in dict.fromkeys([*(home.parent for home in homes), *homes]) if out in place.parents]
    check_out(out, overwrite=overwrite)
    for child in children:
        if child.is_dir():  # a `weigh` of this dataset alone holds only its own directory: refuse while it runs
            check_free(child, *written_directories(child), lock=lock)
    if "-" in inputs and stdin:
        emit(Phase(text="reading standard input"))
    spooled = spool(stdin, out / SPOOL) if "-" in inputs and stdin else None
    planned = prepare(inputs, options, out, spooled, emit, store_options)
    if space_check:
        check_space(planned)
    return start_or_continue(planned, overwrite=overwrite, lock=lock, workers=workers, emit=emit)


def complete(
    planned: PackPlan, records: Sequence[TaskRecord], limit: Callable[[int], float], emit: Emit
) -> list[Manifest]:
    """Publish the datasets of a run whose tasks are all finished; returns their manifests. `planned.out` is held."""
    out, options = planned.out, planned.plan.options
    check_rejected(planned, records, limit)
    validation = None if options.validation is None else pack_validation(planned, records, emit)
    emit(Phase(text="publishing"))
    manifests = [
        one for seq_len in options.packing.seq_lens for one in publish_both(planned, seq_len, records, validation)
    ]
    remove(out / SPOOL)
    # The plan goes first: what is left of WORK without it is not a run that can be continued.
    remove(out / WORK / PLAN)
    remove(out / WORK)
    emit(Finished())
    labels = {label for record in records for label in record.labels}
    for note in find_surprises(planned, manifests[0], labels, sum(record.own_ids for record in records)):
        emit(Note(text=note))
    return manifests


def estimate(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    workers: int | None = 1,
    overwrite: bool = False,
    store_options: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> Estimate:
    """What `pack` of the same arguments will take, from a sample; writes nothing. Raises what it raises at its start.

    Standard input cannot be estimated: it can be read only once.
    """
    check_options(options, out)
    if "-" in inputs:
        raise UsageError("--dry-run cannot read standard input without keeping it; write it to a file and name that")
    if out.exists():
        check_out(out, overwrite=overwrite)
    planned = prepare(inputs, options, out, None, emit, store_options)
    if workers is None:
        workers = count_workers(sum(measure_tasks(planned.inputs, planned.tasks)), worker_bytes(planned))
    return estimate_run(planned, workers)


def check_options(options: PackOptions, out: Path) -> None:
    """Raise UsageError for options that do not go together."""
    seq_lens = options.packing.seq_lens
    if len(set(seq_lens)) < len(seq_lens):
        raise UsageError("a --seq-len is given twice")
    check_local(out)
    if options.source.ids_field is None and options.tokenizer.tokenizer is None:
        raise UsageError("--tokenizer is missing; it may be left out only with --ids-field, for a corpus of ids")


def written_directories(home: Path) -> list[Path]:
    """The directories inside a dataset where files are written."""
    return [home / WORK, home / TABLES, (home / documents_name(0)).parent, home / TOKENIZER]


def explain_stop(out: Path) -> str:
    """What is kept of a run that was stopped."""
    done = len(list((out / WORK).glob("task-*.json")))
    return f"stopped; {done} finished tasks are kept in {out}, start the same command again to continue"


def spool(stdin: BinaryIO, path: Path) -> Path:
    """Copy standard input to a file: tasks can share it and a restart can compare it. Published when complete."""
    temporary = temporary_path(path)
    with explained("write", path), temporary.open("wb") as file:
        shutil.copyfileobj(stdin, file, 1 << 20)
    publish(temporary, path)
    return path


def prepare(
    names: Sequence[str],
    options: PackOptions,
    out: Path,
    stdin: Path | None,
    emit: Emit,
    store_options: Mapping[str, str] | None = None,
) -> PackPlan:
    """Find the inputs and plan the run; writes nothing."""
    name, as_ids = options.tokenizer.tokenizer, options.source.ids_field is not None
    emit(Phase(text="finding the tokenizer"))
    path = locate(name) if name else None
    # First of all, because it is quick: a wrong EOS is then known before large inputs are listed.
    for text in resolve_special_tokens(options.tokenizer, path, ids=as_ids).notes:
        emit(Note(text=text))
    emit(Phase(text="finding the inputs"))
    inputs = find_inputs(names, options.source, exclude=out, stdin=stdin, store_options=store_options)
    if inputs.left_out:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in inputs.left_out.items())
        emit(Note(text=f"files in the inputs that are not read: {kinds}"))
    for warning in inputs.warnings:
        emit(Note(text=warning))
    emit(Phase(text="loading the vocabulary and proving ids" if path and not as_ids else "planning the tasks"))
    sample = [] if as_ids else inputs.sample_texts()
    tokenizer = choose(options.tokenizer, sample, path=path, ids=as_ids)
    if tokenizer.fallback:
        emit(Note(text=f"encoding with {tokenizer.backend}, which is slower: {tokenizer.fallback}"))
    tasks, task_bytes = inputs.plan_sized_tasks()
    sizes = measure_tasks(inputs, tasks)
    plan = Plan(
        tool_version=__version__,
        options=options,
        tokenizer=tokenizer,
        shard_bytes=choose_shard_bytes(sum(sizes), max(sizes, default=0)),
        task_bytes=task_bytes,
        stdin_xxh3=digest_file(stdin) if stdin else None,
        left_out=dict(inputs.left_out),
        inputs_xxh3=digest([encode_inputs(inputs.files, planned=True)]),
        tasks_xxh3=digest([encode_plan_tasks(tasks)]),
    )
    files = make_tokenizer_files(path, tokenizer) if path else {}
    return PackPlan(out=out, plan=plan, inputs=inputs, tasks=tasks, tokenizer_path=path, tokenizer_files=files)


def choose_shard_bytes(input_bytes: int, largest_task: int) -> int:
    """How much a shard holds before the next begins.

    More than SHARD_BYTES for a corpus of more than about 2.7 TB, and where one file that cannot be cut is so large that
    its task would need more than 999 shards: names have three digits for them, and sort.
    """
    most_expanded = BYTES_PER_TOKEN * EXPANSION * largest_task // 999
    return max(SHARD_BYTES, BYTES_PER_TOKEN * input_bytes // MOST_SHARDS, most_expanded)


def run_tasks(planned: PackPlan, workers: int | None, emit: Emit) -> list[TaskRecord]:
    """Run what is not finished; returns the records of all tasks in order.

    Raises UsageError as soon as the tasks together have more than MAX_SOURCES sources.
    """
    done = find_finished(planned)
    run = TaskRun("pack", measure_tasks(planned.inputs, planned.tasks), done, emit=emit)
    labels = {label for record in done.values() for label in record.labels}
    source = planned.plan.options.source
    last = len(planned.tasks)
    if source.limit_docs is None and source.limit_tokens is None:
        tasks = {index: make_task(planned, index) for index in run.missing}
        finished = run.each(
            pack_task, tasks, name=lambda task: task.name, workers=workers, bytes_per_worker=worker_bytes(planned)
        )
        for _, found in finished:
            labels |= set(found)
            check_sources(labels)
    else:
        last = run_within_limits(planned, run, done)
    return [done.get(index) or planned.load_record(index) for index in range(last)]


def check_sources(labels: Iterable[str]) -> None:
    """Raise UsageError for too many sources."""
    if len(set(labels)) > MAX_SOURCES:
        raise UsageError(TOO_MANY.format(where="in all tasks together"))


def run_within_limits(planned: PackPlan, run: TaskRun, done: dict[int, TaskRecord]) -> int:
    """Run tasks one after the other until the limits are reached; returns how many that took."""
    source = planned.plan.options.source
    docs, tokens = source.limit_docs, source.limit_tokens
    for index in range(len(planned.tasks)):
        if index not in done:
            limited = source.model_copy(update={"limit_docs": docs, "limit_tokens": tokens})
            options = planned.plan.options.model_copy(update={"source": limited})
            tasks = {index: make_task(planned, index, options)}
            for _ in run.each(pack_task, tasks, name=lambda task: task.name):
                done[index] = planned.load_record(index)
        documents, held = done[index].documents, done[index].held
        docs = None if docs is None else docs - documents.packed - documents.held_out
        if tokens is not None:
            tokens -= next(iter(done[index].packed.values())).ledger.row_tokens
            tokens -= held.ledger.balance() if held is not None else 0  # all that came in: none is in rows yet
        if (docs is not None and docs <= 0) or (tokens is not None and tokens <= 0):
            return index + 1
    return len(planned.tasks)
