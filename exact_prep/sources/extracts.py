"""Extracts: small parts from all over a corpus, with the bytes of their files that they stand for.

What extracts give per byte is what the corpus gives per byte: places lie evenly over the bytes of the corpus, so that a
long document is met as often as it is long. In plain JSON lines and text an extract is a window of bytes; a document
that lies partly in it counts by that part. Compressed files, JSON arrays, CSV and Arrow streams are read from their
start, up to a limit, and windows are cut out of their text. Row groups and record batches are read likewise; the size
of their column is known.

For estimates: bad documents and files that cannot be read are skipped, the run reports them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from exact_prep.sources.formats import FORMATS, read_slice
from exact_prep.sources.samples import UNREADABLE, is_seekable
from exact_prep.sources.slices import COMPRESSED_WEIGHT, find_unit_edges
from exact_prep.sources.streams import opened, split_suffix, whole_blocks

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Sequence

    from exact_prep.batches import TextBatch
    from exact_prep.records.work import InputFile
    from exact_prep.sources.batching import Part

PLACES = 1 << 9
"""Places that are looked at, about. 512 windows of C code gave its tokens within 0.2%, 128 within 1.3%."""

FEWEST = 16
"""Places in the files of one format, at least."""

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread evenly, however many; and in step with no period of the corpus."""

WINDOW = 1 << 15
"""Bytes of a file, or of content, per place."""

STREAMED = 1 << 28
"""Bytes of content that are read of files without places, all together: 1 to 2 s for a core, decompression included."""

MERGED = 4
"""Places of columnar files that are read as one: the least that can be read is a column of some rows."""

REACH = 1 << 21
"""How far around a window the ends of its records are searched for, in bytes."""

STEP = 1 << 14
"""The same at first; then twice as far, and so on."""

BLOCK = 1 << 16
"""Bytes of content per read of a file that is read from its start."""

RECORDS = 1 << 10
"""Documents of token ids in an extract of such a file, at least."""


@dataclass(kw_only=True, slots=True)
class Extract:
    """Parts of some documents."""

    file: InputFile
    places: float
    """Places that it stands for."""
    bytes: float = 0.0
    """Bytes of the file, compressed where it is, that its documents take."""
    texts: list[str] = field(default_factory=list)
    """The parts, where documents are text."""
    lengths: list[float] = field(default_factory=list)
    """Tokens in each part, where documents are token ids."""
    shares: list[float] = field(default_factory=list)
    """How much of its document each part is, more than 0 and at most 1."""
    text_bytes: float | None = None
    """Bytes of text (UTF-8) in it, where more is known than what the parts hold."""
    rows: float | None = None
    """Documents in it, likewise."""

    @property
    def documents(self) -> float:
        """How many documents it holds."""
        return sum(self.shares) if self.rows is None else self.rows

    def add(self, batch: TextBatch, shares: Sequence[float]) -> None:
        """Append whole documents; `shares` of records, by record number."""
        records = batch.records.tolist()
        if batch.id_offsets is not None:
            edges = batch.id_offsets.tolist()
            self.lengths += [high - low for low, high in pairwise(edges)]
        else:
            self.texts += batch.texts
        self.shares += [shares[record] for record in records] if shares else [1.0] * len(records)


def group_name(file: InputFile) -> tuple[str, str]:
    """Format and compression of a file, by its name: files of one group give about as many tokens per byte."""
    return file.format, (split_suffix(file.path)[1] or "") if FORMATS[file.format].compressible else ""


def read_extracts(parts: Sequence[Part]) -> Iterator[Extract]:
    """Extracts of a corpus; `parts` are its files, whole. Any first few of them are spread over all of it.

    Every group of files has some. None of datasets from a hub, whose sizes are not known.
    """
    groups: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        if part.file.format != "hub" and part.file.bytes:
            groups.setdefault(group_name(part.file), []).append(part)
    total = sum(part.file.bytes for some in groups.values() for part in some)
    waiting = []
    for some in groups.values():
        size = sum(part.file.bytes for part in some)
        window = max(min(WINDOW, size // len(some)), 1)
        waiting.append(read_group(some, max(min(PLACES * size // total, 2 * size // window), FEWEST)))
    # By turns, so that who stops early has seen every group.
    while waiting:
        for group in list(waiting):
            extract = next(group, None)
            if extract is None:
                waiting.remove(group)
            else:
                yield extract


def read_group(parts: Sequence[Part], places: int) -> Iterator[Extract]:
    """Extracts of files of one format."""
    columnar = FORMATS[parts[0].file.format].is_columnar
    merged = MERGED if columnar else 1
    ends = list(accumulate(part.file.bytes for part in parts))
    chosen: dict[tuple[int, int], int] = {}
    edges: dict[int, list[int]] = {}
    windows: dict[int, bool] = {}
    for number in range(1, places // merged + 1):
        position = min(int(number * GOLDEN % 1 * ends[-1]), ends[-1] - 1)
        index = bisect_right(ends, position)
        offset = position - (ends[index - 1] if index else 0)
        with suppress(*UNREADABLE):
            if columnar:
                if index not in edges:
                    edges[index] = find_unit_edges(parts[index])
                offset = max(bisect_right(edges[index], offset) - 1, 0)
            else:
                if index not in windows:
                    windows[index] = is_seekable(parts[index])
                offset = offset if windows[index] else -1
            chosen[index, offset] = chosen.get((index, offset), 0) + merged
    for (index, offset), count in chosen.items():
        part = replace(parts[index], options=parts[index].options.model_copy(update={"on_error": "reject"}))
        limit = STREAMED * count // places
        with suppress(*UNREADABLE):
            if columnar and len(edges[index]) > 2:
                one = part.slice.model_copy(update={"start": offset, "stop": offset + 1})
                yield read_unit(replace(part, slice=one), count, edges[index][offset + 1] - edges[index][offset], limit)
            elif columnar or offset < 0:
                yield from read_stream(part, count, limit)
            else:
                yield read_window(part, offset, count)


def read_unit(part: Part, places: float, size: int, limit: int) -> Extract:
    """A row group or record batch, of which `limit` bytes of text are read; `size` are its bytes of the file."""
    extract = Extract(file=part.file, places=places)
    known = measure_unit(part) if part.options.ids_field is None else None
    slicer = Slicer(min(known[0], limit) / places if known else WINDOW)
    seen = rows = 0
    for batch in read_slice(part, block=BLOCK):
        if seen >= (limit if known else places * WINDOW):
            break
        extract.bytes += batch.bytes_read
        seen += batch.text_bytes + (0 if batch.ids is None else batch.ids.nbytes)
        rows += batch.records.size
        if batch.ids is not None:
            extract.add(batch, ())
        slicer.add(batch.texts, extract)
    else:
        known, extract.bytes = (seen, rows), size
    if part.options.ids_field is None:
        extract.bytes = size if known else extract.bytes
        extract.text_bytes, extract.rows = known or (seen, rows)
        slicer.finish(extract)
    return extract


class Slicer:
    """Cuts windows at equal distances out of texts that lie end to end: a long text is met as often as it is long."""

    def __init__(self, step: float) -> None:
        """A window every `step` characters; all text, where that is less than a window."""
        self.position = 0
        """Characters so far."""
        self._step = max(step, WINDOW)
        self._due = int((self._step - WINDOW) / 2)
        self._windows = 0
        self._last = ""

    @property
    def inside(self) -> bool:
        """Whether a window has begun that is not complete."""
        return self._due < self.position

    def add(self, texts: Sequence[str], extract: Extract) -> None:
        """Append to `extract` what lies in windows of further texts."""
        for text in texts:
            end = self.position + len(text)
            while self._due < end:
                begin = max(self._due - self.position, 0)
                stop = min(self._due + WINDOW - self.position, len(text))
                extract.texts.append(text[begin:stop])
                extract.shares.append((stop - begin) / len(text))
                if self._due + WINDOW > end:
                    break
                self._windows += 1
                self._due = int((self._step - WINDOW) / 2 + self._windows * self._step)
            self.position, self._last = end, text

    def finish(self, extract: Extract) -> None:
        """See that `extract` has some text, if there was any."""
        if not extract.texts and self._last:
            part = self._last[:WINDOW]
            extract.texts.append(part)
            extract.shares.append(len(part) / len(self._last))


def measure_unit(part: Part) -> tuple[int, int] | None:
    """Bytes of text and rows in a row group or record batch, by its metadata; None where that does not tell."""
    number, names = part.slice.start, part.options.text_field
    if part.file.format == "parquet":
        from exact_prep.sources.parquet import find_leaf, read_footer

        metadata = read_footer(part)
        with suppress(StopIteration):
            column = metadata.row_group(number).column(find_leaf(metadata, names[0]))
            return max(column.total_uncompressed_size - 4 * column.num_values, 1), metadata.row_group(number).num_rows
        return None
    import pyarrow as pa

    batch = pa.ipc.open_file(pa.memory_map(str(part.path))).get_batch(number)
    if names[0] not in batch.schema.names or not pa.types.is_string(batch.schema.field(names[0]).type):
        return None
    return max(batch.column(names[0]).nbytes - 4 * batch.num_rows, 1), batch.num_rows


def read_stream(part: Part, places: float, limit: int) -> Iterator[Extract]:
    """What a file holds from its start, about `limit` bytes of it, as extracts with a part of a document each.

    A decompressor takes its input in chunks: only what was read between the beginnings of two chunks belongs together.
    """
    file = part.file
    step = file.bytes * (COMPRESSED_WEIGHT if group_name(file)[1] else 1) / places
    slicer, ids = Slicer(step), 0
    one_document = file.format == "text" and not part.options.separator
    extract, continues = Extract(file=file, places=0, text_bytes=0, rows=0), False

    def finish() -> Extract:
        slicer.finish(extract)
        if one_document:
            extract.rows = extract.bytes / file.bytes
        extract.places = places * extract.bytes / file.bytes
        return extract

    for batch in read_slice(part, block=BLOCK):
        if batch.bytes_read and not slicer.inside and (extract.texts or len(extract.lengths) >= RECORDS):
            yield finish()
            extract = Extract(file=file, places=0, text_bytes=0, rows=0)
            if slicer.position + ids >= limit:
                return
        extract.bytes += batch.bytes_read
        extract.text_bytes = (extract.text_bytes or 0) + batch.text_bytes
        extract.rows = (extract.rows or 0) + batch.records.size - (continues and batch.records.size > 0)
        if batch.records.size:
            continues = batch.continues
        if batch.ids is not None:
            extract.add(batch, ())
            ids += batch.ids.nbytes
        slicer.add(batch.texts, extract)
    if extract.bytes:
        yield finish()


def read_window(part: Part, offset: int, places: int) -> Extract:
    """What lies in the window around byte `offset` of a plain file."""
    low = max(min(offset - WINDOW // 2, part.file.bytes - WINDOW), 0)
    high = min(low + WINDOW, part.file.bytes)
    extract = Extract(file=part.file, places=places, bytes=high - low)
    with opened(part.file, part.path) as raw:
        lines = None if part.file.format == "text" else find_lines(raw, low, high, part.file.bytes)
        start, stop = lines or (low, high)
        raw.seek(start)
        data = raw.read(stop - start)
    if part.file.format == "text":
        add_text(extract, data.decode(errors="ignore"), part.options.separator, low, high)
    elif lines:
        add_lines(extract, part, data.removesuffix(b"\n").split(b"\n"), start, low, high)
    else:
        # A part of a line that is too long to be looked at: it is taken for text.
        extract.texts, extract.shares = [unescape(data)], [(high - low) / REACH]
    return extract


def add_text(extract: Extract, text: str, separator: str | None, low: int, high: int) -> None:
    """Append the documents in a window of a text file; one that is cut by the window's edge counts as half."""
    texts = text.split(separator) if separator else [text]
    shares = [1.0] * len(texts)
    if len(texts) == 1:
        shares = [(high - low) / extract.file.bytes]
    else:
        shares[0] = 0.5 if low else 1.0
        shares[-1] = 0.5 if high < extract.file.bytes else 1.0
    for one, share in zip(texts, shares, strict=True):
        if one:
            extract.texts.append(one)
            extract.shares.append(share)


def find_lines(raw: io.FileIO, low: int, high: int, size: int) -> tuple[int, int] | None:
    """Start and stop of the whole lines of which the bytes `low` to `high` are a part; None if one is long."""
    start, stop, step = low, high - 1, STEP
    while True:
        begin = max(start - step, 0)
        raw.seek(begin)
        newline = raw.read(start - begin).rfind(b"\n")
        start = begin + newline + 1 if newline >= 0 else begin
        if newline >= 0 or not start:
            break
        if low - start >= REACH:
            return None
        step *= 2
    step = STEP
    while True:
        raw.seek(stop)
        newline = (data := raw.read(step)).find(b"\n")
        stop += newline + 1 if newline >= 0 else len(data)
        if newline >= 0 or stop >= size:
            return start, stop
        if stop - high >= REACH:
            return None
        step *= 2


def add_lines(extract: Extract, part: Part, lines: Sequence[bytes], start: int, low: int, high: int) -> None:
    """Append what of the documents in `lines`, which start at `start`, lies between the bytes `low` and `high`."""
    from exact_prep.sources.jsonl import decode_records, make_decoder

    batch = decode_records(part, make_decoder(part.options), lines, 0)
    spans = []
    for line in lines:
        size = len(line) + 1
        spans.append((max(low - start, 0) / size, min(high - start, size) / size))
        start += size
    first = len(extract.shares)
    extract.add(batch, [stop - begin for begin, stop in spans])
    for index, record in enumerate(batch.records.tolist(), first):
        begin, stop = spans[record]
        if extract.lengths:
            extract.lengths[index] *= stop - begin
        else:
            text = extract.texts[index]
            extract.texts[index] = text[round(begin * len(text)) : round(stop * len(text))]


def unescape(data: bytes) -> str:
    """The text in a part of a JSON string."""
    text = data.decode(errors="ignore")
    for cut in range(7):
        with suppress(ValueError):
            return json.loads(f'"{text[: len(text) - cut]}"', strict=False)
    return text


def find_fields(part: Part) -> tuple[str, ...]:
    """Names of the fields or columns of a file's first record; none where it has none, or cannot be read."""
    with suppress(*UNREADABLE, ValueError, StopIteration):
        match part.file.format:
            case "parquet":
                from exact_prep.sources.parquet import read_footer

                return tuple(read_footer(part).schema.to_arrow_schema().names)
            case "arrow":
                import pyarrow as pa

                memory = pa.memory_map(str(part.path))
                with suppress(pa.ArrowInvalid):
                    return tuple(pa.ipc.open_file(memory).schema.names)
                memory.seek(0)
                return tuple(pa.ipc.open_stream(memory).schema.names)
            case "csv":
                import csv

                from exact_prep.sources.delimited import Lines, choose_dialect

                return tuple(next(csv.reader(Lines(part, BLOCK), strict=True, **choose_dialect(part))))
            case "json" | "jsonl":
                return find_json_fields(part)
    return ()


def find_json_fields(part: Part) -> tuple[str, ...]:
    """Names in the first object of a file of JSON."""
    from exact_prep.sources.json_array import group_records
    from exact_prep.sources.jsonl import group_lines, name_records

    group = group_lines if part.file.format == "jsonl" and name_records(part) == "jsonl" else group_records
    for some in group(whole_blocks(part.file, part.path, size=BLOCK)):
        for record in some.records:
            found = json.loads(bytes(record))
            return tuple(found) if isinstance(found, dict) else ()
    return ()
