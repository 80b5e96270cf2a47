"""What is packed: files in reading order with the options that say how to read them. The face of this folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from exact_prep.records.work import InputFile, Slice
from exact_prep.sources.formats import read_slice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from exact_prep.batches import TextBatch
    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.batching import Part
    from exact_prep.sources.places import RecordPlaces


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of a corpus, or of one task of it, and how to read them. Reads no file until it is asked to."""

    files: tuple[InputFile, ...]
    """In the order in which they are read: by absolute path."""
    options: SourceOptions
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files in directories and globs that are not read, counted by suffix; `hidden`: the name begins with a dot."""
    warnings: tuple[str, ...] = ()
    """What the user should know about what was found."""
    stdin: Path | None = None
    """Where standard input was written, if one input is `-`."""
    store_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """How to reach stores, see `stores.objects`; may hold secrets, and is kept nowhere."""

    def plan_tasks(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices that each task reads; every byte of every file is in exactly one.

        A task has about 1/512 of the corpus, at least 32 MiB, and at most 512 MiB or 1/7,500 of the corpus, as far as
        its files can be cut. Raises UsageError if `task_bytes` would make too many tasks, StorageError, and
        SourceError if a file has changed.
        """
        return self.plan_sized_tasks()[0]

    def plan_sized_tasks(self) -> tuple[tuple[tuple[Slice, ...], ...], int]:
        """The tasks of `plan_tasks`, and how many bytes of input a task has, about."""
        from exact_prep.sources.slices import plan_tasks

        return plan_tasks(self._parts())

    def continue_tasks(
        self, files: Sequence[InputFile], tasks: Sequence[Sequence[Slice]], size: int
    ) -> tuple[tuple[Slice, ...], ...]:
        """The tasks of these inputs where a run was begun with `files` in `tasks` of `size` bytes.

        Every byte of every file is in exactly one. A task keeps its number, and its slices as far as their files are
        what they were: see `sources.continuation`. Raises like `plan_tasks`.
        """
        from exact_prep.sources.continuation import continue_tasks

        return continue_tasks(files, tasks, self._parts(), size)

    def _parts(self) -> list[Part]:
        """The files, each whole."""
        return [self.part(Slice(file=index)) for index in range(len(self.files))]

    def read(self, slices: Sequence[Slice], places: RecordPlaces | None = None) -> Iterator[TextBatch]:
        """The documents of one task in order, in batches of about 4 MiB; see TextBatch. `places` learns where they are.

        Raises SourceError for a bad document under `on_error="stop"`, for a missing field or column of a whole file,
        and for a file that has changed since it was found; StorageError for one that cannot be read.
        """
        from exact_prep.sources.batching import join_batches, place_in_task

        def batches() -> Iterator[TextBatch]:
            first = 0
            for one in slices:
                if places is not None:
                    places.begin_slice(first)
                count = 0
                label = self.files[one.file].source
                for batch in read_slice(self.part(one)):
                    yield place_in_task(batch, first, label)
                    count += batch.read
                first += count

        yield from join_batches(batches())

    def sample_texts(self, *, budget: int = 1 << 20) -> list[str]:
        """Some texts from all over the corpus, about `budget` bytes; none where the corpus consists of token ids.

        Skips bad documents and files that cannot be read: the run reports them.
        """
        from exact_prep.sources.samples import sample_texts

        return sample_texts(self._parts(), budget)

    def only(self, slices: Sequence[Slice]) -> tuple[Inputs, tuple[Slice, ...]]:
        """The files of one task alone, and its slices numbered to match: a worker is not sent a million files."""
        first = min((one.file for one in slices), default=0)
        last = max((one.file for one in slices), default=-1)
        renumbered = tuple(one.model_copy(update={"file": one.file - first}) for one in slices)
        return replace(self, files=self.files[first : last + 1], left_out={}, warnings=()), renumbered

    def part(self, one: Slice) -> Part:
        """A slice with all that its reader needs to know."""
        from exact_prep.sources.batching import Part

        file = self.files[one.file]
        if file.path != "-":
            return Part(file=file, slice=one, options=self.options, store_options=self.store_options)
        if self.stdin is None:
            raise ValueError("one input is standard input, and `stdin` does not say where it was written")
        return Part(file=file, slice=one, options=self.options, spool=self.stdin)


def find_inputs(
    inputs: Sequence[str],
    options: SourceOptions,
    *,
    exclude: Path | None = None,
    stdin: Path | None = None,
    store_options: Mapping[str, str] | None = None,
) -> Inputs:
    """Files, directories, globs, `-`, addresses in stores and `hf://` names as files in order.

    Raises UsageError or StorageError.

    The same set of files gives the same files in the same order however it is named. `stdin` is where the input `-`
    was written; without it, `-` has 0 bytes and cannot be read. Files below `exclude`, where the output goes, are not
    read: they are skipped in directories and globs, and an error if the user named them.
    """
    from exact_prep.sources.discovery import find_files

    files, left_out, warnings = find_files(inputs, options, exclude, store_options or {})
    if stdin is not None:
        size = stdin.stat().st_size
        files = tuple(file.model_copy(update={"bytes": size}) if file.path == "-" else file for file in files)
    return Inputs(
        files=files,
        options=options,
        left_out=left_out,
        warnings=warnings,
        stdin=stdin,
        store_options=dict(store_options or {}),
    )
