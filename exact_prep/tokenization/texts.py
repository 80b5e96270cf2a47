"""Documents that come as text: pieces, ids, token batches. One `TextEncoder` per task, in a worker."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rejected
from exact_prep.errors import SourceError, TokenizerError
from exact_prep.tokenization.backends import load
from exact_prep.tokenization.boundaries import load_cuts
from exact_prep.tokenization.dressing import Dresser
from exact_prep.tokenization.files import parse, read
from exact_prep.tokenization.parity import Inspector
from exact_prep.tokenization.pieces import PIECE_CHARS, Cutter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.manifest import TokenizerRecord
    from exact_prep.records.options import TokenizerOptions

BATCH_CHARS = 1 << 20
"""Characters per token batch, about: 0.05 s of work for the fast library, 0.4 s for the reference."""


class TextEncoder:
    """Encodes the texts of one task with the backend that its record names."""

    def __init__(
        self,
        path: Path,
        record: TokenizerRecord,
        options: TokenizerOptions,
        *,
        task: int,
        reject: bool,
        name: Callable[[int], str],
    ) -> None:
        split_special = options.special_tokens_in_text != "special"
        backend = "fastokens" if record.backend == "fastokens" else "tokenizers"
        self._backend = load(
            backend, path, record.sha256, split_special=split_special, version_wanted=record.backend_version
        )
        self.inspector: Inspector | None = None
        if backend == "fastokens":
            self.inspector = Inspector(
                self._backend,
                lambda: load(
                    "tokenizers",
                    path,
                    record.sha256,
                    split_special=split_special,
                    version_wanted=record.reference_version,
                ),
                task=task,
            )
        self._dresser = Dresser(bos=record.bos_id, eos=record.eos_id)
        self._cutter = Cutter(load_cuts(path, split_special=split_special, knows=self._backend.knows))
        self._refused = spelling(path) if options.special_tokens_in_text == "error" else None
        self._collector = Cutter(None)
        self._reject = reject
        self._name = name
        self._open = False
        """Whether the first text to come goes on with a document begun earlier."""

    def encode(self, batch: TextBatch) -> Iterator[TokenBatch]:
        """Token batches of about BATCH_CHARS characters; nothing if no piece of the batch is settled yet."""
        texts, records, rejected = self._pieces(batch)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.cumsum(lengths) - lengths
        edges = (np.flatnonzero(np.diff(starts // BATCH_CHARS)) + 1).tolist()
        for low, high in zip([0, *edges], [*edges, len(texts)], strict=True):
            some = records[low:high]
            firsts = np.flatnonzero(np.diff(some, prepend=-1))
            ids, offsets = self._encode(texts[low:high], lengths[low:high], some)
            if high < len(texts):
                continues = records[high] == records[high - 1]
            else:
                continues = batch.continues and high > 0 and records[high - 1] == batch.records[-1]
            dressed = self._dresser.dress(
                ids,
                offsets[np.append(firsts, some.size)],
                some[firsts],
                continues=bool(continues),
                rejected=() if high < len(texts) else rejected,
            )
            if dressed is not None:
                yield dressed

    def _pieces(self, batch: TextBatch) -> tuple[list[str], np.ndarray, list[Rejected]]:
        """Pieces ready to be encoded, the record each belongs to, and what is left out.

        Short documents are passed on as they came, a slice of the list at a time.
        """
        last = len(batch.texts) - 1
        unusual = [
            index
            for index, text in enumerate(batch.texts)
            if len(text) > PIECE_CHARS
            or self._refused
            or (index == 0 and self._open)
            or (index == last and batch.continues)
        ]
        if last >= 0:
            self._open = batch.continues
        if not unusual:
            return batch.texts, batch.records, []
        texts: list[str] = []
        rejected: list[Rejected] = []
        counts = np.ones(len(batch.texts), np.int64)
        done = 0
        for index in unusual:
            texts += batch.texts[done:index]
            ends = index < last or not batch.continues
            pieces = self._take(batch.texts[index], int(batch.records[index]), rejected, ends=ends)
            counts[index] = len(pieces)
            texts += pieces
            done = index + 1
        return texts + batch.texts[done:], np.repeat(batch.records, counts), rejected

    def _take(self, text: str, record: int, rejected: list[Rejected], *, ends: bool) -> list[str]:
        """The settled pieces of a long or fragmented document; at its end at least one, which may be empty."""
        if self._refused:
            # Nothing of a document is encoded before all of it is known to be usable.
            text = "".join(self._collector.take(text, last=ends))
            if not ends:
                return []
            reason = refusal(self._refused, text)
            if reason and not self._reject:
                raise SourceError(
                    f"{self._name(record)}: {reason};\n--special-tokens-in-text text takes it for plain text, "
                    "--on-error reject leaves the document out"
                )
            if reason:
                rejected.append(Rejected(source="", place=f"record {record}", reason=reason, record=record))
                return []
        pieces = self._cutter.take(text, last=ends)
        return pieces or ([""] if ends else [])

    def _encode(self, texts: list[str], lengths: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.empty(0, np.int32), np.zeros(1, np.int64)
        try:
            ids, offsets = self._backend.encode(texts)
        except Exception as error:
            raise TokenizerError(
                f"{self._name(int(records[0]))} or after it: {self._backend.name} failed: {error};\n{REMEDY}"
            ) from error
        if self.inspector is not None:
            found = self.inspector.look(texts, np.cumsum(lengths), ids, offsets)
            if found is not None:
                index, what = found
                raise TokenizerError(
                    f"{self._name(int(records[index]))}: fastokens and tokenizers disagree: {what};\n{REMEDY}"
                )
        return ids, offsets


REMEDY = "run again with --tokenizer-backend tokenizers"


def spelling(path: Path) -> re.Pattern[str] | None:
    """A regex that finds the spelling of any special token, longest first; None if there is no special token."""
    contents = [token.content for token in parse(read(path), path).added_tokens if token.special and token.content]
    if not contents:
        return None
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))))


def refusal(refused: re.Pattern[str], text: str) -> str | None:
    """Why a document cannot be used where text must not spell special tokens; None if it can."""
    found = refused.search(text)
    return f"the text spells the special token {found[0]!r} at character {found.start()}" if found else None
