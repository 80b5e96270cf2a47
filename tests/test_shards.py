"""Laws of shards and of what lies beneath them: columns, checksums, weights in place, atomic files, locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exact_prep.batches import PackedBatch
from exact_prep.errors import DatasetError, StorageError
from exact_prep.shards import ShardWriter, opened, overwrite_weights, record_batch, schema
from exact_prep.stores.local import locked, write_atomically
from exact_prep.weighing.exposure import measure
from exact_prep.weighing.weights import WeightOptions, float16_runs, weight_table

PAD = 9


def packed(rows: list[list[int]], seq_len: int) -> PackedBatch:
    """Rows by segment lengths; the token at position t of row r is 100 r + t."""
    ids = np.full((len(rows), seq_len), PAD, np.int32)
    for r, row in enumerate(rows):
        ids[r, : sum(row)] = 100 * r + np.arange(sum(row))
    lengths = np.array([n for row in rows for n in row], np.int32)
    return PackedBatch(
        input_ids=ids,
        segments_per_row=np.array([*map(len, rows)], np.int32),
        seq_lengths=lengths,
        doc_ids=np.arange(lengths.size, dtype=np.int64),
        doc_offsets=np.zeros(lengths.size, np.int64),
    )


def write(path, batches, seq_len):
    writer = ShardWriter(path, seq_len)
    for batch in batches:
        writer.write(batch)
    return writer.close(file=path.name, task=0)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "data.arrow"
    return path, write(path, [packed([[3, 5], [8], [1]], 8), packed([[2, 2, 2]], 8)], 8)


def test_a_shard_is_an_arrow_stream_without_nulls_that_any_reader_opens(shard):
    path, record = shard
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    assert table.schema == schema(8)
    assert json.loads(table.schema.metadata[b"exact_prep"])["loss_weights_alignment"] == "target"
    assert table["seq_lengths"].to_pylist() == [[3, 5], [8], [1], [2, 2, 2]]
    assert table["input_ids"].to_pylist()[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert table["loss_weights"].to_pylist() == [
        [0, 1, 1, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 1, 0, 0],
    ]
    assert all(column.null_count == 0 for column in table.columns)
    assert (record.rows, record.segments, record.tokens, record.bytes) == (4, 7, 23, path.stat().st_size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=9), split=st.integers(0, 9)
)
def test_a_mapped_shard_gives_back_what_was_written(tmp_path, rows, split):
    seq_len = 40
    batches = [packed(part, seq_len) for part in (rows[:split], rows[split:]) if part]
    path = tmp_path / "data.arrow"
    write(path, batches, seq_len)
    shard = opened(path)
    for name in ("input_ids", "segments_per_row", "seq_lengths", "doc_ids", "doc_offsets"):
        written = np.concatenate([getattr(batch, name) for batch in batches])
        np.testing.assert_array_equal(np.concatenate([getattr(batch, name) for batch in shard.batches]), written)


def test_weights_in_place_change_nothing_else(shard):
    path, record = shard
    before = opened(path)
    ids = [batch.input_ids.copy() for batch in before.batches]
    table = weight_table(measure(np.array([3, 5, 8, 1, 2, 2, 2], np.int32)), WeightOptions(tail_from=0, alpha=0.5))
    checksum = overwrite_weights(path, *float16_runs(table, 8))
    after = opened(path)
    assert after.content_digest() == record.content_xxh3
    assert after.weights_digest() == checksum != record.weights_xxh3
    assert path.stat().st_size == record.bytes
    lut = table.lut(8).astype(np.float16)
    found = np.concatenate([batch.loss_weights for batch in after.batches])
    expected = [[*lut[:3], *lut[:5]], [*lut[:8]], [lut[0]] + [0] * 7, [*lut[:2], *lut[:2], *lut[:2], 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, np.float16))
    for old, batch in zip(ids, after.batches, strict=True):
        np.testing.assert_array_equal(old, batch.input_ids)


def test_two_checksums_cover_every_byte(shard):
    path, record = shard
    whole = bytearray(path.read_bytes())
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            now = opened(path)
        except DatasetError:
            continue
        assert (now.content_digest(), now.weights_digest()) != (record.content_xxh3, record.weights_xxh3)


def test_a_shard_cut_anywhere_is_refused_by_name(shard):
    path, _ = shard
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"data\.arrow"):
            opened(path)


def test_a_stream_with_other_columns_or_nulls_is_refused(tmp_path):
    path = tmp_path / "other.arrow"
    table = pa.table({"input_ids": [1, 2]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DatasetError, match="columns"):
        opened(path)
    batch = record_batch(packed([[2]], 4))
    lists = pa.array([[2]], pa.list_(pa.int32()))
    uneven = pa.record_batch(
        [batch[0], lists, pa.array([[1, 2]], pa.list_(pa.int64())), *batch.columns[3:]], schema=batch.schema
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, uneven.schema) as writer:
        writer.write_batch(uneven)
    with pytest.raises(DatasetError, match="unequal"):
        opened(path)


def test_a_file_is_published_whole_or_not_at_all(tmp_path):
    target = tmp_path / "record.json"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    with pytest.raises(StorageError, match="write"):
        write_atomically(tmp_path / "absent" / "record.json", b"three")


HOLD = """
import sys, time
from pathlib import Path
from exact_prep.stores.local import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_directory_is_refused_and_freed_by_the_holders_death(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match=rf"in use by pid {holder.pid} on "), locked(tmp_path):
        pytest.fail("two runs hold one directory")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert (tmp_path / ".lock-holder").read_text().startswith(f"pid {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []
