"""Where the documents of a dataset came from: file and place, by task and record, from its tables.

A task may read many files, and its table does not say how many records each has. Then the files are read again, if
they are still there; if not, the place says which files it may be.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exact_prep.dataset import SPLITS, Dataset, load_manifest
from exact_prep.errors import SourceError, StorageError
from exact_prep.records.tables import join_slices
from exact_prep.records.work import InputFile, Slice
from exact_prep.sources.formats import FORMATS, read_slice
from exact_prep.sources.inputs import Inputs
from exact_prep.sources.places import count_records_before, describe_place, name_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exact_prep.sources.batching import Part


class Origin(NamedTuple):
    """File and place of a document; both empty where they are not known, and then `note` says why."""

    file: str = ""
    place: str = ""
    note: str = ""


class Origins:
    """The origins of one dataset's documents."""

    def __init__(self, dataset: Dataset) -> None:
        """Tables are read when they are first needed."""
        options = dataset.manifest.options.source.model_copy(update={"on_error": "reject"})
        files = tuple(InputFile.model_validate(row) for row in dataset.table("inputs").to_pylist())
        self._inputs = Inputs(files=files, options=options, stdin=Path("stdin"))
        self._tasks = find_tasks(dataset)
        self._whole = dataset.manifest.split == SPLITS[1]
        """Whether documents are numbered through the corpus: those held out for validation."""

    def find(self, task: int, records: Iterable[int]) -> dict[int, Origin]:
        """The origins of documents of a task, by their number in it. Files are read at most once."""
        wanted = sorted(set(records))
        if self._tasks is None:
            note = f"the tables of the {SPLITS[0]} rows say it, and they are not beside these rows"
            return dict.fromkeys(wanted, Origin(note=note))
        if not self._whole:
            return self._find_in_task(task, wanted)
        firsts, found = [row["first_record"] for row in self._tasks], dict[int, Origin]()
        for number, row in enumerate(self._tasks):
            stop = row["first_record"] + row["records"]
            own = [record - row["first_record"] for record in wanted if row["first_record"] <= record < stop]
            if own:
                inside = self._find_in_task(number, own)
                found |= {record + firsts[number]: origin for record, origin in inside.items()}
        return {record: found.get(record, Origin(note="no task has this record")) for record in wanted}

    def _find_in_task(self, task: int, wanted: list[int]) -> dict[int, Origin]:
        """As `find`, of the task that read them; `wanted` ascends."""
        assert self._tasks is not None
        slices = join_slices(self._tasks[task])
        if not slices:
            return dict.fromkeys(wanted, Origin(note="its files were removed from the inputs while they were packed"))
        try:
            firsts = self._find_firsts(slices, wanted[-1])
        except (SourceError, StorageError, OSError, ValueError) as error:
            names = [self._inputs.part(one).name for one in (slices[0], slices[-1])]
            note = f"one of {len(slices):,} files, {names[0]} to {names[1]}: {describe(error)}"
            return dict.fromkeys(wanted, Origin(note=note))
        return {record: self._place(task, slices, firsts, record) for record in wanted}

    def _find_firsts(self, slices: Sequence[Slice], last: int) -> list[int]:
        """Number of the first record of each slice up to the one that holds record `last`."""
        firsts = [0]
        for one in slices[:-1]:
            part = self._inputs.part(one)
            count = 1
            if part.file.format != "text" or part.options.separator is not None:
                check_unchanged(part)
                count = 0
                for batch in read_slice(part):
                    count += batch.read
                    if firsts[-1] + count > last:
                        return firsts
            if firsts[-1] + count > last:
                return firsts
            firsts.append(firsts[-1] + count)
        return firsts

    def _place(self, task: int, slices: Sequence[Slice], firsts: Sequence[int], record: int) -> Origin:
        index = bisect_right(firsts, record) - 1
        part = self._inputs.part(slices[index])
        inside = record - firsts[index]
        if part.slice.start == 0:
            return Origin(part.name, describe_place(find_format(part), inside))
        try:
            before = self._count_before(task, part)
        except (SourceError, StorageError, OSError, ValueError) as error:
            return Origin(part.name, note=f"record {inside + 1:,} of a later part of the file: {describe(error)}")
        return Origin(part.name, describe_place(part.file.format, before + inside))

    def _count_before(self, task: int, part: Part) -> int:
        """Records of the file that come before the slice: those of earlier tasks, or as the file says."""
        assert self._tasks is not None
        if FORMATS[part.file.format].unit == "byte":
            # Each part of a file of lines is a task of its own, and every line is a record.
            file = part.slice.file
            return sum(row["records"] for row in self._tasks[:task] if row["files"] == [file])
        if FORMATS[part.file.format].unit != "shard":
            check_unchanged(part)
        return count_records_before(part)


def find_tasks(dataset: Dataset) -> list[dict[str, Any]] | None:
    """The tasks that read the corpus; those of validation rows are in the dataset beside them. None: not there."""
    train_hash = dataset.manifest.train_hash
    if train_hash is None:
        return dataset.table("tasks").to_pylist()
    beside = dataset.path.parent / SPLITS[0]
    if not (beside / "manifest.json").is_file():
        return None
    manifest = load_manifest(beside)
    return Dataset(beside, manifest).table("tasks").to_pylist() if manifest.tree_hash == train_hash else None


def find_format(part: Part) -> str:
    """The format that names the records of a slice; that of its name where the file is gone."""
    return name_format(part) if is_unchanged(part) else part.file.format


def is_unchanged(part: Part) -> bool:
    """Whether the file is still there, with the size it had."""
    path = Path(part.file.path)
    return part.file.path != "-" and path.is_file() and path.stat().st_size == part.file.bytes


def check_unchanged(part: Part) -> None:
    """Raise ValueError if the file is not what was packed, or cannot be read again."""
    if part.file.format == "hub":
        raise ValueError("the hub is not asked again")
    if not is_unchanged(part):
        raise ValueError(f"{part.name} is not there any more, or has changed")


def describe(error: Exception) -> str:
    """The first line of an error."""
    return str(error).partition("\n")[0].rstrip(";")
