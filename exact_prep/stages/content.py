"""What a task read, as one checksum: a finished task is kept if it would read the same documents again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from exact_prep.errors import SourceError, StorageError
from exact_prep.sources import RecordPlaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exact_prep.batches import TextBatch
    from exact_prep.engines import Meter
    from exact_prep.stages.pack import PackTask


class ContentHash:
    """xxh3-128 of text batches, and of where one ends and the next begins: rows of best-fit depend on that too."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_128()

    def add(self, batch: TextBatch) -> None:
        """Add all that a batch says but the bytes it took: those follow from how the file is compressed."""
        update = self._hasher.update
        update(np.array([batch.read, batch.empty, batch.continues, len(batch.texts)], np.int64).tobytes())
        update(np.ascontiguousarray(batch.records, np.int64).tobytes())
        update(np.array([len(text) for text in batch.texts], np.int64).tobytes())
        update("".join(batch.texts).encode("utf-8", "surrogatepass"))
        for values in (batch.ids, batch.id_offsets):
            update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
        rejected = [(one.source, one.place, one.reason, one.record) for one in batch.rejected]
        more = (batch.label, batch.labels, batch.own_ids, sorted(batch.left_out.items()), rejected)
        update(repr(more).encode("utf-8", "surrogatepass"))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._hasher.hexdigest()


def hashed(batches: Iterable[TextBatch], content: ContentHash) -> Iterator[TextBatch]:
    """The batches as they come, each added to `content`."""
    for batch in batches:
        content.add(batch)
        yield batch


def reread_task(task: PackTask, meter: Meter) -> str:
    """The checksum of what a task would read now; empty if that cannot be read: the task is done again and says why."""
    content = ContentHash()
    try:
        for batch in task.inputs.read(task.slices, RecordPlaces(task.inputs, task.slices)):
            content.add(batch)
            meter.add(batch.bytes_read)
    except (SourceError, StorageError):
        return ""
    return content.hexdigest()
