"""Effective left context: how many tokens of its own document are visible when a target is predicted.

`l_t = t - s(t)`, where s(t) is the first position of t's segment: a document cut by a row edge starts again at 0. Under
sliding-window attention of W tokens (each query sees W tokens, itself included) it is `min(t - s(t), W)`.

Contexts fall into logarithmic buckets: [0, 7], [8, 15], [16, 31], ... (arXiv 2605.10544).
"""

from __future__ import annotations

import numpy as np

FIRST_EDGE = 8
"""Upper edge of bucket 0, [0, 7]; every later bucket is as wide as all before it."""


def find_bucket(left_context: int) -> int:
    """The bucket of an effective left context: 0 for [0, 7], 1 for [8, 15], 2 for [16, 31], ..."""
    return max(left_context.bit_length() - FIRST_EDGE.bit_length() + 1, 0)


def bucket_edges(buckets: int) -> np.ndarray:
    """Edges[buckets + 1] of the first `buckets` buckets, int64, in tokens: 0, 8, 16, 32, ...

    Bucket b is the half-open interval [edges[b], edges[b + 1]).
    """
    edges = np.int64(FIRST_EDGE) << np.arange(-1, buckets, dtype=np.int64).clip(0)
    edges[0] = 0
    return edges


def edge_at_or_above(left_context: int) -> int:
    """The first bucket edge at or above an effective left context, in tokens."""
    return 0 if left_context <= 0 else max(1 << (left_context - 1).bit_length(), FIRST_EDGE)


def nearest_edges(left_context: int) -> tuple[int, int]:
    """The bucket edges on both sides of an effective left context, in tokens; equal if it is an edge itself."""
    above = edge_at_or_above(left_context)
    if above == left_context:
        return above, above
    return (0 if above == FIRST_EDGE else above // 2), above


def visible(positions: np.ndarray, window: int | None) -> np.ndarray:
    """Effective left context of targets at `positions[...]` in their segments: the position, or at most the window."""
    return positions if window is None else np.minimum(positions, window)
