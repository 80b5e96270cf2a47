"""Laws of `export`: what comes back through each format's own reader is what plain Python derives from the dataset."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from written_dataset import VOCAB, documents, oracle_weights, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts import export
from exact_prep.stores.local import StorageError

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
def test_numpy(dataset, directory, weights_file, tmp_path, align):
    made = export(directory, "numpy", tmp_path / "out", align=align)
    assert made == json.loads((tmp_path / "out" / "export.json").read_text())
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
def test_parquet_and_levanter(dataset, directory, weights_file, tmp_path, kind, align):
    made = export(directory, kind, tmp_path / "out", align=align)
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


def test_the_lookup_table(directory, weights_file, tmp_path):
    export(directory, "lut", tmp_path / "out")
    assert np.load(tmp_path / "out" / "lut.npy").tolist() == oracle_weights([SEQ_LEN], SEQ_LEN, weights_file)


def test_row_weights_are_means_of_token_weights_and_tell_how_far_they_go(dataset, directory, weights_file, tmp_path):
    made = export(directory, "row-weights", tmp_path / "out")
    weights = np.load(tmp_path / "out" / "row_weights.npy")
    supervised, tails, means = [], [], []
    for _, own, positions, _ in expected(dataset, weights_file, "target"):
        kept = [(w, p) for w, p in zip(own, positions, strict=True) if w > 0]
        tails.append([w for w, p in kept if p >= weights_file["tail_start"]])
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

    def opened(path):
        dataset = exact_prep.open(path)
        tokenizer = dataset.manifest.tokenizer.model_copy(update={"vocab_size": vocabulary})
        dataset.manifest = dataset.manifest.model_copy(update={"tokenizer": tokenizer})
        return dataset

    monkeypatch.setattr("exact_prep.layouts.open", opened)


@pytest.mark.parametrize("align", ["target", "prediction"])
@pytest.mark.parametrize("vocabulary", [None, VOCAB])
def test_megatron_files_byte_by_byte(dataset, directory, weights_file, tmp_path, align, vocabulary, monkeypatch):
    """Read back with struct alone; tests/integrations/test_megatron.py does it with Megatron's own reader."""
    open_with_vocabulary(monkeypatch, vocabulary)
    export(directory, "megatron", tmp_path / "out", align=align)
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
    dataset = weigh_dataset(write_dataset(tmp_path / "big", [[300, 70000, 302]], seq_len=4, shards=1))
    open_with_vocabulary(monkeypatch, 200)
    with pytest.raises(DatasetError, match="ids beyond its vocabulary of 200"):
        export(dataset, "megatron", tmp_path / "out")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(directory, tmp_path):
    plain = write_dataset(tmp_path / "plain", documents(5, 30), seq_len=16)
    with pytest.raises(DatasetError, match="not weighed; run `exact-prep weigh"):
        export(plain, "numpy", tmp_path / "out")
    weigh_dataset(write_dataset(tmp_path / "several" / "16", documents(5, 30), seq_len=16))
    with pytest.raises(DatasetError, match="holds a dataset per row length"):
        export(tmp_path / "several", "numpy", tmp_path / "out")
    with pytest.raises(UsageError, match="leave --align out"):
        export(directory, "levanter", tmp_path / "out", align="target")
    with pytest.raises(UsageError, match="there is no format 'tfrecord'"):
        export(directory, "tfrecord", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is no export"):
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


def test_a_damaged_shard_is_found_before_it_is_passed_on(tmp_path):
    path = weigh_dataset(write_dataset(tmp_path / "data", documents(9, 60), seq_len=32))
    last = max(path.glob("data-*.arrow"))
    data = bytearray(last.read_bytes())
    batch = exact_prep.shards.opened(last).batches[0]
    data[batch.weights_start] ^= 1
    last.write_bytes(data)
    for kind in ("numpy", "parquet", "megatron", "row-weights"):
        with pytest.raises(DatasetError, match=rf"{last.name} is damaged; see `exact-prep verify"):
            export(path, kind, tmp_path / "out")
    assert [own.name for own in tmp_path.iterdir() if own.name.startswith("out")] == []


def test_a_full_disk_is_an_error_and_leaves_no_export(directory, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exact_prep.stores.local.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export(directory, "numpy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
