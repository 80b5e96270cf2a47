"""Laws of the MDS export, through MosaicML's own reader; it has an environment of its own (see .ci/run)."""

from __future__ import annotations

import shutil
from contextlib import suppress

import numpy as np
import pytest
from oracle import framework
from written_dataset import oracle_weights

from exact_prep.errors import DatasetError, Interrupted
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
