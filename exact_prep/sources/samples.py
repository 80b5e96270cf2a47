"""A few texts from all over a corpus, by few and small reads. Never complete: the run is what reads every document."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from exact_prep.errors import ExactPrepError
from exact_prep.sources.streams import Damaged, compression, decompressed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.records.manifest import Slice
    from exact_prep.sources.documents import Part

PROBES = 32
"""Places that are looked at."""

COLUMN_PROBES = 8
"""The same for columnar files, where the least that can be read is a column of a row group or record batch."""

BLOCK = 1 << 16
"""Bytes per read."""

BLOCKS = 16
"""Blocks in which a place may have a document begin; else it gives none."""

SMALL = 1 << 18
"""A file of fewer bytes is looked at from its start alone."""

COLUMNAR = ("parquet", "arrow")
UNREADABLE = (ExactPrepError, Damaged, OSError)
"""What keeps a place from being looked at. The run will meet it too, and report it."""


def sample(parts: Sequence[Part], budget: int) -> list[str]:
    """See `exact_prep.sources.sample_texts`; `parts` are the files, whole."""
    if not parts or parts[0].options.ids_field is not None:
        return []
    probes: dict[Slice, Part] = {}
    for part, offset in places(parts):
        with suppress(*UNREADABLE):
            probe = probe_at(part, offset)
            probes[probe.slice] = probe
    share = max(budget // max(len(probes), 1), 1)
    texts: list[str] = []
    for probe in probes.values():
        with suppress(*UNREADABLE):
            texts += head_of(probe, share) if probe.file.format == "text" else first_texts(probe, share)
    return texts


def places(parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
    """Where to look: files and offsets, spread evenly over the bytes of the corpus."""
    ends = list(accumulate(max(part.file.bytes, 1) for part in parts))
    for number in range(PROBES):
        position = (2 * number + 1) * ends[-1] // (2 * PROBES)
        index = bisect_right(ends, position)
        part = parts[index]
        if part.file.format not in COLUMNAR or number % (PROBES // COLUMN_PROBES) == 0:
            yield part, position - (ends[index - 1] if index else 0)


def probe_at(part: Part, offset: int) -> Part:
    """The slice to look at for an offset: what is there if the file can be cut, else its start."""
    start, stop = 0, None
    if part.file.format in COLUMNAR:
        from exact_prep.sources.columnar import unit_edges

        start = max(bisect_right(unit_edges(part), offset) - 1, 0)
        stop = start + 1
    elif part.file.format in ("jsonl", "text") and not compression(part.file, part.spool):
        start = offset if part.file.bytes > SMALL else 0
    options = part.options.model_copy(update={"on_error": "reject"})
    return replace(part, slice=part.slice.model_copy(update={"start": start, "stop": stop}), options=options)


def first_texts(part: Part, size: int) -> list[str]:
    """The first documents of a slice, `size` characters of them."""
    from exact_prep.sources import read_slice

    texts: list[str] = []
    for batch in islice(read_slice(part, block=BLOCK), BLOCKS):
        for text in batch.texts:
            texts.append(text[:size])
            size -= len(texts[-1])
            if size <= 0:
                return texts
    return texts


def head_of(part: Part, size: int) -> list[str]:
    """The first `size` bytes of a slice of a text file, less what the cut breaks."""
    with decompressed(part.file, part.path, part.slice.start) as stream:
        return [stream.read(size).decode(errors="ignore")]
