"""The facts of one row: its segments, their text, contexts and weights, and where each came from.

    dataset = exact_prep.open("packed")
    facts = load_row(dataset, 7)

Renderings are in `row_terminal` and `row_html`. Text here is the document's own, hostile characters included.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_prep.dataset import TOKENIZER
from exact_prep.errors import DatasetError, UsageError
from exact_prep.records import Count, Record
from exact_prep.reports.origins import Origins
from exact_prep.tokenization.decoding import Decoder
from exact_prep.weighing.context import bucket_edges, find_bucket
from exact_prep.weighing.weights import default_tail_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.reader.rows import PackedDataset, Row


class PieceFacts(Record):
    """A run of a segment's tokens of one bucket of effective context and one weight."""

    start: Count
    """Its first token, counted from the segment's first."""
    tokens: Count
    low: Count
    """Smallest effective context of its tokens."""
    high: Count
    """Largest."""
    weight: float
    """Loss weight of each token, as stored (float16)."""
    special: str | None
    """The special token that it is (EOS or BOS), as the tokenizer spells it; null for text."""
    text: str | None
    """Null without a tokenizer. A character whose bytes lie in several pieces is in the last of them."""
    ids: tuple[Count, ...] | None
    """Token ids, where there is no text."""


class OriginFacts(Record):
    """Where a segment's document came from."""

    source: str
    """Label."""
    task: Count
    record: Count
    """The document's place in its task's input (in the whole corpus, for validation rows), counted from 0."""
    id: str
    """The document's own id; empty if it has none, or if the dataset keeps none (`pack --id-field`)."""
    file: str
    """Input file; empty if it is not known."""
    place: str
    """Place in the file: `line 12`; empty if it is not known."""
    note: str
    """Why file or place are not known."""


class SegmentFacts(Record):
    """A document, or the part of one that lies in this row. Attention and contexts begin anew with each."""

    start: Count
    """Its first token in the row."""
    tokens: Count
    document_start: Count
    """Where it begins in its document, in tokens; above 0, the document was cut by the row before."""
    origin: OriginFacts
    pieces: tuple[PieceFacts, ...]


class RowFacts(Record):
    """What `exact-prep show --json` prints: one row."""

    directory: str
    row: Count
    """Counted from 0."""
    rows: Count
    """Rows in the dataset."""
    seq_len: Count
    shard: str
    """The file that holds the row."""
    weighed: bool
    """False: every supervised target has weight 1."""
    tail_start: Count
    """Smallest effective context of the tail; before `weigh`, of the one that `weigh` takes by itself."""
    window: Count | None
    """Tokens that each query sees under sliding-window attention; null: all of its document."""
    supervised: Count
    """Targets whose weight is not 0."""
    weight_sum: float
    padding: Count
    """Tokens after the last segment."""
    segments: tuple[SegmentFacts, ...]


class RowReader:
    """Reads the facts of rows of one dataset; what they share is loaded once."""

    def __init__(self, dataset: PackedDataset) -> None:
        """A dataset in the order of its files: row numbers are places in it."""
        self.dataset = dataset

    def load(self, number: int) -> RowFacts:
        """The facts of row `number`; raises UsageError for a row that is not there, DatasetError, TokenizerError."""
        dataset = self.dataset
        if not 0 <= number < len(dataset):
            there = f"rows 0 to {len(dataset) - 1:,}" if len(dataset) else "no rows"
            raise UsageError(f"row {number:,} is not in {dataset.path}, which has {there}; choose another --row")
        row, shard = dataset[number], self.find_shard(number)
        origins = self.find_origins(number, shard, row)
        ends = np.cumsum(row.seq_lengths).tolist()
        lengths = row.seq_lengths.tolist()
        segments = []
        for index, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            part = slice(end - length, end)
            offset = int(row.doc_offsets[index])
            segments.append(
                SegmentFacts(
                    start=end - length,
                    tokens=length,
                    document_start=offset,
                    origin=origins[index],
                    pieces=self.cut(row.input_ids[part], row.loss_weights[part], begins=offset == 0),
                )
            )
        loaded = dataset.loaded_weights
        default = default_tail_from(dataset.seq_len)
        return RowFacts(
            directory=str(dataset.path),
            row=number,
            rows=len(dataset),
            seq_len=dataset.seq_len,
            shard=dataset.files.shards[shard].file,
            weighed=loaded is not None,
            tail_start=loaded.table.tail_start if loaded is not None else default,
            window=self.window,
            supervised=int(np.count_nonzero(row.loss_weights)),
            weight_sum=float(row.loss_weights.astype(np.float64).sum()),
            padding=dataset.seq_len - sum(lengths),
            segments=tuple(segments),
        )

    @cached_property
    def window(self) -> int | None:
        """The attention window that the weights are for."""
        loaded = self.dataset.loaded_weights
        return loaded.file.options.window if loaded is not None and loaded.file.options is not None else None

    @cached_property
    def decoder(self) -> Decoder | None:
        """The kept tokenizer; None for a corpus that came as ids without one. Raises DatasetError, TokenizerError."""
        record = self.dataset.manifest.tokenizer
        if not record.sha256:
            return None
        path = self.dataset.path / TOKENIZER / "tokenizer.json"
        if not isinstance(path, Path):
            raise UsageError(f"{self.dataset.path}: text is shown of datasets on this machine alone; copy it first")
        if not path.is_file():
            raise DatasetError(f"{path} is missing; restore it, or pack again")
        return Decoder(path, record.sha256)

    @cached_property
    def specials(self) -> dict[int, str]:
        """The text of EOS and BOS, by id."""
        record = self.dataset.manifest.tokenizer
        texts = {token.id: token.text for token in record.special_tokens}
        used = [(record.eos_id, "EOS"), (record.bos_id, "BOS")]
        return {number: texts.get(number) or role for number, role in used if number is not None}

    @cached_property
    def origins(self) -> Origins:
        """Where documents came from."""
        return Origins(self.dataset.files)

    @cached_property
    def _tasks(self) -> list[dict[str, Any]]:
        return self.dataset.files.table("tasks").to_pylist()

    @cached_property
    def _labels(self) -> list[str]:
        return self.dataset.files.table("sources").column("label").to_pylist()

    @cached_property
    def first_rows(self) -> np.ndarray:
        """The first row of each shard, and the number of rows, int64[shards + 1]."""
        return np.cumsum([0, *(shard.rows for shard in self.dataset.files.shards)])

    def find_shard(self, number: int) -> int:
        """The shard that holds row `number`."""
        return int(np.searchsorted(self.first_rows, number, side="right")) - 1

    def find_origins(self, number: int, shard: int, row: Row) -> list[OriginFacts]:
        """Where each segment of a row came from."""
        documents = row.doc_ids.tolist()
        if not documents:
            return []
        task = self.dataset.files.shards[shard].task
        keeps_ids = self.dataset.manifest.options.source.id_field is not None
        own = self.dataset.document_ids(number) if keeps_ids else [""] * len(documents)
        found = self.origins.find(task, documents)
        labels = [self._labels[label] for label in self._tasks[task]["sources"]]
        return [
            OriginFacts(
                source=labels[source],
                task=task,
                record=record,
                id=own[index],
                file=found[record].file,
                place=found[record].place,
                note=found[record].note,
            )
            for index, (record, source) in enumerate(zip(documents, row.sources.tolist(), strict=True))
        ]

    def cut(self, ids: np.ndarray, weights: np.ndarray, *, begins: bool) -> tuple[PieceFacts, ...]:
        """A segment in pieces: cut at bucket edges, where the weight changes, and around special tokens.

        `ids` int32[n], `weights` float16[n] of its tokens; `begins`: whether its document begins with it.
        """
        specials = np.isin(ids, list(self.specials))
        edges = find_edges(weights, specials, self.window)
        tokens = ids.tolist()
        texts = None if self.decoder is None else self.decoder.split(tokens, edges, begins=begins)
        last = ids.size if self.window is None else self.window
        return tuple(
            PieceFacts(
                start=start,
                tokens=stop - start,
                low=min(start, last),
                high=min(stop - 1, last),
                weight=float(weights[start]),
                special=self.specials[tokens[start]] if specials[start] else None,
                text=None if texts is None else texts[index],
                ids=tuple(tokens[start:stop]) if texts is None else None,
            )
            for index, (start, stop) in enumerate(pairwise(edges))
        )


def load_row(dataset: PackedDataset, number: int) -> RowFacts:
    """The facts of one row of a dataset; see `RowReader.load`, which is faster for several."""
    return RowReader(dataset).load(number)


def find_edges(weights: np.ndarray, specials: np.ndarray, window: int | None) -> Sequence[int]:
    """Where the pieces of a segment begin, and its length.

    `weights[n]` and `specials[n]` (bool) are of its tokens.
    """
    size = weights.size
    changes = (weights[1:] != weights[:-1]) | specials[1:] | specials[:-1]
    inside = bucket_edges(find_bucket(size) + 1)
    if window is not None:
        inside = np.append(inside[inside < window], window)
    found = np.concatenate([[0], np.flatnonzero(changes) + 1, inside, [size]])
    return np.unique(found[found <= size]).tolist()
