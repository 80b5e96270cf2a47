"""Source labels and documents' own ids: how a field's value is spelled; which document of a task has which label."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from exact_prep.choices import MAX_SOURCES
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from exact_prep.batches import TextBatch
    from exact_prep.records.options import SourceOptions

MAX_LABEL = 256
"""Characters in a label, at most."""

NO_LABEL = "(none)"
"""The label of a document whose field is missing, null or empty."""

FIELD = "field:"

TOO_MANY = (
    f"more than {MAX_SOURCES:,} sources {{where}};\n"
    "choose --source-from input, or --source-from field:NAME with a field of fewer different values"
)


MAX_OWN_ID = 1 << 16
"""Characters in a document's own id, at most: a URL is far shorter."""


class BadLabel(ValueError):
    """A field whose value gives no label, or no id. Its text is the reason."""


def label_field(options: SourceOptions) -> str | None:
    """The field or column that holds the label of a record; None if labels do not come from records."""
    source_from = options.source_from
    return source_from.removeprefix(FIELD) if source_from.startswith(FIELD) else None


def spell_label(value: object, where: str) -> str:
    """The label that a field's value gives; raises BadLabel if it gives none. `where` names the field in the reason."""
    return spell_value(value, where, "a source label", MAX_LABEL) or NO_LABEL


def spell_own_id(value: object, where: str) -> str:
    """A document's own id from a field's value, empty if that is missing or null; raises BadLabel."""
    return spell_value(value, where, "a document's id", MAX_OWN_ID)


def spell_value(value: object, where: str, what: str, longest: int) -> str:
    """A field's value as text: numbers and booleans as JSON spells them, nothing for null. Raises BadLabel."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        text = json.dumps(value)
    elif isinstance(value, str):
        text = value
    elif isinstance(value, bytes):
        raise BadLabel(f"{where} is not UTF-8")
    else:
        raise BadLabel(f"{where} is not a string, a number or a boolean, as {what} must be")
    if len(text) > longest:
        raise BadLabel(f"{where} has {len(text)} characters; {what} has at most {longest}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadLabel(f"{where} is not UTF-8") from error
    return text


class SourceLabels:
    """The labels of one task's documents. Add its batches in order; then ask for documents by record number."""

    def __init__(self) -> None:
        """Before the first document."""
        self.names: list[str] = []
        """Labels in order of first appearance."""
        self._indices: dict[str, int] = {}
        # Of labels that are constant for a slice: the first record of each run of documents with the same label.
        self._starts: list[int] = []
        self._labels: list[int] = []
        self._runs: tuple[np.ndarray, np.ndarray] | None = None
        # Of labels that come from records: index by record number; grows to twice its size.
        self._by_record: np.ndarray | None = None

    def add(self, batch: TextBatch) -> None:
        """Take the labels of a batch's documents; raises UsageError at the 1,001st label."""
        if not batch.records.size:
            return
        if batch.labels is None:
            index = self._index(batch.label)
            if not self._labels or self._labels[-1] != index:
                self._starts.append(int(batch.records[0]))
                self._labels.append(index)
                self._runs = None
            return
        import numpy as np

        last = int(batch.records[-1])
        if self._by_record is None:
            self._by_record = np.empty(max(last + 1, 1 << 10), np.int16)
        elif last >= self._by_record.size:
            grown = np.empty(max(last + 1, 2 * self._by_record.size), np.int16)
            grown[: self._by_record.size] = self._by_record
            self._by_record = grown
        self._by_record[batch.records] = [self._index(label) for label in batch.labels]

    def find(self, doc_ids: np.ndarray) -> np.ndarray:
        """Index into `names` of the label of each document, int16[S], by `doc_ids[S]`: record numbers in the task."""
        import numpy as np

        if self._by_record is not None:
            return self._by_record[doc_ids]
        if self._runs is None:
            self._runs = np.array(self._starts, np.int64), np.array(self._labels, np.int16)
        starts, labels = self._runs
        return labels[np.searchsorted(starts, doc_ids, side="right") - 1]

    def _index(self, label: str) -> int:
        index = self._indices.get(label)
        if index is None:
            index = len(self.names)
            if index == MAX_SOURCES:
                raise UsageError(TOO_MANY.format(where=f"in one task, among them {self.names[0]!r} and {label!r}"))
            self._indices[label] = index
            self.names.append(label)
        return index
