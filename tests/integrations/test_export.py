"""Laws of `export`: what comes back through each format's own reader is what plain Python derives from the dataset."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from written_dataset import (
    VOCAB,
    documents,
    mask_dataset,
    oracle_weights,
    read_weights_file,
    weigh_dataset,
    write_dataset,
    write_table,
)

import exact_prep
from exact_prep.errors import DatasetError, Interrupted, StorageError, UsageError
from exact_prep.pipeline.events import Finished, Progress, Started
from exact_prep.pipeline.export import export
from exact_prep.shards import open_shard
from exact_prep.stores.local import temporary_path

SEQ_LEN = 64


def expected(dataset, weights_file, align):
    """ids, weights, position_ids and lengths of every row, as lists."""
    for row in dataset:
        lengths = row.seq_lengths.tolist()
        weights = oracle_weights(lengths, SEQ_LEN, weights_file)
        if align == "prediction":
            weights = [*weights[1:], 0.0]
        positions = [p for n in lengths for p in range(n)]
        yield row.input_ids.tolist(), weights, positions + [0] * (SEQ_LEN - len(positions)), lengths


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_numpy(dataset, weighed, tmp_path, align):
    directory, table, weights_file = weighed
    made = export(directory, "numpy", tmp_path / "out", align=align, weights=table)
    assert made == json.loads((tmp_path / "out" / "export.json").read_text())
    assert made["weights_checksum"] == weights_file["checksum"]
    assert made["dataset_tree_hash"] == dataset.manifest.tree_hash
    files = {path.stem: np.load(path, mmap_mode="r") for path in (tmp_path / "out").glob("*.npy")}
    splits = files["row_splits"]
    assert len(splits) == len(dataset) + 1
    for r, (ids, weights, positions, lengths) in enumerate(expected(dataset, weights_file, align)):
        assert files["input_ids"][r].tolist() == ids
        assert files["loss_weights"][r].tolist() == weights
        assert files["position_ids"][r].tolist() == positions
        assert files["seq_lengths"][splits[r] : splits[r + 1]].tolist() == lengths
        assert files["doc_ids"][splits[r] : splits[r + 1]].tolist() == dataset[r].doc_ids.tolist()
    assert files["loss_weights"].dtype == np.float16
    assert files["input_ids"].dtype == np.int32


@pytest.mark.parametrize(("kind", "align"), [("parquet", "target"), ("parquet", "prediction"), ("levanter", None)])
def test_parquet_and_levanter(dataset, weighed, tmp_path, kind, align):
    directory, table, weights_file = weighed
    made = export(directory, kind, tmp_path / "out", align=align, weights=table)
    rows = pq.read_table([tmp_path / "out" / name for name in made["files"]]).to_pylist()
    want = list(expected(dataset, weights_file, align or "prediction"))
    assert [row["input_ids"] for row in rows] == [ids for ids, *_ in want]
    assert [row["loss_weights"] for row in rows] == [weights for _, weights, *_ in want]
    if kind == "parquet":
        assert [row["seq_lengths"] for row in rows] == [lengths for *_, lengths in want]
        assert [row["doc_offsets"] for row in rows] == [row.doc_offsets.tolist() for row in dataset]
    else:
        assert set(rows[0]) == {"input_ids", "loss_weights"}


def test_a_long_export_to_parquet_is_cut_into_files(dataset, directory, tmp_path, monkeypatch):
    monkeypatch.setattr("exact_prep.layouts.parquet.FILE_TOKENS", 5 * SEQ_LEN)
    made = export(directory, "parquet", tmp_path / "out")
    assert len(made["files"]) > 2
    rows = pq.read_table([tmp_path / "out" / name for name in made["files"]])["input_ids"].to_pylist()
    assert rows == [row.input_ids.tolist() for row in dataset]


def test_the_lookup_table(weighed, tmp_path):
    directory, table, weights_file = weighed
    made = export(directory, "lut", tmp_path / "out", weights=table)
    assert made["alpha"] == weights_file["options"]["alpha"]
    want = oracle_weights([SEQ_LEN], SEQ_LEN, weights_file)
    assert np.load(tmp_path / "out" / "lut.npy").tolist() == [*want, want[-1]]


def test_row_weights_are_means_of_token_weights_and_tell_how_far_they_go(dataset, weighed, tmp_path):
    directory, table, weights_file = weighed
    made = export(directory, "row-weights", tmp_path / "out", weights=table)
    weights = np.load(tmp_path / "out" / "row_weights.npy")
    supervised, tails, means = [], [], []
    for _, own, positions, _ in expected(dataset, weights_file, "target"):
        kept = [(w, p) for w, p in zip(own, positions, strict=True) if w > 0]
        tails.append([w for w, p in kept if p >= weights_file["options"]["tail_from"]])
        supervised.append([w for w, _ in kept])
        means.append(sum(supervised[-1]) / max(len(kept), 1))
    assert weights.tolist() == pytest.approx(means, rel=1e-12)
    shares = made["tail_share_of_supervision"]
    count = sum(map(len, supervised))
    assert shares["uniform"] == pytest.approx(sum(map(len, tails)) / count)
    drawn = sum(m * len(own) for m, own in zip(means, supervised, strict=True))
    assert shares["row_weights"] == pytest.approx(sum(m * len(t) for m, t in zip(means, tails, strict=True)) / drawn)
    assert shares["token_weights"] == pytest.approx(sum(map(sum, tails)) / sum(map(sum, supervised)))
    assert shares["uniform"] < shares["row_weights"] < shares["token_weights"]


def open_with_vocabulary(monkeypatch, vocabulary):
    """Datasets made of ids know no vocabulary; let the exporters see one."""

    def opened(path, **options):
        dataset = exact_prep.open(path, **options)
        tokenizer = dataset.manifest.tokenizer.model_copy(update={"vocab_size": vocabulary or 0})
        manifest = dataset.manifest.model_copy(update={"tokenizer": tokenizer})
        dataset.files = replace(dataset.files, manifest=manifest)
        return dataset

    # Not by name: `exact_prep.pipeline.export` is the function.
    monkeypatch.setattr(sys.modules[export.__module__], "open_rows", opened)


@pytest.mark.parametrize("align", ["target", "prediction"])
@pytest.mark.parametrize("vocabulary", [None, VOCAB])
def test_megatron_files_byte_by_byte(dataset, weighed, tmp_path, align, vocabulary, monkeypatch):
    """Read back with struct alone; tests/integrations/test_megatron.py does it with Megatron's own reader."""
    directory, table, weights_file = weighed
    open_with_vocabulary(monkeypatch, vocabulary)
    export(directory, "megatron", tmp_path / "out", align=align, weights=table)
    index = (tmp_path / "out" / "data.idx").read_bytes()
    magic, version, code, sequences, edges = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, code) == (b"MMIDIDX\0\0", 1, 8 if vocabulary else 4)
    dtype = np.uint16 if vocabulary else np.int32
    at = 34
    lengths = np.frombuffer(index, "<i4", sequences, at)
    pointers = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
    rows = np.frombuffer(index, "<i8", edges, at + 12 * sequences)
    assert len(index) == at + 12 * sequences + 8 * edges
    tokens = np.fromfile(tmp_path / "out" / "data.bin", dtype)
    weights = np.fromfile(tmp_path / "out" / "data_loss_weights.bin", np.float16).reshape(-1, SEQ_LEN)
    want = list(expected(dataset, weights_file, align))
    assert rows[0] == 0
    assert len(rows) == len(want) + 1
    assert tokens.tolist() == [token for ids, *_ in want for token in ids]
    assert weights.tolist() == [own for _, own, *_ in want]
    for r, (*_, own) in enumerate(want):
        padding = SEQ_LEN - sum(own)
        assert lengths[rows[r] : rows[r + 1]].tolist() == own + [padding] * (padding > 0)
        assert pointers[rows[r]] == r * SEQ_LEN * np.dtype(dtype).itemsize
    assert pointers.tolist() == (np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize).tolist()


def test_ids_that_do_not_fit_are_refused(directory, tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path / "big", [[300, 70000, 302]], seq_len=4, shards=1)
    weigh_dataset(dataset, allow_empty_tail=True)
    open_with_vocabulary(monkeypatch, 200)
    with pytest.raises(DatasetError, match="ids beyond its vocabulary of 200"):
        export(dataset, "megatron", tmp_path / "out")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(directory, tmp_path):
    plain = write_dataset(tmp_path / "plain", documents(5, 30), seq_len=16)
    with pytest.raises(DatasetError, match="not weighed; run `exact-prep weigh"):
        export(plain, "numpy", tmp_path / "out")
    weigh_dataset(write_dataset(tmp_path / "several" / "16", documents(5, 30), seq_len=16))
    with pytest.raises(DatasetError, match="holds several datasets"):
        export(tmp_path / "several", "numpy", tmp_path / "out")
    with pytest.raises(UsageError, match="leave --align out"):
        export(directory, "levanter", tmp_path / "out", align="target")
    with pytest.raises(UsageError, match="there is no format 'tfrecord'"):
        export(directory, "tfrecord", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is not an export"):
            export(directory, "lut", tmp_path / "mine", overwrite=overwrite)
    assert not (tmp_path / "out").exists()
    export(directory, "lut", tmp_path / "out")
    with pytest.raises(UsageError, match="--overwrite"):
        export(directory, "numpy", tmp_path / "out")
    export(directory, "numpy", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "lut.npy").exists()


def test_an_export_may_go_to_the_empty_directory_one_is_in(directory, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(directory, "lut", Path())
    assert (tmp_path / "here" / "export.json").is_file()


KINDS = ["numpy", "parquet", "levanter", "megatron", "row-weights"]
"""Formats that need nothing else and pass rows on."""


def names(path):
    """What lies in a directory, hidden files included."""
    return sorted(own.name for own in path.iterdir())


@pytest.fixture
def copies(weighed, tmp_path):
    """A copy of a dataset that may be damaged, in a directory of its own, and the table to open it with."""
    directory, table, _ = weighed
    return shutil.copytree(directory, tmp_path / "data" / "packed"), table


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["input_ids", "doc_ids", "sources"])
def test_a_damaged_shard_is_found_before_it_is_passed_on(copies, tmp_path, kind, part):
    path, table = copies
    last = max(path.glob("data-*.arrow"))
    flip(last, getattr(open_shard(last).places[0], part))
    with pytest.raises(DatasetError, match=rf"{last.name} is damaged; see `exact-prep verify"):
        export(path, kind, tmp_path / "out", weights=table)
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_are_found_where_they_are_used(directory, weights_table, weights_file, tmp_path, kind):
    path = shutil.copytree(directory, tmp_path / "data" / "packed")
    last = max(path.glob("data-*.arrow"))
    flip(last, open_shard(last).places[0].loss_weights + 2)
    with pytest.raises(DatasetError, match=rf"{last.name} is damaged; see `exact-prep verify"):
        export(path, kind, tmp_path / "out")
    assert names(tmp_path) == ["data"]
    # A table takes the place of the column.
    assert export(path, kind, tmp_path / "out", weights=weights_table)["rows"] == len(exact_prep.open(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_table_of_checksums_is_refused(directory, tmp_path, kind):
    path = shutil.copytree(directory, tmp_path / "data" / "packed")
    checksums = path / "tables" / "weights.parquet"
    flip(checksums, checksums.stat().st_size // 2)
    with pytest.raises(
        DatasetError, match=r"weights\.parquet do not belong together: .*; run `exact-prep weigh .*` again"
    ):
        export(path, kind, tmp_path / "out")
    checksums.unlink()
    with pytest.raises(DatasetError, match=r"weights\.parquet is missing; run `exact-prep weigh .*` again"):
        export(path, kind, tmp_path / "out")
    assert names(tmp_path) == ["data"]


def test_a_table_of_another_dataset_is_refused_unless_it_is_meant(directory, dataset, tmp_path):
    other = write_dataset(tmp_path / "other", documents(40, 200, seed=1), seq_len=SEQ_LEN)
    table = write_table(other, tmp_path / "other.json", alpha=3.0)
    with pytest.raises(DatasetError, match="made for other datasets"):
        export(directory, "numpy", tmp_path / "out", weights=table)
    assert not (tmp_path / "out").exists()
    export(directory, "numpy", tmp_path / "out", weights=table, weights_from_elsewhere=True)
    want = [weights for _, weights, *_ in expected(dataset, read_weights_file(table), "target")]
    assert np.load(tmp_path / "out" / "loss_weights.npy").tolist() == want


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_masked_targets_weigh_nothing_in_an_export(tmp_path, loss_weights):
    def second_half(rows, row):
        segment = rows.row_splits[row]
        length = int(rows.seq_lengths[segment])
        return [(length // 2, length)]

    path = write_dataset(tmp_path / "data", documents(40, 200), seq_len=SEQ_LEN, loss_weights=loss_weights)
    weigh_dataset(mask_dataset(path, second_half), alpha=0.7)
    file, rows = read_weights_file(path / "weights.json"), exact_prep.open(path)
    want = []
    for _, weights, _, lengths in expected(rows, file, "target"):
        want.append([0.0 if lengths[0] // 2 <= t < lengths[0] else weight for t, weight in enumerate(weights)])
    for align in ("target", "prediction"):
        export(path, "numpy", tmp_path / align, align=align)
        made = np.load(tmp_path / align / "loss_weights.npy").tolist()
        assert made == [own if align == "target" else [*own[1:], 0.0] for own in want]
    export(path, "row-weights", tmp_path / "rows")
    means = [sum(own) / max(sum(weight > 0 for weight in own), 1) for own in want]
    assert np.load(tmp_path / "rows" / "row_weights.npy").tolist() == pytest.approx(means, rel=1e-12)


@pytest.mark.parametrize("loss_weights", ["column", "table"])
@pytest.mark.parametrize("seq_len", [2, 5, 7])
@pytest.mark.filterwarnings("error")
def test_row_weights_of_very_short_rows_are_numbers(tmp_path, seq_len, loss_weights):
    """Below 8 tokens there is one bucket and no tail; a row of one-token documents has no target at all."""
    docs = [[1]] * (2 * seq_len) + documents(20, seq_len)
    path = write_dataset(tmp_path / "data", docs, seq_len=seq_len, loss_weights=loss_weights)
    weigh_dataset(path, allow_empty_tail=True)
    made = export(path, "row-weights", tmp_path / "out")
    weights = np.load(tmp_path / "out" / "row_weights.npy")
    targets = [sum(length - 1 for length in row.seq_lengths.tolist()) for row in exact_prep.open(path)]
    assert weights.tolist() == [float(count > 0) for count in targets]
    assert 0 in targets
    assert made["tail_share_of_supervision"] == {"uniform": 0.0, "row_weights": 0.0, "token_weights": 0.0}


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_export_leaves_nothing_and_keeps_what_it_would_have_replaced(
    directory, tmp_path, monkeypatch, kind
):
    def stopped(text):
        with monkeypatch.context() as patched:
            patched.setattr("exact_prep.reader.blocks.align_weights", interrupt)
            with pytest.raises(Interrupted, match=text):
                export(directory, kind, tmp_path / "out", overwrite=True)

    stopped("nothing was written to .*out, the same command starts again")
    assert names(tmp_path) == []
    export(directory, "lut", tmp_path / "out")
    stopped("nothing was written to .*out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["export.json", "lut.npy"]
    assert export(directory, kind, tmp_path / "out", overwrite=True)["format"] == kind


def test_what_a_killed_export_left_is_removed_by_the_next(directory, tmp_path):
    for name in ("out", "some [1]"):
        left = temporary_path(tmp_path / name)
        left.mkdir()
        (left / "data.bin").write_bytes(b"half")
        (tmp_path / f"{name}.notes.tmp").write_text("mine")
        export(directory, "lut", tmp_path / name)
        assert not left.exists()
        assert (tmp_path / f"{name}.notes.tmp").exists()


def test_of_two_exports_to_one_place_one_is_refused(directory, tmp_path):
    refused = []

    def export_again(event):
        if isinstance(event, Started):
            with ThreadPoolExecutor(1) as other, pytest.raises(StorageError, match="is in use by pid") as error:
                other.submit(export, directory, "lut", tmp_path / "out", overwrite=True).result()
            refused.append(str(error.value))

    made = export(directory, "numpy", tmp_path / "out", emit=export_again)
    assert len(refused) == 1
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == made
    assert names(tmp_path) == ["out"]


def test_the_command_takes_a_table_an_alignment_and_a_place_that_is_taken(table_directory, weights_table, tmp_path):
    def run(*options):
        command = [sys.executable, "-m", "exact_prep", "export", table_directory, "--to", "numpy", "--out", "out"]
        arguments = list(map(str, [*command, *options]))
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    assert run().returncode == 0
    again = run("--weights", weights_table, "--align", "prediction")
    assert again.returncode == 2
    assert "replace it with --overwrite" in again.stderr
    done = run("--weights", weights_table, "--align", "prediction", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "weights aligned with the prediction" in done.stdout
    file, rows = read_weights_file(weights_table), exact_prep.open(table_directory)
    want = [weights for _, weights, *_ in expected(rows, file, "prediction")]
    assert np.load(tmp_path / "out" / "loss_weights.npy").tolist() == want
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["numpy", "parquet", "megatron", "row-weights"])
def test_an_export_reports_how_far_it_is(directory, dataset, tmp_path, kind):
    events = []
    export(directory, kind, tmp_path / "out", emit=events.append)
    started = [event for event in events if isinstance(event, Started)]
    assert [(event.what, event.tasks, event.done) for event in started] == [(f"export to {kind}", 1, 0)]
    assert isinstance(events[-1], Finished)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.bytes, last.tokens) == (started[0].total_bytes, len(dataset) * SEQ_LEN)


def test_a_full_disk_is_an_error_and_leaves_no_export(directory, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exact_prep.stores.local.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export(directory, "numpy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
