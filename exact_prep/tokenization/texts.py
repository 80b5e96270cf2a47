"""Documents that come as text: split into pieces, encode, make token batches. One `TextEncoder` per task."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.batches import Rejected
from exact_prep.errors import SourceError, TokenizerError
from exact_prep.tokenization.backends import load
from exact_prep.tokenization.bos_eos import BosEosInserter
from exact_prep.tokenization.boundaries import load_cut_pattern
from exact_prep.tokenization.files import parse, read
from exact_prep.tokenization.parity import Inspector
from exact_prep.tokenization.pieces import PIECE_CHARS, Splitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.manifest import TokenizerRecord
    from exact_prep.records.options import TokenizerOptions

BATCH_CHARS = 1 << 20
"""About this many characters per token batch: 0.05 s of work for the fast library, 0.4 s for the reference."""


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
        self._inserter = BosEosInserter(bos=record.bos_id, eos=record.eos_id)
        self._remedy = REMEDY if backend == "fastokens" else REFERENCE_REMEDY.format(path)
        self._splitter = Splitter(load_cut_pattern(path, split_special=split_special, knows=self._backend.knows))
        self._forbidden = compile_special_tokens(path) if options.special_tokens_in_text == "error" else None
        self._collector = Splitter(None)
        self._reject = reject
        self._name = name
        self._open = False
        """Whether the first text of the next batch continues an unfinished document."""

    def encode(self, batch: TextBatch) -> Iterator[TokenBatch]:
        """Yield token batches of about BATCH_CHARS characters; none if no piece of the batch is complete yet."""
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
            made = self._inserter.insert(
                ids,
                offsets[np.append(firsts, some.size)],
                some[firsts],
                continues=bool(continues),
                rejected=() if high < len(texts) else rejected,
            )
            if made is not None:
                yield made

    def _pieces(self, batch: TextBatch) -> tuple[list[str], np.ndarray, list[Rejected]]:
        """Pieces ready to be encoded, the record that each belongs to, and the rejected documents.

        Short documents are passed on unchanged, one slice of the list at a time.
        """
        last = len(batch.texts) - 1
        unusual = [
            index
            for index, text in enumerate(batch.texts)
            if len(text) > PIECE_CHARS
            or self._forbidden
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
            pieces = self._split(batch.texts[index], int(batch.records[index]), rejected, ends=ends)
            counts[index] = len(pieces)
            texts += pieces
            done = index + 1
        return texts + batch.texts[done:], np.repeat(batch.records, counts), rejected

    def _split(self, text: str, record: int, rejected: list[Rejected], *, ends: bool) -> list[str]:
        """The complete pieces of a long or fragmented document; at its end at least one, which may be empty."""
        if self._forbidden:
            # Encode no part of a document before the whole document is known to be usable.
            text = "".join(self._collector.split(text, last=ends))
            if not ends:
                return []
            reason = explain_refusal(self._forbidden, text)
            if reason and not self._reject:
                raise SourceError(
                    f"{self._name(record)}: {reason};\nencode it as plain text with --special-tokens-in-text text, "
                    "or skip such documents with --on-error reject"
                )
            if reason:
                rejected.append(Rejected(source="", place="", reason=reason, record=record))
                return []
        pieces = self._splitter.split(text, last=ends)
        return pieces or ([""] if ends else [])

    def _encode(self, texts: list[str], lengths: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.empty(0, np.int32), np.zeros(1, np.int64)
        try:
            ids, offsets = self._backend.encode(texts)
        except Exception as error:
            raise TokenizerError(
                f"{self._name(int(records[0]))} or after it: {self._backend.name} failed: {error};\n{self._remedy}"
            ) from error
        if self.inspector is not None:
            found = self.inspector.inspect(texts, np.cumsum(lengths), ids, offsets)
            if found is not None:
                index, what = found
                raise TokenizerError(
                    f"{self._name(int(records[index]))}: fastokens and tokenizers disagree: {what};\n{REMEDY}"
                )
        return ids, offsets


REMEDY = "run again with --tokenizer-backend tokenizers"

REFERENCE_REMEDY = "tokenizers itself cannot encode this text with {}: check its unk_token, or use another tokenizer"


def compile_special_tokens(path: Path) -> re.Pattern[str] | None:
    """A regex that finds any special token spelled in text, longest first; None if there are no special tokens."""
    contents = [token.content for token in parse(read(path), path).added_tokens if token.special and token.content]
    if not contents:
        return None
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))))


def explain_refusal(forbidden: re.Pattern[str], text: str) -> str | None:
    """Why a document is unusable if text must not spell special tokens; None if it is usable."""
    found = forbidden.search(text)
    return f"the text spells the special token {found[0]!r} at character {found.start()}" if found else None
