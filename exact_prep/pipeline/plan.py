"""What a run of `pack` will do, on disk before it begins.

DIR/.work/plan.json           options, tokenizer; checksums of the two tables
DIR/.work/inputs-*.parquet    the files of the corpus, as they were; named by checksum, so that replacing plan.json
                              replaces all three at once
DIR/.work/tasks-*.parquet     which parts of them each task reads
DIR/.work/tokenizer/          the tokenizer's files
DIR/.work/task-*.json         completion markers of tasks, written last; their lists and histograms beside them
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    CARD,
    CLEARING,
    DICTIONARY,
    INFO,
    MANIFEST,
    PLAN,
    REJECTED,
    SPLITS,
    SPOOL,
    STATE,
    TABLES,
    TOKENIZER,
    WEIGHTS,
    WORK,
    find_home,
    is_incomplete,
    list_homes,
)
from exact_prep.errors import DatasetError, UsageError
from exact_prep.records import encode, parse
from exact_prep.records.tables import decode_inputs, decode_plan_tasks, encode_inputs, encode_plan_tasks
from exact_prep.records.work import Plan, TaskRecord
from exact_prep.sources import Inputs
from exact_prep.stages.pack import held_lengths_name, held_name, lengths_name, record_name, rejected_name, task_key
from exact_prep.stores.local import (
    HOLDER,
    LOCK,
    TEMPORARY,
    LocalStore,
    digest,
    explained,
    locked,
    make_directory,
    read_bytes,
    remove,
    write_atomically,
)
from exact_prep.tokenization.files import FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exact_prep.records.work import Slice

SIDE_FILES = (WEIGHTS, STATE, INFO, REJECTED, CARD, DICTIONARY, TABLES, TOKENIZER)

OURS = {LOCK, HOLDER, WORK, SPOOL}
"""What a directory may hold that holds nothing: it is what a run leaves that was stopped as it began."""


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """A planned run of `pack`: what does not change while it lasts."""

    out: Path
    plan: Plan
    inputs: Inputs
    tasks: tuple[tuple[Slice, ...], ...]
    tokenizer_path: Path | None
    tokenizer_files: Mapping[str, bytes]
    """What goes into `tokenizer/`, by name."""

    @property
    def work(self) -> LocalStore:
        """Where the run keeps its records."""
        return LocalStore(self.out / WORK)

    def home(self, seq_len: int, *, validation: bool = False) -> Path:
        """Where the dataset of a row length goes; with --validation, its training or its validation rows."""
        options = self.plan.options
        split = None if options.validation is None else SPLITS[validation]
        return find_home(self.out, options.packing.seq_lens, seq_len, split)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """What the names of each task's records hold beside its number."""
        return tuple(task_key(self.inputs, slices) for slices in self.tasks)

    def record_name(self, task: int) -> str:
        """Name of a task's record in WORK."""
        return record_name(task, self.keys[task])

    def rejected_name(self, task: int) -> str:
        """Name of the list of documents that a task skipped."""
        return rejected_name(task, self.keys[task])

    def held_name(self, task: int) -> str:
        """Name of the tokens that a task holds out."""
        return held_name(task, self.keys[task])

    def lengths_name(self, task: int) -> str:
        """Name of a task's histogram of document lengths."""
        return lengths_name(task, self.keys[task])

    def held_lengths_name(self, record: TaskRecord) -> str:
        """Name of the histogram of the validation documents."""
        return held_lengths_name(record.lengths_xxh3)

    def load_record(self, task: int) -> TaskRecord:
        """The record of a finished task; raises DatasetError, StorageError."""
        name = self.record_name(task)
        return parse(TaskRecord, self.work.read(name), self.out / WORK / name)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `out` holds a finished dataset that may not be replaced, or somebody else's files."""
    if is_incomplete(out):
        return
    if holds_dataset(out):
        if not overwrite:
            raise UsageError(f"{out} holds a dataset already; choose another --out, or replace it with --overwrite")
        return
    with explained("list", out):
        others = sorted(path.name for path in out.iterdir() if path.name not in OURS and path.suffix != TEMPORARY)
    if others:
        raise UsageError(f"{out} holds files that are not a dataset's ({others[0]}, ...); choose an empty --out")


def holds_dataset(directory: Path) -> bool:
    """Whether `directory`, or a directory in it named by a row length or a split, has a manifest."""
    with explained("read", directory):
        return any((home / MANIFEST).exists() for home in (directory, *list_homes(directory)))


def start(planned: PackPlan, *, lock: bool = True) -> None:
    """Make `out` hold the work of a plan and nothing else."""
    clear(planned.out, lock=lock)
    for name, data in planned.tokenizer_files.items():
        planned.work.write(f"{TOKENIZER}/{name}", data)
    save_plan(planned)
    remove(planned.out / WORK / CLEARING)


def save_plan(planned: PackPlan) -> None:
    """Write a plan, in place of another if there is one: at no moment is there half a plan."""
    tables = {
        f"inputs-{planned.plan.inputs_xxh3}.parquet": encode_inputs(planned.inputs.files, planned=True),
        f"tasks-{planned.plan.tasks_xxh3}.parquet": encode_plan_tasks(planned.tasks),
    }
    for name, data in tables.items():
        planned.work.write(name, data)
    planned.work.write(PLAN, encode(planned.plan))
    for kind in ("inputs", "tasks"):
        for path in planned.work.path.glob(f"{kind}-*.parquet"):
            if path.name not in tables:
                remove(path)


def open_plan(out: Path) -> PackPlan:
    """The plan of the run in `out`, with all that its tasks need; raises UsageError if there is none, DatasetError."""
    work = LocalStore(out / WORK)
    if work.size(PLAN) is None or work.size(CLEARING) is not None:
        done = f"{out} is finished already" if out.is_dir() and holds_dataset(out) else f"{out} holds no plan"
        raise UsageError(f"{done}; `exact-prep pack ... --out {out} --plan-only` plans a run for an array of jobs")
    plan = parse(Plan, work.read(PLAN), out / WORK / PLAN)
    spooled = out / SPOOL
    inputs = Inputs(
        files=(),
        options=plan.options.source,
        left_out=plan.left_out,
        stdin=spooled if plan.stdin_xxh3 is not None else None,
    )
    names = [entry.name.removeprefix(f"{TOKENIZER}/") for entry in work.list(f"{TOKENIZER}/")]
    path = out / WORK / TOKENIZER / FILE
    planned = PackPlan(
        out=out,
        plan=plan,
        inputs=inputs,
        tasks=(),
        tokenizer_path=path if path.is_file() else None,
        tokenizer_files={name: work.read(f"{TOKENIZER}/{name}") for name in names},
    )
    found = load_plan(planned)
    if found is None:
        raise UsageError(f"the plan in {out} was removed a moment ago: another run is finishing it")
    return found


def load_plan(planned: PackPlan) -> PackPlan | None:
    """The plan in the way of `planned`, in its directory; None if there is none. Raises DatasetError, StorageError."""
    work = planned.out / WORK
    if not (work / PLAN).exists() or (work / CLEARING).exists():
        return None
    plan = parse(Plan, planned.work.read(PLAN), work / PLAN)
    inputs, tasks = f"inputs-{plan.inputs_xxh3}.parquet", f"tasks-{plan.tasks_xxh3}.parquet"
    return replace(
        planned,
        plan=plan,
        inputs=replace(
            planned.inputs, files=decode_inputs(_checked(planned, inputs, plan.inputs_xxh3), inputs, planned=True)
        ),
        tasks=decode_plan_tasks(_checked(planned, tasks, plan.tasks_xxh3), tasks),
    )


def clear(out: Path, *, lock: bool = True) -> None:
    """Remove datasets and incomplete runs from `out`, manifests first: half a dataset is not a dataset.

    Leaves WORK with the marker CLEARING, for the caller to remove when the directory has its new purpose: killed
    before that, the next run begins here again. Raises StorageError; nothing is touched if another run holds a dataset.
    """
    work = out / WORK
    owned = owned_children(out)
    children = [path for path in list_homes(out) if path.relative_to(out).as_posix() in owned]
    with ExitStack() as held:
        for child in children:
            held.enter_context(locked(child, lock=lock))
        make_directory(work)
        write_atomically(work / CLEARING, "\n".join(path.relative_to(out).as_posix() for path in children).encode())
        for home in (out, *children):
            remove(home / MANIFEST)
        for path in work.iterdir():
            if path.name != CLEARING:
                remove(path)
        for home in (out, *children):
            for name in (*SIDE_FILES, *([WORK] if home != out else ())):
                remove(home / name)
            for shard in home.glob("data-*.arrow*"):
                remove(shard)
    for child in reversed(children):  # what lies in a row length's directory comes after it
        if not any(child.iterdir()):
            remove(child)


def owned_children(out: Path) -> set[str]:
    """Paths inside `out` of the directories that hold datasets of ours, complete or not, or half-removed."""
    names = {path.relative_to(out).as_posix() for path in list_homes(out) if (path / MANIFEST).exists()}
    if (out / WORK / CLEARING).exists():
        names |= set(read_bytes(out / WORK / CLEARING).decode(errors="replace").split())
    if (out / WORK / PLAN).exists():
        with suppress(DatasetError):
            plan = parse(Plan, read_bytes(out / WORK / PLAN), out / WORK / PLAN)
            splits = [None] if plan.options.validation is None else SPLITS
            lengths = plan.options.packing.seq_lens
            homes = {find_home(out, lengths, seq_len, split) for seq_len in lengths for split in splits}
            names |= {home.relative_to(out).as_posix() for home in homes if home != out}
    return names | {str(Path(name).parent) for name in names if "/" in name}


def _checked(planned: PackPlan, name: str, checksum: str) -> bytes:
    """A table of the plan on disk; raises DatasetError if it is not the one that the plan names."""
    data = planned.work.read(name) if planned.work.size(name) is not None else b""
    if digest([data]) != checksum:
        raise DatasetError(f"{planned.work.path / name} is damaged")
    return data
