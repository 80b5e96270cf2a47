"""Laws of the MDS export, through MosaicML's own reader; it has an environment of its own (see .ci/run)."""

from __future__ import annotations

import shutil
from contextlib import suppress

import numpy as np
import pytest
from oracle import framework
from written_dataset import oracle_weights

import exact_prep
from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.pipeline.export import export
from exact_prep.shards import open_shard

torch = framework("torch")
# Streaming imports torchvision, whose wheels are built for CUDA: beside a CPU build of torch, operators that its import
# asks for are missing. Nothing here calls them.
for operator in ("nms", "qnms"):
    with suppress(RuntimeError):
        torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
streaming = framework("streaming")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("align", ["target", "prediction"])
def test_streaming_reads_every_row(dataset, weighed, tmp_path, align):
    directory, table, weights_file = weighed
    export(directory, "mds", tmp_path / "out", align=align, weights=table)
    rows = streaming.StreamingDataset(local=str(tmp_path / "out" / "mds"), shuffle=False, batch_size=1)
    assert len(rows) == len(dataset)
    for got, row in zip((rows[i] for i in range(len(rows))), dataset, strict=True):
        weights = oracle_weights(row.seq_lengths.tolist(), dataset.seq_len, weights_file)
        assert got["input_ids"].tolist() == row.input_ids.tolist()
        assert got["seq_lengths"].tolist() == row.seq_lengths.tolist()
        assert got["loss_weights"].tolist() == (weights if align == "target" else [*weights[1:], 0.0])
        assert got["loss_weights"].dtype == np.float16


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_shard_or_an_interruption_leaves_no_streaming_shards(directory, tmp_path, monkeypatch):
    path = shutil.copytree(directory, tmp_path / "data" / "packed")
    last = max(path.glob("data-*.arrow"))
    data = bytearray(last.read_bytes())
    data[open_shard(last).places[0].loss_weights] ^= 1
    last.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{last.name} is damaged"):
        export(path, "mds", tmp_path / "out")
    assert [own.name for own in tmp_path.iterdir()] == ["data"]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("exact_prep.reader.blocks.align_weights", interrupt)
    with pytest.raises(Interrupted, match="nothing was written"):
        export(directory, "mds", tmp_path / "out")
    assert [own.name for own in tmp_path.iterdir()] == ["data"]


ENCODINGS = [("ndarray:int32", "<i4"), ("ndarray", "<u2"), ("ndarray:int32:64", "<i4"), ("bytes", "<i8")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("encoding", "dtype"), ENCODINGS)
@pytest.mark.parametrize("first", [False, True])
def test_what_others_wrote_is_measured(tmp_path, encoding, dtype, first):
    """Rows by MosaicML's writer, read back by its dataset, documents by EOS; with a column of text before or after."""
    choose = np.random.default_rng(1)
    columns = {"tokens": encoding, "name": "str"} if first else {"name": "str", "tokens": encoding}
    with streaming.MDSWriter(columns=columns, out=str(tmp_path / "mds"), size_limit=1 << 14) as writer:
        for row in range(200):
            ids = choose.integers(0, 30, 64).astype(dtype)
            writer.write({"name": f"row {row}", "tokens": ids.tobytes() if encoding == "bytes" else ids})
    dataset = streaming.StreamingDataset(local=str(tmp_path / "mds"), shuffle=False, batch_size=1)
    counts = [0, 0, 0, 0]
    zero = 0
    for row in range(len(dataset)):
        place = 0
        tokens = dataset[row]["tokens"]
        for token in np.frombuffer(tokens, dtype).tolist() if encoding == "bytes" else tokens.tolist():
            if place:
                counts[max(place.bit_length() - 3, 0)] += 1
            else:
                zero += 1
            place = 0 if token == 3 else place + 1
    measured = exact_prep.measure(
        "mds", tmp_path / "mds", tmp_path / "out", eos=3, trainer="llm-foundry", progress=False
    )
    assert len(measured.parts) > 1
    assert (measured.rows, measured.seq_len, measured.tokens) == (200, 64, 200 * 64)
    assert list(measured.exposure.counts) == counts[: len(measured.exposure.counts)]
    assert sum(measured.exposure.counts) == sum(counts)
    assert measured.exposure.segments == zero


@pytest.mark.filterwarnings("ignore")
def test_our_own_export_measured_again_has_the_same_exposure(directory, tmp_path):
    export(directory, "mds", tmp_path / "out")
    measured = exact_prep.measure(
        "mds", tmp_path / "out" / "mds", tmp_path / "found", documents="seq_lengths", progress=False
    )
    manifest = exact_prep.open(directory).manifest
    assert measured.exposure == manifest.exposure
    assert (measured.rows, measured.seq_len) == (manifest.rows, manifest.seq_len)
    assert measured.longest_context == manifest.longest_context


@pytest.mark.filterwarnings("ignore")
def test_shards_that_cannot_be_read_are_refused(tmp_path):
    def write(name, **options):
        with streaming.MDSWriter(columns={"tokens": "ndarray:int32"}, out=str(tmp_path / name), **options) as writer:
            for _ in range(9):
                writer.write({"tokens": np.arange(1, 30, dtype=np.int32)})
        return tmp_path / name

    def measure(path, **options):
        exact_prep.measure("mds", path, tmp_path / "out", documents="rows", progress=False, **options)

    with pytest.raises(UsageError, match=r"compressed \(zstd\).*keep_zip=True"):
        measure(write("zipped", compression="zstd"))
    cut = write("cut")
    shard = next(cut.glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"has another size than index\.json says"):
        measure(cut)
    with pytest.raises(UsageError, match=r"has the columns tokens; name the token ids with --ids-field"):
        measure(write("fields"), ids_field="ids")
    with pytest.raises(DatasetError, match=r"row 0: the EOS id 7 is inside a row"):
        measure(tmp_path / "fields", eos=7)
    with pytest.raises(UsageError, match=r"name the directory of one split of an MDS dataset"):
        measure(tmp_path)
    # The remedy for compressed shards.
    dataset = streaming.StreamingDataset(local=str(tmp_path / "zipped"), shuffle=False, batch_size=1, keep_zip=True)
    assert dataset[0]["tokens"].size == 29
    measure(tmp_path / "zipped")
