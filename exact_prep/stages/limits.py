"""A quick look at a big corpus: stop after so many documents or tokens, exactly, with every record accounted for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.options import SourceOptions


def within_limits(
    batches: Iterable[TextBatch],
    encode: Callable[[TextBatch], Iterator[TokenBatch]],
    options: SourceOptions,
) -> Iterator[tuple[TextBatch, Iterable[TokenBatch]]]:
    """Each batch with its encoding, up to the document that reaches `limit_docs` or `limit_tokens`."""
    if options.limit_docs is None and options.limit_tokens is None:
        for batch in batches:
            yield batch, encode(batch)
        return
    docs = tokens = read = 0
    for whole in batches:
        rest: TextBatch | None = whole
        while rest is not None:
            # One document at a time: any of them may reach the limit.
            batch, rest = split(rest, read)
            read += batch.read
            encoded = list(encode(batch))
            yield batch, encoded
            docs += sum(part.documents for part in encoded)
            tokens += sum(part.ids.size for part in encoded)
            reached = docs >= (options.limit_docs or np.inf) or tokens >= (options.limit_tokens or np.inf)
            if reached and not batch.continues:
                return


def split(batch: TextBatch, read: int) -> tuple[TextBatch, TextBatch | None]:
    """The first document of a batch with all records up to it, and the rest; `read` records came before the batch."""
    count = batch.records.size
    if count <= 1:
        return batch, None
    record = int(batch.records[0])
    early = tuple(item for item in batch.rejected if item.record <= record)
    fresh = max(record + 1 - read, 0)  # 0 if the document began, and was counted, in an earlier batch
    head = replace(
        batch,
        **contents(batch, 0, 1),
        continues=False,
        read=fresh,
        empty=fresh - (fresh > 0) - len(early),
        rejected=early,
        left_out={},
        bytes_read=0,
        text_bytes=len(batch.texts[0].encode()) if batch.texts else 0,
    )
    tail = replace(
        batch,
        **contents(batch, 1, count),
        read=batch.read - head.read,
        empty=batch.empty - head.empty,
        rejected=batch.rejected[len(early) :],
        text_bytes=batch.text_bytes - head.text_bytes,
    )
    return head, tail


def contents(batch: TextBatch, first: int, last: int) -> dict[str, Any]:
    """The columns of documents [first, last) of a batch."""
    columns: dict[str, Any] = {"records": batch.records[first:last], "texts": batch.texts[first:last]}
    if batch.labels is not None:
        columns["labels"] = batch.labels[first:last]
    if batch.own_ids is not None:
        columns["own_ids"] = batch.own_ids[first:last]
    if batch.ids is not None and batch.id_offsets is not None:
        offsets = batch.id_offsets[first : last + 1]
        columns |= {"ids": batch.ids[offsets[0] : offsets[-1]], "id_offsets": offsets - offsets[0]}
    return columns
