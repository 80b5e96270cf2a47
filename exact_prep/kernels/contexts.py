"""Effective left context: counting it, and filling weights that depend on it. O(log n) per segment, never per token.

A segment of n tokens holds the effective left contexts 0, 1, ..., n-1 once each, so a bucket [a, b) receives exactly
min(b, n) - a of them. Weights depend on the bucket alone, so a segment's weights are a few constant runs.
"""

from exact_prep.kernels import kernel


@kernel("i4[:] i8[:] out:i8[:]")
def count_left_contexts(lengths, edges, out):
    """Add to `out[B]` how many targets with left context >= 1 segments of `lengths[S]` hold per bucket.

    Bucket b is [edges[b], edges[b+1]), `edges[B+1]`, edges[0] = 0. Returns the number of targets counted.
    """
    total = 0
    for length in lengths:
        total += max(length - 1, 0)
        for b in range(out.size):
            low = max(edges[b], 1)
            if low >= length:
                break
            out[b] += min(edges[b + 1], length) - low
    return total


@kernel("i4[:] i4[:] i4[:] u2[:] out:u2[::]")
def fill_by_left_context(lengths, segments_per_row, edges, values, out):
    """Write to `out[R, L]` the value of each target's left context; 0 where a row is padding.

    Row r holds the next segments_per_row[r] of `lengths[S]`. A target with left context in
    [edges[k], edges[k+1]) gets values[k]; edges[0] = 0, edges[K] is beyond every segment. Values are bit patterns
    (float16 is no Numba type). Returns the number of segments used.
    """
    segment = 0
    for row in range(out.shape[0]):
        target = out[row]
        position = 0
        for _ in range(segments_per_row[row]):
            length = lengths[segment]
            segment += 1
            for k in range(values.size):
                low = edges[k]
                if low >= length:
                    break
                target[position + low : position + min(edges[k + 1], length)] = values[k]
            position += length
        target[position:] = 0
    return segment
