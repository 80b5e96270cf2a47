"""Effective left context: count it, and fill in the weights that depend on it. O(log n) per segment, not per token.

A segment of n tokens has the effective left contexts 0, 1, ..., n-1, each once. So a bucket [a, b) receives exactly
min(b, n) - a of them. Weights depend only on the bucket, so a segment's weights are a few constant runs.
"""

from exact_prep.kernels import kernel


@kernel("i4[:] i2[:] i8[:] out:i8[::]")
def count_left_contexts(lengths, groups, edges, out):
    """Add to `out[G, B]` how many targets with left context >= 1 segments of `lengths[S]` hold, per group and bucket.

    Segment s belongs to groups[s]; bucket b is [edges[b], edges[b+1]), `edges[B+1]`, edges[0] = 0. Returns the number
    of targets counted.
    """
    total = 0
    for s in range(lengths.size):
        length = lengths[s]
        counts = out[groups[s]]
        total += max(length - 1, 0)
        for b in range(counts.size):
            low = max(edges[b], 1)
            if low >= length:
                break
            counts[b] += min(edges[b + 1], length) - low
    return total


@kernel("i8[:] i8[:] i2[:] i8[:] out:i8[::]")
def count_context_ranges(starts, stops, groups, edges, out):
    """Add to `out[G, B]` how many contexts >= 1 lie in the ranges [starts[m], stops[m]), per group and bucket.

    Range m belongs to groups[m]; buckets as in `count_left_contexts`. Returns the number of contexts counted.
    """
    total = 0
    for m in range(starts.size):
        counts = out[groups[m]]
        start = max(starts[m], 1)
        for b in range(counts.size):
            low = max(edges[b], start)
            high = min(edges[b + 1], stops[m])
            if low < high:
                counts[b] += high - low
                total += high - low
    return total


@kernel("i4[:] i4[:] i4[:] u2[:] out:u2[::]")
def fill_by_position(lengths, row_splits, edges, values, out):
    """Write to `out[R, L]` the value of each target's position in its segment; 0 where a row is padding.

    Row r holds the segments row_splits[r] to row_splits[r+1] of `lengths[S]`. A target at a position in
    [edges[k], edges[k+1]) gets values[k]; edges[0] = 0, edges[K] is beyond every segment. Values are bit patterns
    (Numba does not know float16). Returns the number of segments used.
    """
    for row in range(out.shape[0]):
        target = out[row]
        position = 0
        for segment in range(row_splits[row], row_splits[row + 1]):
            length = lengths[segment]
            for k in range(values.size):
                low = edges[k]
                if low >= length:
                    break
                target[position + low : position + min(edges[k + 1], length)] = values[k]
            position += length
        target[position:] = 0
    return row_splits[out.shape[0]] - row_splits[0]


@kernel("i4[:] i4[:] out:u2[::]")
def clear_runs(runs, run_splits, out):
    """Set to 0 the targets in masked runs: those of row r of `out[R, L]` are runs[run_splits[r]:run_splits[r+1]].

    A run is a start and a stop in the row, `runs[2M]`. Returns the number of targets cleared.
    """
    cleared = 0
    for row in range(out.shape[0]):
        for m in range(run_splits[row], run_splits[row + 1], 2):
            out[row, runs[m] : runs[m + 1]] = 0
            cleared += runs[m + 1] - runs[m]
    return cleared
