"""`measure`: tokens that others wrote. Files are written by hand here, and walked token by token."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exact_prep
from exact_prep.dataset import load_weights_file, open_measured
from exact_prep.errors import DatasetError, UsageError
from exact_prep.reader.lookup import load_weights
from exact_prep.weighing.context import find_bucket
from tests.runs import exact_prep as command
from tests.test_cuts import by_bucket, walk

if TYPE_CHECKING:
    from pathlib import Path

EOS = 0
L = 64


def draw_lengths(count: int = 150, seed: int = 5, longest: int = 400) -> list[int]:
    choose = np.random.default_rng(seed)
    return np.minimum(np.exp(choose.normal(3.2, 1.2, count)).astype(int) + 2, longest).tolist()


def draw_documents(lengths: list[int], seed: int = 7) -> list[np.ndarray]:
    """Ids that end with EOS and hold it nowhere else."""
    choose = np.random.default_rng(seed)
    return [np.append(choose.integers(2, 60_000, length - 1), EOS) for length in lengths]


def write_ids(path: Path, documents: list[np.ndarray], dtype: str = "<u2") -> Path:
    np.concatenate(documents).astype(dtype).tofile(path)
    return path


def write_megatron(prefix: Path, documents: list[np.ndarray], code: int = 8) -> Path:
    dtype = np.dtype({8: "<u2", 4: "<i4"}[code])
    lengths = np.array([len(one) for one in documents], "<i4")
    write_ids(prefix.with_name(prefix.name + ".bin"), documents, dtype.str)
    starts = (np.cumsum(lengths, dtype="<i8") - lengths) * dtype.itemsize
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(lengths), len(lengths) + 1)
    ends = np.arange(len(lengths) + 1, dtype="<i8")
    prefix.with_name(prefix.name + ".idx").write_bytes(
        header + lengths.tobytes() + starts.astype("<i8").tobytes() + ends.tobytes()
    )
    return prefix


def write_datatrove(path: Path, documents: list[np.ndarray], dtype: str = "<u2") -> Path:
    write_ids(path, documents, dtype)
    np.cumsum([len(one) for one in documents]).astype("<u8").tofile(path.with_name(path.name + ".index"))
    return path


def write_olmo(path: Path, documents: list[np.ndarray]) -> Path:
    write_ids(path, documents)
    ends = np.cumsum([len(one) for one in documents])
    lines = [f"{end - len(one)},{end},id,x,1\n" for one, end in zip(documents, ends, strict=True)]
    path.with_suffix(".csv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    return path


def write_litdata(directory: Path, chunks: list[list[np.ndarray]]) -> Path:
    directory.mkdir()
    listed = []
    for number, documents in enumerate(chunks):
        sizes = np.array([2 * len(one) for one in documents])
        start = 4 + 4 * (len(documents) + 1)
        offsets = np.concatenate([[start], start + np.cumsum(sizes)]).astype("<u4")
        body = b"".join(one.astype("<u2").tobytes() for one in documents)
        name = f"chunk-0-{number}.bin"
        (directory / name).write_bytes(np.uint32(len(documents)).tobytes() + offsets.tobytes() + body)
        tokens = int(sizes.sum()) // 2
        listed.append({"filename": name, "chunk_size": len(documents), "chunk_bytes": len(body), "dim": tokens})
    config = {"compression": None, "data_format": ["no_header_tensor:16"], "item_loader": "TokensLoader"}
    (directory / "index.json").write_text(json.dumps({"chunks": listed, "config": config}))
    return directory


def measure(layout: Any, paths: Any, out: Path, **options: Any) -> Any:
    return exact_prep.measure(layout, paths, out, progress=False, **options)


def expect_cut(measured: Any, streams: list[list[int]], cut: str) -> None:
    """What was measured is what a walk token by token finds in each stream."""
    found: dict[int, int] = {}
    zero = rows = 0
    for lengths in streams:
        own, first, number = walk(lengths, cut, L)
        zero, rows = zero + first, rows + number
        for context, count in own.items():
            found[context] = found.get(context, 0) + count
    assert list(measured.exposure.counts) == by_bucket(found, L)
    assert (measured.exposure.segments, measured.exposure.firsts, measured.rows) == (zero, zero, rows)
    assert measured.longest_context == min(max(found), L - 1)
    assert measured.tokens == sum(map(sum, streams))


@pytest.fixture
def lengths() -> list[int]:
    return draw_lengths()


@pytest.fixture
def documents(lengths) -> list[np.ndarray]:
    return draw_documents(lengths)


@pytest.mark.parametrize("code", [8, 4])
@pytest.mark.parametrize("told", ["index", "eos"])
def test_megatron(tmp_path, lengths, documents, code, told):
    prefix = write_megatron(tmp_path / "web_text_document", documents, code)
    measured = measure("megatron", prefix, tmp_path / "out", seq_len=L, eos=EOS, documents=told)
    expect_cut(measured, [lengths], "shared")
    assert measured.dropped == {"after the last row": sum(lengths) - measured.rows * L - 1}
    assert not measured.estimated
    assert measured.documents == len(lengths)


def test_megatron_counts_the_train_split_alone(tmp_path, lengths, documents):
    prefix = write_megatron(tmp_path / "d", documents)
    measured = measure("megatron", prefix, tmp_path / "out", seq_len=L, split=[900, 90, 10])
    own = lengths[: round(0.9 * len(lengths))]
    expect_cut(measured, [own], "shared")
    assert measured.dropped["in other splits"] == sum(lengths) - sum(own)


def test_megatron_in_the_order_that_it_kept(tmp_path, lengths, documents):
    prefix = write_megatron(tmp_path / "d", documents)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(lengths), dtype=np.int32), 2))
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / "0a1b-GPTDataset-train-document_index.npy", order)
    np.save(tmp_path / "cache" / "0a1b-GPTDataset-valid-document_index.npy", order[:3])
    measured = measure("megatron", prefix, tmp_path / "out", seq_len=L, order=f"cache:{tmp_path / 'cache'}")
    expect_cut(measured, [[lengths[place] for place in order]], "shared")


def test_two_prefixes_are_two_streams(tmp_path, lengths, documents):
    half = len(lengths) // 2
    paths = [write_megatron(tmp_path / "a", documents[:half]), write_megatron(tmp_path / "b", documents[half:])]
    measured = measure("megatron", paths, tmp_path / "out", seq_len=L)
    expect_cut(measured, [lengths[:half], lengths[half:]], "shared")


@pytest.mark.parametrize("told", ["index", "eos"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_datatrove(tmp_path, lengths, documents, told, dtype):
    half = len(lengths) // 2
    for name, own in (("0.ds", documents[:half]), ("1.ds", documents[half:])):
        write_datatrove(tmp_path / name, own, dtype)
    measured = measure(
        "datatrove",
        tmp_path,
        tmp_path / "out",
        seq_len=L,
        documents=told,
        eos=EOS,
        dtype="uint32" if dtype == "<u4" and told == "eos" else None,
    )
    expect_cut(measured, [lengths[:half], lengths[half:]], "windows")


@pytest.mark.parametrize("told", ["index", "eos"])
def test_olmo_rows_of_each_file(tmp_path, lengths, documents, told):
    half = len(lengths) // 2
    for name, own in (("0.npy", documents[:half]), ("1.npy", documents[half:])):
        write_olmo(tmp_path / name, own)
    options = {"seq_len": L, "dtype": "uint16", "eos": EOS, "documents": told}
    measured = measure("olmo", tmp_path / "*.npy", tmp_path / "out", **options)
    expect_cut(measured, [lengths[:half], lengths[half:]], "disjoint")


@pytest.mark.parametrize("cut", ["fragment", "truncate"])
def test_olmo_packs_documents_and_drops_what_has_no_eos(tmp_path, lengths, documents, cut):
    path = write_ids(tmp_path / "0.npy", [*documents, np.arange(2, 9)])
    measured = measure("olmo", path, tmp_path / "out", seq_len=L, dtype="uint16", eos=EOS, rows=cut)
    pieces = [min(L, length - start) for length in lengths for start in range(0, length if cut == "fragment" else 1, L)]
    found: dict[int, int] = {}
    for piece in pieces:
        for context in range(1, piece):
            found[context] = found.get(context, 0) + 1
    assert list(measured.exposure.counts) == by_bucket(found, L)
    assert measured.exposure.segments == len(pieces)
    dropped = {"after the last EOS": 7}
    if cut == "truncate":
        dropped["beyond the row"] = sum(lengths) - sum(pieces)
    assert measured.dropped == dropped


def test_litdata_cuts_each_chunk(tmp_path, lengths, documents):
    cuts = [0, 40, 41, 110, len(documents)]
    chunks = [documents[a:b] for a, b in itertools.pairwise(cuts)]
    measured = measure("litdata", write_litdata(tmp_path / "data", chunks), tmp_path / "out", seq_len=L)
    expect_cut(measured, [[len(one) for one in own] for own in chunks], "disjoint")


@pytest.mark.parametrize("cut", ["disjoint", "shared", "windows"])
@pytest.mark.parametrize("header", [False, True])
def test_bare_ids(tmp_path, lengths, documents, cut, header):
    """The tail without EOS is a document of its own: the trainer reads it."""
    stream = np.concatenate([*documents, np.arange(2, 90)]).astype(np.uint16)
    path = tmp_path / "train.bin"
    if header:
        with path.open("wb") as file:
            np.save(file, stream)
    else:
        stream.tofile(path)
    dtype = None if header else "uint16"
    measured = measure("tokens", path, tmp_path / "out", seq_len=L, rows=cut, eos=EOS, dtype=dtype, order="file")
    expect_cut(measured, [[*lengths, 88]], cut)


def test_many_documents_in_random_order_are_expected_counts(tmp_path, monkeypatch):
    """The formula against the mean of 40 real orders."""
    module = import_module("exact_prep.pipeline.measure")
    lengths = draw_lengths(400)
    prefix = write_megatron(tmp_path / "d", draw_documents(lengths))
    monkeypatch.setattr(module, "EXACT_BELOW", 100)
    measured = measure("megatron", prefix, tmp_path / "out", seq_len=L)
    assert measured.estimated
    assert measured.documents_cut is None
    choose, total = np.random.default_rng(0), np.zeros(12)
    for _ in range(40):
        counts = by_bucket(walk(choose.permutation(lengths).tolist(), "shared", L)[0], L)
        total[: len(counts)] += counts
    expected = np.array(measured.exposure.counts)
    np.testing.assert_allclose(expected, total[: expected.size] / 40, rtol=0.02)
    counted = measure("megatron", prefix, tmp_path / "file", seq_len=L, order="file")
    expect_cut(counted, [lengths], "shared")


def test_random_crops_are_expected_counts(tmp_path, lengths, documents):
    path = write_ids(tmp_path / "train.bin", documents)
    options = {"seq_len": L, "dtype": "uint16", "eos": EOS}
    measured = measure("tokens", path, tmp_path / "out", **options)
    stream = np.concatenate(documents)
    starts = np.zeros(stream.size, int)
    ends = np.cumsum(lengths)
    starts = np.repeat(ends - np.array(lengths), lengths)
    found = np.zeros(12)
    for place in range(stream.size - L):
        contexts = np.arange(1, L + 1) + place - np.maximum(starts[place + 1 : place + L + 1], place)
        found += np.bincount([find_bucket(min(c, L - 1)) for c in contexts.tolist() if c], minlength=12)
    mean = found / (stream.size - L) * stream.size / L
    assert measured.estimated
    expected = np.array(measured.exposure.counts)
    np.testing.assert_allclose(expected, mean[: expected.size], rtol=0.03)
    assert measured.dropped == {}


def test_documents_that_are_not_kept_apart(tmp_path, documents):
    path = write_ids(tmp_path / "train.bin", documents)
    options = {"seq_len": L, "dtype": "uint16", "eos": EOS, "rows": "shared"}
    measured = measure("tokens", path, tmp_path / "out", isolated=False, **options)
    assert list(measured.exposure.counts) == by_bucket(dict.fromkeys(range(1, L + 1), measured.rows), L)
    with pytest.raises(UsageError, match=r"--not-isolated"):
        exact_prep.measure("tokens", path, tmp_path / "b", trainer="nanogpt", progress=False, **options)


# Rows as they are stored


def make_rows(seed: int = 3, count: int = 60, seq_len: int = L) -> list[list[int]]:
    """Lengths of the segments of some rows, not all of them full."""
    choose, rows = np.random.default_rng(seed), []
    for _ in range(count):
        own, left = [], seq_len - int(choose.integers(0, 9)) * int(choose.integers(0, 2))
        while left:
            own.append(int(min(left, choose.integers(1, seq_len))))
            left -= own[-1]
        rows.append(own)
    return rows


def write_rows(path: Path, rows: list[list[int]], told: str, seq_len: int = L, **more: Any) -> Path:
    """Rows as TRL, Axolotl or LLaMA-Factory store them; padded to seq_len unless told by seq_lengths or eos."""
    columns: dict[str, Any] = {"input_ids": []}
    if told not in ("eos", "rows"):
        columns[told] = []
    choose = np.random.default_rng(1)
    for own in rows:
        pad = 0 if told in ("seq_lengths", "eos", "rows") else seq_len - sum(own)
        ids = [np.append(choose.integers(2, 500, length - 1), EOS) for length in own]
        columns["input_ids"].append([*np.concatenate(ids).tolist(), *[1] * pad])
        if told == "seq_lengths":
            columns[told].append(own)
        if told == "position_ids":
            columns[told].append([place for length in own for place in range(length)] + [0] * pad)
        if told == "attention_mask":
            columns[told].append([n + 1 for n, length in enumerate(own) for _ in range(length)] + [0] * pad)
    table = pa.table(columns | more)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=17)
        return path
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=13)
    return path


def count_rows(rows: list[list[int]]) -> list[int]:
    found: dict[int, int] = {}
    for own in rows:
        for length in own:
            for context in range(1, length):
                found[context] = found.get(context, 0) + 1
    return by_bucket(found, 10**6)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("told", ["seq_lengths", "position_ids", "attention_mask", "eos"])
def test_stored_rows(tmp_path, suffix, told):
    rows = make_rows()
    path = write_rows(tmp_path / f"data{suffix}", rows, told)
    measured = measure("huggingface", path, tmp_path / "out", documents=told, eos=EOS)
    assert list(measured.exposure.counts) == count_rows(rows)
    assert measured.rows == len(rows)
    assert measured.seq_len == L
    # Padding of positions begins with a 0, which might be a document of one token.
    padded = sum(sum(own) < L and own[-1] > 1 for own in rows) if told == "position_ids" else 0
    assert measured.tokens == sum(map(sum, rows)) + padded
    if told in ("seq_lengths", "attention_mask", "eos"):
        assert measured.exposure.segments == sum(map(len, rows))
    assert measured.longest_context == max(max(own) for own in rows) - 1


def test_padding_of_positions_is_no_document(tmp_path):
    """A row ends with segments of one token, or with padding: of a run of zeros the first alone may be a token."""
    rows = [[3, 1], [5], [1], [2, 2], [L]]
    path = write_rows(tmp_path / "data.arrow", rows, "position_ids")
    measured = measure("huggingface", path, tmp_path / "out")
    assert measured.options.documents == "position_ids"
    assert list(measured.exposure.counts) == count_rows(rows)
    # [5] and [2, 2] are followed by padding, whose first token could be a document.
    assert measured.exposure.segments == sum(map(len, rows)) + 2


def test_a_column_tells_documents_without_being_named(tmp_path):
    rows = make_rows()
    named = measure("huggingface", write_rows(tmp_path / "a.arrow", rows, "seq_lengths"), tmp_path / "a")
    assert named.options.documents == "seq_lengths"
    with pytest.raises(UsageError, match=r"none says where documents begin; say how .* --documents"):
        measure("huggingface", write_rows(tmp_path / "b.arrow", rows, "eos"), tmp_path / "b")
    alone = measure("huggingface", tmp_path / "b.arrow", tmp_path / "b", documents="rows")
    assert list(alone.exposure.counts) == count_rows([[sum(own)] for own in rows])


def test_a_saved_dataset_and_its_selection(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = make_rows()
    write_rows(tmp_path / "data.parquet", rows, "seq_lengths")
    saved = datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    measured = measure("huggingface", tmp_path / "saved", tmp_path / "out")
    assert list(measured.exposure.counts) == count_rows(rows)
    assert len(measured.parts) == 3
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "several")
    with pytest.raises(UsageError, match=r"holds several splits; name the directory of one"):
        measure("huggingface", tmp_path / "several", tmp_path / "out2")
    assert measure("huggingface", tmp_path / "several" / "train", tmp_path / "out2").exposure == measured.exposure


@pytest.mark.parametrize("field", ["labels_field", "mask_field"])
def test_masked_targets_are_in_no_bucket(tmp_path, field):
    rows = make_rows()
    choose = np.random.default_rng(2)
    kept = [(choose.random(sum(own)) < 0.6) for own in rows]
    column = [np.where(own, 5, -100).tolist() if field == "labels_field" else own.astype(int).tolist() for own in kept]
    path = write_rows(tmp_path / "data.arrow", rows, "seq_lengths", beside=column)
    measured = measure("huggingface", path, tmp_path / "out", **{field: "beside"})
    found: dict[int, int] = {}
    firsts = 0
    for own, mask in zip(rows, kept, strict=True):
        place = 0
        for length in own:
            firsts += int(mask[place])
            for context in range(1, length):
                if mask[place + context]:
                    found[context] = found.get(context, 0) + 1
            place += length
    assert list(measured.exposure.counts) == by_bucket(found, 10**6)
    assert (measured.exposure.segments, measured.exposure.firsts) == (sum(map(len, rows)), firsts)


def test_labels_without_loss_are_not_counted_in_silence(tmp_path):
    rows = make_rows()
    labels = [[5] * sum(own) for own in rows]
    labels[7][3] = -100
    path = write_rows(tmp_path / "data.arrow", rows, "seq_lengths", labels=labels)
    with pytest.raises(UsageError, match=r"row 7: some labels are -100.*--labels-field labels"):
        measure("huggingface", path, tmp_path / "out")
    whole = measure("huggingface", path, tmp_path / "out", labels_field="labels")
    assert sum(whole.exposure.counts) + whole.exposure.firsts == sum(map(sum, rows)) - 1


def test_labels_without_loss_in_padding_are_no_question(tmp_path):
    rows = [[10, 20], [L]]
    labels = [[5] * 30 + [-100] * (L - 30), [5] * L]
    path = write_rows(tmp_path / "data.arrow", rows, "attention_mask", labels=labels)
    measured = measure("huggingface", path, tmp_path / "out", documents="attention_mask")
    assert list(measured.exposure.counts) == count_rows(rows)


# What cannot be right is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.with_name("d.bin").write_bytes(p.with_name("d.bin").read_bytes()[:-2]), r"its index says"),
        (lambda p: p.with_name("d.idx").write_bytes(p.with_name("d.idx").read_bytes()[:-8]), r"its header says.*cut"),
        (lambda p: p.with_name("d.idx").write_bytes(b"MMAPIDX\0\0" + bytes(30)), r"is not an \.idx file of Megatron"),
    ],
)
def test_damaged_megatron_files(tmp_path, documents, change, says):
    prefix = write_megatron(tmp_path / "d", documents)
    change(prefix)
    with pytest.raises(DatasetError, match=says):
        measure("megatron", prefix, tmp_path / "out", seq_len=L)


def test_an_index_that_eos_contradicts(tmp_path, documents):
    inside = [one.copy() for one in documents]
    longest = max(range(len(inside)), key=lambda number: len(inside[number]))
    inside[longest][5] = EOS
    with pytest.raises(DatasetError, match=r"0 do not end with EOS \(id 0\) and 1 hold it inside.*--documents eos"):
        measure("megatron", write_megatron(tmp_path / "d", inside), tmp_path / "out", seq_len=L, eos=EOS)
    without = [*documents[:-1], documents[-1][:-1]]
    with pytest.raises(DatasetError, match=r"1 do not end with EOS"):
        measure("datatrove", write_datatrove(tmp_path / "x.ds", without), tmp_path / "out", seq_len=L, eos=EOS)
    # The remedy.
    split = [*(len(one) for one in inside[:longest]), 6, len(inside[longest]) - 6]
    split += [len(one) for one in inside[longest + 1 :]]
    measured = measure("megatron", tmp_path / "d", tmp_path / "out", seq_len=L, eos=EOS, documents="eos")
    expect_cut(measured, [split], "shared")


def test_eos_inside_a_stored_document(tmp_path):
    rows = [[20, 20], [40]]
    path = write_rows(tmp_path / "data.arrow", [[20, 20], [20, 20]], "eos")
    table = pa.ipc.open_stream(path.read_bytes()).read_all().append_column("seq_lengths", pa.array(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DatasetError, match=r"row 1: the EOS id 0 is inside a document, in place 19"):
        measure("huggingface", path, tmp_path / "out", eos=EOS)
    assert list(measure("huggingface", path, tmp_path / "out").exposure.counts) == count_rows(rows)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ([0, 1, 2, 4], r"row 2: position_ids neither go on nor restart at 0 in place 3 \(4\)"),
        ([1, 2, 3, 4], r"row 2: .* in place 0 \(1\)"),
        ([0, 1, 1, 2], r"row 2: .* in place 2 \(1\)"),
    ],
)
def test_positions_that_neither_go_on_nor_restart(tmp_path, positions, says):
    table = pa.table({"input_ids": [[5] * 4] * 4, "position_ids": [[0, 1, 2, 3]] * 2 + [positions, [0, 1, 0, 1]]})
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(DatasetError, match=says):
        measure("huggingface", tmp_path / "data.parquet", tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "options", "error", "says"),
    [
        ({"input_ids": [[5, 6]], "seq_lengths": [[3]]}, {}, DatasetError, r"row 0: seq_lengths \[3\] do not fit its 2"),
        ({"input_ids": [[5, 6]], "seq_lengths": [[2, 0]]}, {}, DatasetError, r"seq_lengths \[2, 0\] do not fit"),
        (
            {"input_ids": [[5, 6]], "position_ids": [[0, 1, 2]]},
            {},
            DatasetError,
            r"row 0: position_ids has 3 values for 2 tokens",
        ),
        ({"input_ids": [[5, None]], "seq_lengths": [[2]]}, {}, DatasetError, r"empty value \(null\)"),
        ({"input_ids": ["text"], "seq_lengths": [[2]]}, {}, DatasetError, r"input_ids is string; a list of integers"),
        ({"text": ["text"], "seq_lengths": [[2]]}, {}, UsageError, r"no column input_ids or tokens.*--ids-field"),
        (
            {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]},
            {"documents": "attention_mask"},
            DatasetError,
            r"0 or 1 .* does not tell documents apart",
        ),
        (
            {"input_ids": [[5, 6, 7, 8]], "attention_mask": [[1, 0, 2, 2]]},
            {"documents": "attention_mask"},
            DatasetError,
            r"tokens after padding",
        ),
        ({"input_ids": [[5, 6]], "seq_lengths": [[2]]}, {"labels_field": "y"}, UsageError, r"has no column y"),
        (
            {"input_ids": [[5] * 9], "seq_lengths": [[9]]},
            {"seq_len": 4},
            DatasetError,
            r"9 tokens, more than --seq-len",
        ),
        ({"input_ids": [[5, 6]]}, {"documents": "eos"}, UsageError, r"give its id with --eos"),
    ],
)
def test_rows_that_contradict_themselves(tmp_path, columns, options, error, says):
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    with pytest.raises(error, match=says):
        measure("huggingface", tmp_path / "data.parquet", tmp_path / "out", **options)
    assert not (tmp_path / "out" / "exposure.json").exists()


def test_a_type_that_does_not_fit(tmp_path):
    documents = draw_documents(draw_lengths(8000))
    narrow = write_ids(tmp_path / "narrow.bin", documents)
    wide = write_ids(tmp_path / "wide.bin", documents, "<u4")
    options = {"seq_len": L, "eos": EOS, "rows": "disjoint"}
    with pytest.raises(DatasetError, match=r"beyond any vocabulary.*--dtype"):
        measure("tokens", narrow, tmp_path / "out", dtype="uint32", **options)
    with pytest.raises(DatasetError, match=r"every second id is below 16.*4 bytes"):
        measure("tokens", wide, tmp_path / "out", dtype="uint16", **options)
    with pytest.raises(DatasetError, match=r"the EOS id 1 is not among"):
        measure("tokens", narrow, tmp_path / "out", dtype="uint16", **options | {"eos": 1})
    narrow.write_bytes(narrow.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match=r"does not fit uint16: it is cut, or --dtype is wrong"):
        measure("tokens", narrow, tmp_path / "out", dtype="uint16", **options)


@pytest.mark.parametrize(
    ("layout", "options", "says"),
    [
        ("megatron", {}, r"give --seq-len"),
        ("megatron", {"seq_len": L, "rows": "disjoint"}, r"trainers read megatron as shared"),
        ("megatron", {"seq_len": L, "trainer": "olmo"}, r"--for olmo: it reads olmo, not megatron"),
        ("megatron", {"seq_len": L, "documents": "position_ids"}, r"told apart by index or eos"),
        ("megatron", {"seq_len": L, "documents": "eos"}, r"give its id with --eos"),
        ("megatron", {"seq_len": L, "order": "random"}, r"it is expected, file, or cache:DIR"),
        ("megatron", {"seq_len": L, "labels_field": "x"}, r"name columns, which are read of huggingface, not megatron"),
        ("megatron", {"seq_len": 10**6}, r"tokens make no row of 1,000,000"),
        ("megatron", {"seq_len": L, "order": "cache:nowhere"}, r"document_index\.npy of the train split is needed"),
        ("olmo", {"seq_len": L}, r"give it with --dtype"),
        ("tokens", {"seq_len": L}, r"give its id with --eos"),
        ("datatrove", {"seq_len": L, "split": [1, 0]}, r"--split takes Megatron's shares"),
        ("datatrove", {"seq_len": L, "order": "cache:x"}, r"reads what Megatron keeps"),
        ("nothing", {}, r"there is no layout 'nothing'"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, documents, layout, options, says):
    prefix = write_megatron(tmp_path / "d", documents)
    with pytest.raises(UsageError, match=says):
        measure(layout, prefix, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "exposure.json").exists()


def test_files_that_are_not_there(tmp_path, documents):
    write_datatrove(tmp_path / "x.ds", documents)
    (tmp_path / "x.ds.index").unlink()
    with pytest.raises(UsageError, match=r"x\.ds\.index does not exist; .* --documents eos"):
        measure("datatrove", tmp_path, tmp_path / "out", seq_len=L)
    assert measure("datatrove", tmp_path, tmp_path / "out", seq_len=L, documents="eos", eos=EOS).rows
    for path, says in (("nothing.ds", "does not exist"), ("*.nothing", "no file matches")):
        with pytest.raises(UsageError, match=says):
            measure("datatrove", tmp_path / path, tmp_path / "other", seq_len=L)
    with pytest.raises(UsageError, match=r"is named twice"):
        measure("datatrove", [tmp_path / "x.ds", tmp_path], tmp_path / "other", seq_len=L, documents="eos", eos=EOS)
    np.save(tmp_path / "real.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(DatasetError, match=r"begins with NumPy's header.*`tokens`"):
        measure("olmo", tmp_path / "real.npy", tmp_path / "other", seq_len=L, dtype="uint16", eos=EOS)


# What other commands make of it


def test_weigh_report_verify_and_the_table_by_position(tmp_path, documents):
    write_megatron(tmp_path / "d", documents)
    out = tmp_path / "out"
    said = command("measure", "megatron", tmp_path / "d", "--seq-len", L, "--for", "megatron", "--eod", 0, "-o", out)
    assert "windows of L + 1 tokens that share one, documents told apart by index, in random order" in said.stdout
    assert "--reset-attention-mask" in said.stdout
    assert "not weighed" in command("report", out).stdout
    command("weigh", out, "--alpha", "0.3")
    measured = open_measured(out).record
    weights = load_weights_file(out / "weights.json")
    assert weights.datasets[0].id == measured.fingerprint
    assert weights.table is not None
    assert list(weights.table.counts) == list(measured.exposure.counts)
    assert command("verify", out).stdout == f"{out}: everything is correct\n"
    facts = json.loads(command("report", out, "--json").stdout)[0]
    assert facts["options"]["layout"] == "megatron"
    assert facts["weights"]["weighted_tail_share"] > facts["weights"]["tail_share"]
    assert facts["fingerprint"] == measured.fingerprint
    assert "told apart by index" in command("report", out).stdout
    assert "| 32-63 | " in command("report", out, "--format", "md").stdout
    command("export", out, "--to", "lut", "-o", tmp_path / "lut")
    lut = np.load(tmp_path / "lut" / "lut.npy")
    assert lut.tolist() == load_weights(out).lut.tolist()
    assert lut.shape == (L + 1,)
    for refused in (
        ("show", out),
        ("simulate", out),
        ("report", out, "--html", tmp_path / "x.html"),
        ("report", out, "--by-source", "--format", "md"),
        ("export", out, "--to", "megatron", "-o", tmp_path / "m"),
        ("export", out, "--to", "sidecar", "-o", tmp_path / "m"),
    ):
        done = command(*refused, check=None)
        assert done.returncode in (1, 2), refused
        assert "internal error" not in done.stderr, refused
        assert "measure" in done.stderr or "look weights up by position" in done.stderr.replace("\n", " "), refused


def test_there_are_no_rows_to_open_and_no_table_goes_inside(tmp_path, documents):
    out = tmp_path / "out"
    measure("megatron", write_megatron(tmp_path / "d", documents), out, seq_len=L)
    for opened in (out, [out, out]):
        with pytest.raises(DatasetError, match=r"holds a measurement of tokens that others wrote, and no rows"):
            exact_prep.open(opened)
    with pytest.raises(UsageError, match=r"lies inside the dataset"):
        exact_prep.weigh(out, out=out / "table.json", progress=False)
    exact_prep.weigh(out, alpha=0.3, out=tmp_path / "table.json", progress=False)
    with pytest.raises(DatasetError, match=r"holds plain weights"):
        load_weights(out)
    table = ("--weights", tmp_path / "table.json")
    assert "alpha 0.3" in command("report", out, *table).stdout.replace("\n", " ")
    command("export", out, "--to", "lut", *table, "-o", tmp_path / "lut")
    assert np.load(tmp_path / "lut" / "lut.npy").tolist() == load_weights(tmp_path / "table.json").lut.tolist()
    assert command("verify", out, *table).stdout.endswith("everything is correct\n")


def test_verify_reads_the_data_again(tmp_path, documents):
    prefix = write_megatron(tmp_path / "d", documents)
    out = tmp_path / "out"
    measure("megatron", prefix, out, seq_len=L)
    assert exact_prep.verify(out, progress=False) == []
    write_megatron(tmp_path / "d", draw_documents(draw_lengths(seed=9)))
    assert exact_prep.verify(out, quick=True, progress=False) == []
    (finding,) = exact_prep.verify(out, progress=False)
    assert finding.endswith(f"{prefix} has changed since it was measured; measure again")
    path = out / "exposure.json"
    path.write_text(path.read_text().replace('"longest_context": ', '"longest_context": 1'))
    assert "was changed after it was written" in exact_prep.verify(out, progress=False)[0]


def test_a_mixture_of_packed_and_measured_data(tmp_path, tokenizer_file, documents):
    from tests.runs import make_texts, write_jsonl

    exact_prep.pack(
        write_jsonl(tmp_path / "in.jsonl", make_texts(60)),
        tmp_path / "packed",
        seq_len=L,
        tokenizer=tokenizer_file,
        tokenizer_backend="tokenizers",
        progress=False,
    )
    measured = measure("megatron", write_megatron(tmp_path / "d", documents), tmp_path / "measured", seq_len=L)
    done = command("weigh", tmp_path / "packed", tmp_path / "measured", "--rates", "0.25,0.75", "--keep-mixture")
    assert "the tokenizer is not known" in done.stderr
    files = [load_weights_file(tmp_path / name / "weights.json") for name in ("packed", "measured")]
    assert files[0].table == files[1].table
    assert [one.rate for one in files[0].datasets] == [0.25, 0.75]
    packed = exact_prep.open(tmp_path / "packed")
    rows = packed.manifest.rows, measured.rows
    exposures = packed.manifest.exposure, measured.exposure
    assert files[0].table is not None
    for place, count in enumerate(files[0].table.counts):
        parts = [
            share * (exposure.counts[place] if place < len(exposure.counts) else 0) / (number * L)
            for share, exposure, number in zip((0.25, 0.75), exposures, rows, strict=True)
        ]
        assert count == pytest.approx(sum(parts) * sum(rows) * L)
    assert command("verify", tmp_path / "packed", tmp_path / "measured").stdout.endswith("everything is correct\n")
    assert "weighed together" in command("report", tmp_path / "measured").stdout
    alone = command("weigh", tmp_path / "measured", "--recount", check=2)
    assert "use `exact-prep verify`" in alone.stderr


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_our_own_rows_measured_have_the_exposure_of_the_manifest(packing, tmp_path, tokenizer_file):
    """As they are, and as the Parquet that `export` writes: two readers that share nothing with `pack`."""
    from tests.runs import make_texts, write_jsonl

    exact_prep.pack(
        write_jsonl(tmp_path / "in.jsonl", make_texts(60)),
        tmp_path / "packed",
        seq_len=L,
        packing=packing,
        tokenizer=tokenizer_file,
        tokenizer_backend="tokenizers",
        progress=False,
    )
    exact_prep.weigh(tmp_path / "packed", progress=False)
    command("export", tmp_path / "packed", "--to", "parquet", "-o", tmp_path / "parquet")
    manifest = exact_prep.open(tmp_path / "packed").manifest
    for name in ("packed", "parquet"):
        measured = measure("huggingface", tmp_path / name, tmp_path / f"found-{name}", trainer="trl")
        assert measured.exposure == manifest.exposure
        assert (measured.rows, measured.seq_len) == (manifest.rows, L)
        assert measured.tokens == manifest.ledger.row_tokens
        assert measured.longest_context == manifest.longest_context
        (weights,) = exact_prep.weigh(tmp_path / f"found-{name}", progress=False)
        assert weights.lut.tolist() == load_weights(tmp_path / "packed").lut.tolist()


def pack_texts(tmp_path, tokenizer_file, **options):
    """A weighed dataset of several tasks, whose last rows are padded."""
    from tests.runs import make_texts, write_jsonl

    source = write_jsonl(tmp_path / "in.jsonl", make_texts(60))
    asked = {"seq_len": L, "tokenizer": tokenizer_file, "tokenizer_backend": "tokenizers", "task_size": 20_000}
    exact_prep.pack(source, tmp_path / "packed", **asked | options, progress=False)
    exact_prep.weigh(tmp_path / "packed", progress=False)
    return exact_prep.open(tmp_path / "packed")


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_rows_for_olmo_measured_again_have_the_same_exposure(packing, tmp_path, tokenizer_file):
    dataset = pack_texts(tmp_path, tokenizer_file, packing=packing)
    manifest, tokenizer = dataset.manifest, dataset.manifest.tokenizer
    assert manifest.ledger.padding
    assert tokenizer.pad_id == tokenizer.eos_id
    command("export", tmp_path / "packed", "--to", "olmo", "-o", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    ids = np.fromfile(tmp_path / "out" / "part-00000.npy", said["dtype"])
    assert ids.reshape(-1, L).tolist() == [row.input_ids.tolist() for row in dataset]
    options = {"seq_len": L, "dtype": said["dtype"], "eos": said["eos_id"], "trainer": "olmo"}
    measured = measure("olmo", tmp_path / "out", tmp_path / "found", **options)
    assert measured.exposure.counts == manifest.exposure.counts
    assert measured.exposure.segments == manifest.exposure.segments + manifest.ledger.padding  # each token a document
    assert measured.rows == manifest.rows


def test_documents_for_datatrove_measured_again_have_the_same_lengths(tmp_path, tokenizer_file):
    dataset = pack_texts(tmp_path, tokenizer_file)
    command("export", tmp_path / "packed", "--to", "datatrove", "-o", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    ends = np.fromfile(tmp_path / "out" / "tokens.ds.index", "<u8").astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    _, known, counts = dataset.files.document_lengths()
    assert sorted(lengths.tolist()) == np.sort(np.repeat(known, counts)).tolist()
    ids = np.fromfile(tmp_path / "out" / "tokens.ds", said["dtype"])
    eos_id = dataset.manifest.tokenizer.eos_id
    assert ids.size == ends[-1] == dataset.manifest.ledger.row_tokens
    assert np.flatnonzero(ids == eos_id).tolist() == (ends - 1).tolist()
    measured = measure("datatrove", tmp_path / "out", tmp_path / "found", seq_len=L, eos=eos_id)
    expect_cut(measured, [lengths.tolist()], "windows")


def test_what_bare_ids_cannot_say_is_refused(tmp_path, tokenizer_file):
    def refuse(name, kind, says, **options):
        (tmp_path / name).mkdir()
        pack_texts(tmp_path / name, tokenizer_file, **options)
        done = command("export", tmp_path / name / "packed", "--to", kind, "-o", tmp_path / name / "out", check=2)
        assert says in done.stderr.replace("\n", " ")
        assert not (tmp_path / name / "out").exists()

    refuse("apart", "datatrove", "pieces of a document lie apart", packing="best-fit")
    refuse("without", "olmo", "was packed without; pack --eos", eos=False)
    refuse("pad", "olmo", "padding that is not EOS", pad_token="id:5")
    pq.write_table(pa.table({"ids": [[5, 7, 6, 7, 8, 7]] * 9}), tmp_path / "ids.parquet")
    ids = {"ids_field": "ids", "documents": "rows", "tokenizer": tokenizer_file, "eos_token": "id:7", "seq_len": 16}
    exact_prep.pack(tmp_path / "ids.parquet", tmp_path / "inside", **ids, eos=True, progress=False)
    exact_prep.weigh(tmp_path / "inside", tail_from=8, allow_empty_tail=True, progress=False)
    done = command("export", tmp_path / "inside", "--to", "olmo", "-o", tmp_path / "x", check=2)
    assert "one holds it inside" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("cut", ["disjoint", "fragment", "truncate"])
def test_weights_beside_the_tokens(tmp_path, lengths, documents, cut):
    """Each token's weight is that of its context where the trainer cuts, one by one."""
    path = write_ids(tmp_path / "0.npy", [*documents, np.arange(2, 9)])
    out = tmp_path / "out"
    measure("olmo", path, out, seq_len=L, dtype="uint16", eos=EOS, rows=cut)
    exact_prep.weigh(out, tail_from=16, progress=False)
    command("export", out, "--to", "sidecar", "-o", tmp_path / "beside")
    weights = np.load(tmp_path / "beside" / "00000-0.npy.weights.npy")
    lut = load_weights(out).lut
    expected, starts = [], []
    for length in [*lengths, 7]:
        starts += [len(starts)] * length
    rows = len(starts) // L
    for place, start in enumerate(starts):
        if cut == "disjoint":
            expected.append(lut[place - max(start, place // L * L)] if place < rows * L else 0)
        elif place >= sum(lengths):
            expected.append(0)
        else:
            inside = place - start
            expected.append(lut[inside % L] if cut == "fragment" or inside < L else 0)
    assert weights.dtype == np.float16
    assert weights.tolist() == expected
    record = json.loads((tmp_path / "beside" / "export.json").read_text())
    assert record["fingerprint"] == open_measured(out).record.fingerprint


def test_weights_beside_windows_and_stored_rows(tmp_path, lengths, documents):
    out = tmp_path / "out"
    measure("datatrove", write_datatrove(tmp_path / "x.ds", documents), out, seq_len=L)
    exact_prep.weigh(out, progress=False)
    command("export", out, "--to", "sidecar", "-o", tmp_path / "a")
    weights, lut = np.load(tmp_path / "a" / "00000-x.ds.weights.npy"), load_weights(out).lut
    width, place = L + 1, 0
    for length in lengths:
        for start in range(place, place + length):
            if start < sum(lengths) // width * width:
                assert weights[start] == lut[start - max(place, start // width * width)]
            else:
                assert weights[start] == 0
        place += length
    rows = make_rows()
    kept = [[int(t % 3 > 0) for t in range(sum(own))] for own in rows]
    path = write_rows(tmp_path / "rows.arrow", rows, "seq_lengths", mask=kept)
    measure("huggingface", path, tmp_path / "h", mask_field="mask")
    exact_prep.weigh(tmp_path / "h", progress=False)
    command("export", tmp_path / "h", "--to", "sidecar", "-o", tmp_path / "b")
    beside, lut = np.load(tmp_path / "b" / "00000-rows.arrow.weights.npy"), load_weights(tmp_path / "h").lut
    expected = [
        lut[t] * keep
        for own, mask in zip(rows, kept, strict=True)
        for t, keep in zip([t for length in own for t in range(length)], mask, strict=True)
    ]
    assert beside.tolist() == expected


def test_weights_beside_tokens_that_have_changed_are_refused(tmp_path, documents):
    path = write_datatrove(tmp_path / "x.ds", documents)
    out = tmp_path / "out"
    measure("datatrove", path, out, seq_len=L)
    exact_prep.weigh(out, progress=False)
    write_datatrove(path, draw_documents(draw_lengths(seed=8)))
    done = command("export", out, "--to", "sidecar", "-o", tmp_path / "a", check=1)
    assert "measure again" in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_stopped_measurement_goes_on_and_changed_files_are_read_again(tmp_path, lengths, documents, monkeypatch):
    module = import_module("exact_prep.pipeline.measure")
    half = len(lengths) // 2
    paths = [write_datatrove(tmp_path / f"{n}.ds", own) for n, own in enumerate((documents[:half], documents[half:]))]
    read: list[str] = []
    real = module.measure_part

    def stop_at_the_second(task, meter):
        if len(read) == 1:
            raise KeyboardInterrupt
        read.append(task.part.path.name)
        return real(task, meter)

    monkeypatch.setattr(module, "measure_part", stop_at_the_second)
    with pytest.raises(exact_prep.errors.Interrupted, match=r"goes on from here"):
        measure("datatrove", paths, tmp_path / "out", seq_len=L)
    assert not (tmp_path / "out" / "exposure.json").exists()
    assert "start the same `exact-prep measure` again" in command("report", tmp_path / "out", check=1).stderr

    def count(task, meter):
        read.append(task.part.path.name)
        return real(task, meter)

    monkeypatch.setattr(module, "measure_part", count)
    measured = measure("datatrove", paths, tmp_path / "out", seq_len=L)
    assert read == ["0.ds", "1.ds"]
    expect_cut(measured, [lengths[:half], lengths[half:]], "windows")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "exposure.json",
        "weights.json",
    ]
    # Again, with a file that changed after it was counted.
    read.clear()
    monkeypatch.setattr(module, "measure_part", stop_at_the_second)
    with pytest.raises(exact_prep.errors.Interrupted):
        measure("datatrove", paths, tmp_path / "b", seq_len=L)
    other = draw_documents(draw_lengths(90, seed=8))
    write_datatrove(paths[0], other)
    monkeypatch.setattr(module, "measure_part", count)
    again = measure("datatrove", paths, tmp_path / "b", seq_len=L)
    assert read == ["0.ds", "0.ds", "1.ds"]
    expect_cut(again, [[len(one) for one in other], lengths[half:]], "windows")


def test_where_it_may_write(tmp_path, documents):
    prefix = write_megatron(tmp_path / "d", documents)
    out = tmp_path / "out"
    first = measure("megatron", prefix, out, seq_len=L)
    with pytest.raises(UsageError, match=r"holds a measurement; .* --overwrite"):
        measure("megatron", prefix, out, seq_len=32)
    assert open_measured(out).record.seq_len == L
    assert measure("megatron", prefix, out, seq_len=32, overwrite=True).seq_len == 32
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"holds other files \(thesis\.txt\)"):
        measure("megatron", prefix, tmp_path / "full", seq_len=L)
    again = measure("megatron", prefix, tmp_path / "again", seq_len=L, workers=2)
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "again" / "exposure.json").read_bytes() != b""


def test_the_number_of_workers_changes_no_byte(tmp_path, documents):
    for number in range(6):
        write_datatrove(tmp_path / f"{number}.ds", documents[20 * number : 20 * number + 20])
    for workers in (1, 3):
        measure("datatrove", tmp_path / "*.ds", tmp_path / f"out{workers}", seq_len=L, workers=workers)
    files = [(tmp_path / f"out{workers}" / "exposure.json").read_bytes() for workers in (1, 3)]
    assert files[0] == files[1]
