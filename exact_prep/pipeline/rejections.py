"""Between the tasks of `pack` and publishing: whether too much was rejected, and what may surprise the user."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING

from exact_prep.errors import SourceError, UsageError
from exact_prep.pipeline.publish import sum_documents
from exact_prep.sources.labels import NO_LABEL, label_field
from exact_prep.sources.places import join_place
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set

    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.records.manifest import Manifest
    from exact_prep.records.work import TaskRecord

MAX_REJECTED = 100
"""Records that may be rejected, whatever the size of the corpus, if the user does not say otherwise."""

MAX_REJECTED_SHARE = 0.01
"""Share of all records that may be rejected, if the user does not say otherwise."""


def parse_limit(text: str | None) -> Callable[[int], float]:
    """How many of so many records may be rejected, from `N` or `P%`; raises UsageError.

    None: MAX_REJECTED of them, or MAX_REJECTED_SHARE if that is more.
    """
    if text is None:
        return lambda records: max(MAX_REJECTED, MAX_REJECTED_SHARE * records)
    if not re.fullmatch(r"\d+|\d+(\.\d*)?%", text):
        raise UsageError(f"--max-rejected {text!r} is not known;\nwrite a number of documents, or a share such as 5%")
    number = float(text.removesuffix("%"))
    if number > 100 and text.endswith("%"):
        raise UsageError(f"--max-rejected {text}: a share is at most 100%")
    return lambda records: number / 100 * records if text.endswith("%") else number


def check_rejected(planned: PackPlan, records: Sequence[TaskRecord], limit: Callable[[int], float]) -> None:
    """Raise SourceError if too many records were rejected, or all that hold anything. Nothing is published then."""
    documents = sum_documents(records)
    source = planned.plan.options.source
    names = (source.ids_field,) if source.ids_field else source.text_field
    remedy = " ".join(f"{'--ids-field' if source.ids_field else '--text-field'} {name}" for name in names)
    if planned.inputs.stdin is not None and len(planned.inputs.files) == 1 and not planned.inputs.files[0].bytes:
        raise SourceError("standard input is empty (0 bytes): nothing was packed;\ncheck the command before the pipe")
    if not documents.rejected:
        return
    why = f"the first: {'; '.join(first_rejected(planned, records))}"
    lists = f"all are listed in {planned.work.path}/rejected-*.jsonl"
    if not documents.packed:
        raise SourceError(
            f"nothing was packed: {documents.rejected:,} of {documents.records:,} records were rejected ({why});\n"
            f"check {remedy} and --input-format; {lists}"
        )
    if documents.rejected > limit(documents.records):
        share = 100 * documents.rejected / documents.records
        raise SourceError(
            f"{documents.rejected:,} of {documents.records:,} records ({share:.2g}%) were rejected ({why});\n"
            f"check {remedy}, or publish without them by the same command with --max-rejected {documents.rejected}; "
            f"{lists}"
        )


def first_rejected(planned: PackPlan, records: Sequence[TaskRecord], count: int = 3) -> list[str]:
    """The first rejected records of a run, in words."""
    found: list[str] = []
    for record in records:
        if not record.documents.rejected:
            continue
        path = planned.work.path / planned.rejected_name(record.task)
        with explained("read", path), path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, count - len(found)):
                entry = json.loads(line)
                where = join_place(entry["source"], entry["place"]) if "place" in entry else entry["source"]
                found.append(f"{where}: {entry['reason']}"[:300])
        if len(found) == count:
            break
    return found


def find_surprises(planned: PackPlan, manifest: Manifest, labels: Set[str], own_ids: int) -> Iterator[str]:
    """What the user may not expect of a finished run, in words.

    `labels` are those of its sources; `own_ids` is how many documents have an id of their own.
    """
    files = planned.inputs.files
    if not manifest.rows:
        empty = "all input files are empty (0 bytes)" if not any(file.bytes for file in files) else "all are empty"
        what = empty if not any(file.format == "hub" for file in files) else "all are empty"
        yield f"no document of the inputs holds a token ({what}): the dataset has no rows"
    field = label_field(planned.plan.options.source)
    if field is not None and labels == {NO_LABEL}:
        yield f"no record has the field {field!r} of --source-from: all documents are of the source {NO_LABEL}"
    if manifest.records_left_out:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.records_left_out.items())
        html = any("html" in kind for kind in manifest.records_left_out)
        remedy = "; extract the text of HTML first, with Resiliparse or Trafilatura" if html else ""
        yield f"in archives, not read because they hold no text: {kinds}{remedy}"
    id_field, packed = planned.plan.options.source.id_field, manifest.documents.packed
    if id_field is not None and own_ids < packed:
        which = "no document has" if not own_ids else f"{packed - own_ids:,} of {packed:,} documents do not have"
        yield f"{which} the field {id_field!r} of --id-field: their id is empty"
    separator = planned.plan.options.source.separator
    only_text = {file.format for file in files} == {"text"}
    if separator is not None and only_text and manifest.documents.records <= len(files):
        yield (
            f"--separator {separator!r} parts no text file: each of {len(files):,} is one document; "
            "if that is not meant, check its spelling"
        )
