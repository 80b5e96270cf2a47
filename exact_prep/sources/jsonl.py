"""JSON lines in: one document per line. Also the decoding of any JSON record, however it was cut out of its file.

A record is good when Python's `json.loads` makes an object of it whose field is a string that UTF-8 can hold, or a list
of such strings; the last of equal keys wins. msgspec decodes this field only (3x faster). What it refuses is decoded
again by `json`, so that NaN, a lone surrogate or wrong UTF-8 in another field costs no document.

A file that is named like JSON lines and holds an array, or objects over several lines, is read as what it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from exact_prep.batches import IGNORED, MASKED, TextBatch
from exact_prep.errors import StorageError
from exact_prep.sources.batching import (
    BATCH_RECORDS,
    MAX_DOCUMENT,
    MAX_ID,
    count_utf8_bytes,
    number_records,
    reject,
    reject_rest,
)
from exact_prep.sources.fields import MISSING, compile_fields, find_value, list_names
from exact_prep.sources.labels import BadLabel, label_field, spell_label, spell_own_id
from exact_prep.sources.long_texts import LONG, cut_json_text, make_batches
from exact_prep.sources.streams import (
    BLOCK,
    BOM,
    BOMB,
    BOMB_RATIO,
    Damaged,
    Expansion,
    Span,
    find_codec,
    line_blocks,
    whole_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exact_prep.batches import Rejected
    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.batching import Part
    from exact_prep.sources.streams import Block

HEAD = 1 << 16
"""Bytes of a large file that are looked at before it is cut."""

EXPLODED = b"<a record that a decompression bomb expands to>"
"""Stands for a record that was skipped because no text expands as much; compared by identity."""

CUT = -1
"""Where an object ends that goes on after the bytes that are known."""

SPACE = b" \t\r\n"

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
    own_id: Any = None
    """What the document's own id is made from, if ids are kept."""
    mask: Any = None
    """The mask or labels of the document's tokens, if they are wanted."""


class Group(NamedTuple):
    """Some records of a file, still encoded."""

    records: Sequence[bytes | bytearray | Span]
    consumed: int
    """Bytes of the file that this group accounts for."""


def read_jsonl(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a slice of a JSON lines file, read `block` bytes at once; see `Part` and `TextBatch`."""
    block = block or BLOCK
    start, stop = part.slice.start, part.file.bytes if part.slice.stop is None else part.slice.stop
    whole = start == 0 and stop == part.file.bytes
    try:
        # A line may be left on disk only in a plain file; smaller files, which may be a million, are not opened for it.
        plain = not whole or (part.file.bytes >= LONG and find_codec(part.file, part.path) is None)
        if plain:
            blocks = line_blocks(part.file, part.path, start, stop, size=block)
        else:
            blocks = whole_blocks(part.file, part.path, size=block)
        if whole:
            seen, blocks = take_head(blocks)
            if not holds_lines(b"".join(block.data for block in seen)[:HEAD]):
                from exact_prep.sources.json_array import group_records

                part = replace(part, file=part.file.model_copy(update={"format": "json"}))
                return decode_groups(part, group_records(blocks))
    except Damaged as damage:
        return iter([reject_rest(part, 0, damage, consumed=0, size=part.file.bytes)])
    return decode_groups(part, group_lines(blocks, partial(Span, part.file, part.path) if plain else None))


def take_head(blocks: Iterator[Block]) -> tuple[list[Block], Iterator[Block]]:
    """The first blocks, HEAD bytes if there are as many, and all blocks; raises Damaged if there is none."""
    seen = [next(blocks)]
    while seen[-1].data and sum(len(block.data) for block in seen) < HEAD:
        try:
            seen.append(next(blocks))
        except Damaged as damage:
            return seen, chain(seen, fail(str(damage)))
    return seen, chain(seen, blocks)


def fail(reason: str) -> Iterator[Block]:
    """No blocks, and then the damage that a look ahead met."""
    yield from ()
    raise Damaged(reason)


def can_be_cut(part: Part) -> bool:
    """Whether a file named like JSON lines can be read from its middle: it is not compressed, and holds lines."""
    try:
        if find_codec(part.file, part.path) is not None:
            return False
        return holds_lines(next(line_blocks(part.file, part.path, 0, part.file.bytes, size=HEAD)).data)
    except Damaged:
        return False
    except StorageError:
        return True  # its reader will say so


def name_records(part: Part) -> str:
    """The format by which records of a slice are counted: JSON lines, or JSON if the file only calls itself lines."""
    if part.slice.start or can_be_cut(part):
        return "jsonl"
    try:
        seen, _ = take_head(whole_blocks(part.file, part.path, size=HEAD))
    except (Damaged, StorageError):
        return "json"
    return "jsonl" if holds_lines(b"".join(block.data for block in seen)[:HEAD]) else "json"


def holds_lines(head: bytes) -> bool:
    """Whether content that begins with `head`, HEAD bytes if it is longer, is read line by line.

    It is not where that would find no document: an array of objects, or an object that goes on in the next line.
    """
    full = len(head) == HEAD
    head = head.removeprefix(BOM).lstrip(SPACE)
    if head[:1] not in (b"[", b"{"):
        return True
    line, newline, rest = head.partition(b"\n")
    if head[:1] == b"{":
        return not newline or is_json(line) or 0 <= find_end(head, cut=full) <= len(line)
    if is_json(line):
        return bool(rest.strip(SPACE))
    inner = head[1:].lstrip(SPACE)
    end = find_end(inner, cut=full)
    return not end or (end != CUT and inner[end:].lstrip(SPACE)[:1] not in (b",", b"]", b""))


def is_json(line: bytes) -> bool:
    """Whether a line is JSON by itself, as msgspec understands it."""
    try:
        msgspec.json.decode(line)
    except REFUSALS:
        return False
    return True


def find_end(data: bytes, *, cut: bool) -> int:
    """Where the JSON object at the start of `data` ends, in bytes; 0 if there is none, CUT if it may go on.

    It may go on only if `data` is `cut`.
    """
    text = data.decode(errors="surrogateescape")
    if text[:1] != "{":
        return 0
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return CUT if cut and (error.pos >= len(text) - 1 or "Unterminated" in error.msg) else 0
    except (ValueError, RecursionError):
        return 0
    return len(text[:end].encode(errors="surrogateescape"))


def group_lines(blocks: Iterable[Block], span: Callable[[int, int], Span] | None = None) -> Iterator[Group]:
    """Lines without their newlines; the cost is linear however long a line is. A BOM at offset 0 is dropped.

    A LONG line is not held but given as `span(offset, size)`, if the content can be read again.
    """
    longest = min(LONG, MAX_DOCUMENT) if span else MAX_DOCUMENT
    expansion = Expansion()
    tail = bytearray()  # grows in place: a line is held once
    held = tail_offset = 0

    def line() -> bytes | bytearray | Span:
        if held <= longest:
            return tail
        if span and held <= MAX_DOCUMENT:
            return span(tail_offset, held)
        return TOO_LONG if held > MAX_DOCUMENT else EXPLODED

    source = iter(blocks)
    while True:
        try:
            block = next(source, None)
        except Damaged as damage:
            damage.unfinished = held
            raise
        if block is None:
            break
        expansion.add(block)
        if expansion.is_bomb and not span:
            longest = min(BOMB, MAX_DOCUMENT)
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
        yield Group(lines, block.consumed)
        if lines:
            tail_offset = block.offset + len(block.data) - held
    if held:
        yield Group([line()], 0)


def decode_groups(part: Part, groups: Iterable[Group]) -> Iterator[TextBatch]:
    """Documents from encoded records."""
    decode = make_decoder(part.options)
    names, source_field = part.options.text_field, label_field(part.options)
    # A name with a dot may lead into an object, where long texts are not looked for.
    id_field = part.options.id_field
    simple = part.options.ids_field is None and len(names) == 1
    simple = simple and "." not in names[0] + (source_field or "") + (id_field or "")
    first = consumed = 0
    try:
        for group in groups:
            consumed += group.consumed
            share = group.consumed
            for records in split_runs(group.records):
                long = simple and len(records) == 1 and len(records[0]) >= LONG
                cut = cut_json_text(records[0], names[0], source_field, id_field) if long else None
                if cut is None:
                    read = [bytes(one) if isinstance(one, Span) else one for one in records]
                    batches = iter([decode_records(part, decode, read, first)])
                else:
                    batches = make_batches(cut.pieces, first, cut.label, cut.own_id)
                for batch in batches:
                    yield replace(batch, bytes_read=share)
                    share = 0
                first += len(records)
    except Damaged as damage:
        yield reject_rest(part, first, damage, consumed=consumed, size=part.file.bytes)


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
    first: int,
) -> TextBatch:
    """One batch; `first` is the number of its first record."""
    wants_ids, source_field = part.options.ids_field is not None, label_field(part.options)
    id_field = part.options.id_field
    labels: list[str] | None = None if source_field is None else []
    own_ids: list[str] | None = None if id_field is None else []
    more = wants_ids or labels is not None or own_ids is not None
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
                    if part.options.masked:
                        apply_mask(value, fields.mask, part.options)
                if len(value):
                    label = None if labels is None else spell_label(fields.label, f"field {source_field!r}")
                    if own_ids is not None:
                        own_ids.append(spell_own_id(fields.own_id, f"field {id_field!r}"))
                    if labels is not None and label is not None:
                        labels.append(label)
        except (Unusable, BadLabel) as reason:
            rejected.append(reject(part, number, str(reason)))
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
        own_ids=own_ids,
        records=number_records(first, len(records), left_out),
        read=len(records),
        empty=len(left_out) - len(rejected),
        rejected=tuple(rejected),
    )


def make_decoder(options: SourceOptions) -> Callable[[bytes | bytearray], Any]:
    """What decodes one record's fields, as `.value` and, if they come from records, `.label` and `.own_id`.

    It raises REFUSALS.
    """
    names: list[str] = [*options.text_field] if options.ids_field is None else [options.ids_field]
    kind: Any = str if options.ids_field is None else list[int]
    source_field = label_field(options)
    if options.masked:
        return refuse  # `json` decodes every record: such corpora are small
    if len(names) > 1 or "." in names[0] + (source_field or "") + (options.id_field or ""):
        return make_nested_decoder(names, kind, source_field, options.id_field)
    rename = {"value": names[0]}
    types: list[Any] = [("value", kind)]
    if source_field is not None:
        rename["label"] = source_field
        types.append(("label", LABEL, None))
    if options.id_field is not None:
        rename["own_id"] = options.id_field
        types.append(("own_id", LABEL, None))
    try:
        record = msgspec.defstruct("Record", types, rename=rename, gc=False)
    except ValueError:
        # msgspec takes no names with quotes or control characters, and no name twice: `json` decodes every record.
        return refuse
    return msgspec.json.Decoder(record).decode


def make_nested_decoder(
    names: Sequence[str], kind: Any, source_field: str | None, id_field: str | None
) -> Callable[[bytes | bytearray], Any]:
    """As `make_decoder`, for fields inside objects and for several names."""
    wanted = [(name, kind) for name in names]
    more = [(field, LABEL) for field in (source_field, id_field) if field is not None]
    read = compile_fields(wanted + more)
    if read is None:
        return refuse
    count = len(names)

    def decode(record: bytes | bytearray) -> Fields:
        values = read(record)
        label = values[count] if source_field is not None else MISSING
        own_id = values[-1] if id_field is not None else MISSING
        for value in values[:count]:
            if value is not MISSING:
                return Fields(value, None if label is MISSING else label, None if own_id is MISSING else own_id)
        return refuse(record)

    return decode


def refuse(record: bytes | bytearray) -> Any:
    """A decoder that decodes nothing."""
    raise msgspec.DecodeError(f"{len(record)} bytes")


def decode_again(record: bytes | bytearray, options: SourceOptions) -> Fields:
    """The fields as Python's json decodes them, "" or [] for a blank record; raises Unusable."""
    as_ids = options.ids_field is not None
    if record is TOO_LONG:
        raise Unusable(f"a record of more than {MAX_DOCUMENT} bytes")
    if record is EXPLODED:
        raise Unusable(f"a record of more than {BOMB} bytes in a file that expands more than {BOMB_RATIO} times")
    if not record.strip(SPACE):
        return Fields([] if as_ids else "")
    try:
        values = json.loads(record.decode(errors="surrogateescape"))
    except RecursionError as error:
        raise Unusable("nested too deeply") from error
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # some of Python's messages end with it
        raise Unusable(f"not JSON ({what} at character {error.pos})") from error
    except ValueError as error:
        raise Unusable(f"not JSON that can be read ({error})") from error
    if not isinstance(values, dict):
        raise Unusable(f"{KINDS.get(type(values), 'null')}, not an object")
    names, kind = ((options.ids_field,), list) if options.ids_field is not None else (options.text_field, str)
    field, value = find_field(values, names, "--ids-field" if as_ids else "--text-field")
    if not as_ids and isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = options.join.join(value)
    if not isinstance(value, kind):
        wanted = KINDS[kind] if as_ids else "a string or an array of strings"
        raise Unusable(f"field {field!r} is {KINDS.get(type(value), 'null')}, not {wanted}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            escaped = "\udc80" <= value[error.start] <= "\udcff" and not is_utf8(record)
            what = "wrong UTF-8" if escaped else "a lone surrogate"
            raise Unusable(f"field {field!r} holds {what} at character {error.start}") from error
    source_field = label_field(options)
    label = MISSING if source_field is None else find_value(values, source_field)
    own_id = MISSING if options.id_field is None else find_value(values, options.id_field)
    mask_field = options.mask_field or options.labels_field
    mask = MISSING if mask_field is None else find_value(values, mask_field)
    more = (None if one is MISSING else one for one in (label, own_id, mask))
    return Fields(value, *more)


def apply_mask(ids: np.ndarray, mask: Any, options: SourceOptions) -> None:
    """Mark the tokens of a document that carry no loss in its `ids`, int32[T]; raises Unusable."""
    name = options.mask_field or options.labels_field
    if not isinstance(mask, list):
        raise Unusable(
            f"field {name!r} is {'missing' if mask is None else KINDS.get(type(mask), 'null')}, not an array"
        )
    if len(mask) != ids.size:
        raise Unusable(f"field {name!r} has {len(mask)} values for {ids.size} tokens")
    labels = options.labels_field is not None
    if not all(type(one) is int and (one >= 0 or one == IGNORED) if labels else one in (0, 1) for one in mask):
        raise Unusable(f"field {name!r} holds a value that is none of a mask or label")
    silent = [one == IGNORED for one in mask] if labels else [not one for one in mask]
    ids[np.array(silent, bool)] |= MASKED


def find_field(values: dict[str, Any], names: Sequence[str], option: str) -> tuple[str, Any]:
    """The first of `names` that a record has, and not as null, with its value; raises Unusable if it has none."""
    null = None
    for name in names:
        value = find_value(values, name)
        if value is not MISSING and value is not None:
            return name, value
        null = name if value is None and null is None else null
    if null is not None:
        return null, None
    spelled = " or ".join(map(repr, names))
    raise Unusable(f"field {spelled} is missing; name one with {option}, there is: {list_names(values)}")


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
