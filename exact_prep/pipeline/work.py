"""The directory of a run under way: whose it is, what it set out to do, and whether another run may continue it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exact_prep.dataset import INFO, MANIFEST, PLAN, REJECTED, SPOOL, STATE, WEIGHTS, WORK
from exact_prep.errors import DatasetError, UsageError
from exact_prep.manifest import Plan
from exact_prep.storage import LOCK_FILES, load, make_directory, remove, save

if TYPE_CHECKING:
    from pathlib import Path


def refuse_finished(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `out` holds a finished dataset that may not be replaced, or somebody else's files."""
    if (out / WORK / PLAN).exists():
        return
    if holds_dataset(out):
        if not overwrite:
            raise UsageError(f"{out} holds a dataset already; choose another --out, or replace it with --overwrite")
    elif foreign := sorted(path.name for path in out.iterdir() if path.name not in {*LOCK_FILES, WORK, SPOOL}):
        raise UsageError(f"{out} holds files that are no dataset's ({foreign[0]}, ...); choose an empty --out")


def claim(out: Path, plan: Plan, *, overwrite: bool) -> bool:
    """Make `out` hold the work of `plan` and nothing else; returns whether it continues an earlier run.

    Raises UsageError if `out` holds an unfinished run of another plan.
    """
    work = out / WORK
    if (work / PLAN).exists():
        differences = differences_from(work / PLAN, plan)
        if not differences:
            return True
        if not overwrite:
            raise UsageError(
                f"{out} holds an unfinished run that differs: {'; '.join(differences)}. "
                "Repeat that command to continue it, or start anew with --overwrite"
            )
    clear(out)
    make_directory(work)
    save(plan, work / PLAN)
    return False


def holds_dataset(directory: Path) -> bool:
    """Whether `directory`, or a child named by a row length, has a manifest."""
    return (directory / MANIFEST).exists() or any(
        path.parent.name.isdigit() for path in directory.glob(f"*/{MANIFEST}")
    )


def clear(out: Path) -> None:
    """Remove datasets and unfinished runs from `out`, manifests first: a dataset half-removed is no dataset."""
    homes = [out, *(path for path in out.iterdir() if path.is_dir() and path.name.isdigit())]
    for home in homes:
        remove(home / MANIFEST)
    for home in homes:
        for name in (WEIGHTS, STATE, INFO, REJECTED, WORK):
            remove(home / name)
        for shard in home.glob("data-*-of-*.arrow"):
            remove(shard)
        if home != out and not any(home.iterdir()):
            remove(home)


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
