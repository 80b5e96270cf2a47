"""`--mask-field` and `--labels-field`: prompts and tool output carry no loss, whatever weighs them."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import exact_prep, read_json, read_rows, read_table

import exact_prep as package
from exact_prep.batches import MASKED, Rows
from exact_prep.errors import UsageError
from exact_prep.pipeline.verify import verify
from exact_prep.stages.masks import split_masks

SEQ_LEN = 32


def make_documents(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Ids and masks: prompts at the start, answers, tool output in between; some all or never masked."""
    chooser = random.Random(seed)
    documents = []
    for _ in range(count):
        ids, mask = [], []
        for _ in range(chooser.randrange(1, 5)):
            length = chooser.choice([1, 2, 7, 40])
            ids += [chooser.randrange(5, 50) for _ in range(length)]
            mask += [chooser.randrange(2)] * length
        documents.append((ids, mask))
    return documents


DOCUMENTS = make_documents(60)


def write(path, kind: str, documents=DOCUMENTS):
    """A corpus of ids with masks or labels; returns the option that names them."""
    ids = [own for own, _ in documents]
    if kind == "labels":
        values = [[one if keep else -100 for one, keep in zip(own, mask, strict=True)] for own, mask in documents]
    else:
        values = [[bool(keep) for keep in mask] if kind == "bool" else mask for _, mask in documents]
    if path.suffix == ".jsonl":
        rows = zip(ids, values, strict=True)
        path.write_text("".join(f"{json.dumps({'ids': own, 'mask': more})}\n" for own, more in rows))
    else:
        own = pa.bool_() if kind == "bool" else pa.int64() if kind == "labels" else pa.int8()
        table = pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "mask": pa.array(values, pa.list_(own))})
        pq.write_table(table, path, row_group_size=7)
    return "--labels-field" if kind == "labels" else "--mask-field"


def walk_targets(home):
    """(id, context, masked, weight) of every token of every row."""
    for row in read_rows(home):
        masked = set()
        runs = row["masked_runs"]
        for start, stop in zip(runs[::2], runs[1::2], strict=True):
            masked |= set(range(start, stop))
        position = 0
        for doc, offset, length in zip(row["doc_ids"], row["doc_offsets"], row["seq_lengths"], strict=True):
            for context in range(length):
                at = position + context
                weight = row["loss_weights"][at] if "loss_weights" in row else None
                yield doc, offset + context, row["input_ids"][at], context, at in masked, weight
            position += length


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", "int"), ("a.parquet", "bool"), ("a.parquet", "labels"), ("a.jsonl", "labels")]
)
def test_every_token_keeps_its_mask(name, kind, packing, tmp_path):
    """With BOS, which carries no loss, and EOS, which carries what the last token carries."""
    option = write(tmp_path / name, kind)
    base = ("pack", tmp_path / name, "--ids-field", "ids", option, "mask", "--seq-len", SEQ_LEN, "--packing", packing)
    special = ("--eos", "--eos-token", "id:1", "--bos", "--bos-token", "id:2", "--pad-token", "id:0")
    exact_prep(*base, *special, "-o", tmp_path / "out")
    found = {}
    for doc, place, token, _, masked, weight in walk_targets(tmp_path / "out"):
        found[doc, place] = (token, masked)
        assert weight == 0.0 or not masked
    wanted = {}
    for doc, (ids, mask) in enumerate(DOCUMENTS):
        own = [(2, True), *((token, not keep) for token, keep in zip(ids, mask, strict=True)), (1, not mask[-1])]
        wanted |= {(doc, place): one for place, one in enumerate(own)}
    assert found == wanted
    assert verify(tmp_path / "out") == []
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["masked"] is True
    counts = [0] * 3
    for _, _, _, context, masked, _ in walk_targets(tmp_path / "out"):
        if context and not masked:
            counts[max(context.bit_length() - 3, 0)] += 1
    assert manifest["exposure"]["counts"] == counts
    firsts = sum(context == 0 and not masked for _, _, _, context, masked, _ in walk_targets(tmp_path / "out"))
    assert manifest["exposure"]["firsts"] == firsts


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_masked_targets_weigh_nothing_under_every_setting(loss_weights, tmp_path):
    option = write(tmp_path / "a.parquet", "int")
    base = ("pack", tmp_path / "a.parquet", "--ids-field", "ids", option, "mask", "--seq-len", SEQ_LEN)
    exact_prep(*base, "--loss-weights", loss_weights, "-o", tmp_path / "out")
    for words in ((), ("--supervise-first", "--alpha", 2), ("--normalize", "mean"), ("--window", 12, "--tail-from", 8)):
        exact_prep("weigh", tmp_path / "out", *words)
        assert verify(tmp_path / "out") == []
        dataset = package.open(tmp_path / "out")
        weights = [float(one) for row in dataset for one in row.loss_weights]
        position = iter(weights[at] for at in range(len(weights)))
        masked = []
        for row in read_rows(tmp_path / "out"):
            runs = row["masked_runs"]
            own = [any(a <= at < b for a, b in zip(runs[::2], runs[1::2], strict=True)) for at in range(SEQ_LEN)]
            masked += [next(position) for at in range(SEQ_LEN) if own[at] or next(position) is None]
        assert set(masked) == {0.0}
        total = sum(float(row.loss_weights.astype(np.float64).sum()) for row in dataset)
        assert dataset.weight_per_row == pytest.approx(total / len(dataset), rel=1e-9)
    row = next(row for row in dataset if row.loss_weights.any())
    assert ((row.labels() == -100) == (row.loss_weights == 0)).all()


def test_rows_of_padding_and_several_lengths_are_masked_datasets_too(tmp_path):
    option = write(tmp_path / "a.parquet", "int")
    base = ("pack", tmp_path / "a.parquet", "--ids-field", "ids", option, "mask", "--seq-len", 16, "--seq-len", 64)
    exact_prep(*base, "--rows-multiple-of", 50, "--workers", 2, "-o", tmp_path / "out")
    assert verify(tmp_path / "out") == []
    for length in ("16", "64"):
        assert read_json(tmp_path / "out" / length / "manifest.json")["padding_rows"] > 0
        assert read_rows(tmp_path / "out" / length)[-1]["masked_runs"] == []


BAD = {
    "too short": ([5, 6, 7], [1, 1], "has 2 values for 3 tokens"),
    "too long": ([5, 6, 7], [1, 1, 1, 1], "has 4 values for 3 tokens"),
    "no mask": ([5, 6, 7], None, "is null"),
    "another value": ([5, 6, 7], [0, 2, 1], "holds a value that is none of a mask or label"),
    "a null": ([5, 6, 7], [0, None, 1], "holds a value that is none of a mask or label"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_mask_that_does_not_fit_is_a_bad_document(fault, suffix, tmp_path):
    ids, mask, words = BAD[fault]
    path = tmp_path / f"a{suffix}"
    good = ([8, 9, 10], [0, 1, 1])
    if suffix == ".parquet":
        kinds = pa.list_(pa.int32()), pa.list_(pa.int64())
        columns = zip(kinds, zip(good, (ids, mask), good, strict=True), strict=True)
        pq.write_table(
            pa.table({name: pa.array(own, kind) for name, (kind, own) in zip(("ids", "mask"), columns, strict=True)}),
            path,
        )
    else:
        path.write_text("".join(f"{json.dumps({'ids': a, 'mask': b})}\n" for a, b in (good, (ids, mask), good)))
        words = "is missing, not an array" if mask is None else words
    base = ("pack", path, "--ids-field", "ids", "--mask-field", "mask", "--seq-len", 8, "-o", tmp_path / "out")
    stopped = exact_prep(*base, check=1).stderr
    assert words in stopped
    assert ("row 1" if suffix == ".parquet" else "line 2") in stopped
    exact_prep(*base, "--on-error", "reject")
    kept = [(token, masked) for _, _, token, _, masked, _ in walk_targets(tmp_path / "out")]
    assert kept == [(8, True), (9, False), (10, False)] * 2
    assert verify(tmp_path / "out") == []


def test_wrong_use_is_refused(tmp_path):
    write(tmp_path / "a.parquet", "int")
    base = ("pack", tmp_path / "a.parquet", "--seq-len", 8, "-o", tmp_path / "out")
    assert "are for --ids-field" in exact_prep(*base, "--mask-field", "mask", check=2).stderr
    ids = (*base, "--ids-field", "ids")
    assert "exclude each other" in exact_prep(*ids, "--mask-field", "mask", "--labels-field", "mask", check=2).stderr
    assert "there is no column 'labels'" in exact_prep(*ids, "--labels-field", "labels", check=1).stderr
    with pytest.raises(UsageError, match="exclude each other"):
        package.pack(
            tmp_path / "a.parquet", tmp_path / "o", seq_len=8, ids_field="ids", mask_field="a", labels_field="b"
        )


def test_ids_outside_of_the_vocabulary_are_found_where_they_are_masked(tokenizer_file, tmp_path):
    write(tmp_path / "a.parquet", "int", [([5, 10**6, 7], [0, 0, 1])])
    base = ("pack", tmp_path / "a.parquet", "--ids-field", "ids", "--mask-field", "mask", "--seq-len", 8)
    said = exact_prep(*base, "--tokenizer", tokenizer_file, "-o", tmp_path / "out", check=1).stderr
    assert "id 1000000 at token 1 is not in the vocabulary" in said


def test_sources_count_what_carries_loss(tmp_path):
    for name, mask in (("a", [0, 0, 1, 1]), ("b", [1, 1, 1, 1])):
        write(tmp_path / f"{name}.parquet", "int", [([5, 6, 7, 8], mask)] * 3)
    files = (tmp_path / "a.parquet", tmp_path / "b.parquet")
    exact_prep("pack", *files, "--ids-field", "ids", "--mask-field", "mask", "--seq-len", 4, "-o", tmp_path / "out")
    rows = read_table(tmp_path / "out", "sources")
    assert [(row["counts"], row["segments"], row["firsts"]) for row in rows] == [([6], 3, 0), ([9], 3, 3)]


@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=5), min_size=1, max_size=4))
def test_runs_are_those_that_a_slow_oracle_finds(rows):
    """Rows of segments of (length, whether the last half is masked)."""
    seq_len = max(sum(length for length, _ in row) for row in rows) + 1
    ids = np.zeros((len(rows), seq_len), np.int32)
    lengths, wanted, splits, below = [], [], [0], [0]
    inside = 0
    for number, row in enumerate(rows):
        at = 0
        for length, half in row:
            ids[number, at : at + length] = 7
            if half:
                start = at + length // 2
                ids[number, start : at + length] |= MASKED
                wanted += [start, at + length]
                inside += length - length // 2 - (length // 2 == 0)
            lengths.append(length)
            at += length
        splits.append(len(lengths))
        below.append(len(wanted))
    segments = np.array(lengths, np.int32)
    packed = Rows(
        input_ids=ids,
        row_splits=np.array(splits, np.int32),
        seq_lengths=segments,
        doc_ids=np.arange(segments.size),
        doc_offsets=np.zeros(segments.size, np.int64),
        sources=np.zeros(segments.size, np.int16),
    )
    plain, masked = split_masks(packed)
    assert plain.input_ids.min() >= 0
    assert plain.masked_runs.tolist() == wanted
    assert plain.mask_splits.tolist() == below
    assert masked == inside


def test_an_export_to_parquet_keeps_the_masks(tmp_path):
    option = write(tmp_path / "a.parquet", "int")
    words = ("--ids-field", "ids", option, "mask", "--seq-len", SEQ_LEN, "-o", tmp_path / "out")
    exact_prep("pack", tmp_path / "a.parquet", *words)
    exact_prep("weigh", tmp_path / "out", "--tail-from", 8)
    exact_prep("export", tmp_path / "out", "--to", "parquet", "--out", tmp_path / "files")
    rows = [row for path in sorted((tmp_path / "files").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["masked_runs"] for row in rows] == [row["masked_runs"] for row in read_rows(tmp_path / "out")]
    assert any(row["masked_runs"] for row in rows)
