"""Rows that others cut: how long their pieces are, from the lengths of documents or from the positions of tokens."""

import numpy as np

from exact_prep.kernels import kernel


@kernel("i8[:] i8 i8 i8 out:i8[:] out:i8[:]")
def cut_stream(lengths, width, shared, limit, state, pieces):
    """Cut documents of `lengths[D]` tokens into rows; `pieces[n]` counts pieces that hold the contexts 1 to n.

    Row r covers the tokens [r * width, (r + 1) * width + shared) of the stream: with `shared` 1 it shares its last
    token with the next row, where that token is an input alone. The stream ends at token `limit`. `state[0]` is the
    place in the stream, and is carried from call to call; `state[1]` counts targets that begin their document in a
    place where something is read before them; `state[2]` pieces that begin where a row does; `state[3]` documents in
    more than one piece. Returns the documents that had a token before `limit`.
    """
    place = state[0]
    read = 0
    for d in range(lengths.size):
        if place >= limit:
            place += lengths[d]
            continue
        read += 1
        end = min(place + lengths[d], limit)
        row = place // width
        if shared and place > 0 and place % width == 0:
            row -= 1  # its first token is the last target of the row before
        if place % width == 0 and not (shared and place > 0):
            state[2] += 1
        else:
            state[1] += 1
        edge = (row + 1) * width + shared
        pieces[min(end, edge) - place - 1] += 1
        rest = end - edge
        if rest > 0:
            state[3] += 1
            # A whole row has `width` targets of the document if it shares a token; else its first one has context 0.
            first = 1 - shared
            pieces[width - first] += rest // width
            state[2] += first * (rest // width)
            if rest % width:
                pieces[rest % width - first] += 1
                state[2] += first
        place += lengths[d]
    state[0] = place
    return read


@kernel("i8[:] i8[:] out:i8[:]")
def find_restarts(positions, offsets, out):
    """Write to `out[T]` the places in `positions[T]` that are 0; rows are `offsets[R + 1]`. Returns how many.

    Every other position is the one before it in its row plus 1; for the first place t where it is not, returns
    -(t + 1).
    """
    count = 0
    for row in range(offsets.size - 1):
        before = np.int64(-2)
        for t in range(offsets[row], offsets[row + 1]):
            position = positions[t]
            if position == 0:
                out[count] = t
                count += 1
            elif position != before + 1:
                return -(t + 1)
            before = position
    return count
