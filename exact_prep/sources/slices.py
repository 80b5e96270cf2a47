"""Tasks from files: which slices are read together. Planned from sizes and formats alone, never from workers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from exact_prep.sources.streams import compression

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.records.manifest import Slice
    from exact_prep.sources.documents import Part

TASKS = 512
"""Tasks a corpus is cut into, unless they would be too small or too large."""

SMALLEST_TASK = 32 << 20
LARGEST_TASK = 512 << 20

FILES_PER_TASK = 1 << 16
"""Files in a task, at most."""

COMPRESSED_WEIGHT = 4
"""Bytes of content per byte of a compressed file, as a rule of thumb for planning."""


def plan(parts: Sequence[Part]) -> tuple[tuple[Slice, ...], ...]:
    """See `exact_prep.sources.plan_tasks`; `parts` are the files, whole."""
    weights = [weight(part) for part in parts]
    fair = min(max(math.ceil(sum(weights) / TASKS), SMALLEST_TASK), LARGEST_TASK)
    size = parts[0].options.task_bytes or fair
    tasks: list[tuple[Slice, ...]] = []
    group: list[Slice] = []
    held = 0
    for part, bulk in zip(parts, weights, strict=True):
        edges = cut(part, size)
        alone = len(edges) > 2 or part.file.format == "hub"
        if group and (alone or held + bulk > size or len(group) == FILES_PER_TASK):
            tasks.append(tuple(group))
            group, held = [], 0
        if alone:
            tasks += [(part.slice.model_copy(update={"start": a, "stop": b}),) for a, b in pairwise(edges)]
        else:
            group.append(part.slice)
            held += bulk
    if group:
        tasks.append(tuple(group))
    return tuple(tasks)


def weight(part: Part) -> int:
    """Bytes of content of a file, about."""
    compressed = part.file.format != "hub" and compression(part.file, part.spool)
    return part.file.bytes * (COMPRESSED_WEIGHT if compressed else 1)


def cut(part: Part, size: int) -> list[int]:
    """Edges of the slices of a file, about `size` bytes each; two edges where it is not cut."""
    if part.file.format == "hub":
        from exact_prep.sources.hub import count_shards

        return list(range(count_shards(part) + 1))
    if part.file.bytes <= size or part.file.format not in ("jsonl", "parquet", "arrow"):
        return [0, 1]
    if part.file.format == "jsonl":
        count = 1 if compression(part.file, part.spool) else math.ceil(part.file.bytes / size)
        return [index * part.file.bytes // count for index in range(count + 1)]
    from exact_prep.sources.columnar import unit_edges

    edges = unit_edges(part)
    cuts = [0]
    for unit in range(1, len(edges) - 1):
        if edges[unit] - edges[cuts[-1]] >= size:
            cuts.append(unit)
    return [*cuts, len(edges) - 1]
