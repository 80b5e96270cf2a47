"""`pack`: find inputs, choose the tokenizer's backend, plan tasks, run those that are missing, publish datasets.

    DIR/.work/plan.json           what is to be done; another plan is refused
    DIR/.work/<seq_len>/part-*    shards of finished tasks, and of the one that was running
    DIR/.work/task-*.json         completion markers, one per task, written last
    DIR/[<seq_len>/]              shards, rejected.jsonl, dataset_info.json, state.json, and last manifest.json

Killed anywhere, the same command continues: every step finds out from the disk whether it was done.
"""

from __future__ import annotations

import itertools
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exact_prep.dataset import PLAN, SPOOL, WORK, shard_name
from exact_prep.engines import cores, crew, run
from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.pipeline.events import Finished, Note, Started, TaskDone, Watcher
from exact_prep.pipeline.publish import publish_dataset, shards_of
from exact_prep.pipeline.work import Run, claim, refuse_finished
from exact_prep.records.manifest import Manifest, Plan, Slice, TaskRecord
from exact_prep.sources import find_inputs, plan_tasks, sample_texts
from exact_prep.stages.pack import PackTask, pack_task, record_path, rejected_path
from exact_prep.stores.local import TEMPORARY, digest, explained, load, locked, publish, read_blocks, remove
from exact_prep.tokenization import choose, locate
from exact_prep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from exact_prep.pipeline.events import Emit
    from exact_prep.records.options import PackOptions

WORKER_BYTES = 128 << 20
"""Input that is worth a worker of its own: it takes 1 to 2 CPU-seconds to start, in which 128 MB are packed."""

SLOWNESS = 64
"""How many times as long the reference takes to encode."""


def pack(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    workers: int | None = 1,
    overwrite: bool = False,
    stdin: BinaryIO | None = None,
    emit: Emit = lambda event: None,
) -> list[Manifest]:
    """Tokenize and pack `inputs` into `out`, one dataset per row length; returns their manifests.

    `stdin` is read if an input is `-`; `workers` None starts as many as the work is worth. Raises UsageError,
    SourceError, TokenizerError, StorageError, WorkerError, LedgerError; Interrupted on Ctrl-C or SIGTERM, after which
    the same call continues.
    """
    if len(set(options.packing.seq_lens)) < len(options.packing.seq_lens):
        raise UsageError("a --seq-len is given twice")
    if options.source.ids_field is None and options.tokenizer.tokenizer is None:
        raise UsageError("--tokenizer is missing; it may be left out only with --ids-field, for a corpus of ids")
    with locked(out), interruptible(out):
        refuse_finished(out, overwrite=overwrite)
        spooled = spool(stdin, out / SPOOL) if "-" in inputs and stdin else None
        planned = prepare(inputs, options, out, spooled, emit)
        continued = claim(out, planned.plan, overwrite=overwrite)
        if continued:
            emit(Note(text=f"continuing the unfinished run in {out}"))
        records = run_tasks(planned, finished_tasks(planned), workers)
        manifests = [publish_dataset(planned, seq_len, records) for seq_len in options.packing.seq_lens]
        for name in (SPOOL, SPOOL + TEMPORARY):
            remove(out / name)
        # The plan goes first: what is left of WORK without it is rubbish, no run to be continued.
        remove(planned.work / PLAN)
        remove(planned.work)
        emit(Finished())
        if not manifests[0].rows:
            emit(Note(text="no document of the inputs holds a token: the dataset has no rows"))
    return manifests


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one sentence that says what is kept and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        done = len(list((out / WORK).glob("task-*.json")))
        raise Interrupted(
            f"stopped; {done} finished tasks are kept in {out}, start the same command again to continue"
        ) from None


def spool(stdin: BinaryIO, path: Path) -> Path:
    """Put standard input into a file: tasks can share it and a restart can compare it. Published whole."""
    temporary = path.with_name(path.name + TEMPORARY)
    with explained("write", path), temporary.open("wb") as file:
        shutil.copyfileobj(stdin, file, 1 << 20)
    publish(temporary, path)
    return path


def prepare(inputs: Sequence[str], options: PackOptions, out: Path, stdin: Path | None, emit: Emit) -> Run:
    """Find the inputs and plan the run; writes nothing."""
    found = find_inputs(inputs, options.source, apart_from=out)
    if found.left_out:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
        emit(Note(text=f"files in the inputs that are not read: {kinds}"))
    files = found.files
    if stdin:
        size = stdin.stat().st_size
        files = tuple(file.model_copy(update={"bytes": size}) if file.path == "-" else file for file in files)
    name, as_ids = options.tokenizer.tokenizer, options.source.ids_field is not None
    path = locate(name) if name else None
    sample = [] if as_ids else sample_texts(files, options.source, stdin=stdin)
    tokenizer = choose(options.tokenizer, sample, path=path, ids=as_ids)
    if tokenizer.fallback:
        emit(Note(text=f"encoding with {tokenizer.backend}, which is slower: {tokenizer.fallback}"))
    tasks = plan_tasks(files, options.source, stdin=stdin)
    plan = Plan(
        tool_version=__version__,
        options=options,
        tokenizer=tokenizer,
        inputs=files,
        stdin_xxh3=digest(read_blocks(stdin, [slice(0, stdin.stat().st_size)])) if stdin else None,
        tasks=tasks,
    )
    return Run(out=out, plan=plan, left_out=found.left_out, tokenizer_path=path, stdin=stdin, emit=emit)


def finished_tasks(planned: Run) -> dict[int, TaskRecord]:
    """Records on disk whose shards are there too, as parts or published already."""
    records = {}
    for task in range(len(planned.plan.tasks)):
        if record := finished_task(planned, task):
            records[task] = record
    published: dict[tuple[int, str], Path] = {}
    for seq_len in planned.plan.options.packing.seq_lens:
        shards = shards_of(records.values(), seq_len)
        home = planned.home(seq_len)
        published |= {(seq_len, shard.file): home / shard_name(i, len(shards)) for i, shard in enumerate(shards)}
    for task, record in list(records.items()):
        for seq_len, counts in record.packed.items():
            for shard in counts.shards:
                places = (planned.work / str(seq_len) / shard.file, published[seq_len, shard.file])
                if not any(place.is_file() and place.stat().st_size == shard.bytes for place in places):
                    records.pop(task, None)
    return records


def finished_task(planned: Run, task: int) -> TaskRecord | None:
    """The record of a task; None if it is not there, or not (or no longer) what this version writes."""
    path = record_path(planned.work, task)
    if not path.exists():
        return None
    try:
        record = load(TaskRecord, path)
    except DatasetError:
        return None
    whole = record.task == task and set(record.packed) == set(planned.plan.options.packing.seq_lens)
    listed = not record.documents.rejected or rejected_path(planned.work, task).exists()
    return record if whole and listed else None


def run_tasks(planned: Run, done: dict[int, TaskRecord], workers: int | None) -> list[TaskRecord]:
    """Run what is not done; returns the records of all tasks in order, read from disk."""
    tasks = [pack_task_of(planned, index) for index in range(len(planned.plan.tasks))]
    sizes = bytes_of_tasks(planned.plan)
    planned.emit(
        Started(
            what="pack",
            tasks=len(tasks),
            done=len(done),
            total_bytes=sum(sizes),
            done_bytes=sum(sizes[index] for index in done),
        )
    )
    missing = [task for task in tasks if task.index not in done]
    workers = workers or worth_starting(planned.plan, sum(sizes[task.index] for task in missing))
    source = planned.plan.options.source
    if source.limit_docs is None and source.limit_tokens is None:
        finished = run(pack_task, missing, workers=workers, name=lambda task: task.name, observer=Watcher(planned.emit))
        for count, _ in enumerate(finished, len(done) + 1):
            planned.emit(TaskDone(done=count, tasks=len(tasks)))
        last = len(tasks)
    else:
        last = run_within_limits(planned, tasks, sizes, done)
    return [load(TaskRecord, record_path(planned.work, index)) for index in range(last)]


def worth_starting(plan: Plan, size: int) -> int:
    """How many workers to start for `size` bytes of input; what comes from a hub has a size that is not known."""
    if any(file.format == "hub" for file in plan.inputs):
        return cores()
    return crew(size, WORKER_BYTES // (SLOWNESS if plan.tokenizer.backend == "tokenizers" else 1))


def run_within_limits(planned: Run, tasks: list[PackTask], sizes: list[int], done: dict[int, TaskRecord]) -> int:
    """Run tasks one after the other until the limits are reached; returns how many that took."""
    source = planned.plan.options.source
    docs, tokens = source.limit_docs, source.limit_tokens
    watcher = Watcher(planned.emit)
    for task in tasks:
        if task.index not in done:
            left = source.model_copy(update={"limit_docs": docs, "limit_tokens": tokens})
            limited = PackTask(**{**vars(task), "options": task.options.model_copy(update={"source": left})})
            for _ in run(pack_task, [limited], workers=1, name=lambda item: item.name, observer=watcher):
                planned.emit(TaskDone(done=task.index + 1, tasks=len(tasks)))
        record = load(TaskRecord, record_path(planned.work, task.index))
        ledger = next(iter(record.packed.values())).ledger
        if task.index not in done:
            seen = (watcher.bytes + sizes[task.index], watcher.tokens + ledger.row_tokens)
            watcher = Watcher(planned.emit, *seen)
        docs = None if docs is None else docs - record.documents.packed
        tokens = None if tokens is None else tokens - ledger.row_tokens
        if (docs is not None and docs <= 0) or (tokens is not None and tokens <= 0):
            return task.index + 1
    return len(tasks)


def pack_task_of(planned: Run, index: int) -> PackTask:
    """A task with its own files alone: a plan of a million files is not sent to every worker."""
    slices = planned.plan.tasks[index]
    first = min(part.file for part in slices)
    last = max(part.file for part in slices)
    return PackTask(
        index=index,
        slices=tuple(part.model_copy(update={"file": part.file - first}) for part in slices),
        files=planned.plan.inputs[first : last + 1],
        options=planned.plan.options,
        tokenizer=planned.plan.tokenizer,
        tokenizer_path=planned.tokenizer_path,
        stdin=planned.stdin,
        directory=planned.work,
    )


def bytes_of_tasks(plan: Plan) -> list[int]:
    """Bytes of input that each task reads; row groups count as equal shares of their file."""
    units: dict[int, int] = {}
    for part in itertools.chain.from_iterable(plan.tasks):
        units[part.file] = max(units.get(part.file, 0), part.stop or 0)

    def share(part: Slice) -> int:
        size, whole = plan.inputs[part.file].bytes, units[part.file]
        return size * ((part.stop or whole) - part.start) // whole if whole else size

    return [sum(map(share, task)) for task in plan.tasks]
