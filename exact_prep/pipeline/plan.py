"""What a run of `pack` will do, on disk before it begins; and whether the run in its way is the same.

DIR/.work/plan.json           options, tokenizer; checksums of the two tables
DIR/.work/inputs.parquet      the files of the corpus, as they were
DIR/.work/tasks.parquet       which parts of them each task reads
DIR/.work/tokenizer/          the tokenizer's files
DIR/.work/task-*.json         completion markers of tasks, written last; their lists and histograms beside them
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from exact_prep.dataset import (
    CARD,
    CLEARING,
    INFO,
    MANIFEST,
    PLAN,
    REJECTED,
    SPOOL,
    STATE,
    TABLES,
    TOKENIZER,
    WEIGHTS,
    WORK,
    is_incomplete,
    list_children,
)
from exact_prep.errors import DatasetError, UsageError
from exact_prep.pipeline.runs import find_differences
from exact_prep.records import encode, parse
from exact_prep.records.tables import decode_inputs, decode_plan_tasks, encode_inputs, encode_plan_tasks
from exact_prep.records.work import Plan, TaskRecord
from exact_prep.stages.pack import lengths_name, record_name, rejected_name, task_key
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

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from exact_prep.records.work import Slice
    from exact_prep.sources import Inputs

INPUTS, TASKS = "inputs.parquet", "tasks.parquet"

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

    def home(self, seq_len: int) -> Path:
        """Where the dataset of a row length goes."""
        return self.out if len(self.plan.options.packing.seq_lens) == 1 else self.out / str(seq_len)

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

    def lengths_name(self, task: int) -> str:
        """Name of a task's histogram of document lengths."""
        return lengths_name(task, self.keys[task])

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
    """Whether `directory`, or a child named by a row length, has a manifest."""
    with explained("read", directory):
        return any((home / MANIFEST).exists() for home in (directory, *list_children(directory)))


def claim(planned: PackPlan, *, overwrite: bool, lock: bool = True) -> bool:
    """Make `out` hold the work of a plan and nothing else; returns whether it continues an earlier run.

    Raises UsageError if `out` holds an incomplete run of another plan.
    """
    out, work = planned.out, planned.out / WORK
    if (work / PLAN).exists() and not (work / CLEARING).exists():
        differences = differences_from(planned)
        if not differences:
            return True
        # A run that has not finished a task has nothing to lose.
        if not overwrite and any(work.glob("task-*.json")):
            raise UsageError(
                f"{out} holds an incomplete run of other options or inputs: {'; '.join(differences)}. "
                "Use those again to continue it, or start again with --overwrite"
            )
    clear(out, lock=lock)
    for name, data in planned.tokenizer_files.items():
        planned.work.write(f"{TOKENIZER}/{name}", data)
    planned.work.write(INPUTS, encode_inputs(planned.inputs.files, planned=True))
    planned.work.write(TASKS, encode_plan_tasks(planned.tasks))
    planned.work.write(PLAN, encode(planned.plan))
    remove(work / CLEARING)
    return False


def clear(out: Path, *, lock: bool = True) -> None:
    """Remove datasets and incomplete runs from `out`, manifests first: half a dataset is not a dataset.

    Leaves WORK with the marker CLEARING, for the caller to remove when the directory has its new purpose: killed
    before that, the next run begins here again. Raises StorageError; nothing is touched if another run holds a dataset.
    """
    work = out / WORK
    children = [path for path in list_children(out) if path.name in owned_children(out)]
    with ExitStack() as held:
        for child in children:
            held.enter_context(locked(child, lock=lock))
        make_directory(work)
        write_atomically(work / CLEARING, "\n".join(path.name for path in children).encode())
        for home in (out, *children):
            remove(home / MANIFEST)
        for path in work.iterdir():
            if path.name != CLEARING:
                remove(path)
        for home in (out, *children):
            for name in (WEIGHTS, STATE, INFO, REJECTED, CARD, TABLES, TOKENIZER, *([WORK] if home != out else ())):
                remove(home / name)
            for shard in home.glob("data-*.arrow*"):
                remove(shard)
    for child in children:
        if not any(child.iterdir()):
            remove(child)


def owned_children(out: Path) -> set[str]:
    """Names of the directories inside `out` that hold datasets of ours, complete or not, or half-removed."""
    names = {path.name for path in list_children(out) if (path / MANIFEST).exists()}
    if (out / WORK / CLEARING).exists():
        names |= set(read_bytes(out / WORK / CLEARING).decode(errors="replace").split())
    if (out / WORK / PLAN).exists():
        with suppress(DatasetError):
            plan = parse(Plan, read_bytes(out / WORK / PLAN), out / WORK / PLAN)
            names |= {str(seq_len) for seq_len in plan.options.packing.seq_lens}
    return names


def differences_from(planned: PackPlan) -> list[str]:
    """In what the plan on disk differs from this one, in words; empty if it does not. At most five differences."""
    work = planned.work
    try:
        before = parse(Plan, work.read(PLAN), planned.out / WORK / PLAN)
        if before == planned.plan:
            return []
        inputs = decode_inputs(_checked(planned, INPUTS, before.inputs_xxh3), work.path / INPUTS, planned=True)
        tasks = decode_plan_tasks(_checked(planned, TASKS, before.tasks_xxh3), work.path / TASKS)
    except DatasetError:
        return [f"{work.path / PLAN} is not a plan that this version reads"]
    tables = {"inputs_xxh3", "tasks_xxh3"}
    then = before.model_dump(mode="json", exclude=tables)
    now = planned.plan.model_dump(mode="json", exclude=tables)
    then["inputs"] = [file.model_dump(mode="json") for file in inputs]
    now["inputs"] = [file.model_dump(mode="json") for file in planned.inputs.files]
    found = find_differences(then, now)
    if not found and tasks != planned.tasks:
        found = [f"tasks: {len(tasks)} entries then, {len(planned.tasks)} now"]
    return found or ["the plan"]


def _checked(planned: PackPlan, name: str, checksum: str) -> bytes:
    """A table of the plan on disk; raises DatasetError if it is not the one that the plan names."""
    data = planned.work.read(name) if planned.work.size(name) is not None else b""
    if digest([data]) != checksum:
        raise DatasetError(f"{planned.work.path / name} is damaged")
    return data
