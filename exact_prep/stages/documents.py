"""What became of the documents of one task: counted, and those that are skipped listed with place and reason."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from exact_prep.errors import LedgerError
from exact_prep.records.manifest import DocumentCounts, TokenLedger
from exact_prep.records.tables import DOCUMENTS
from exact_prep.stores.local import explained, sync_file
from exact_prep.zero_copy import as_arrow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from exact_prep.batches import Rejected, TextBatch, TokenBatch
    from exact_prep.sources import RecordPlaces


class Documents:
    """What one task read and encoded, counted."""

    def __init__(self, rejected: RejectedList, places: RecordPlaces) -> None:
        """`rejected` takes the documents that are skipped; `places` knows where they are."""
        self.text_bytes = 0
        self.ledger = TokenLedger()
        self._rejected, self._places = rejected, places
        self._records = self._empty = self._packed = 0
        self.held_out = 0
        """Documents that are kept for validation."""
        self.left_out: Counter[str] = Counter()
        """Records and members of archives that hold no text, by kind."""

    def read(self, texts: TextBatch) -> None:
        """Count the records of a batch."""
        self._records += texts.read
        self._empty += texts.empty
        self.text_bytes += texts.text_bytes
        self._rejected.add(texts.rejected)
        self.left_out.update(texts.left_out)

    def encoded(self, tokens: TokenBatch) -> None:
        """Count the tokens of a batch."""
        self._packed += tokens.documents
        self._empty += tokens.empty
        self._rejected.add([self._place(one) for one in tokens.rejected])
        self.ledger = TokenLedger(
            text_tokens=self.ledger.text_tokens + tokens.text_tokens,
            bos_tokens=self.ledger.bos_tokens + tokens.bos_tokens,
            eos_tokens=self.ledger.eos_tokens + tokens.eos_tokens,
        )

    def _place(self, one: Rejected) -> Rejected:
        """What the tokenizer skipped, with file and place: it knows the documents by their numbers alone."""
        source, place = self._places.find(one.record, exact=False)
        return replace(one, source=source, place=place)

    def counts(self) -> DocumentCounts:
        """The counts; raises LedgerError if a record is unaccounted for."""
        counts = DocumentCounts(
            records=self._records,
            packed=self._packed,
            empty=self._empty,
            rejected=self._rejected.count,
            held_out=self.held_out,
        )
        if counts.records != counts.packed + counts.empty + counts.rejected + counts.held_out:
            raise LedgerError(f"records read and records accounted for differ, please report this: {counts!r}")
        return counts


class OwnIds:
    """The own ids of one task's documents, kept until the task ends: as Arrow, not as Python's strings."""

    def __init__(self) -> None:
        self.count = 0
        """Ids that are not empty."""
        self._batches: list[pa.RecordBatch] = []
        self._last = -1

    def add(self, texts: TextBatch) -> None:
        """Take the ids of a batch; a document that continues from the batch before is taken already."""
        import pyarrow as pa

        if texts.own_ids is None:
            return
        fresh = int(texts.records.size and texts.records[0] == self._last)
        records, own_ids = texts.records[fresh:], texts.own_ids[fresh:]
        if records.size:
            self._last = int(records[-1])
            self.count += sum(map(bool, own_ids))
            columns = [as_arrow(records), pa.array(own_ids, pa.string())]
            self._batches.append(pa.RecordBatch.from_arrays(columns, names=list(DOCUMENTS)))

    def encode(self) -> bytes:
        """The table of documents, as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_batches(self._batches, pa.schema(list(DOCUMENTS.items())))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", store_schema=False)
        return sink.getvalue().to_pybytes()


class RejectedList:
    """The documents that one task skips, one JSON object per line: source, place, reason.

    Where a place is not known yet, `record`, the number of the document in its task, stands for it.

    Written as they come: a file with only bad lines takes no more memory than any other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        """Documents so far."""
        self._file: TextIO | None = None

    def __enter__(self) -> RejectedList:
        """Nothing is written before there is something to say."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close and remove the file if it was not finished."""
        if self._file:
            # On a full disk closing fails as well, and would hide why the task ends.
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def add(self, rejected: Sequence[Rejected]) -> None:
        """Append documents; raises StorageError."""
        if not rejected:
            return
        self.count += len(rejected)
        with explained("write", self.path):
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8", newline="\n")
            for item in rejected:
                where = {"place": item.place} if item.place else {"record": item.record}
                line = {"source": item.source, **where, "reason": item.reason}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> bool:
        """Sync and close the list; whether there is one. Raises StorageError."""
        if self._file is None:
            return False
        with explained("write", self.path):
            self._file.close()
        self._file = None
        sync_file(self.path)
        return True
