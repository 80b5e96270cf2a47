"""Options of rows in whole runs: `--rows-multiple-of`, `--max-segments`, `--pack-window`; no loss; list views."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from runs import (
    exact_prep,
    make_texts,
    pack_here,
    read_documents,
    read_files,
    read_json,
    read_rows,
    read_table,
    write_jsonl,
)

import exact_prep as package
from exact_prep.errors import UsageError, WeightsError
from exact_prep.pipeline.export import export
from exact_prep.pipeline.verify import verify
from exact_prep.records.options import PackingOptions


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("in") / "in.jsonl", make_texts(90, longest=600))


@pytest.fixture
def pack(source, tokenizer_file, tmp_path):
    """Pack by the command; returns the directory."""

    def run(*options: object, name: str = "out"):
        words = ("--tokenizer", tokenizer_file, "--seq-len", 64, "--task-size", 4000, "-o", tmp_path / name)
        exact_prep("pack", source, *words, *options)
        return tmp_path / name

    return run


# ---- whole shares for ranks


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_rows_of_padding_complete_the_dataset(loss_weights, pack):
    plain = pack("--loss-weights", loss_weights)
    rows = read_json(plain / "manifest.json")["rows"]
    multiple = rows - 3
    out = pack("--loss-weights", loss_weights, "--rows-multiple-of", multiple, name="even")
    manifest = read_json(out / "manifest.json")
    assert (manifest["rows"], manifest["padding_rows"]) == (2 * multiple, 2 * multiple - rows)
    assert read_documents(out) == read_documents(plain)
    assert manifest["ledger"]["padding"] == 2 * multiple * 64 - manifest["ledger"]["row_tokens"]
    assert manifest["exposure"] == read_json(plain / "manifest.json")["exposure"]
    assert verify(out) == []
    package.weigh(out, progress=False)
    assert verify(out) == []
    dataset = package.open(out)
    last = dataset[len(dataset) - 1]
    assert (last.seq_lengths.size, set(last.loss_weights.tolist()), set(last.input_ids.tolist())) == (0, {0.0}, {0})
    assert set(last.labels().tolist()) == {-100}
    assert (last.cu_seqlens.tolist(), set(last.segment_ids.tolist())) == ([0, 64], {0})
    assert len(dataset.shard(0, multiple)) == len(dataset.shard(multiple - 1, multiple)) == 2
    shown = exact_prep("report", out).stdout
    assert f"{manifest['padding_rows']:,} rows of padding alone" in shown


def test_a_multiple_that_fits_adds_nothing(pack):
    plain = pack()
    rows = read_json(plain / "manifest.json")["rows"]
    out = pack("--rows-multiple-of", rows, name="even")
    assert read_json(out / "manifest.json")["padding_rows"] == 0
    assert read_json(out / "manifest.json")["tree_hash"] == read_json(plain / "manifest.json")["tree_hash"]


def test_a_corpus_without_a_token_stays_without_rows(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["", ""])
    exact_prep(
        *("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 16, "--rows-multiple-of", 8),
        *("-o", tmp_path / "out"),
        check=None,
    )
    if (tmp_path / "out" / "manifest.json").exists():
        assert read_json(tmp_path / "out" / "manifest.json")["rows"] == 0


def test_rows_of_padding_are_written_in_every_layout(pack, tmp_path):
    out = pack("--rows-multiple-of", 97)
    package.weigh(out, progress=False)
    dataset = package.open(out)
    assert len(dataset) % 97 == 0
    for kind in ("numpy", "parquet", "levanter", "row-weights", "lut", "megatron"):
        export(out, kind, tmp_path / kind)
    weights = np.load(tmp_path / "numpy" / "loss_weights.npy")
    assert weights.shape == (len(dataset), 64)
    assert not weights[-1].any()
    drawn = np.load(tmp_path / "row-weights" / "row_weights.npy")
    assert drawn[-1] == 0
    assert np.isfinite(drawn).all()


def test_a_restart_of_another_multiple_is_another_run(pack, source, tokenizer_file, tmp_path):
    first = pack("--rows-multiple-of", 50)
    again = pack("--rows-multiple-of", 50, "--workers", 2, name="again")
    assert read_files(first) == read_files(again)
    with pytest.raises(UsageError, match="less than or equal to 1048576"):
        package.pack(source, tmp_path / "no", tokenizer=tokenizer_file, seq_len=64, rows_multiple_of=2**40)
    refused = exact_prep("pack", source, "--seq-len", 64, "-o", tmp_path / "no", "--rows-multiple-of", 2**40, check=2)
    assert "--rows-multiple-of 1099511627776: at most 1,048,576" in refused.stderr


# ---- segments per row, and the window


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_a_row_holds_at_most_so_many_segments(packing, pack):
    free, out = pack("--packing", packing), pack("--packing", packing, "--max-segments", 2, name="two")
    assert max(len(row["seq_lengths"]) for row in read_rows(free)) > 2
    assert max(len(row["seq_lengths"]) for row in read_rows(out)) == 2
    assert read_documents(out) == read_documents(free)
    assert verify(out) == []


def test_a_window_is_for_packings_that_look_at_one(pack, source, tmp_path):
    out = pack("--packing", "best-fit", "--pack-window", "1k")
    assert read_json(out / "manifest.json")["options"]["packing"]["window_tokens"] == 1024
    wide = pack("--packing", "best-fit", "--pack-window", "1M", name="wide")
    assert read_documents(out) == read_documents(wide)
    # Each task has about 1,000 tokens: the wide window is what the default is.
    assert read_rows(wide) == read_rows(pack("--packing", "best-fit", name="default"))
    refused = exact_prep("pack", source, "--seq-len", 64, "-o", tmp_path / "no", "--pack-window", "1M", check=2)
    assert "--pack-window is for --packing best-fit and --shuffle" in refused.stderr
    words = ("--packing", "best-fit", "--pack-window", "1MB")
    refused = exact_prep("pack", source, "--seq-len", 64, "-o", tmp_path / "no", *words, check=2)
    assert "--pack-window 1MB: a number of tokens" in refused.stderr
    with pytest.raises(ValueError, match="concat looks at no window"):
        PackingOptions(seq_lens=(64,), window_tokens=1)


# ---- rows that carry no loss


@pytest.fixture
def singles(tokenizer_file, tmp_path):
    """Documents of one token each."""
    source = write_jsonl(tmp_path / "in.jsonl", ["the"] * 40)
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--no-eos", "--seq-len", 4, "-o", tmp_path / "singles")
    return tmp_path / "singles"


def test_one_token_documents_carry_no_loss_and_weigh_says_so(singles):
    with pytest.raises(WeightsError, match=r"no target carries loss: every segment has one token.*--supervise-first"):
        package.weigh(singles, progress=False)
    ran = exact_prep("weigh", singles, "--allow-empty-tail")
    assert "all weights are 0, and a trainer that divides by them fails" in ran.stderr
    assert "weights are 1" not in ran.stderr
    assert {weight for row in read_rows(singles) for weight in row["loss_weights"]} == {0.0}
    exact_prep("weigh", singles, "--supervise-first", "--tail-from", 0)
    assert {weight for row in read_rows(singles) for weight in row["loss_weights"]} - {0.0}


def test_row_weights_of_short_rows_without_loss_are_finite(singles, tmp_path):
    exact_prep("weigh", singles, "--allow-empty-tail")
    export(singles, "row-weights", tmp_path / "export")
    assert (
        np.load(tmp_path / "export" / "row_weights.npy").tolist()
        == [0.0] * read_json(singles / "manifest.json")["rows"]
    )
    shares = read_json(tmp_path / "export" / "export.json")["tail_share_of_supervision"]
    assert set(shares.values()) == {0.0}


# ---- list views


def make_view(values: list[list[object] | None], kind: pa.DataType, large: bool) -> pa.Array:
    """A column of list views whose values lie in reverse, with a gap between them."""
    flat, offsets, sizes = [], [], []
    for value in reversed(values):
        offsets.insert(0, len(flat))
        sizes.insert(0, len(value or ()))
        flat += [*(value or ()), flat[0] if flat else (value or [1])[0]]
    array, width = (pa.LargeListViewArray, pa.int64()) if large else (pa.ListViewArray, pa.int32())
    mask = pa.array([value is None for value in values])
    return array.from_arrays(pa.array(offsets, width), pa.array(sizes, width), pa.array(flat, kind), mask=mask)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("field", ["ids", "texts"])
def test_list_views_are_read_like_lists(field, large, tokenizer_file, tmp_path):
    values = (
        [[5, 6, 7], [8], None, [], [9, 10]] if field == "ids" else [["the", "long"], ["row"], None, [], ["of", "a"]]
    )
    kind = pa.int32() if field == "ids" else pa.string()
    column = make_view(values, kind, large)
    assert column.to_pylist() == values
    plain = pa.array(values, pa.list_(kind))
    for name, own in (("view", column), ("list", plain)):
        with pa.ipc.new_file(tmp_path / f"{name}.arrow", pa.schema([(field, own.type)])) as writer:
            writer.write_batch(pa.record_batch([own], names=[field]))
    option = "ids_field" if field == "ids" else "text_field"
    for name in ("view", "list"):
        source = {option: field if field == "ids" else (field,)}
        pack_here([tmp_path / f"{name}.arrow"], tmp_path / name, tokenizer_file, seq_lens=(8,), source=source)
    assert read_documents(tmp_path / "view") == read_documents(tmp_path / "list")
    counts = [json.dumps(read_json(tmp_path / name / "manifest.json")["documents"]) for name in ("view", "list")]
    assert counts[0] == counts[1]
    assert len(read_table(tmp_path / "view", "tasks")) == 1
