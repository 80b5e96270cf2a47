"""JSON lines in: one document per line. Also what a JSON record must look like, whoever cut it out of its file.

A record counts when Python's `json.loads` makes an object of it whose field is a string that UTF-8 can hold; the last
of equal keys wins. msgspec decodes, the one field only (3x faster); what it refuses gets a second hearing, so that
NaN, a lone surrogate or wrong UTF-8 in another field costs no document.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.sources.documents import BATCH_RECORDS, MAX_DOCUMENT, MAX_ID, numbers, set_aside, utf8_bytes
from exact_prep.sources.long_texts import LONG, batches_of, json_pieces
from exact_prep.sources.streams import BOM, Damaged, Span, compression, count_newlines, line_blocks, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exact_prep.batches import Rejected
    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.documents import Part
    from exact_prep.sources.streams import Block

TOO_LONG = b"<a record longer than MAX_DOCUMENT>"
"""Stands for a record that was skipped for its length; told by identity."""

KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}


REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a record it cannot decode."""


class Unusable(Exception):
    """A record that gives no document. Its text is the reason."""


class Group(NamedTuple):
    """Some records of a file, still encoded."""

    records: Sequence[bytes | bytearray | Span]
    offset: int
    """Where the first one begins in the file's content."""
    consumed: int
    """Bytes of the file that this group accounts for."""


def read_jsonl(part: Part, *, block: int) -> Iterator[TextBatch]:
    """The documents of a slice of a JSON lines file; see `Part` and `TextBatch`."""
    start, stop = part.slice.start, part.file.bytes if part.slice.stop is None else part.slice.stop
    if compression(part.file, part.spool):
        groups = line_groups(whole_blocks(part.file, part.path, size=block))
    else:
        blocks = line_blocks(part.file, part.path, start, stop, size=block)
        groups = line_groups(blocks, partial(Span, part.file, part.path))

    def place(record: int, offset: int) -> str:
        if start == 0:
            return f"line {record + 1}"
        # Counting lines reads all that lies before: once when the run stops here, never for each of many.
        if part.options.on_error == "stop":
            return f"line {count_newlines(part.file, part.path, offset) + 1}"
        return f"byte {offset}"

    return decode_groups(part, groups, place)


def line_groups(blocks: Iterable[Block], span: Callable[[int, int], Span] | None = None) -> Iterator[Group]:
    """Lines without their newlines; the cost is linear however long a line is. A BOM at offset 0 is dropped.

    A LONG line is not held but given as `span(offset, size)`, where the content can be read anew.
    """
    longest = min(LONG, MAX_DOCUMENT) if span else MAX_DOCUMENT
    tail = bytearray()  # grows in place: a line is held once
    held = tail_offset = 0

    def line() -> bytes | bytearray | Span:
        if held <= longest:
            return tail
        return span(tail_offset, held) if span and held <= MAX_DOCUMENT else TOO_LONG

    for block in blocks:
        data = block.data
        if block.offset == 0 and data.startswith(BOM):
            data = data[len(BOM) :]
        if not held:
            tail_offset = block.offset + len(block.data) - len(data)
        parts = data.split(b"\n")
        lines: list[bytes | bytearray | Span] = [*parts[:-1]]
        begun, rest = parts[0], parts[-1]
        held += len(begun)
        if held <= longest:
            tail += begun
        else:
            tail.clear()
        if lines:
            lines[0] = line()
            tail, held = bytearray(rest), len(rest)
        yield Group(lines, tail_offset, block.consumed)
        if lines:
            tail_offset = block.offset + len(block.data) - held
    if held:
        yield Group([line()], tail_offset, 0)


def decode_groups(part: Part, groups: Iterable[Group], place: Callable[[int, int], str]) -> Iterator[TextBatch]:
    """Documents from encoded records; `place(record, offset)` says where one is."""
    decode = decoder(part.options)
    first = consumed = 0
    try:
        for group in groups:
            consumed += group.consumed
            offset = group.offset
            share = group.consumed
            for records in runs(group.records):
                long = len(records) == 1 and len(records[0]) >= LONG and part.options.ids_field is None
                pieces = json_pieces(records[0], part.options.text_field) if long else None
                if pieces is None:
                    read = [bytes(one) if isinstance(one, Span) else one for one in records]
                    batches = iter([decode_records(part, decode, read, (first, offset), place)])
                else:
                    batches = batches_of(pieces, first)
                for batch in batches:
                    yield replace(batch, bytes_read=share)
                    share = 0
                first += len(records)
                offset += sum(map(len, records)) + len(records)
    except Damaged as damage:
        rejected = set_aside(part, first, f"{place(first, 0)} on", str(damage))
        rest = part.file.bytes - consumed
        yield TextBatch(records=numbers(0, 0, []), read=1, rejected=(rejected,), bytes_read=rest)


def runs(records: Sequence[bytes | bytearray | Span]) -> Iterator[list[bytes | bytearray | Span]]:
    """The records in lists of bounded size, each long one alone; one empty list if there are none."""
    if not records:
        yield []
    for long, some in groupby(records, lambda record: len(record) >= LONG):
        together = list(some)
        size = 1 if long else BATCH_RECORDS
        for low in range(0, len(together), size):
            yield together[low : low + size]


def decode_records(
    part: Part,
    decode: Callable[[bytes | bytearray], Any],
    records: Sequence[bytes | bytearray],
    begin: tuple[int, int],
    place: Callable[[int, int], str],
) -> TextBatch:
    """One batch; `begin` is the number of the first record, and its offset in the content."""
    first, offset = begin
    wants_ids = part.options.ids_field is not None
    values: list[Any] = []
    left_out: list[int] = []
    rejected: list[Rejected] = []
    for number, record in enumerate(records, first):
        try:
            try:
                value = decode(record).value
            except REFUSALS:
                value = decode_patiently(record, part.options)
            if wants_ids:
                value = as_ids(value)
        except Unusable as reason:
            at = offset + sum(map(len, records[: number - first])) + number - first
            rejected.append(set_aside(part, number, place(number, at), str(reason)))
            left_out.append(number)
        else:
            if len(value):
                values.append(value)
            else:
                left_out.append(number)
    return batch_of(
        values,
        wants_ids=wants_ids,
        records=numbers(first, len(records), left_out),
        read=len(records),
        empty=len(left_out) - len(rejected),
        rejected=tuple(rejected),
    )


def decoder(options: SourceOptions) -> Callable[[bytes | bytearray], Any]:
    """What decodes one record's field, as `.value`; raises one of REFUSALS."""
    field, kind = (options.text_field, str) if options.ids_field is None else (options.ids_field, list[int])
    try:
        record = msgspec.defstruct("Record", [("value", kind)], rename={"value": field}, gc=False)
    except ValueError:
        # Names with quotes or control characters are beyond msgspec: each record goes the patient way.
        return refuse
    return msgspec.json.Decoder(record).decode


def refuse(record: bytes | bytearray) -> Any:
    """A decoder that decodes nothing."""
    raise msgspec.DecodeError(f"{len(record)} bytes")


def decode_patiently(record: bytes | bytearray, options: SourceOptions) -> Any:
    """The field as Python's json has it, "" or [] for a blank record; raises Unusable."""
    field, kind = (options.text_field, str) if options.ids_field is None else (options.ids_field, list)
    if record is TOO_LONG:
        raise Unusable(f"a record of more than {MAX_DOCUMENT} bytes")
    if not record.strip(b" \t\r\n"):
        return kind()
    try:
        values = json.loads(record.decode(errors="surrogateescape"))
    except RecursionError as error:
        raise Unusable("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise Unusable(f"not JSON ({error.msg} at character {error.pos})") from error
    except ValueError as error:
        raise Unusable(f"not JSON that can be read ({error})") from error
    if not isinstance(values, dict):
        raise Unusable(f"{KINDS.get(type(values), 'null')}, not an object")
    if field not in values:
        raise Unusable(f"field {field!r} is missing (there is: {', '.join(map(repr, values)) or 'none'})")
    value = values[field]
    if not isinstance(value, kind):
        raise Unusable(f"field {field!r} is {KINDS.get(type(value), 'null')}, not {KINDS[kind]}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            escaped = "\udc80" <= value[error.start] <= "\udcff" and not is_utf8(record)
            what = "wrong UTF-8" if escaped else "a lone surrogate"
            raise Unusable(f"field {field!r} holds {what} at character {error.start}") from error
    return value


def is_utf8(data: bytes | bytearray) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def as_ids(values: list[Any]) -> np.ndarray:
    """Token ids as int32[T]; raises Unusable."""
    if not all(type(value) is int for value in values):
        raise Unusable("a token id is not an integer")
    if values and not (min(values) >= 0 and max(values) < MAX_ID):
        raise Unusable(f"a token id is not in [0, 2**31): {next(v for v in values if not 0 <= v < MAX_ID)}")
    return np.array(values, np.int32)


def batch_of(values: list[Any], *, wants_ids: bool, **counts: Any) -> TextBatch:
    """The batch of some texts, or of some arrays of ids."""
    if not wants_ids:
        return TextBatch(texts=values, text_bytes=utf8_bytes(values), **counts)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([value.size for value in values], out=offsets[1:])
    ids = np.concatenate(values) if values else np.empty(0, np.int32)
    return TextBatch(ids=ids, id_offsets=offsets, **counts)
