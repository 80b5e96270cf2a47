"""Documents that come as token ids: check them, and add BOS and EOS if asked. Nothing is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import MASKED, Rejected
from exact_prep.errors import SourceError
from exact_prep.tokenization.bos_eos import BosEosInserter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.manifest import TokenizerRecord


class IdChecker:
    """Checks the ids of one task against the vocabulary and passes them on with BOS and EOS."""

    def __init__(
        self, record: TokenizerRecord, *, reject: bool, name: Callable[[int], str], masked: bool = False
    ) -> None:
        """`masked` says whether ids come with a mask: BOS and EOS then get one too."""
        self._limit = record.vocab_size
        """Ids must be below this; 0 if no tokenizer is known."""
        self._reject = reject
        self._name = name
        self._inserter = BosEosInserter(bos=record.bos_id, eos=record.eos_id, masked=masked)
        self._held: list[np.ndarray] = []
        """The end of a document that continues in the next batch. One id is held so that the document's last piece is
        never empty; the whole document is held if it may still be rejected."""

    def encode(self, batch: TextBatch) -> Iterator[TokenBatch]:
        """Yield one token batch, or none if everything must be held until the next batch or there are no documents."""
        if batch.ids is None or batch.id_offsets is None:
            if batch.texts:
                raise SourceError("a document is text in a corpus of ids; check --ids-field, or leave it out")
            return
        if self._reject and batch.continues and batch.records.size == 1:
            self._held.append(batch.ids)
            return
        ids, offsets = self._with_held(batch.ids, batch.id_offsets)
        if batch.continues:
            kept = int(offsets[-2]) if self._reject else max(int(offsets[-2]), int(offsets[-1]) - 1)
            self._held = [ids[kept:]]
            ids, offsets = ids[:kept], np.append(offsets[:-1], kept)
        ids, offsets, records, rejected = self._checked(ids, offsets, batch.records)
        made = self._inserter.insert(ids, offsets, records, continues=batch.continues, rejected=rejected)
        if made is not None:
            yield made

    def _with_held(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch with the held ids of its first document put in front."""
        if not self._held:
            return ids, offsets
        held = sum(part.size for part in self._held)
        ids, self._held = np.concatenate([*self._held, ids]), []
        return ids, np.concatenate([[0], offsets[1:] + held])

    def _checked(
        self, ids: np.ndarray, offsets: np.ndarray, records: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Rejected]]:
        """Reject documents with ids outside the vocabulary; raises SourceError for the first one unless `reject`."""
        if not self._limit:
            return ids, offsets, records, []  # whether they are ids at all, their reader has checked
        wrong = np.flatnonzero((ids & ~MASKED) >= self._limit)
        if not wrong.size:
            return ids, offsets, records, []
        documents, first = np.unique(np.searchsorted(offsets, wrong, side="right") - 1, return_index=True)
        rejected = [
            Rejected(
                source="",
                place="",
                reason=f"id {ids[wrong[at]] & ~MASKED} at token {wrong[at] - offsets[document]} is not in the "
                f"vocabulary (0 to {self._limit - 1})",
                record=int(records[document]),
            )
            for document, at in zip(documents.tolist(), first.tolist(), strict=True)
        ]
        if not self._reject:
            raise SourceError(
                f"{self._name(rejected[0].record)}: {rejected[0].reason};\n"
                "pass the tokenizer that made the ids with --tokenizer, or skip such documents with --on-error reject"
            )
        lengths = np.diff(offsets)
        usable = np.ones(lengths.size, bool)
        usable[documents] = False
        offsets = np.concatenate([[0], np.cumsum(lengths[usable])])
        return ids[np.repeat(usable, lengths)], offsets, records[usable], rejected
