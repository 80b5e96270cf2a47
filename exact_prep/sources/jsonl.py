"""JSON lines in: one document per line. Also the decoding of any JSON record, however it was cut out of its file.

A record is good when Python's `json.loads` makes an object of it whose field is a string that UTF-8 can hold; the last
of equal keys wins. msgspec decodes this field only (3x faster). What it refuses is decoded again by `json`, so that
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
from exact_prep.sources.batching import BATCH_RECORDS, MAX_DOCUMENT, MAX_ID, count_utf8_bytes, number_records, reject
from exact_prep.sources.labels import BadLabel, label_field, spell_label
from exact_prep.sources.long_texts import LONG, cut_json_text, make_batches
from exact_prep.sources.streams import BLOCK, BOM, Damaged, Span, compression, count_newlines, line_blocks, whole_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exact_prep.batches import Rejected
    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.batching import Part
    from exact_prep.sources.streams import Block

TOO_LONG = b"<a record longer than MAX_DOCUMENT>"
"""Stands for a record that was skipped because of its length; compared by identity."""

LABEL = str | int | float | bool | None
"""Values of a field that give a label; msgspec refuses others."""

KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}

REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a record it cannot decode."""


class Unusable(Exception):
    """A record that gives no document. Its text is the reason."""


class Fields(NamedTuple):
    """The fields of a record that are read."""

    value: Any
    """Text or token ids."""
    label: Any = None
    """What the source label is made from, if it comes from the record."""


class Group(NamedTuple):
    """Some records of a file, still encoded."""

    records: Sequence[bytes | bytearray | Span]
    offset: int
    """Where the first one begins in the file's content."""
    consumed: int
    """Bytes of the file that this group accounts for."""


def read_jsonl(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a slice of a JSON lines file, read `block` bytes at once; see `Part` and `TextBatch`."""
    block = block or BLOCK
    start, stop = part.slice.start, part.file.bytes if part.slice.stop is None else part.slice.stop
    if compression(part.file, part.spool):
        groups = group_lines(whole_blocks(part.file, part.path, size=block))
    else:
        blocks = line_blocks(part.file, part.path, start, stop, size=block)
        groups = group_lines(blocks, partial(Span, part.file, part.path))

    def place(record: int, offset: int) -> str:
        if start == 0:
            return f"line {record + 1}"
        # Counting lines reads the file up to here: acceptable when the run stops, not for each of many bad lines.
        if part.options.on_error == "stop":
            return f"line {count_newlines(part.file, part.path, offset) + 1}"
        return f"byte {offset}"

    return decode_groups(part, groups, place)


def group_lines(blocks: Iterable[Block], span: Callable[[int, int], Span] | None = None) -> Iterator[Group]:
    """Lines without their newlines; the cost is linear however long a line is. A BOM at offset 0 is dropped.

    A LONG line is not held but given as `span(offset, size)`, if the content can be read again.
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
    decode = make_decoder(part.options)
    text_field, source_field = part.options.text_field, label_field(part.options)
    first = consumed = 0
    try:
        for group in groups:
            consumed += group.consumed
            offset = group.offset
            share = group.consumed
            for records in split_runs(group.records):
                long = len(records) == 1 and len(records[0]) >= LONG and part.options.ids_field is None
                cut = cut_json_text(records[0], text_field, source_field) if long else None
                if cut is None:
                    read = [bytes(one) if isinstance(one, Span) else one for one in records]
                    batches = iter([decode_records(part, decode, read, (first, offset), place)])
                else:
                    batches = make_batches(cut.pieces, first, cut.label)
                for batch in batches:
                    yield replace(batch, bytes_read=share)
                    share = 0
                first += len(records)
                offset += sum(map(len, records)) + len(records)
    except Damaged as damage:
        rejected = reject(part, first, f"{place(first, 0)} on", str(damage))
        rest = part.file.bytes - consumed
        yield TextBatch(records=number_records(0, 0, []), read=1, rejected=(rejected,), bytes_read=rest)


def split_runs(records: Sequence[bytes | bytearray | Span]) -> Iterator[list[bytes | bytearray | Span]]:
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
    wants_ids, source_field = part.options.ids_field is not None, label_field(part.options)
    labels: list[str] | None = None if source_field is None else []
    more = wants_ids or labels is not None
    values: list[Any] = []
    left_out: list[int] = []
    rejected: list[Rejected] = []
    for number, record in enumerate(records, first):
        try:
            try:
                fields = decode(record)
            except REFUSALS:
                fields = decode_again(record, part.options)
            value = fields.value
            if more:
                if wants_ids:
                    value = convert_ids(value)
                if labels is not None and len(value):
                    labels.append(spell_label(fields.label, f"field {source_field!r}"))
        except (Unusable, BadLabel) as reason:
            at = offset + sum(map(len, records[: number - first])) + number - first
            rejected.append(reject(part, number, place(number, at), str(reason)))
            left_out.append(number)
        else:
            if len(value):
                values.append(value)
            else:
                left_out.append(number)
    return make_batch(
        values,
        wants_ids=wants_ids,
        labels=labels,
        records=number_records(first, len(records), left_out),
        read=len(records),
        empty=len(left_out) - len(rejected),
        rejected=tuple(rejected),
    )


def make_decoder(options: SourceOptions) -> Callable[[bytes | bytearray], Any]:
    """What decodes one record's fields, as `.value` and, if labels come from records, `.label`; raises REFUSALS."""
    field, kind = (options.text_field, str) if options.ids_field is None else (options.ids_field, list[int])
    names = {"value": field}
    types: list[Any] = [("value", kind)]
    if (source_field := label_field(options)) is not None:
        names["label"] = source_field
        types.append(("label", LABEL, None))
    try:
        record = msgspec.defstruct("Record", types, rename=names, gc=False)
    except ValueError:
        # msgspec takes no names with quotes or control characters, and no name twice: `json` decodes every record.
        return refuse
    return msgspec.json.Decoder(record).decode


def refuse(record: bytes | bytearray) -> Any:
    """A decoder that decodes nothing."""
    raise msgspec.DecodeError(f"{len(record)} bytes")


def decode_again(record: bytes | bytearray, options: SourceOptions) -> Fields:
    """The fields as Python's json decodes them, "" or [] for a blank record; raises Unusable."""
    field, kind = (options.text_field, str) if options.ids_field is None else (options.ids_field, list)
    if record is TOO_LONG:
        raise Unusable(f"a record of more than {MAX_DOCUMENT} bytes")
    if not record.strip(b" \t\r\n"):
        return Fields(kind())
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
    source_field = label_field(options)
    return Fields(value, None if source_field is None else values.get(source_field))


def is_utf8(data: bytes | bytearray) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def convert_ids(values: list[Any]) -> np.ndarray:
    """Token ids as int32[T]; raises Unusable."""
    if not all(type(value) is int for value in values):
        raise Unusable("a token id is not an integer")
    if values and not (min(values) >= 0 and max(values) < MAX_ID):
        raise Unusable(f"a token id is not in [0, 2**31): {next(v for v in values if not 0 <= v < MAX_ID)}")
    return np.array(values, np.int32)


def make_batch(values: list[Any], *, wants_ids: bool, **columns: Any) -> TextBatch:
    """The batch of some texts, or of some arrays of ids, with the other columns of a TextBatch."""
    if not wants_ids:
        return TextBatch(texts=values, text_bytes=count_utf8_bytes(values), **columns)
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([value.size for value in values], out=offsets[1:])
    ids = np.concatenate(values) if values else np.empty(0, np.int32)
    return TextBatch(ids=ids, id_offsets=offsets, **columns)
