"""Documents that come as token ids: check them, and add BOS and EOS if asked. Nothing is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
        self,
        record: TokenizerRecord,
        *,
        reject: bool,
        name: Callable[[int], str],
        masked: bool = False,
        eos_inside: bool = True,
    ) -> None:
        """`masked` says whether ids come with a mask: BOS and EOS then get one too.

        `eos_inside` False makes a document unusable that holds EOS before its end.
        """
        self._limit = record.vocab_size
        """Ids must be below this; 0 if no tokenizer is known."""
        self._ends = () if eos_inside else record.document_ends
        """Ids that may be nowhere but at the end of a document."""
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
        ids, offsets, records, rejected = self._checked(ids, offsets, batch.records, unfinished=batch.continues)
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
        self, ids: np.ndarray, offsets: np.ndarray, records: np.ndarray, *, unfinished: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Rejected]]:
        """Reject unusable documents; raises SourceError for the first one unless `reject`.

        `unfinished` says whether the last document goes on after its last id here.
        """
        faults = self._find_separators(ids, offsets, unfinished=unfinished) | self._find_unknown(ids, offsets)
        if not faults:
            return ids, offsets, records, []
        documents = sorted(faults)
        rejected = [
            Rejected(source="", place="", reason=faults[document].reason, record=int(records[document]))
            for document in documents
        ]
        if not self._reject:
            first = rejected[0]
            remedy = faults[documents[0]].remedy
            raise SourceError(
                f"{self._name(first.record)}: {first.reason};\n{remedy}, or skip such documents with --on-error reject"
            )
        lengths = np.diff(offsets)
        usable = np.ones(lengths.size, bool)
        usable[documents] = False
        offsets = np.concatenate([[0], np.cumsum(lengths[usable])])
        return ids[np.repeat(usable, lengths)], offsets, records[usable], rejected

    def _find_unknown(self, ids: np.ndarray, offsets: np.ndarray) -> dict[int, Fault]:
        """Documents with ids outside the vocabulary, by place in the batch."""
        if not self._limit:
            return {}  # whether they are ids at all, their reader has checked
        return {
            document: Fault(
                reason=f"id {ids[at] & ~MASKED} at token {at - offsets[document]} is not in the vocabulary "
                f"(0 to {self._limit - 1})",
                remedy="pass the tokenizer that made the ids with --tokenizer",
            )
            for document, at in find_first((ids & ~MASKED) >= self._limit, offsets)
        }

    def _find_separators(self, ids: np.ndarray, offsets: np.ndarray, *, unfinished: bool) -> dict[int, Fault]:
        """Documents with EOS before their last token, by place in the batch."""
        if not self._ends:
            return {}
        found = np.isin(ids & ~MASKED, self._ends)
        found[(offsets[1:-1] if unfinished else offsets[1:]) - 1] = False
        return {
            document: Fault(
                reason=f"EOS (id {ids[at] & ~MASKED}) at token {at - offsets[document]}, inside the document",
                remedy="if a row holds several documents, split it at EOS first; if a row is one document, say so with "
                "--documents rows",
            )
            for document, at in find_first(found, offsets)
        }


class Fault(NamedTuple):
    """Why a document cannot be used, and what to do about it."""

    reason: str
    remedy: str


def find_first(found: np.ndarray, offsets: np.ndarray) -> list[tuple[int, int]]:
    """Of each document with a place in `found[T]` (bool): its number, and the first such place in T."""
    places = np.flatnonzero(found)
    documents, first = np.unique(np.searchsorted(offsets, places, side="right") - 1, return_index=True)
    return list(zip(documents.tolist(), places[first].tolist(), strict=True))
