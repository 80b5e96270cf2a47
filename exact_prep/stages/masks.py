"""Masks leave the ids: from the bit that marks a token without loss to runs of masked targets in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import MASKED

if TYPE_CHECKING:
    from exact_prep.batches import Rows


def split_masks(rows: Rows) -> tuple[Rows, int]:
    """Rows with plain ids and `masked_runs`, and how many targets with left context >= 1 are masked.

    A run lies inside one segment; runs that touch in one segment are one.
    """
    count, seq_len = rows.input_ids.shape
    masked = (rows.input_ids < 0).reshape(-1)
    begins = np.zeros(masked.size + 1, bool)
    begins[np.repeat(np.arange(count), np.diff(rows.row_splits)) * seq_len + rows.segment_starts()] = True
    begins[::seq_len] = True
    before = np.concatenate([[False], masked[:-1]])
    after = np.concatenate([masked[1:], [False]])
    starts = np.flatnonzero(masked & (~before | begins[:-1]))
    lasts = np.flatnonzero(masked & (~after | begins[1:]))
    runs = np.empty(2 * starts.size, np.int32)
    runs[::2], runs[1::2] = starts % seq_len, lasts % seq_len + 1
    splits = np.concatenate([[0], np.cumsum(2 * np.bincount(starts // seq_len, minlength=count))]).astype(np.int32)
    plain = replace(rows, input_ids=rows.input_ids & ~MASKED, mask_splits=splits, masked_runs=runs)
    return plain, int((masked & ~begins[:-1]).sum())
