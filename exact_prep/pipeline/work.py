"""The directory of a run under way: whose it is, what it set out to do, and whether another run may continue it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exact_prep.dataset import (
    CLEARING,
    INFO,
    MANIFEST,
    PLAN,
    REJECTED,
    SPOOL,
    STATE,
    WEIGHTS,
    WORK,
    children_of,
    is_unfinished,
    is_unfinished_copy,
    load_weights_file,
)
from exact_prep.errors import DatasetError, UsageError
from exact_prep.records.manifest import Plan
from exact_prep.stores.local import (
    LOCK_FILES,
    TEMPORARY,
    explained,
    load,
    locked,
    make_directory,
    read_bytes,
    remove,
    save,
    write_atomically,
)

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.pipeline.events import Emit

WORKER_BYTES = 2 << 30
"""Shards that are worth a worker of their own: it takes 1 CPU-second to start, in which 2 GB are weighed or checked."""

OURS = {*LOCK_FILES, WORK, SPOOL, SPOOL + TEMPORARY, WEIGHTS + TEMPORARY}
"""What a directory may hold that holds nothing: it is what a run leaves that was stopped as it began."""


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

    def home(self, seq_len: int) -> Path:
        """Where the dataset of a row length goes."""
        return self.out if len(self.plan.options.packing.seq_lens) == 1 else self.out / str(seq_len)


def refuse_finished(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `out` holds a finished dataset that may not be replaced, or somebody else's files."""
    if is_unfinished(out):
        return
    if holds_dataset(out):
        if not overwrite:
            raise UsageError(f"{out} holds a dataset already; choose another --out, or replace it with --overwrite")
    elif is_unfinished_copy(out):
        if not overwrite:
            raise UsageError(
                f"{out} holds the unfinished copy of a dataset; choose another --out, or replace it with --overwrite"
            )
    else:
        refuse_foreign(out)


def refuse_foreign(out: Path) -> None:
    """Raise UsageError if `out` holds anything; StorageError if that cannot be told."""
    with explained("list", out):
        foreign = sorted(path.name for path in out.iterdir() if path.name not in OURS)
    if foreign:
        raise UsageError(f"{out} holds files that are no dataset's ({foreign[0]}, ...); choose an empty --out")


def claim(out: Path, plan: Plan, *, overwrite: bool) -> bool:
    """Make `out` hold the work of `plan` and nothing else; returns whether it continues an earlier run.

    Raises UsageError if `out` holds an unfinished run of another plan.
    """
    work = out / WORK
    if (work / PLAN).exists() and not (work / CLEARING).exists():
        differences = differences_from(work / PLAN, plan)
        if not differences:
            return True
        if not overwrite:
            raise UsageError(
                f"{out} holds an unfinished run that differs: {'; '.join(differences)}. "
                "Repeat that command to continue it, or start anew with --overwrite"
            )
    clear(out)
    save(plan, work / PLAN)
    remove(work / CLEARING)
    return False


def claim_copy(target: Path, tree_hash: str, *, overwrite: bool) -> None:
    """Make `target` ready to receive, or go on receiving, a copy of the dataset with this tree hash.

    Raises UsageError if it holds a dataset, an unfinished run, or anything else.
    """
    work = target / WORK
    if not (work / CLEARING).exists():
        weights = load_weights_file(target) if is_unfinished_copy(target) else None
        if weights and weights.dataset_tree_hash == tree_hash:
            return
        unfinished = weights or (work / PLAN).exists()
        what = "a dataset already" if holds_dataset(target) else "an unfinished run" if unfinished else ""
        if what and not overwrite:
            raise UsageError(f"{target} holds {what}; choose another --out, or replace it with --overwrite")
        if not what:
            refuse_foreign(target)
    clear(target)
    remove(work / CLEARING)


def holds_dataset(directory: Path) -> bool:
    """Whether `directory`, or a child named by a row length, has a manifest."""
    with explained("read", directory):
        return any((home / MANIFEST).exists() for home in (directory, *children_of(directory)))


def clear(out: Path) -> None:
    """Remove datasets and unfinished runs from `out`, manifests first: a dataset half-removed is no dataset.

    Leaves WORK with the marker CLEARING, for the caller to remove when the directory has its new purpose: killed
    before that, the next run begins here again. Raises StorageError; nothing is touched if another run holds a dataset.
    """
    work = out / WORK
    children = [path for path in children_of(out) if path.name in owned_children(out)]
    with ExitStack() as held:
        for child in children:
            held.enter_context(locked(child))
        make_directory(work)
        write_atomically(work / CLEARING, "\n".join(path.name for path in children).encode())
        for home in (out, *children):
            remove(home / MANIFEST)
        for path in work.iterdir():
            if path.name != CLEARING:
                remove(path)
        for home in (out, *children):
            for name in (WEIGHTS, STATE, INFO, REJECTED, *([WORK] if home != out else ())):
                remove(home / name)
            for shard in home.glob("data-*-of-*.arrow*"):
                remove(shard)
    for child in children:
        if not any(child.iterdir()):
            remove(child)


def owned_children(out: Path) -> set[str]:
    """Names of the directories inside `out` that hold datasets of ours, whole, unfinished or half-removed."""
    names = {path.name for path in children_of(out) if (path / MANIFEST).exists()}
    if (out / WORK / CLEARING).exists():
        names |= set(read_bytes(out / WORK / CLEARING).decode(errors="replace").split())
    if (out / WORK / PLAN).exists():
        with suppress(DatasetError):
            names |= {str(seq_len) for seq_len in load(Plan, out / WORK / PLAN).options.packing.seq_lens}
    return names


def differences_from(path: Path, plan: Plan) -> list[str]:
    """In what the plan on disk differs from `plan`, in words; empty if it does not. At most five differences."""
    try:
        before = load(Plan, path)
    except DatasetError:
        return [f"{path} is not a plan that this version reads"]
    if before == plan:
        return []
    found: list[str] = []
    collect(before.model_dump(mode="json"), plan.model_dump(mode="json"), "", found)
    return found[:5] or ["the plan"]


def collect(before: Any, now: Any, name: str, found: list[str]) -> None:
    """Add to `found` every leaf in which two JSON values differ; of lists only length and first difference."""
    if before == now or len(found) >= 5:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        label = f"{before['path']} " if "path" in before and before["path"] == now.get("path") else name
        for key in sorted(before.keys() | now.keys()):
            inner = f"{label}{key}" if label.endswith(" ") else f"{label}.{key}".lstrip(".")
            collect(before.get(key), now.get(key), inner, found)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and before:
        for old, new in zip(before, now, strict=True):
            collect(old, new, name, found)
    elif isinstance(before, list) and isinstance(now, list) and (len(before) > 3 or len(now) > 3):
        found.append(f"{name}: {len(before)} entries then, {len(now)} now")
    else:
        found.append(f"{name} was {before!r}, is {now!r}")
