"""Laws of shards: columns, record batches, checksums, masks, weights in place, and what a damaged file is called."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exact_prep import shards
from exact_prep.batches import Rows
from exact_prep.errors import DatasetError, StorageError
from exact_prep.records.options import WeightOptions
from exact_prep.shards import ShardWriter, open_shard, overwrite_weights, record_batch, schema
from exact_prep.weighing.exposure import measure_lengths
from exact_prep.weighing.weights import float16_runs, plain_runs, weight_table

PAD = 9
COLUMNS = ("input_ids", "row_splits", "seq_lengths", "doc_ids", "doc_offsets", "sources")
SPLITS = {"row_splits", "mask_splits"}
function_scoped = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_rows(rows: list[list[int]], seq_len: int, runs: list[list[int]] | None = None) -> Rows:
    """Rows by segment lengths; the token at position t of row r is 100 r + t. `runs` are masked runs by row."""
    ids = np.full((len(rows), seq_len), PAD, np.int32)
    for r, row in enumerate(rows):
        ids[r, : sum(row)] = 100 * r + np.arange(sum(row))
    lengths = np.array([n for row in rows for n in row], np.int32)
    return Rows(
        input_ids=ids,
        row_splits=np.cumsum([0, *map(len, rows)], dtype=np.int32),
        seq_lengths=lengths,
        doc_ids=7 + np.arange(lengths.size, dtype=np.int64),
        doc_offsets=3 * np.arange(lengths.size, dtype=np.int64),
        sources=(np.arange(lengths.size) % 3).astype(np.int16),
        mask_splits=None if runs is None else np.cumsum([0, *map(len, runs)], dtype=np.int32),
        masked_runs=None if runs is None else np.array([value for own in runs for value in own], np.int32),
    )


def write(path, parts, seq_len, *, masked=False, weights=True):
    writer = ShardWriter(path, seq_len, masked=masked, weights=weights)
    for part in parts:
        writer.write(part)
    return writer.close(file=path.name, task=0)


def digest(*parts) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(parts))


def join_columns(batches, name: str) -> list:
    """A column of several batches, end to end; splits begin at 0 in each and are joined as sizes."""
    values = [getattr(batch, name) for batch in batches]
    return np.concatenate([np.diff(own) for own in values] if name in SPLITS else values).tolist()


row_lists = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=9)


@st.composite
def masked_rows(draw) -> tuple[list[list[int]], list[list[int]]]:
    """Rows by segment lengths, and masked runs: in each segment every target is masked or not."""
    rows, runs = draw(row_lists), []
    for row in rows:
        own, position = [], 0
        for length in row:
            bits = draw(st.lists(st.booleans(), min_size=length, max_size=length))
            for on, group in itertools.groupby(enumerate(bits, position), key=lambda pair: pair[1]):
                places = [place for place, _ in group]
                own += [places[0], places[-1] + 1] if on else []
            position += length
        runs.append(own)
    return rows, runs


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "data.arrow"
    return path, write(path, [make_rows([[3, 5], [8], [1]], 8), make_rows([[2, 2, 2]], 8)], 8)


@pytest.fixture
def masked_shard(tmp_path):
    """Record batches of two rows; a run per segment and some without, one over a whole segment, two that touch."""
    path = tmp_path / "masked.arrow"
    rows = make_rows([[3, 5], [8], [1], [2, 2, 2]], 8, [[0, 2, 3, 5], [], [0, 1], [0, 2, 2, 4]])
    with patch.object(shards, "BATCH_TOKENS", 16):
        return path, write(path, [rows], 8, masked=True)


def test_a_shard_is_an_arrow_stream_without_nulls_that_any_reader_opens(shard):
    path, record = shard
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    assert table.schema == schema(8)
    metadata = json.loads(table.schema.metadata[b"exact_prep"])
    assert metadata == {"format_version": 2, "loss_weights_alignment": "target"}
    assert table["seq_lengths"].to_pylist() == [[3, 5], [8], [1], [2, 2, 2]]
    assert table["sources"].to_pylist() == [[0, 1], [2], [0], [0, 1, 2]]
    assert table["input_ids"].to_pylist()[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert table["loss_weights"].to_pylist() == [
        [0, 1, 1, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 1, 0, 0],
    ]
    assert all(column.null_count == 0 for column in table.columns)
    assert (record.rows, record.segments, record.tokens, record.bytes) == (4, 7, 23, path.stat().st_size)


@function_scoped
@given(rows=row_lists, split=st.integers(0, 9), weights=st.booleans())
def test_a_mapped_shard_gives_back_what_was_written(tmp_path, rows, split, weights):
    seq_len = 40
    parts = [make_rows(part, seq_len) for part in (rows[:split], rows[split:]) if part]
    path = tmp_path / "data.arrow"
    write(path, parts, seq_len, weights=weights)
    shard = open_shard(path)
    for name in COLUMNS:
        assert join_columns(shard.batches, name) == join_columns(parts, name)
    assert all((batch.loss_weights is not None) == weights for batch in shard.batches)
    assert all(batch.mask_splits is batch.masked_runs is None for batch in shard.batches)


@settings(function_scoped, max_examples=30)
@given(rows=st.lists(st.just([5, 2]), min_size=1, max_size=20), pieces=st.lists(st.integers(1, 6), max_size=6))
def test_record_batches_are_full_but_for_the_last_however_the_rows_come(tmp_path, rows, pieces):
    """BATCH_TOKENS // L rows each, at least one; a row is never split."""
    path, whole = tmp_path / "data.arrow", make_rows(rows, 8)
    edges = [min(edge, len(rows)) for edge in np.cumsum([0, *pieces])] + [len(rows)]
    parts = [whole.slice(start, stop) for start, stop in itertools.pairwise(edges)]
    for tokens, per_batch in ((31, 3), (32, 4), (7, 1), (1000, 125)):
        with patch.object(shards, "BATCH_TOKENS", tokens):
            record = write(path, parts, 8)
            one_piece = write(path.with_name("other.arrow"), [whole], 8)
        sizes = [batch.rows for batch in record.batches]
        assert sizes[:-1] == [per_batch] * (len(sizes) - 1)
        assert 1 <= sizes[-1] <= per_batch
        assert sum(sizes) == len(rows)
        assert path.read_bytes() == path.with_name("other.arrow").read_bytes()
        assert replace_file(one_piece, record.file) == record


def replace_file(record, name):
    return record.model_copy(update={"file": name})


def read_buffers(raw: bytes, record, seq_len: int) -> list[dict[str, np.ndarray]]:
    """The buffers of each record batch by their offsets in the raw file; no Arrow involved."""
    found = []
    for place in record.batches:

        def take(offset, dtype, count):
            return None if offset is None else np.frombuffer(raw, dtype, count, offset)

        values = {
            "input_ids": take(place.input_ids, "<i4", place.rows * seq_len),
            "row_splits": take(place.row_splits, "<i4", place.rows + 1),
            "seq_lengths": take(place.seq_lengths, "<i4", place.segments),
            "doc_ids": take(place.doc_ids, "<i8", place.segments),
            "doc_offsets": take(place.doc_offsets, "<i8", place.segments),
            "sources": take(place.sources, "<i2", place.segments),
            "loss_weights": take(place.loss_weights, "<f2", place.rows * seq_len),
            "mask_splits": take(place.mask_splits, "<i4", place.rows + 1),
        }
        runs = 0 if values["mask_splits"] is None else int(values["mask_splits"][-1])
        values["masked_runs"] = take(place.masked_runs, "<i4", runs)
        found.append(values)
    return found


def slow_checksums(raw: bytes, record, seq_len: int) -> tuple[str, str, str | None]:
    """content_xxh3, rest_xxh3 and weights_xxh3 as the specification words them, byte by byte."""
    content, weights, covered, start = [], [], np.zeros(len(raw), bool), np.frombuffer(raw, np.uint8)
    for values in read_buffers(raw, record, seq_len):
        names = ["input_ids"]
        for name in ("seq_lengths", "doc_ids", "doc_offsets"):
            names += ["row_splits", name]
        content += [values[name].tobytes() for name in names]
        if values["masked_runs"] is not None:
            content += [values["mask_splits"].tobytes(), values["masked_runs"].tobytes()]
        if values["loss_weights"] is not None:
            weights.append(values["loss_weights"].tobytes())
            mark(covered, start, values["loss_weights"])
    # Each list column has splits of its own in the file. Arrow finds them: the table of batches holds the first ones.
    for batch in pa.ipc.open_stream(pa.py_buffer(raw)):
        for name in batch.schema.names:
            column = batch.column(name)
            if name in ("input_ids", "seq_lengths", "doc_ids", "doc_offsets", "masked_runs"):
                values = column.values.buffers()[1]
                if values is not None:
                    mark(covered, start, np.frombuffer(values, np.uint8, len(column.values) * itemsize(column)))
                if name != "input_ids":
                    mark(covered, start, np.frombuffer(column.buffers()[1], np.uint8, 4 * (len(column) + 1)))
    rest = bytes(byte for byte, used in zip(raw, covered, strict=True) if not used)
    return digest(*content), digest(rest), digest(*weights) if weights else None


def itemsize(column: pa.Array) -> int:
    return column.type.value_type.bit_width // 8


def mark(covered: np.ndarray, whole: np.ndarray, part: np.ndarray) -> None:
    """Mark the bytes of `whole` that `part`, a view of it, covers."""
    if part.size:
        at = part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        assert 0 <= at <= whole.size - part.nbytes
        assert not covered[at : at + part.nbytes].any()
        covered[at : at + part.nbytes] = True


@function_scoped
@given(masked_rows(), st.booleans(), st.booleans(), st.sampled_from([1, 80, 10**6]))
def test_checksums_and_places_are_those_of_a_slow_reading_of_the_file(tmp_path, case, masked, weights, tokens):
    lists, runs = case
    path, rows = tmp_path / "data.arrow", make_rows(lists, 40, runs if masked else None)
    with patch.object(shards, "BATCH_TOKENS", tokens):
        record = write(path, [rows], 40, masked=masked, weights=weights)
    raw = path.read_bytes()
    assert (record.content_xxh3, record.rest_xxh3, record.weights_xxh3) == slow_checksums(raw, record, 40)
    shard = open_shard(path)
    assert shard.places == record.batches
    assert shard.content_digest() == record.content_xxh3
    assert shard.rest_digest() == record.rest_xxh3
    assert shard.weights_digest() == record.weights_xxh3
    first = 0
    for values in read_buffers(raw, record, 40):
        part = rows.slice(first, first + values["input_ids"].size // 40)
        for name in (*COLUMNS, *(["mask_splits", "masked_runs"] if masked else [])):
            np.testing.assert_array_equal(values[name], getattr(part, name).reshape(-1))
        assert (values["loss_weights"] is None) == (not weights)
        assert (values["masked_runs"] is None) == (not masked)
        first += len(part)
    assert first == len(lists)


@function_scoped
@given(masked_rows(), st.booleans(), st.lists(st.integers(1, 4), max_size=5))
def test_the_content_checksum_is_the_same_with_and_without_weights_and_in_any_pieces(tmp_path, case, masked, pieces):
    lists, runs = case
    rows = make_rows(lists, 40, runs if masked else None)
    edges = [min(edge, len(rows)) for edge in np.cumsum([0, *pieces])] + [len(rows)]
    parts = [rows.slice(start, stop) for start, stop in itertools.pairwise(edges)]
    path = tmp_path / "data.arrow"
    with patch.object(shards, "BATCH_TOKENS", 120):
        records = [
            write(path.with_name("plain.arrow"), [rows], 40, masked=masked, weights=False),
            write(path.with_name("pieces.arrow"), parts, 40, masked=masked, weights=False),
            write(path, parts, 40, masked=masked),
        ]
    assert len({record.content_xxh3 for record in records}) == 1
    assert [record.weights_xxh3 is None for record in records] == [True, True, False]
    assert records[0].rest_xxh3 == records[1].rest_xxh3 != records[2].rest_xxh3
    table = weight_table(measure_lengths(rows.seq_lengths), WeightOptions(tail_from=0, alpha=3.0))
    overwrite_weights(path, *float16_runs(table, 40))
    weighed = open_shard(path)
    assert (weighed.content_digest(), weighed.rest_digest()) == (records[2].content_xxh3, records[2].rest_xxh3)


@pytest.mark.parametrize("weights", [True, False])
def test_a_shard_without_rows_has_checksums_too(tmp_path, weights):
    path = tmp_path / "empty.arrow"
    record = write(path, [], 8, weights=weights)
    shard = open_shard(path)
    assert (record.rows, record.batches, shard.batches) == (0, (), ())
    found = (shard.content_digest(), shard.rest_digest(), shard.weights_digest())
    assert found == (record.content_xxh3, record.rest_xxh3, record.weights_xxh3)
    assert found == (digest(), digest(path.read_bytes()), digest() if weights else None)


def test_sources_are_not_content(tmp_path):
    """Labels may be given otherwise: the tree hash of a dataset does not change with them, the rest does."""
    rows = make_rows([[3, 5], [8]], 8)
    other = replace(rows, sources=rows.sources[::-1].copy())
    first, second = (write(tmp_path / name, [own], 8) for name, own in (("a", rows), ("b", other)))
    assert first.content_xxh3 == second.content_xxh3
    assert first.rest_xxh3 != second.rest_xxh3


def test_weights_in_place_change_nothing_else(shard):
    path, record = shard
    ids = [batch.input_ids.copy() for batch in open_shard(path).batches]
    table = weight_table(
        measure_lengths(np.array([3, 5, 8, 1, 2, 2, 2], np.int32)), WeightOptions(tail_from=0, alpha=0.5)
    )
    checksum = overwrite_weights(path, *float16_runs(table, 8))
    after = open_shard(path)
    assert after.content_digest() == record.content_xxh3
    assert after.rest_digest() == record.rest_xxh3
    assert after.weights_digest() == checksum != record.weights_xxh3
    assert path.stat().st_size == record.bytes
    lut = table.lut(8).astype(np.float16)
    found = np.concatenate([batch.loss_weights for batch in after.batches])
    expected = [[*lut[:3], *lut[:5]], [*lut[:8]], [lut[0]] + [0] * 7, [*lut[:2], *lut[:2], *lut[:2], 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, np.float16))
    for old, batch in zip(ids, after.batches, strict=True):
        np.testing.assert_array_equal(old, batch.input_ids)


@pytest.mark.parametrize("kind", ["plain", "masked", "without weights"])
def test_three_checksums_cover_every_byte(tmp_path, request, kind):
    if kind == "without weights":
        path = tmp_path / "bare.arrow"
        record = write(path, [make_rows([[3, 5], [8]], 8)], 8, weights=False)
    else:
        path, record = request.getfixturevalue("shard" if kind == "plain" else "masked_shard")
    written = (record.content_xxh3, record.rest_xxh3, record.weights_xxh3)
    opened, whole, refused = open_shard(path), path.read_bytes(), 0
    assert (opened.content_digest(), opened.rest_digest(), opened.weights_digest()) == written
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (3 * position % 8)
        path.write_bytes(changed)
        try:
            now = open_shard(path)
        except DatasetError:
            refused += 1
            continue
        found = (now.content_digest(), now.rest_digest(), now.weights_digest())
        assert found != written, f"byte {position}"
        if (now.content, now.weights) == (opened.content, opened.weights):
            # No two of them watch over one byte.
            assert sum(a != b for a, b in zip(found, written, strict=True)) == 1, f"byte {position}"
    # What Arrow refuses is its own headers, and splits; the checksums alone watch over the values.
    values = sum(part.stop - part.start for part in (*opened.content, *opened.weights))
    assert refused < len(whole) - values / 2


def test_a_shard_cut_anywhere_is_refused_by_name(shard):
    path, _ = shard
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"data\.arrow"):
            open_shard(path)


def write_stream(path, schema_: pa.Schema, *batches: pa.RecordBatch):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema_) as writer:
        for batch in batches:
            writer.write_batch(batch)


def plain_batch(rows: Rows) -> pa.RecordBatch:
    bits = np.empty(rows.input_ids.shape, np.uint16)
    shards.fill_weights(rows, *plain_runs(rows.seq_len), bits)
    return record_batch(rows, bits)


def test_a_stream_with_other_columns_or_nulls_is_refused(tmp_path):
    path = tmp_path / "other.arrow"
    table = pa.table({"input_ids": [1, 2]})
    write_stream(path, table.schema, *table.to_batches())
    with pytest.raises(DatasetError, match="columns"):
        open_shard(path)
    batch = plain_batch(make_rows([[2]], 4))
    lists = pa.array([[2]], pa.list_(pa.int32()))
    uneven = pa.record_batch(
        [batch[0], lists, pa.array([[1, 2]], pa.list_(pa.int64())), *batch.columns[3:]], schema=batch.schema
    )
    write_stream(path, uneven.schema, uneven)
    with pytest.raises(DatasetError, match="unequal"):
        open_shard(path)
    nulls = pa.record_batch([batch[0], pa.array([None], pa.list_(pa.int32())), *batch.columns[2:]], schema=batch.schema)
    write_stream(path, nulls.schema, nulls)
    with pytest.raises(DatasetError, match="nulls"):
        open_shard(path)


def test_a_compressed_stream_is_refused(tmp_path):
    """`weigh` writes to places in the file: there are none in compressed buffers."""
    path = tmp_path / "zstd.arrow"
    batch = plain_batch(make_rows([[64]] * 64, 64))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    with pytest.raises(DatasetError, match="not in the file as they are"):
        open_shard(path)


def test_columns_of_a_later_minor_version_are_ignored_and_covered_by_the_rest(tmp_path):
    path, rows = tmp_path / "later.arrow", make_rows([[3, 5], [8]], 8)
    known = write(path.with_name("known.arrow"), [rows], 8)
    batch = plain_batch(rows)
    names = [*batch.schema.names[:2], "languages", *batch.schema.names[2:], "scores"]
    extra = {"languages": pa.array([["de", None], []]), "scores": pa.array([0.5, None])}
    later = pa.record_batch([extra[name] if name in extra else batch.column(name) for name in names], names=names)
    later = later.replace_schema_metadata(batch.schema.metadata)
    write_stream(path, later.schema, later)
    shard = open_shard(path)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(shard.batches[0], name), getattr(rows, name))
    assert shard.content_digest() == known.content_xxh3
    assert shard.weights_digest() == known.weights_xxh3
    whole, before = path.read_bytes(), shard.rest_digest()
    assert before != known.rest_xxh3
    at = whole.index(b"de", whole.index(b"scores"))
    path.write_bytes(whole[:at] + b"fr" + whole[at + 2 :])
    assert open_shard(path).rest_digest() != before
    assert open_shard(path).content_digest() == known.content_xxh3


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (
            {"format_version": 3, "loss_weights_alignment": "target"},
            r"later\.arrow .* format 3.*reads format 2",
        ),
        ({"format_version": 1, "loss_weights_alignment": "target"}, r"format 1.*reads format 2; pack again"),
        ({"format_version": 2, "loss_weights_alignment": "prediction"}, "columns"),
        ({"loss_weights_alignment": "target"}, "columns"),
        (None, "columns"),
        ([], "columns"),
    ],
)
def test_another_major_version_or_alignment_is_refused_by_name(tmp_path, metadata, says):
    path, batch = tmp_path / "later.arrow", plain_batch(make_rows([[3, 5], [8]], 8))
    found = {} if metadata is None else {"exact_prep": json.dumps(metadata)}
    batch = batch.replace_schema_metadata(found)
    write_stream(path, batch.schema, batch)
    with pytest.raises(DatasetError, match=says):
        open_shard(path)


@function_scoped
@given(masked_rows(), st.booleans())
def test_masked_targets_weigh_nothing_and_their_runs_are_read_back(tmp_path, case, weigh):
    lists, runs = case
    seq_len, path = 40, tmp_path / "data.arrow"
    rows = make_rows(lists, seq_len, runs)
    with patch.object(shards, "BATCH_TOKENS", 3 * seq_len):
        record = write(path, [rows], seq_len, masked=True)
    lut = np.array([0] + [1] * (seq_len - 1), np.float16)
    if weigh:
        table = weight_table(measure_lengths(rows.seq_lengths), WeightOptions(tail_from=0, supervise_first=True))
        lut = table.lut(seq_len).astype(np.float16)
        checksum = overwrite_weights(path, *float16_runs(table, seq_len))
        assert open_shard(path).weights_digest() == checksum
        assert open_shard(path).content_digest() == record.content_xxh3
    shard = open_shard(path)
    for name in (*COLUMNS, "mask_splits", "masked_runs"):
        assert join_columns(shard.batches, name) == join_columns([rows], name)
    expected = []
    for row, own in zip(lists, runs, strict=True):
        weights = [lut[i] for length in row for i in range(length)]
        for start, stop in zip(own[::2], own[1::2], strict=True):
            weights[start:stop] = [np.float16(0)] * (stop - start)
        expected.append(weights + [np.float16(0)] * (seq_len - len(weights)))
    np.testing.assert_array_equal(np.concatenate([batch.loss_weights for batch in shard.batches]), np.array(expected))


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([[0], [0, 1]], "pairs"),
        ([[2, 2], []], "empty"),
        ([[3, 1], []], "empty"),
        ([[-1, 2], []], "leaves its row"),
        ([[], [3, 9]], "leaves its row"),
        ([[2, 4], []], "crosses the edge"),
        ([[], [6, 8]], "crosses the edge"),
        ([[0, 1, 1, 2], []], "not merged"),
        ([[3, 5, 0, 2], []], "not in order"),
        ([[4, 7, 5, 6], []], "not in order"),
    ],
)
def test_wrong_masked_runs_are_refused(tmp_path, runs, says):
    """Row 0 holds segments of 3 and 5 tokens, row 1 one of 7, and padding."""
    path = tmp_path / "wrong.arrow"
    batch = plain_batch(make_rows([[3, 5], [7]], 8, [[], []]))
    bad = pa.array(runs, pa.list_(pa.int32()))
    columns = [bad if name == "masked_runs" else batch.column(name) for name in batch.schema.names]
    wrong = pa.record_batch(columns, schema=batch.schema)
    write_stream(path, wrong.schema, wrong)
    with pytest.raises(DatasetError, match=rf"wrong\.arrow.*{says}"):
        open_shard(path)


def test_runs_that_touch_where_a_segment_ends_are_right(tmp_path):
    path = tmp_path / "masked.arrow"
    write(path, [make_rows([[3, 5], [7]], 8, [[1, 3, 3, 4], [0, 7]])], 8, masked=True)
    (batch,) = open_shard(path).batches
    assert batch.masked_runs is not None
    assert batch.masked_runs.tolist() == [1, 3, 3, 4, 0, 7]


def test_a_source_below_0_is_refused(tmp_path):
    """The counting kernel does not check bounds."""
    path, rows = tmp_path / "data.arrow", make_rows([[3, 5]], 8)
    with pytest.raises(DatasetError, match=r"data\.arrow.*source below 0"):
        write(path, [replace(rows, sources=np.array([0, -2], np.int16))], 8)
    with pytest.raises(DatasetError, match="source below 0"):
        open_shard(path)


def test_the_expected_weights_name_rows_and_places(masked_shard):
    path, _ = masked_shard
    shard, raw = open_shard(path), path.read_bytes()
    with patch.object(shards, "BLOCK_TOKENS", 8):
        blocks = [(row, raw[at : at + block.nbytes] == block.tobytes()) for row, at, block in expected(shard)]
    assert blocks == [(0, True), (1, True), (2, True), (3, True)]


def expected(shard):
    return shard.expected_weights(*plain_runs(shard.seq_len))


def test_an_abandoned_shard_leaves_no_file(tmp_path):
    writer = ShardWriter(tmp_path / "data.arrow", 8)
    writer.write(make_rows([[8]], 8))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=r"absent.*data\.arrow"):
        ShardWriter(tmp_path / "absent" / "data.arrow", 8)


@given(masked_rows(), st.integers(0, 9), st.integers(0, 9))
def test_slices_of_rows_are_the_rows(case, start, stop):
    lists, runs = case
    rows = replace(make_rows(lists, 40, runs), loss_weights=np.ones((len(lists), 40), np.float16))
    start = min(start, len(lists))
    stop = max(start, stop)
    part = rows.slice(start, stop)
    assert len(part) == len(lists[start:stop])
    assert part.row_splits.tolist() == [0, *np.cumsum([len(row) for row in lists[start:stop]])]
    assert part.seq_lengths.tolist() == [n for row in lists[start:stop] for n in row]
    assert part.mask_splits is not None
    assert part.masked_runs is not None
    assert part.mask_splits.tolist() == [0, *np.cumsum([len(own) for own in runs[start:stop]])]
    assert part.masked_runs.tolist() == [value for own in runs[start:stop] for value in own]
    assert part.segment_starts().tolist() == [sum(row[:k]) for row in lists[start:stop] for k in range(len(row))]
