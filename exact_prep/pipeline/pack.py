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
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exact_prep import __version__
from exact_prep.dataset import MANIFEST, PLAN, REJECTED, SPOOL, WORK, shard_name, tree_hash, write_info, write_state
from exact_prep.engines import run
from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.exposure import Exposure
from exact_prep.manifest import (
    DocumentCounts,
    InputRecord,
    Manifest,
    PackedCounts,
    Plan,
    Slice,
    TaskRecord,
    TaskSummary,
    TokenLedger,
    encode,
    sealed,
)
from exact_prep.pipeline.events import Finished, Note, Started, TaskDone, Watcher
from exact_prep.pipeline.work import claim, refuse_finished
from exact_prep.shards import ShardWriter
from exact_prep.sources import find_inputs, plan_tasks, sample_texts
from exact_prep.stages.pack import PackTask, pack_task, record_path, rejected_path
from exact_prep.storage import (
    TEMPORARY,
    digest,
    explained,
    load,
    locked,
    make_directory,
    publish,
    read_blocks,
    read_bytes,
    remove,
    save,
    sync_file,
)
from exact_prep.tables import exposure_of, record_of
from exact_prep.tokenization import choose, locate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from exact_prep.config import PackOptions
    from exact_prep.manifest import ShardRecord
    from exact_prep.pipeline.events import Emit


@dataclass(frozen=True, kw_only=True)
class Run:
    """A planned run: what does not change while it lasts."""

    out: Path
    plan: Plan
    left_out: dict[str, int]
    tokenizer_path: Path | None
    stdin: Path | None
    emit: Emit

    @property
    def work(self) -> Path:
        """Where unfinished things are."""
        return self.out / WORK


def pack(
    inputs: Sequence[str],
    options: PackOptions,
    out: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    stdin: BinaryIO | None = None,
    emit: Emit = lambda event: None,
) -> list[Manifest]:
    """Tokenize and pack `inputs` into `out`, one dataset per row length; returns their manifests.

    `stdin` is read if an input is `-`. Raises UsageError, SourceError, TokenizerError, StorageError, WorkerError,
    LedgerError; Interrupted on Ctrl-C or SIGTERM, after which the same call continues.
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
        remove(out / SPOOL)
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
        home = home_of(planned, seq_len)
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


def run_tasks(planned: Run, done: dict[int, TaskRecord], workers: int) -> list[TaskRecord]:
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
    source = planned.plan.options.source
    if source.limit_docs is None and source.limit_tokens is None:
        finished = run(pack_task, missing, workers=workers, name=lambda task: task.name, observer=Watcher(planned.emit))
        for count, _ in enumerate(finished, len(done) + 1):
            planned.emit(TaskDone(done=count, tasks=len(tasks)))
        last = len(tasks)
    else:
        last = run_within_limits(planned, tasks, done)
    return [load(TaskRecord, record_path(planned.work, index)) for index in range(last)]


def run_within_limits(planned: Run, tasks: list[PackTask], done: dict[int, TaskRecord]) -> int:
    """Run tasks one after the other until the limits are reached; returns how many that took."""
    source = planned.plan.options.source
    docs, tokens = source.limit_docs, source.limit_tokens
    for task in tasks:
        if task.index not in done:
            left = source.model_copy(update={"limit_docs": docs, "limit_tokens": tokens})
            limited = PackTask(**{**vars(task), "options": task.options.model_copy(update={"source": left})})
            for _ in run(pack_task, [limited], workers=1, name=lambda item: item.name, observer=Watcher(planned.emit)):
                planned.emit(TaskDone(done=task.index + 1, tasks=len(tasks)))
        record = load(TaskRecord, record_path(planned.work, task.index))
        ledger = next(iter(record.packed.values())).ledger
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


def home_of(planned: Run, seq_len: int) -> Path:
    """Where the dataset of a row length goes."""
    return planned.out if len(planned.plan.options.packing.seq_lens) == 1 else planned.out / str(seq_len)


def shards_of(records: Iterable[TaskRecord], seq_len: int) -> list[ShardRecord]:
    """All shards of a row length in order."""
    return [shard for record in records for shard in record.packed[seq_len].shards]


def publish_dataset(planned: Run, seq_len: int, records: list[TaskRecord]) -> Manifest:
    """Move the shards of one row length to their places and write the manifest, last."""
    home = home_of(planned, seq_len)
    make_directory(home)
    parts = shards_of(records, seq_len) or [shard_without_rows(home, seq_len)]
    shards = []
    for index, part in enumerate(parts):
        waiting = planned.work / str(seq_len) / part.file
        shard = part.model_copy(update={"file": shard_name(index, len(parts))})
        if waiting.exists():
            publish(waiting, home / shard.file)
        shards.append(shard)
    rejected = publish_rejected(planned, home, records)
    manifest = manifest_of(planned, seq_len, records, tuple(shards), rejected)
    if (home / MANIFEST).exists() and read_bytes(home / MANIFEST) == encode(manifest):
        return manifest
    write_info(home, seq_len)
    write_state(home, shards, manifest.tree_hash)
    save(manifest, home / MANIFEST)
    return manifest


def shard_without_rows(home: Path, seq_len: int) -> ShardRecord:
    """The shard of a corpus without a token: Hugging Face opens no dataset that has none."""
    writer = ShardWriter(home / (shard_name(0, 1) + TEMPORARY), seq_len)
    record = writer.close(file=shard_name(0, 1), task=0)
    publish(writer.path, home / record.file)
    return record


def manifest_of(
    planned: Run, seq_len: int, records: list[TaskRecord], shards: tuple[ShardRecord, ...], rejected: str | None
) -> Manifest:
    """The sum of the tasks' records; `rejected` is the checksum of rejected.jsonl."""
    plan, packed = planned.plan, [record.packed[seq_len] for record in records]
    first_records = [0]
    for record in records:
        first_records.append(first_records[-1] + record.documents.records)
    exposure = sum((exposure_of(counts.exposure) for counts in packed), Exposure())
    return sealed(
        Manifest(
            tool_version=__version__,
            seq_len=seq_len,
            packing=plan.options.packing.packing,
            options=plan.options,
            tokenizer=plan.tokenizer.model_copy(
                update={
                    "parity_texts": plan.tokenizer.parity_texts + sum(record.parity_texts for record in records),
                    "parity_bytes": plan.tokenizer.parity_bytes + sum(record.parity_bytes for record in records),
                }
            ),
            inputs=tuple(InputRecord(path=file.path, bytes=file.bytes, format=file.format) for file in plan.inputs),
            left_out=planned.left_out,
            tasks=tuple(
                TaskSummary(slices=plan.tasks[record.task], first_record=first, documents=record.documents)
                for record, first in zip(records, first_records, strict=False)
            ),
            documents=documents_of(records),
            text_bytes=sum(record.text_bytes for record in records),
            documents_cut=sum(counts.documents_cut for counts in packed),
            longest_context=max((counts.longest_context for counts in packed), default=0),
            ledger=ledger_of(packed),
            exposure=record_of(exposure),
            rows=sum(shard.rows for shard in shards),
            shards=shards,
            rejected_xxh3=rejected,
            tree_hash=tree_hash(shards),
        )
    )


def documents_of(records: Iterable[TaskRecord]) -> DocumentCounts:
    """The sum of the tasks' documents."""
    sums = Counter[str]()
    for record in records:
        sums.update(record.documents.model_dump())
    return DocumentCounts(**sums)


def ledger_of(packed: Iterable[PackedCounts]) -> TokenLedger:
    """The sum of the tasks' ledgers."""
    sums, dropped = Counter[str](), Counter[str]()
    for counts in packed:
        sums.update(counts.ledger.model_dump(exclude={"dropped"}))
        dropped.update(counts.ledger.dropped)
    return TokenLedger.model_validate({**sums, "dropped": dict(dropped)})


def publish_rejected(planned: Run, home: Path, records: list[TaskRecord]) -> str | None:
    """rejected.jsonl: what the tasks set aside, in order; absent if nothing was. Returns its checksum."""
    lists = [rejected_path(planned.work, record.task) for record in records if record.documents.rejected]
    if not lists:
        return None
    temporary = home / (REJECTED + TEMPORARY)
    with explained("write", temporary), temporary.open("wb") as file:
        for path in lists:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
    sync_file(temporary)
    publish(temporary, home / REJECTED)
    return digest(read_blocks(home / REJECTED, [slice(0, (home / REJECTED).stat().st_size)]))
