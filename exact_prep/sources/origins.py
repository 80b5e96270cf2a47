"""Where documents came from: file and place of records of a task, found by reading it again. For messages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exact_prep.batches import TextBatch
    from exact_prep.sources.documents import Part


def origins(
    records: Sequence[int], parts: Iterable[Part], read: Callable[[Part], Iterator[TextBatch]]
) -> list[tuple[str, str]]:
    """(file, place) of each of `records`, ascending, counted over `parts` in order."""
    found: list[tuple[str, str]] = []
    first = 0
    for part in parts:
        if len(found) == len(records):
            break
        count = sum(batch.read for batch in read(part))
        while len(found) < len(records) and records[len(found)] < first + count:
            found.append((part.name, place(part, records[len(found)] - first)))
        first += count
    return found


def place(part: Part, index: int) -> str:
    """A record of a slice, counted from 0, as a person would look for it."""
    what = {"jsonl": "line", "text": "document"}.get(part.file.format, "row")
    if part.slice.start == 0:
        return f"{what} {index + 1}"
    unit = "byte" if part.file.format == "jsonl" else "row group or batch"
    return f"{what} {index + 1} from {unit} {part.slice.start} on"
