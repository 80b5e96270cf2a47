"""What Parquet, Arrow and hub datasets share: columns are chosen, and their rows become documents. Opens no file.

Rows are given in runs of bounded size (`Rows`), with the column of texts or token ids and, if source labels come from
the records, the column of labels. Rows that are empty, null or not UTF-8 are accounted for. Rows count from 0, as
pyarrow's do.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from exact_prep.batches import IGNORED, MASKED, TextBatch
from exact_prep.errors import SourceError, StorageError
from exact_prep.signatures import HEAD, find_codec, recognise
from exact_prep.sources.batching import BATCH_BYTES, MAX_ID, count_utf8_bytes, number_records, reject, reject_rest
from exact_prep.sources.fields import join_names, spell_paths
from exact_prep.sources.labels import NO_LABEL, BadLabel, label_field, spell_label, spell_own_id
from exact_prep.sources.long_texts import LONG, cut_utf8, make_batches
from exact_prep.sources.streams import Damaged, check_unchanged, open_raw
from exact_prep.stores.local import explained
from exact_prep.zero_copy import as_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.batches import Rejected
    from exact_prep.sources.batching import Part


ROWS = 1 << 11
"""Rows decoded at once, at most: where rows repeat a few long strings, a file's size says little about its text's."""

PACKED = b"exact_prep"
"""A key in the schema metadata of our own shards, and of nobody else's."""

STRING_TWINS = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string(), pa.binary_view(): pa.string_view()}
"""The string type that has a binary type's layout: Impala, Hive and older versions of Spark write text as bytes."""

BINARY_TWINS = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""The type that has a string type's layout without its promise of UTF-8."""


class Rows(NamedTuple):
    """Some rows of a file."""

    column: pa.Array
    """The texts, or the token ids."""
    labels: pa.Array | None
    """What labels are made from; None if labels do not come from the records, or the file has no such column."""
    own_ids: pa.Array | None
    """What documents' own ids are made from; None if they are not kept, or the file has no such column."""
    masks: pa.Array | None
    """Masks or labels per token; None if none are wanted."""
    first: int
    """Number of the first row in the file."""
    consumed: int
    """Bytes of the file that these rows account for."""

    def cut(self, low: int, high: int, consumed: int) -> Rows:
        """The rows [low, high), counted from the first; `consumed` bytes of the file are theirs."""

        def part(column: pa.Array | None) -> pa.Array | None:
            return None if column is None else column[low:high]

        return Rows(
            self.column[low:high],
            part(self.labels),
            part(self.own_ids),
            part(self.masks),
            self.first + low,
            consumed,
        )


class Column(NamedTuple):
    """A column, or a field inside a column of structs."""

    path: tuple[str, ...]
    """Names from the column down to the field."""

    @property
    def name(self) -> str:
        """As the user gave it, and as Parquet calls it."""
        return ".".join(self.path)

    def values(self, batch: pa.RecordBatch) -> pa.Array:
        """The values in a record batch that has the column; null where a struct around them is."""
        column = batch.column(self.path[0])
        for step in self.path[1:]:
            # `flatten` makes a field null where the struct is, `field` does not.
            column = column.flatten()[column.type.get_field_index(step)]
        return as_strings(as_list(column))


class Columns(NamedTuple):
    """Which columns of a file are read."""

    text: Column
    """The column of texts or token ids."""
    label: Column | None
    """The column of labels, if there is one."""
    own_id: Column | None = None
    """The column of documents' own ids, if there is one."""
    mask: Column | None = None
    """The column of masks or labels, if one is wanted."""

    def names(self) -> list[str]:
        """All of them as Parquet names what is read, none twice."""
        return list(dict.fromkeys(column.name for column in self if column is not None))

    def tops(self) -> list[str]:
        """The columns of the file that hold them, none twice."""
        return list(dict.fromkeys(column.path[0] for column in self if column is not None))

    def rows(self, batch: pa.RecordBatch, first: int, consumed: int) -> Rows:
        """The rows of a record batch that has these columns."""

        def read(column: Column | None) -> pa.Array | None:
            return None if column is None else column.values(batch)

        return Rows(self.text.values(batch), read(self.label), read(self.own_id), read(self.mask), first, consumed)


class Opened(NamedTuple):
    """A slice of a file, ready to be read."""

    first: int
    """Number of the slice's first row in the file."""
    share: int
    """Bytes of the file that the slice accounts for."""
    rows: Iterator[Rows]


@contextmanager
def reading(part: Part) -> Iterator[None]:
    """Turn what pyarrow raises for bytes it cannot read into Damaged.

    Raises StorageError if the device fails, and SourceError if there is too little memory, which is not the file's
    fault.
    """
    try:
        with explained("read", part.path):
            check_unchanged(part.file, part.path)
            try:
                yield
            except OSError as error:
                if error.errno is not None or isinstance(error, StorageError):
                    raise
                raise Damaged(f"pyarrow cannot read it: {error}") from error
    except MemoryError as error:
        raise SourceError(f"{part.name} needs more memory than there is ({error});\nuse fewer workers") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"pyarrow cannot read it: {error}") from error


def read_columns(part: Part, open_slice: Callable[[Part], Opened]) -> Iterator[TextBatch]:
    """The documents of a slice, batch by batch."""
    as_ids = part.options.ids_field is not None
    convert = read_ids if as_ids else read_texts
    opened = Opened(first=0, share=part.file.bytes, rows=iter(()))
    row = consumed = 0
    try:
        opened = open_slice(part)
        row = opened.first
        for rows in opened.rows:
            if not as_ids and is_long(rows.column):
                yield from read_long_texts(part, rows, opened.first)
            else:
                yield convert(part, rows, opened.first)
            row += len(rows.column)
            consumed += rows.consumed
        yield TextBatch(records=np.empty(0, np.int64), bytes_read=opened.share - consumed)
    except Damaged as damage:
        if not row and not consumed:
            damage = explain_head(part, damage)
        yield reject_rest(part, row - opened.first, damage, consumed=consumed, size=opened.share, before=opened.first)


def explain_head(part: Part, damage: Damaged) -> Damaged:
    """A damage that nothing was read before, explained by what the file is, if its first bytes tell."""
    with explained("read", part.path), open_raw(part.path) as file:
        head = file.read(HEAD)
    if codec := find_codec(head):
        return Damaged(f"it is compressed with {codec}: decompress it, this format has compression of its own")
    found = recognise(head)
    if found is not None and found.name.lower() != part.file.format:
        return Damaged(found.explain())
    return damage


def pick_columns(part: Part, schema: pa.Schema) -> Columns:
    """The columns that the options ask for: of several candidates for the text the first that the file has.

    Raises SourceError unless there is exactly one column of that name, with a type that holds texts or ids, and at most
    one of labels.
    """
    options = part.options
    ids = options.ids_field is not None
    names = (options.ids_field,) if options.ids_field is not None else options.text_field
    option = "--ids-field" if ids else "--text-field"
    if ids and PACKED in (schema.metadata or {}):
        raise SourceError(
            f"{part.name} is a shard that exact-prep packed: its rows are pieces of documents, and padding;\n"
            "pack the corpus that it was made from"
        )
    found = ((name, find_column(part, schema, name, option)) for name in names)
    name, text = next(((name, column) for name, column in found if column is not None), (names[0], None))
    if text is None:
        spelled = " or ".join(map(repr, names))
        raise SourceError(
            f"{part.name}: there is no column {spelled};\nname one with {option}, there is: {list_columns(schema)}"
        )
    kind = find_type(schema, text)
    if not (is_ids(kind) if ids else is_text(kind)):
        wanted = "lists of integers" if ids else "text"
        raise SourceError(f"{part.name}: column {name!r} holds {kind}, not {wanted};\nname another with {option}")
    label = label_field(options)
    return Columns(
        text,
        None if label is None else find_column(part, schema, label, "--source-from"),
        None if options.id_field is None else find_column(part, schema, options.id_field, "--id-field"),
        pick_mask(part, schema),
    )


def pick_mask(part: Part, schema: pa.Schema) -> Column | None:
    """The column of masks or labels that the options ask for; raises SourceError unless it holds lists of integers."""
    options = part.options
    name = options.mask_field or options.labels_field
    option = "--mask-field" if options.mask_field else "--labels-field"
    if name is None:
        return None
    column = find_column(part, schema, name, option)
    if column is None:
        raise SourceError(
            f"{part.name}: there is no column {name!r};\nname one with {option}, there is: {list_columns(schema)}"
        )
    if not is_mask(kind := find_type(schema, column)):
        raise SourceError(
            f"{part.name}: column {name!r} holds {kind}, not lists of integers;\nname another with {option}"
        )
    return column


def find_column(part: Part, schema: pa.Schema, name: str, option: str) -> Column | None:
    """The column or field `name`, which `option` asks for, if there is one; raises SourceError if there are several."""
    for path in spell_paths(name):
        count = len(schema.get_all_field_indices(path[0]))
        if count > 1:
            raise SourceError(
                f"{part.name}: there are {count} columns {path[0]!r};\n"
                f"name one with {option}, there is: {list_columns(schema)}"
            )
        kind = schema.field(path[0]).type if count else pa.null()
        for step in path[1:]:
            index = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
            if index < 0:
                break
            kind = kind.field(index).type
        else:
            if count:
                return Column(path)
    return None


def find_type(schema: pa.Schema, column: Column) -> pa.DataType:
    """The type of a column that is there."""
    kind = schema.field(column.path[0]).type
    for step in column.path[1:]:
        kind = kind.field(kind.get_field_index(step)).type
    return kind


def list_columns(schema: pa.Schema) -> str:
    """The names of columns that a user could give, for a message; raises Damaged."""
    names: list[str] = []
    try:
        for field in schema:
            inner = [f"{field.name}.{one.name}" for one in field.type] if pa.types.is_struct(field.type) else []
            names += map(repr, inner or [field.name])
    except UnicodeDecodeError as error:
        raise Damaged(f"the name of a column is not UTF-8 ({error.reason})") from error
    return join_names(names)


def as_strings(column: pa.Array) -> pa.Array:
    """Bytes as strings of the same layout, not copied and not checked; any other column as it is."""
    kind = column.type
    if isinstance(column, pa.DictionaryArray):
        values = as_strings(column.dictionary)
        return column if values is column.dictionary else pa.DictionaryArray.from_arrays(column.indices, values)
    if pa.types.is_fixed_size_binary(kind):
        return column.cast(pa.binary()).view(pa.string())
    twin = STRING_TWINS.get(kind)
    return column if twin is None else column.view(twin)


def as_list(column: pa.Array) -> pa.Array:
    """A column of list views as one of lists; any other column as it is."""
    if not is_list_view(column.type):
        return column
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)  # pyright: ignore
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.LargeListArray.from_arrays(offsets, column.flatten(), mask=column.is_null())


def is_list_view(kind: pa.DataType) -> bool:
    """Whether a column of this type holds list views, whose values may lie in any order."""
    return pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, bytes, lists of strings, or nothing but nulls."""
    return holds_strings(kind) or is_texts(kind)


def is_texts(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of strings."""
    types = pa.types
    return is_list(kind) and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type))


def holds_strings(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, bytes, or nothing but nulls."""
    types = pa.types
    if types.is_dictionary(kind):
        return holds_strings(kind.value_type)
    if kind in STRING_TWINS or types.is_fixed_size_binary(kind):
        return True
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


def is_ids(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of integers."""
    return is_list(kind) and pa.types.is_integer(kind.value_type)


def is_mask(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of integers or booleans."""
    return is_ids(kind) or (is_list(kind) and pa.types.is_boolean(kind.value_type))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or is_list_view(kind)


def holds_labels(kind: pa.DataType) -> bool:
    """Whether values of this type give labels: strings, numbers, booleans, or nothing but nulls."""
    if pa.types.is_dictionary(kind):
        return holds_labels(kind.value_type)
    types = pa.types
    return holds_strings(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def count_rows_at_once(size: int, rows: int) -> int:
    """Rows that hold about BATCH_BYTES, if `rows` of them hold `size` bytes."""
    return min(max(BATCH_BYTES * rows // max(size, 1), 1), ROWS)


def split_in_proportion(weights: list[int], size: int) -> np.ndarray:
    """Edges of parts in proportion to `weights[G]` that add up to `size`, int64[G + 1]; without weights one part."""
    edges = np.concatenate([[0], np.cumsum(np.maximum(weights or [1], 1))])
    return (edges / float(edges[-1]) * size).astype(np.int64)


def read_texts(part: Part, rows: Rows, origin: int) -> TextBatch:
    """The strings of a column as documents; records count from row `origin`."""
    values: list[Any] = decode_strings(rows.column)
    if is_texts(rows.column.type):
        values = [join_texts(value, part.options.join) for value in values]
    left_out: list[int] = []
    rejected: list[Rejected] = []
    labels, own_ids = read_labels(part, rows), read_own_ids(part, rows)
    sides = [column for column in (labels, own_ids) if column is not None]
    name = " or ".join(part.options.text_field)
    if sides or not all(values) or not all(type(value) is str for value in values):
        for row, value in enumerate(values, rows.first):
            good = value.__class__ is str and value
            bad = [column[row - rows.first] for column in sides if column[row - rows.first].__class__ is not str]
            if good and not bad:
                continue
            left_out.append(row - origin)
            if good:
                rejected.append(reject(part, row - origin, str(bad[0]), before=origin))
            elif value != "":
                fault = NULLS.decode() if value is NULLS else "is null" if value is None else "is not UTF-8"
                reason = f"column {name!r} {fault}"
                rejected.append(reject(part, row - origin, reason, before=origin))
    records = number_records(rows.first - origin, len(rows.column), left_out)
    if left_out:
        kept = (records + (origin - rows.first)).tolist()
        values = [values[row] for row in kept]
        labels, own_ids = (None if column is None else [column[row] for row in kept] for column in (labels, own_ids))
    return TextBatch(
        texts=values,
        labels=labels,
        own_ids=own_ids,
        records=records,
        read=len(rows.column),
        empty=len(left_out) - len(rejected),
        rejected=tuple(rejected),
        bytes_read=rows.consumed,
        text_bytes=count_utf8_bytes(values),
    )


NULLS = b"holds a list with a null in it"
"""Stands for the text of such a list."""


def join_texts(texts: list[str | None] | None, between: str) -> str | bytes | None:
    """The text of a row that holds a list of strings."""
    if texts is None:
        return None
    return NULLS if None in texts else between.join(texts)  # type: ignore[arg-type]


def read_labels(part: Part, rows: Rows) -> list[Any] | None:
    """The label of each row, or the BadLabel that says why it has none; None if labels do not come from records."""
    if (name := label_field(part.options)) is None:
        return None
    if rows.labels is None:
        return [NO_LABEL] * len(rows.column)
    return spell_column(rows.labels, lambda value: spell_label(value, f"column {name!r}"))


def read_own_ids(part: Part, rows: Rows) -> list[Any] | None:
    """The own id of each row's document, or the BadLabel that says why it has none; None if ids are not kept."""
    if (name := part.options.id_field) is None:
        return None
    if rows.own_ids is None:
        return [""] * len(rows.column)
    return spell_column(rows.own_ids, lambda value: spell_own_id(value, f"column {name!r}"))


def spell_column(column: pa.Array, spell: Callable[[object], str]) -> list[Any]:
    """What `spell` makes of each value, or the BadLabel that it raises."""
    if holds_labels(column.type):
        values = decode_strings(column)
    else:
        # Not decoded: a timestamp, for instance, may be beyond Python's.
        values = [() if valid else None for valid in column.is_valid().to_pylist()]
    spelled: list[Any] = []
    for value in values:
        try:
            spelled.append(spell(value))
        except BadLabel as reason:
            spelled.append(reason)
    return spelled


def is_long(column: pa.Array) -> bool:
    """Whether a value may be too long to become a string: judged by sizes alone, which costs nothing."""
    if not len(column) or pa.types.is_dictionary(column.type) or is_texts(column.type):
        return False
    if pa.types.is_string_view(column.type):
        # Rows share buffers, which `nbytes` counts whole for any of them.
        return int(string_views(column)[:, 0].sum(dtype=np.int64)) >= LONG
    return column.nbytes >= LONG


def string_views(column: pa.Array) -> np.ndarray:
    """Size, prefix, buffer and place in it of every value of a column of string views, int32[D, 4]."""
    return np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)[column.offset :][: len(column)]


def long_value(column: pa.Array) -> memoryview | None:
    """The bytes of a column's only value, not copied as a scalar would be; None if it is null or short."""
    if column.null_count:
        return None
    _, places, *data = column.buffers()
    if pa.types.is_string_view(column.type):
        size, _, buffer, start = string_views(column)[0].tolist()
    else:
        edges = np.frombuffer(places, np.int64 if pa.types.is_large_string(column.type) else np.int32)
        buffer, (start, stop) = 0, edges[column.offset :][:2].tolist()
        size = stop - start
    return memoryview(data[buffer])[start : start + size] if size >= LONG else None


def read_long_texts(part: Part, rows: Rows, origin: int) -> Iterator[TextBatch]:
    """As `read_texts`, one row per batch, and long rows in pieces."""
    share = rows.consumed
    for row in range(len(rows.column)):
        one = rows.cut(row, row + 1, share)
        label, own_id = read_labels(part, one), read_own_ids(part, one)
        good = all(side is None or side[0].__class__ is str for side in (label, own_id))
        value = long_value(one.column) if good else None
        pieces = None if value is None else cut_utf8(value)
        if pieces is None:
            batches = iter([read_texts(part, one, origin)])
        else:
            batches = make_batches(
                pieces, one.first - origin, *(None if side is None else side[0] for side in (label, own_id))
            )
        for batch in batches:
            yield replace(batch, bytes_read=share)
            share = 0


def decode_strings(column: pa.Array) -> list[Any]:
    """A column's values as Python's; None for a null, bytes for a string that is not UTF-8."""
    if isinstance(column, pa.DictionaryArray):
        indices, size = column.indices.to_pylist(), len(column.dictionary)
        if not all(index is None or 0 <= index < size for index in indices):
            raise Damaged(f"an index lies outside the dictionary of {size} values")
        values = {index: decode_strings(column.dictionary.slice(index, 1))[0] for index in {*indices} - {None}}
        return [None if index is None else values[index] for index in indices]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [decode_utf8(value) for value in column.cast(pa.large_binary()).to_pylist()]


def decode_utf8(value: bytes | None) -> str | bytes | None:
    """The bytes as a string, or as they are if they are not UTF-8."""
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def read_ids(part: Part, rows: Rows, origin: int) -> TextBatch:
    """The token ids of a column of lists as documents; records count from row `origin`."""
    column = rows.column
    null = column.is_null().to_numpy(zero_copy_only=False)
    lengths = list_lengths(column, null)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = column.flatten()
    values = flat.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = flat.is_null().to_numpy(zero_copy_only=False) | (values < 0) | (values >= MAX_ID)
    bad = null.copy()
    bad[np.searchsorted(offsets, np.flatnonzero(wrong), side="right") - 1] = True
    reasons = {
        row: f"column {part.options.ids_field!r} "
        + ("is null" if null[row] else "holds a null or an id outside [0, 2**31)")
        for row in np.flatnonzero(bad).tolist()
    }
    silent = read_masks(part, rows, lengths, bad, reasons)
    labels, own_ids = read_labels(part, rows), read_own_ids(part, rows)
    for side in (labels, own_ids):
        for row, value in enumerate(side or ()):
            if value.__class__ is not str and lengths[row] and not bad[row]:
                bad[row], reasons[row] = True, str(value)
    rejected = tuple(reject(part, rows.first - origin + row, reasons[row], before=origin) for row in sorted(reasons))
    kept = ~bad & (lengths > 0)
    places = np.flatnonzero(kept).tolist()
    ids = values[np.repeat(kept, lengths)].astype(np.int32)
    if silent is not None:
        ids[silent[np.repeat(kept, lengths)]] |= MASKED
    return TextBatch(
        ids=ids,
        id_offsets=np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64),
        labels=None if labels is None else [labels[row] for row in places],
        own_ids=None if own_ids is None else [own_ids[row] for row in places],
        records=rows.first - origin + np.flatnonzero(kept),
        read=len(column),
        empty=int((~bad & (lengths == 0)).sum()),
        rejected=rejected,
        bytes_read=rows.consumed,
    )


def read_masks(
    part: Part, rows: Rows, lengths: np.ndarray, bad: np.ndarray, reasons: dict[int, str]
) -> np.ndarray | None:
    """Which tokens carry no loss, bool[T], of documents of `lengths[D]` tokens; None if no masks are wanted.

    Documents whose mask has another length, or other values, are marked in `bad` with a reason.
    """
    if rows.masks is None:
        return None
    name = part.options.mask_field or part.options.labels_field
    null = rows.masks.is_null().to_numpy(zero_copy_only=False)
    own = list_lengths(rows.masks, null)
    flat = rows.masks.flatten()
    values = flat.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)
    if part.options.labels_field is None:
        silent, wrong = values == 0, (values != 0) & (values != 1)
    else:
        silent = values == IGNORED
        wrong = flat.is_null().to_numpy(zero_copy_only=False) | ((values < 0) & ~silent)
    document = np.repeat(np.arange(own.size), own)
    faults = dict.fromkeys(np.unique(document[wrong]).tolist(), "holds a value that is none of a mask or label")
    faults |= {
        row: f"has {own[row]} values for {lengths[row]} tokens" for row in np.flatnonzero(own != lengths).tolist()
    }
    for row, fault in faults.items():
        if not bad[row]:
            bad[row], reasons[row] = True, f"column {name!r} {'is null' if null[row] else fault}"
    made = np.zeros(int(lengths.sum()), bool)
    same = own == lengths
    made[np.repeat(same, lengths)] = silent[np.repeat(same, own)]
    return made


def list_lengths(column: pa.Array, null: np.ndarray) -> np.ndarray:
    """Values per list, int64[D]; 0 for a null list, whose values `flatten` leaves out."""
    if pa.types.is_fixed_size_list(column.type):
        return np.where(null, 0, column.type.list_size)
    return np.where(null, 0, np.diff(as_numpy(column.offsets)))
