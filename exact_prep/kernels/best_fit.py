"""Best-fit decreasing bin packing, O(1) amortised per item: one list of bins per free space, and a bit set to find it.

Johnson, "Near-optimal bin packing algorithms", 1973; for packing documents: arXiv 2404.10830.
"""

import numpy as np

from exact_prep.kernels import kernel


@kernel("i4[:] i8[:] i8 i8 out:i4[:] out:i4[:] out:i4[:] out:i4[:] out:u8[:]")
def best_fit(lengths, order, capacity, most, bin_of, newest, older, held, occupied):
    """Put each item, in `order[N]` (longest first), into the bin with the least free space that still fits it.

    A bin takes at most `most` items.

    `lengths[N]` are in [1, capacity]; `bin_of[N]` receives each item's bin number; bins are numbered from 0 in the
    order in which they are opened. Among bins with equal free space, the one that reached it last is taken. Work space:
    `newest[capacity + 1]` (filled with -1), the bin that reached each free space last; `older[N]`, for each bin, the
    one before it in its list; `held[N]` (filled with 0), items of each bin; `occupied[(capacity >> 6) + 1]` (filled
    with 0), one bit per free space that some bin has. Returns the number of bins.
    """
    one = np.uint64(1)
    bins = 0
    for i in order:
        need = lengths[i]
        # The smallest free space >= need that some bin has: scan the bit set word by word.
        word = need >> 6
        below = np.uint64(need & 63)
        bits = (occupied[word] >> below) << below
        while bits == 0 and word + 1 < occupied.size:
            word += 1
            bits = occupied[word]
        if bits == 0:
            chosen = bins
            bins += 1
            space = capacity
        else:
            space = word << 6
            while bits & one == 0:
                bits >>= one
                space += 1
            chosen = newest[space]
            newest[space] = older[chosen]
            if newest[space] < 0:
                occupied[space >> 6] ^= one << np.uint64(space & 63)
        bin_of[i] = chosen
        held[chosen] += 1
        free = space - need
        if free > 0 and held[chosen] < most:
            older[chosen] = newest[free]
            newest[free] = chosen
            occupied[free >> 6] |= one << np.uint64(free & 63)
    return bins
