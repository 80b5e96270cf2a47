"""Records: frozen, typed, written as JSON. Here is what they share; the records themselves live beside this file.

    options.py    what the user asked
    manifest.py   what was made: manifest.json
    weights.py    weights.json
    work.py       what a run keeps while it is incomplete: its plan, a record per finished task
    tables.py     the Parquet tables of a dataset

No file is opened here: stores read and write bytes, records know what they mean.

A seal is the sha256 of the file's bytes with the seal itself left blank. It covers bytes, not values: a record that a
later minor version wrote, with fields that this version does not know, still shows whether it was changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exact_prep.choices import MAX_COUNT, MAX_SEQ_LEN
from exact_prep.errors import DatasetError

MAJOR, MINOR = 2, 0
FORMAT_VERSION = f"{MAJOR}.{MINOR}"
"""major.minor. A reader refuses another major version, and ignores what a higher minor version added."""

ALIGNMENT = "target"
"""`loss_weights[t]` belongs to the target `input_ids[t]`, as Hugging Face labels do."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
RowLength = Annotated[int, Field(ge=2, le=MAX_SEQ_LEN)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
"""xxh3-128 as hexadecimal digits."""
FormatVersion = Annotated[str, Field(pattern=rf"^{MAJOR}\.[0-9]+$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name inside the dataset directory: no separator, nothing hidden, so it cannot lead elsewhere."""
Seal = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""sha256 of the file's bytes with this field blank; always the last field."""

VERSION = re.compile(rb'"format_version"\s*:\s*(?:"([^"]*)"|(\d+))')
"""The field that is read before all others; the first of its file."""

SEAL = re.compile(rb'"checksum": "([0-9a-f]{64})"(\n\}\n)\Z')


class Record(BaseModel):
    """Base of every record: frozen, no unknown fields, attribute docstrings become schema descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )


RecordT = TypeVar("RecordT", bound=Record)


def parse(record: type[RecordT], data: bytes, path: object) -> RecordT:
    """The record in `data`; raises DatasetError that names `path` and every bad field, or another format version."""
    match = VERSION.search(data, 0, 4096)
    found = match[match.lastindex or 1].decode(errors="replace") if match else ""
    found = found or FORMAT_VERSION
    major, _, minor = found.partition(".")
    if major != str(MAJOR):
        raise DatasetError(
            f"{path} has format {found}, this exact-prep reads format {MAJOR}; "
            "pack again with this version, or install the version that wrote it"
        )
    newer = minor.isdecimal() and int(minor) > MINOR
    try:
        return record.model_validate_json(data, extra="ignore" if newer else None)
    except ValidationError as error:
        raise DatasetError(
            f"{path} is not a {record.__name__} that this version reads: {list_faults(error)}"
        ) from error


def list_faults(error: ValidationError) -> str:
    """The first five faults in one line, each with its field."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}" for fault in error.errors()[:5]
    )


def encode(record: Record) -> bytes:
    """The bytes of a record on disk: fields in the order of their definition, two spaces, final newline.

    By pydantic's own encoder, ten times as fast as `json`.
    """
    return (record.model_dump_json(indent=2) + "\n").encode()


def canonical_json(value: object) -> bytes:
    """JSON whose bytes depend on the value alone: sorted keys, two spaces, final newline."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def fingerprint(record: Record) -> str:
    """sha256 of a record's bytes: equal records, equal fingerprint."""
    return hashlib.sha256(encode(record)).hexdigest()


def seal(record: RecordT) -> RecordT:
    """The record with its `checksum` set: the sha256 of its bytes with an empty one."""
    return record.model_copy(update={"checksum": fingerprint(record.model_copy(update={"checksum": ""}))})


def is_sealed(data: bytes) -> bool:
    """Whether the bytes of a sealed file are those that were written."""
    found = SEAL.search(data)
    if found is None:
        return False
    blank = data[: found.start()] + b'"checksum": ""' + found[2]
    return hashlib.sha256(blank).hexdigest().encode() == found[1]
