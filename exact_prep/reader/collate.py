"""Rows to one batch of arrays. NumPy only; the frameworks turn the arrays into their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.errors import UsageError
from exact_prep.reader import columns
from exact_prep.reader.rows import Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exact_prep.reader.columns import Align


def collate(
    rows: Sequence[Row | Mapping[str, Any]],
    *,
    align: Align = "target",
    cu_seqlens: bool = False,
    segment_ids: bool = False,
    flatten: bool = False,
    ids: type[np.integer] = np.int64,
) -> dict[str, Any]:
    """B rows of L tokens as arrays of their own: input_ids, position_ids, labels of type `ids`, loss_weights float32.

    Each [B, L]. Position_ids are 0 at each document and throughout padding, labels -100 where the weight is 0. On
    request `segment_ids[B, L]`, counted from 1 in each row and 0 for padding, and cu_seqlens int32[S + 1], the segment
    edges of the batch as one sequence of B * L tokens, with max_seqlen. `flatten` makes the batch that one sequence,
    [1, B * L], and adds these edges as Hugging Face names them: cu_seq_lens_q and _k, max_length_q and _k (plain ints).
    Raises UsageError if a row lacks columns, rows differ in length, or for `flatten` with `segment_ids`.
    """
    if flatten and segment_ids:
        raise UsageError("segment_ids count from 1 in each row, and a flattened batch has no rows; leave one out")
    stored = [_stored(row) for row in rows]
    tokens = _stack([row[0] for row in stored], ids)
    lengths = [row[1] for row in stored]
    weights = _stack([row[2] for row in stored], np.float32)
    seq_len = tokens.shape[1]
    made = {
        "input_ids": tokens,
        "position_ids": _stack([columns.position_ids(own, seq_len) for own in lengths], ids),
        "labels": columns.labels(tokens, weights, align).astype(ids, copy=False),
        "loss_weights": columns.align_weights(weights, align),
    }
    if segment_ids:
        made["segment_ids"] = _stack([columns.segment_ids(own, seq_len) for own in lengths], ids)
    if flatten:
        made = {name: values.reshape(1, -1) for name, values in made.items()}
    if cu_seqlens or flatten:
        parts = [columns.cu_seqlens(own, seq_len)[1:] + row * seq_len for row, own in enumerate(lengths)]
        edges = np.concatenate([[0], *parts]).astype(np.int32)
        longest = np.diff(edges).max()
        if cu_seqlens:
            made |= {"cu_seqlens": edges, "max_seqlen": longest}
        if flatten:
            made |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
            made |= {"max_length_q": int(longest), "max_length_k": int(longest)}
    return made


def _stored(row: Row | Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row's input_ids, seq_lengths and loss_weights."""
    if isinstance(row, Row):
        return row.input_ids, row.seq_lengths, row.loss_weights
    missing = {"input_ids", "seq_lengths", "loss_weights"} - set(row)
    if missing:
        raise UsageError(
            f"a row lacks {', '.join(sorted(missing))}: the trainer removed columns (set remove_unused_columns=False), "
            f"or the row is not from an exact-prep dataset"
        )
    return np.asarray(row["input_ids"]), np.asarray(row["seq_lengths"], np.int64), np.asarray(row["loss_weights"])


def _stack(rows: list[np.ndarray], dtype: type) -> np.ndarray:
    """`rows[B]` of L values each as one array[B, L]; a copy, so that workers and pinned memory own it."""
    if len({row.size for row in rows}) != 1:
        raise UsageError(f"rows of {sorted({row.size for row in rows})} tokens in one batch; use one dataset at a time")
    stacked = np.empty((len(rows), rows[0].size), dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[:] = row
    return stacked
