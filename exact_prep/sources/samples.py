"""A few texts from all over a corpus, by few and small reads. A sample, never complete."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from exact_prep.errors import ExactPrepError
from exact_prep.sources.formats import FORMATS, read_slice
from exact_prep.sources.slices import find_unit_edges
from exact_prep.sources.streams import Damaged, decompressed, find_codec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.records.work import Slice
    from exact_prep.sources.batching import Part

PROBES = 32
"""Places that are looked at."""

COLUMN_PROBES = 8
"""Places in columnar files, where the least that can be read is a column of a row group or record batch."""

BLOCK = 1 << 16
"""Bytes per read."""

BLOCKS = 16
"""Blocks of a place in which a document must begin; otherwise the place gives none."""

BAD = 256
"""Bad documents after which a place is left: each costs as much as a hundred bytes of good ones."""

SMALL = 1 << 18
"""A file of fewer bytes is only read from its start."""

UNREADABLE = (ExactPrepError, Damaged, OSError)
"""What reading a place may raise. The run will meet it too, and report it."""


def sample_texts(parts: Sequence[Part], budget: int) -> list[str]:
    """Some texts, about `budget` bytes; `parts` are the files, whole. See `Inputs.sample_texts`."""
    if not parts or parts[0].options.ids_field is not None:
        return []
    probes: dict[Slice, Part] = {}
    for part, offset in choose_places(parts):
        with suppress(*UNREADABLE):
            probe = plan_probe(part, offset)
            probes[probe.slice] = probe
    share = max(budget // max(len(probes), 1), 1)
    texts: list[str] = []
    for probe in probes.values():
        with suppress(*UNREADABLE):
            texts += read_head(probe, share) if probe.file.format == "text" else read_first_texts(probe, share)
    return texts


def choose_places(parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
    """Where to look: files and offsets, spread evenly over the bytes of the corpus."""
    ends = list(accumulate(max(part.file.bytes, 1) for part in parts))
    for number in range(PROBES):
        position = (2 * number + 1) * ends[-1] // (2 * PROBES)
        index = bisect_right(ends, position)
        part = parts[index]
        if not FORMATS[part.file.format].is_columnar or number % (PROBES // COLUMN_PROBES) == 0:
            yield part, position - (ends[index - 1] if index else 0)


def plan_probe(part: Part, offset: int) -> Part:
    """The slice to read for an offset: the one that begins there if reading can begin there, else the file's start."""
    start, stop = 0, None
    row = FORMATS[part.file.format]
    if row.is_columnar:
        start = max(bisect_right(find_unit_edges(part), offset) - 1, 0)
        stop = start + 1
    elif part.file.bytes > SMALL and is_seekable(part):
        start = offset
    options = part.options.model_copy(update={"on_error": "reject"})
    return replace(part, slice=part.slice.model_copy(update={"start": start, "stop": stop}), options=options)


def is_seekable(part: Part) -> bool:
    """Whether documents can be read from the middle of a file."""
    if part.file.format == "text":
        return find_codec(part.file, part.path) is None
    if FORMATS[part.file.format].unit != "byte":
        return False
    from exact_prep.sources.jsonl import can_be_cut

    return can_be_cut(part)


def read_first_texts(part: Part, size: int) -> list[str]:
    """The first documents of a slice, `size` characters of them."""
    texts: list[str] = []
    rejected = 0
    for batch in islice(read_slice(part, block=BLOCK), BLOCKS):
        for text in batch.texts:
            texts.append(text[:size])
            size -= len(texts[-1])
            if size <= 0:
                return texts
        rejected += len(batch.rejected)
        if rejected >= BAD:
            break
    return texts


def read_head(part: Part, size: int) -> list[str]:
    """The first `size` bytes of a slice of a text file, without the characters that the cut breaks."""
    with decompressed(part.file, part.path, part.slice.start) as stream:
        return [stream.read(size).decode(errors="ignore")]
