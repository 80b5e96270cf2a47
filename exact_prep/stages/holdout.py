"""`--validation`: which documents of a task are held out, and the file that keeps their tokens for the last task."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from exact_prep.batches import MASKED, TextBatch, TokenBatch
from exact_prep.records.manifest import TokenLedger
from exact_prep.records.work import HeldRecord
from exact_prep.stores.local import digest_file, explained, sync_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from exact_prep.records.manifest import TokenizerRecord
    from exact_prep.records.options import ValidationOptions

HASHED = 4096
"""Bytes at a document's start that decide whether it is held out."""


class Holdout:
    """The held-out documents of one task: chosen, counted, and written to a file as their tokens come."""

    def __init__(self, options: ValidationOptions, tokenizer: TokenizerRecord, path: Path) -> None:
        self.path = path
        self._seed, self._limit = options.seed, int(Fraction(options.fraction) * 2**64)
        self._bos, self._eos = tokenizer.bos_id is not None, tokenizer.eos_id is not None
        self._held: dict[int, tuple[str, str]] = {}
        """Label and own id of each held-out document, by record."""
        self._last = -1
        self._start: bytes | None = None
        """What is known of the start of the document `_last`; None once it is decided."""
        self._text_bytes = self._documents = 0
        self._ledger = TokenLedger()
        self._file: Any = None

    def __enter__(self) -> Holdout:
        """The file is made here: that of a task without such documents is empty."""
        import pyarrow as pa

        columns = {"record": pa.int64(), "offset": pa.int64(), "last": pa.bool_(), "label": pa.string()}
        self._schema = pa.schema({**columns, "own_id": pa.string(), "ids": pa.list_(pa.int32())}.items())
        with explained("write", self.path):
            self._file = pa.ipc.new_stream(self.path, self._schema)
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file, and remove it if it was not finished."""
        if self._file is not None:
            # On a full disk closing fails as well, and would hide why the task ends.
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def follow(self, batches: Iterable[TextBatch]) -> Iterator[TextBatch]:
        """The same batches, each as soon as it is decided which of its documents are held out."""
        waiting: list[TextBatch] = []
        for batch in batches:
            self._choose(batch)
            waiting.append(batch)
            if self._start is None:
                yield from waiting
                waiting = []
        yield from waiting

    def _choose(self, batch: TextBatch) -> None:
        last = batch.records.size - 1
        for index, record in enumerate(batch.records.tolist()):
            if record != self._last:
                self._last, self._start = record, b""
            if self._start is None:
                continue
            start = (self._start + read_start(batch, index))[:HASHED]
            if len(start) < HASHED and index == last and batch.continues:
                self._start = start
                continue
            self._start = None
            if xxhash.xxh3_64_intdigest(start, self._seed) < self._limit:
                label = batch.label if batch.labels is None else batch.labels[index]
                self._held[record] = label, "" if batch.own_ids is None else batch.own_ids[index]

    def keep(self, batch: TextBatch) -> TextBatch:
        """A batch with the records, labels and own ids of the documents that are not held out."""
        kept = self._find(batch.records, held=False)
        for index in np.flatnonzero(~kept).tolist() if batch.texts else ():
            self._text_bytes += len(batch.texts[index].encode("utf-8", "surrogatepass"))
        if kept.all():
            return batch
        places = np.flatnonzero(kept).tolist()
        return replace(
            batch,
            records=batch.records[kept],
            labels=None if batch.labels is None else [batch.labels[place] for place in places],
            own_ids=None if batch.own_ids is None else [batch.own_ids[place] for place in places],
        )

    def part(self, tokens: TokenBatch) -> TokenBatch:
        """The tokens that are not held out; the others are written to the file. Raises StorageError."""
        held = self._find(tokens.doc_ids, held=True)
        if not held.any():
            return tokens
        lengths = np.diff(tokens.offsets)
        ended = np.ones(held.size, bool)
        ended[-1] = not tokens.continues
        begun = held & (tokens.doc_offsets == 0)
        token_held = np.repeat(held, lengths)
        ids = tokens.ids[token_held]
        documents = int(begun.sum())
        bos, eos = documents * self._bos, int((held & ended).sum()) * self._eos
        self._documents += documents
        self._ledger = TokenLedger(
            text_tokens=self._ledger.text_tokens + ids.size - bos - eos,
            bos_tokens=self._ledger.bos_tokens + bos,
            eos_tokens=self._ledger.eos_tokens + eos,
        )
        self._write(ids, lengths[held], tokens.doc_ids[held], tokens.doc_offsets[held], ended[held])
        return replace(
            tokens,
            ids=tokens.ids[~token_held],
            offsets=np.concatenate([[0], np.cumsum(lengths[~held])]),
            doc_ids=tokens.doc_ids[~held],
            doc_offsets=tokens.doc_offsets[~held],
            continues=tokens.continues and not held[-1],
            text_tokens=tokens.text_tokens - (ids.size - bos - eos),
            bos_tokens=tokens.bos_tokens - bos,
            eos_tokens=tokens.eos_tokens - eos,
            documents=tokens.documents - documents,
        )

    def _find(self, records: np.ndarray, *, held: bool) -> np.ndarray:
        return np.fromiter(((record in self._held) == held for record in records.tolist()), bool, records.size)

    def _write(
        self, ids: np.ndarray, lengths: np.ndarray, records: np.ndarray, offsets: np.ndarray, last: np.ndarray
    ) -> None:
        import pyarrow as pa

        described = [self._held[record] for record in records.tolist()]
        splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns = [
            pa.array(records),
            pa.array(offsets),
            pa.array(last),
            pa.array([label for label, _ in described], pa.string()),
            pa.array([own_id for _, own_id in described], pa.string()),
            pa.ListArray.from_arrays(pa.array(splits), pa.array(ids)),
        ]
        with explained("write", self.path):
            self._file.write_batch(pa.record_batch(columns, schema=self._schema))

    def finish(self) -> HeldRecord:
        """Close the file; returns what it holds. Raises StorageError."""
        with explained("write", self.path):
            self._file.close()
        self._file = None
        sync_file(self.path)
        return HeldRecord(
            documents=self._documents,
            text_bytes=self._text_bytes,
            ledger=self._ledger,
            file_xxh3=digest_file(self.path),
        )


def read_start(batch: TextBatch, index: int) -> bytes:
    """The first HASHED bytes of a document, or of its part in this batch: UTF-8, or little-endian int32 ids."""
    if batch.ids is None or batch.id_offsets is None:
        return batch.texts[index][:HASHED].encode("utf-8", "surrogatepass")[:HASHED]
    start, stop = batch.id_offsets[index : index + 2].tolist()
    return (batch.ids[start : min(stop, start + HASHED // 4)] & ~MASKED).astype("<i4").tobytes()


def read_held(path: Path, first_record: int) -> Iterator[tuple[TextBatch, TokenBatch]]:
    """What a task held out, with labels and own ids; `first_record` is added to its record numbers."""
    import pyarrow as pa

    with explained("read", path), pa.ipc.open_stream(path.read_bytes()) as file:
        for batch in file:
            records = batch["record"].to_numpy() + first_record
            ids = batch["ids"]
            yield (
                TextBatch(records=records, labels=batch["label"].to_pylist(), own_ids=batch["own_id"].to_pylist()),
                TokenBatch(
                    ids=ids.values.to_numpy(),
                    offsets=ids.offsets.to_numpy().astype(np.int64),
                    doc_ids=records,
                    doc_offsets=batch["offset"].to_numpy(),
                    continues=not batch["last"][-1].as_py(),
                ),
            )
