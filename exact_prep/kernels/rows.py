"""Moving tokens: special tokens in between documents, and segments into rows. Runs of memory copies, nothing more."""

from exact_prep.kernels import kernel


@kernel("i4[:] i8[:] i4[:] i4[:] out:i4[:]")
def splice(ids, offsets, before, after, out):
    """Copy the pieces `ids[offsets[d]:offsets[d+1]]` to `out`, each with its special tokens.

    before[d] is put in front of piece d and after[d] behind it, where they are >= 0. Returns the tokens written.
    """
    position = 0
    for d in range(before.size):
        if before[d] >= 0:
            out[position] = before[d]
            position += 1
        length = offsets[d + 1] - offsets[d]
        out[position : position + length] = ids[offsets[d] : offsets[d + 1]]
        position += length
        if after[d] >= 0:
            out[position] = after[d]
            position += 1
    return position


@kernel("i4[:] i8[:] i4[:] i4[:] i8 out:i4[::]")
def gather(ids, starts, lengths, segments_per_row, pad_id, out):
    """Fill the rows of `out[R, L]` with segments: segment s is ids[starts[s] : starts[s] + lengths[s]].

    Row r holds the next segments_per_row[r] segments, then `pad_id`. Returns the tokens copied.
    """
    segment = 0
    copied = 0
    for row in range(out.shape[0]):
        target = out[row]
        position = 0
        for _ in range(segments_per_row[row]):
            length = lengths[segment]
            target[position : position + length] = ids[starts[segment] : starts[segment] + length]
            position += length
            segment += 1
        target[position:] = pad_id
        copied += position
    return copied
