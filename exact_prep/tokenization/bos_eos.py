"""Turns encoded pieces of documents into token batches: adds BOS and EOS, and counts every token for the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import MASKED, Rejected, TokenBatch
from exact_prep.kernels.rows import splice

if TYPE_CHECKING:
    from collections.abc import Sequence


class BosEosInserter:
    """Inserts BOS before and EOS after each document, also when a document spans several batches."""

    def __init__(self, *, bos: int | None, eos: int | None, masked: bool = False) -> None:
        """`masked`: BOS carries no loss, EOS what the last token of its document carries."""
        self._bos = bos
        self._eos = eos
        self._masked = masked
        self.emitted = 0
        """Tokens already returned of the unfinished document."""

    def insert(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        records: np.ndarray,
        *,
        continues: bool,
        rejected: Sequence[Rejected] = (),
    ) -> TokenBatch | None:
        """Make a token batch of the pieces `ids[offsets[p]:offsets[p+1]]`, which belong to documents `records[P]`.

        Returns None if the batch would report nothing. The first piece continues the unfinished document, if there is
        one. With `continues`, the last piece's document is unfinished. A document without tokens gets neither BOS nor
        EOS and counts as empty.
        """
        lengths = np.diff(offsets)
        begun = np.zeros(lengths.size, np.int64)
        begun[:1] = self.emitted
        ended = np.ones(lengths.size, bool)
        if continues:
            ended[-1:] = False
        empty = ended & (lengths + begun == 0)
        before = np.where((begun == 0) & (lengths > 0), -1 if self._bos is None else self._bos, -1).astype(np.int32)
        after = np.where(ended & ~empty, -1 if self._eos is None else self._eos, -1).astype(np.int32)
        full_lengths = lengths + (before >= 0) + (after >= 0)
        out = np.empty(int(full_lengths.sum()), np.int32)
        splice(ids, offsets, before, after, out)
        if self._masked:
            stops = np.cumsum(full_lengths)
            out[(stops - full_lengths)[before >= 0]] |= MASKED
            ends = stops[after >= 0] - 1
            # An EOS is never alone in its piece: see `IdChecker`, which holds the last id of a document that continues.
            out[ends] |= out[ends - 1] & MASKED
        if lengths.size:
            self.emitted = 0 if ended[-1] else int(begun[-1] + full_lengths[-1])
        kept = full_lengths > 0
        if not kept.any() and not ended.any() and not rejected:
            return None
        return TokenBatch(
            ids=out,
            offsets=np.concatenate([[0], np.cumsum(full_lengths[kept])]),
            doc_ids=records[kept],
            doc_offsets=begun[kept],
            continues=self.emitted > 0,
            text_tokens=int(offsets[-1]),
            bos_tokens=int((before >= 0).sum()),
            eos_tokens=int((after >= 0).sum()),
            empty=int(empty.sum()),
            documents=int((ended & ~empty).sum()),
            rejected=tuple(rejected),
        )
