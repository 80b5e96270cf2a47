"""Best-fit decreasing bin packing. O(1) amortised per item: bins hang in lists by free space, a bit set finds the list.

Johnson, "Near-optimal bin packing algorithms", 1973; for packing documents: arXiv 2404.10830.
"""

from exact_prep.kernels import kernel


@kernel("i4[:] i8[:] i8 out:i4[:] out:i4[:] out:i4[:] out:u8[:]")
def best_fit(lengths, order, capacity, bin_of, newest, older, occupied):
    """Put each item, in `order[N]` (longest first), into the bin with the least space that still holds it.

    `lengths[N]` are in [1, capacity]; bin_of[N] receives bin numbers from 0 in order of opening. Among bins of equal
    space the one that reached it last is taken. Work space: newest[capacity + 1] (-1 filled), the bin that reached a
    free space last; older[N], the one before it; occupied[(capacity >> 6) + 1] (0 filled), one bit per free space
    that some bin has. Returns the number of bins.
    """
    bins = 0
    for i in order:
        need = lengths[i]
        # The smallest free space >= need that some bin has: scan the bit set word by word.
        word = need >> 6
        bits = (occupied[word] >> (need & 63)) << (need & 63)
        while bits == 0 and word + 1 < occupied.size:
            word += 1
            bits = occupied[word]
        if bits == 0:
            bin_ = bins
            bins += 1
            space = capacity
        else:
            space = word << 6
            while bits & 1 == 0:
                bits >>= 1
                space += 1
            bin_ = newest[space]
            newest[space] = older[bin_]
            if newest[space] < 0:
                occupied[space >> 6] ^= 1 << (space & 63)
        bin_of[i] = bin_
        free = space - need
        if free > 0:
            older[bin_] = newest[free]
            newest[free] = bin_
            occupied[free >> 6] |= 1 << (free & 63)
    return bins
