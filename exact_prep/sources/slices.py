"""Tasks from files: which slices are read together. Planned from sizes and formats alone, never from workers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from exact_prep.errors import UsageError
from exact_prep.sources.formats import FORMATS
from exact_prep.sources.streams import split_suffix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.records.work import Slice
    from exact_prep.sources.batching import Part

TASKS = 512
"""Tasks a corpus is cut into, unless they would be too small or too large."""

SMALLEST_TASK = 32 << 20
LARGEST_TASK = 512 << 20
"""Bytes of a task. A larger corpus than 3.75 TiB has larger tasks: see MOST_FAIR_TASKS."""

MOST_FAIR_TASKS = 15_000
"""Tasks of a corpus, at most, where their size is not given: a dataset must stay below 32,000 shards, because Linux
maps at most 65,530 files per process."""

MOST_TASKS = 32_000
"""Tasks of a corpus, at most, where their size is given."""

FILES_PER_TASK = 1 << 16
"""Files in a task, at most."""

COMPRESSED_WEIGHT = 4
"""Bytes of content per byte of a compressed file, as a rule of thumb for planning."""


class TooMany(Exception):
    """The plan would have too many tasks."""


def plan_tasks(parts: Sequence[Part]) -> tuple[tuple[tuple[Slice, ...], ...], int]:
    """The slices that each task reads, and the bytes of a task; `parts` are whole files. See `Inputs.plan_tasks`."""
    weights = [weigh(part) for part in parts]
    total = sum(weights)
    if given := parts[0].options.task_bytes:
        try:
            return group_slices(parts, weights, given, MOST_TASKS), given
        except TooMany:
            works = math.ceil(total / (MOST_TASKS // 4))
            raise UsageError(
                f"--task-size {given} makes more than {MOST_TASKS:,} tasks of {total:,} bytes of input;\n"
                f"choose a larger one, such as --task-size {works}"
            ) from None
    largest = max(LARGEST_TASK, math.ceil(total / (MOST_FAIR_TASKS // 2)))
    size = min(max(math.ceil(total / TASKS), SMALLEST_TASK), largest)
    try:
        return group_slices(parts, weights, size, MOST_FAIR_TASKS), size
    except TooMany:
        # Three tasks per `size` bytes are possible: files just over `size` are cut in two, and a small file that
        # comes between two of them is a task of its own. With twice the size there are at most 11,250.
        return group_slices(parts, weights, 2 * size, None), 2 * size


def group_slices(
    parts: Sequence[Part], weights: Sequence[int], size: int, most: int | None
) -> tuple[tuple[Slice, ...], ...]:
    """Tasks of about `size` bytes; raises TooMany before there are more than `most`, not counting hub shards."""
    tasks: list[tuple[Slice, ...]] = []
    group: list[Slice] = []
    held = shards = 0
    for part, bulk in zip(parts, weights, strict=True):
        of_hub = FORMATS[part.file.format].unit == "shard"
        if most is not None and not of_hub and len(tasks) - shards + count_pieces(part, size) > most:
            raise TooMany
        edges = cut(part, size)
        alone = len(edges) > 2 or of_hub
        if group and (alone or held + bulk > size or len(group) == FILES_PER_TASK):
            tasks.append(tuple(group))
            group, held = [], 0
        if alone:
            tasks += [(part.slice.model_copy(update={"start": a, "stop": b}),) for a, b in pairwise(edges)]
            shards += of_hub * (len(edges) - 1)
        else:
            group.append(part.slice)
            held += bulk
    if group:
        tasks.append(tuple(group))
    if most is not None and len(tasks) - shards > most:
        raise TooMany
    return tuple(tasks)


def weigh(part: Part) -> int:
    """Bytes of content of a file, about: its name alone says whether it is compressed."""
    compressed = FORMATS[part.file.format].compressible and split_suffix(part.file.path)[1]
    return part.file.bytes * (COMPRESSED_WEIGHT if compressed else 1)


def count_pieces(part: Part, size: int) -> int:
    """Slices of `size` bytes that a file of bytes is cut into; 1 for formats that are cut by units of their own.

    Only files that are large enough to be cut are looked at: a corpus may be a million small ones.
    """
    if FORMATS[part.file.format].unit != "byte" or part.file.bytes <= size:
        return 1
    from exact_prep.sources.jsonl import can_be_cut

    return math.ceil(part.file.bytes / size) if not split_suffix(part.file.path)[1] and can_be_cut(part) else 1


def cut(part: Part, size: int) -> list[int]:
    """Edges of the slices of a file, about `size` bytes each; two edges where it is not cut."""
    unit = FORMATS[part.file.format].unit
    if unit == "shard":
        from exact_prep.sources.hub import count_shards

        return list(range(count_shards(part) + 1))
    if not unit or part.file.bytes <= size:
        return [0, 1]
    if unit == "byte":
        count = count_pieces(part, size)
        return [index * part.file.bytes // count for index in range(count + 1)]
    edges = find_unit_edges(part)
    cuts = [0]
    for number in range(1, len(edges) - 1):
        if edges[number] - edges[cuts[-1]] >= size:
            cuts.append(number)
    return [*cuts, len(edges) - 1]


def find_unit_edges(part: Part) -> list[int]:
    """Where the row groups or record batches of a file begin and end, as if it held nothing else, in bytes.

    A file that cannot be read, or has no index, is one unit: its reader will say so.
    """
    from exact_prep.sources.streams import Damaged

    try:
        if FORMATS[part.file.format].unit == "row group":
            from exact_prep.sources.parquet import find_row_group_edges

            return find_row_group_edges(part)
        from exact_prep.sources.arrow import find_record_batch_edges

        return find_record_batch_edges(part)
    except Damaged:
        return [0, part.file.bytes]
