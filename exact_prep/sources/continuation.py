"""Tasks of a run that goes on with other inputs: numbers and slices stay wherever the files are what they were.

changed file     its tasks keep their numbers; pieces beyond them become tasks at the end
removed file     its slices go; a task may be left without any
new file         tasks at the end
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from exact_prep.errors import UsageError
from exact_prep.sources.formats import FORMATS
from exact_prep.sources.slices import MOST_TASKS, count_pieces, cut, group_slices, weigh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.records.work import InputFile, Slice
    from exact_prep.sources.batching import Part

GROWTH = 1.5
"""A piece of a file may grow to this many times the size of a task before it is cut again: a line that was fixed must
not move the edges of everything behind it."""


def continue_tasks(
    files: Sequence[InputFile], tasks: Sequence[Sequence[Slice]], parts: Sequence[Part], size: int
) -> tuple[tuple[Slice, ...], ...]:
    """The slices that each task reads now; see `Inputs.continue_tasks`. `parts` are the files as they are, whole."""
    found = {part.file.path: part for part in parts}
    places: dict[int, list[tuple[int, Slice]]] = defaultdict(list)
    for task, slices in enumerate(tasks):
        for one in slices:
            places[one.file].append((task, one))
    kept: list[dict[int, list[Slice]]] = [{} for _ in tasks]
    """Of each task: its slices, by the old number of their file."""
    more: list[tuple[Slice, ...]] = []
    for old, held in places.items():
        if (part := found.pop(files[old].path, None)) is None:
            continue
        pieces = cut_again(part, files[old], [one for _, one in held], size)
        alone = all(len(tasks[task]) == 1 for task, _ in held)
        if len(pieces) > 1 and not alone:
            # A task of pieces reads one file alone: its records are then counted for the places of later pieces.
            more += [(piece,) for piece in pieces]
            continue
        for (task, _), piece in zip(held, pieces, strict=False):
            kept[task][old] = [piece]
        more += [(piece,) for piece in pieces[len(held) :]]
    fresh = [part for part in parts if part.file.path in found]
    if fresh:
        more += group_slices(fresh, [weigh(part) for part in fresh], size, None)
    continued = [
        tuple(piece for one in slices for piece in own.get(one.file, ()))
        for slices, own in zip(tasks, kept, strict=True)
    ]
    continued += more
    if len(continued) > MOST_TASKS:
        raise UsageError(
            f"with the inputs that were added the run has {len(continued):,} tasks, at most {MOST_TASKS:,} are "
            "possible; start again with --overwrite"
        )
    return tuple(continued)


def cut_again(part: Part, before: InputFile, slices: Sequence[Slice], size: int) -> list[Slice]:
    """The pieces of a file that was read in `slices` when the run began; `part` is the file now, whole."""
    file = part.file
    known = ("bytes", "modified_ns", "etag", "format")
    if all(getattr(file, name) == getattr(before, name) for name in known):
        return [one.model_copy(update={"file": part.slice.file}) for one in slices]
    if FORMATS[file.format].unit != "byte":
        return make_slices(part, cut(part, size))
    was_whole = all(one.stop is None for one in slices)
    if (was_whole and file.bytes <= GROWTH * size) or count_pieces(part, size) == 1:
        return [part.slice]
    # Edges stay where they were: what comes before a line that was fixed is not read again.
    edges = [one.start for one in slices if one.start < file.bytes] or [0]
    rest = file.bytes - edges[-1]
    count = 1 if rest <= GROWTH * size else math.ceil(rest / size)
    edges = [*edges[:-1], *(edges[-1] + index * rest // count for index in range(count + 1))]
    return make_slices(part, edges)


def make_slices(part: Part, edges: Sequence[int]) -> list[Slice]:
    """The pieces between the edges; the file itself where it is not cut."""
    if len(edges) <= 2 and FORMATS[part.file.format].unit != "shard":
        return [part.slice]
    return [part.slice.model_copy(update={"start": a, "stop": b}) for a, b in pairwise(edges)]
