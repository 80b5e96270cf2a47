"""What a trainer wants to know about a row, derived from its stored columns. NumPy only; no files.

Two alignments are in use. `target`: the value at t belongs to the target `input_ids[t]`; the trainer shifts (Hugging
Face and its kin). `prediction`: the value at t belongs to the prediction made at t, whose target is `input_ids[t + 1]`;
the data comes shifted (Megatron, Levanter, MaxText, torchtitan).
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from exact_prep.batches import IGNORED
from exact_prep.choices import Align
from exact_prep.errors import UsageError


def check_align(align: str) -> None:
    """Raises UsageError unless `align` is one of the two alignments."""
    if align not in get_args(Align):
        raise UsageError(f"align is {align!r}; it is one of: {', '.join(get_args(Align))}")


def position_ids(seq_lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Each token's place in its segment, int32[seq_len]: its effective left context.

    Padding is 0 throughout, a run of one-token documents: nothing attends across it, and `lut[position_ids]` is 0.
    """
    positions = np.zeros(seq_len, np.int32)
    stops = np.cumsum(seq_lengths)
    used = int(stops[-1]) if stops.size else 0
    positions[:used] = np.arange(used) - np.repeat(stops - seq_lengths, seq_lengths)
    return positions


def segment_ids(seq_lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Each token's segment counted from 1, 0 for padding, int32[seq_len]."""
    segments = np.zeros(seq_len, np.int32)
    numbers = np.repeat(np.arange(1, len(seq_lengths) + 1, dtype=np.int32), seq_lengths)
    segments[: numbers.size] = numbers
    return segments


def cu_seqlens(seq_lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Where segments start and end, int32[S + 1], from 0 to `seq_len`: padding, if any, is a last segment.

    Variable-length attention reads every token of the row, so the padding must belong to some segment.
    """
    edges = np.concatenate([[0], np.cumsum(seq_lengths), [seq_len]]).astype(np.int32)
    return edges[:-1] if edges[-2] == seq_len else edges


def align_weights(weights: np.ndarray, align: Align) -> np.ndarray:
    """Stored weights `weights[..., L]` in either alignment; the dtype stays.

    The row's first token has no prediction inside the row, so it carries no weight: trainers that roll labels around
    (ms-swift, MPT, Levanter) would count it at the row's end. It is stored as 0 anyway unless `--supervise-first`.
    """
    check_align(align)
    if align == "target":
        if not weights[..., 0].any():
            return weights
        aligned = weights.copy()
        aligned[..., 0] = 0
        return aligned
    aligned = np.zeros_like(weights)
    aligned[..., :-1] = weights[..., 1:]
    return aligned


def labels(input_ids: np.ndarray, weights: np.ndarray, align: Align, *, ignored: int = IGNORED) -> np.ndarray:
    """Targets in either alignment, int64[..., L], `ignored` where the stored `weights` give no loss."""
    masked = np.where(weights > 0, input_ids.astype(np.int64), ignored)
    masked[..., 0] = ignored
    if align == "target":
        return masked
    check_align(align)
    shifted = np.full_like(masked, ignored)
    shifted[..., :-1] = masked[..., 1:]
    return shifted
