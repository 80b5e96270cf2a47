"""Laws of weights: wherever they are kept (shards, table of the dataset, table in a file), a reader gives the same."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from written_dataset import (
    documents,
    mask_dataset,
    oracle_weights,
    read_weights_file,
    weigh_dataset,
    with_masks,
    write_dataset,
    write_table,
)

import exact_prep
from exact_prep.errors import DatasetError, StorageError, UsageError
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.publish import describe
from exact_prep.pipeline.verify import verify
from exact_prep.reader import rows as reader
from exact_prep.reader.blocks import read_blocks
from exact_prep.records import encode, seal
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.shards import ShardWriter, open_shard
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import exact_weights
from exact_prep.weighing.weights import resolve_options, weight_table

SEQ_LEN = 64
OWN = {"alpha": 0.6}
OTHER = {"alpha": 1.7, "gamma": 0.9, "supervise_first": True, "normalize": "mean"}
PLACES = ["column", "table", "column with a file", "table with a file", "plain column", "plain table"]


@pytest.fixture(scope="module")
def docs():
    return documents(120, 200)


@pytest.fixture(scope="module")
def made(tmp_path_factory, docs):
    """The same rows with a column of weights and without, and the table of other weights in a file."""
    path = tmp_path_factory.mktemp("weights")
    column = weigh_dataset(write_dataset(path / "column", docs, seq_len=SEQ_LEN, shards=3), **OWN)
    table = write_dataset(path / "table", docs, seq_len=SEQ_LEN, shards=3, loss_weights="table")
    weigh_dataset(table, **OWN)
    return SimpleNamespace(column=column, table=table, file=write_table(column, path / "other.json", **OTHER))


def open_kind(made, kind, **options):
    """A dataset of one of PLACES, and its weights.json as plain data (None if plain)."""
    directory = made.table if "table" in kind.replace("with a file", "") else made.column
    if "plain" in kind:
        return exact_prep.open(directory, plain=True, **options), None
    if "file" in kind:
        return exact_prep.open(directory, weights=made.file, **options), read_weights_file(made.file)
    return exact_prep.open(directory, **options), read_weights_file(directory / "weights.json")


def weights_of(dataset):
    return [row.loss_weights.tolist() for row in dataset]


@pytest.mark.parametrize("kind", PLACES)
def test_every_row_weighs_what_the_table_says_at_its_positions(made, kind):
    dataset, file = open_kind(made, kind)
    assert dataset.has_stored_weights == (kind == "column")
    want = [oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file) for row in dataset]
    assert weights_of(dataset) == want
    assert {row.loss_weights.dtype for row in dataset} == {np.dtype(np.float16)}
    if file is not None:
        lut = dataset.loaded_weights.lut
        for row, weights in zip(dataset, want, strict=True):
            used = int(row.seq_lengths.sum())
            assert lut[row.position_ids[:used]].tolist() == weights[:used]
    in_blocks = [weights for block in read_blocks(dataset, "target") for weights in block.loss_weights.tolist()]
    assert in_blocks == [[0.0, *weights[1:]] for weights in want]


@pytest.mark.parametrize("kind", PLACES)
def test_weight_per_row_is_the_mean_sum_of_a_row(made, kind):
    dataset, _ = open_kind(made, kind)
    sums = [float(row.loss_weights.astype(np.float64).sum()) for row in dataset]
    assert dataset.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-12)


def test_a_dataset_without_a_column_is_the_same_dataset(made):
    column, table = exact_prep.open(made.column), exact_prep.open(made.table)
    assert column.manifest.tree_hash == table.manifest.tree_hash
    assert weights_of(column) == weights_of(table)
    assert all(size.bytes < whole.bytes for size, whole in zip(table.files.shards, column.files.shards, strict=True))
    assert not (made.table / "tables" / "weights.parquet").exists()
    # So the table of one is a table of the other.
    assert weights_of(exact_prep.open(made.column, weights=made.table / "weights.json")) == weights_of(column)
    assert weights_of(exact_prep.open(made.table, weights=made.column)) == weights_of(column)


@pytest.mark.parametrize("kind", PLACES)
def test_orders_slices_and_copies_keep_their_weights(made, kind):
    dataset, _ = open_kind(made, kind)
    want = weights_of(dataset)
    assert weights_of(dataset[::-1]) == want[::-1]
    assert weights_of(dataset[3:11:2]) == want[3:11:2]
    assert weights_of(dataset.select([5, 5, 0])) == [want[5], want[5], want[0]]
    shuffled = dataset.shuffle(4)
    assert weights_of(shuffled) == [want[row] for row in shuffled.rows]
    assert weights_of(shuffled.shard(1, 3)) == [want[row] for row in shuffled.rows[1::3]]
    assert shuffled.weight_per_row == dataset.weight_per_row
    copy = pickle.loads(pickle.dumps(shuffled[:5]))
    assert weights_of(copy) == weights_of(shuffled[:5])
    assert copy.weight_per_row == dataset.weight_per_row


def read_in_a_process(dataset):
    return weights_of(dataset)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["column", "table", "column with a file"])
def test_other_processes_read_the_same_weights(made, kind, method):
    dataset, _ = open_kind(made, kind)
    want = weights_of(dataset)  # mapped here before there is another process
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(read_in_a_process, dataset.shuffle(2)).result() == [
            want[row] for row in dataset.shuffle(2).rows
        ]


@pytest.mark.parametrize("kind", ["table", "column with a file", "plain column"])
def test_threads_may_share_computed_weights(made, kind, monkeypatch):
    monkeypatch.setattr(reader, "SHARDS_MAPPED", 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        want = weights_of(open_kind(made, kind)[0])
        dataset, _ = open_kind(made, kind)

        def read(seed):
            places = np.random.default_rng(seed).integers(len(want), size=300)
            return all(dataset[place].loss_weights.tolist() == want[place] for place in places)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, range(8)))
    finally:
        sys.setswitchinterval(before)


def test_stored_weights_are_views_and_computed_ones_belong_to_their_row(made):
    for kind in PLACES:
        dataset, _ = open_kind(made, kind)
        row = dataset[1]
        assert row.loss_weights.flags.writeable == (kind != "column")
        assert np.shares_memory(row.loss_weights, dataset[1].loss_weights) == (kind == "column")
        assert not row.input_ids.flags.writeable


def test_plain_weights_and_a_table_exclude_each_other(made):
    with pytest.raises(UsageError, match="plain=True and weights= exclude each other"):
        exact_prep.open(made.column, plain=True, weights=made.file)


def test_a_table_of_other_rows_is_refused_and_one_of_other_datasets_unless_it_is_meant(made, docs, tmp_path):
    def refused(message, table, **options):
        with pytest.raises(DatasetError, match=message):
            exact_prep.open(made.column, weights=table, **options)

    longer = write_table(write_dataset(tmp_path / "longer", docs, seq_len=128), tmp_path / "longer.json")
    for options in ({}, {"weights_from_elsewhere": True}):
        refused("made for rows of 128 tokens, .* has rows of 64; make a table.*weigh --out", longer, **options)
    table = write_table(write_dataset(tmp_path / "few", docs[:50], seq_len=SEQ_LEN), tmp_path / "few.json", alpha=0.9)
    refused("made for other datasets.*--weights-from-elsewhere", table)
    borrowed = exact_prep.open(made.column, weights=table, weights_from_elsewhere=True)
    file = read_weights_file(table)
    assert weights_of(borrowed) == [oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file) for row in borrowed]
    sums = [float(row.loss_weights.astype(np.float64).sum()) for row in borrowed]
    assert borrowed.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-12)


def test_a_table_of_another_tokenizer_is_refused_whatever_is_meant(made, tokenizer_file, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{"a word " * n}"}}\n' for n in range(1, 60)))
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(SEQ_LEN,)),
    )
    pack([str(tmp_path / "text.jsonl")], options, tmp_path / "text")
    own = write_table(tmp_path / "text", tmp_path / "own.json")
    assert len(exact_prep.open(tmp_path / "text", weights=own))
    loaded = exact_prep.load_weights(own).file
    other = loaded.datasets[0].model_copy(update={"tokenizer": "f" * 64})
    (tmp_path / "other.json").write_bytes(encode(seal(loaded.model_copy(update={"datasets": (other,)}))))
    for options in ({}, {"weights_from_elsewhere": True}):
        with pytest.raises(DatasetError, match="made for another tokenizer"):
            exact_prep.open(tmp_path / "text", weights=tmp_path / "other.json", **options)
    # Ids without a tokenizer: nothing says that it is another.
    assert len(exact_prep.open(made.column, weights=own, weights_from_elsewhere=True))


def test_what_is_no_table_of_weights_is_refused(made, docs, tmp_path):
    def refused(message, table):
        with pytest.raises(DatasetError, match=message):
            exact_prep.open(made.column, weights=table)

    refused("does not exist", tmp_path / "none.json")
    refused("is not a WeightsFile", made.column / "manifest.json")
    plain = write_dataset(tmp_path / "plain", docs, seq_len=SEQ_LEN, shards=3)
    refused("holds plain weights", plain / "weights.json")
    refused("holds plain weights", plain)
    (tmp_path / "changed.json").write_text(made.file.read_text().replace('"alpha": 1.7', '"alpha": 1.8'))
    refused("was changed after it was written", tmp_path / "changed.json")
    half = exact_prep.load_weights(made.file).file.model_copy(update={"state": "incomplete"})
    (tmp_path / "half.json").write_bytes(encode(seal(half)))
    refused("is incomplete", tmp_path / "half.json")
    # A table serves where the dataset has no weights of its own, and changes nothing there.
    with pytest.raises(DatasetError, match="not weighed"):
        exact_prep.open(plain)
    before = (plain / "weights.json").read_bytes()
    assert weights_of(exact_prep.open(plain, weights=made.file)) == weights_of(open_kind(made, "column with a file")[0])
    assert (plain / "weights.json").read_bytes() == before


def test_each_dataset_of_a_mixture_gets_its_own_weights(made, tmp_path):
    """A table of two datasets, of which each divides the weights by its own number."""
    manifest = exact_prep.open(made.column).manifest
    options = resolve_options(WeightOptions(alpha=2.0), SEQ_LEN)
    table = weight_table(Exposure.from_record(manifest.exposure), options)
    mine = replace_record(describe(manifest), rate=0.25, divisor=1.5)
    theirs = replace_record(describe(manifest), id="0" * 32, rate=0.75, divisor=3.0)
    (tmp_path / "mixed.json").write_bytes(encode(seal(exact_weights(table, [mine, theirs], SEQ_LEN))))
    lut = [0.0, *(float(np.float16(table.lut(SEQ_LEN)[position] / 1.5)) for position in range(1, SEQ_LEN))]
    for directory in (made.column, made.table):
        dataset = exact_prep.open(directory, weights=tmp_path / "mixed.json")
        for row in dataset:
            want = [lut[position] for length in row.seq_lengths.tolist() for position in range(length)]
            assert row.loss_weights.tolist() == want + [0.0] * (SEQ_LEN - len(want))
        sums = [float(row.loss_weights.astype(np.float64).sum()) for row in dataset]
        assert dataset.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-12)


def replace_record(record, **update):
    return record.model_copy(update=update)


def test_under_a_window_weights_stay_where_the_window_ends(docs, tmp_path):
    for loss_weights in ("column", "table"):
        path = write_dataset(tmp_path / loss_weights, docs, seq_len=SEQ_LEN, loss_weights=loss_weights)
        weigh_dataset(path, window=24, alpha=0.8, tail_from=8)
        dataset, file = exact_prep.open(path), read_weights_file(path / "weights.json")
        assert weights_of(dataset) == [oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file) for row in dataset]
        lut = dataset.loaded_weights.lut
        assert set(lut[24:].tolist()) == {lut[24]}
        sums = [float(row.loss_weights.astype(np.float64).sum()) for row in dataset]
        assert dataset.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-12)


def test_rows_name_the_source_of_each_segment(made, docs):
    """Source labels are `even` and `odd`, by document; a task lists them in the order in which they appear."""
    for directory in (made.column, made.table):
        dataset = exact_prep.open(directory)
        tasks = dataset.files.table("tasks").to_pylist()
        labels = dataset.files.table("sources").column("label").to_pylist()
        assert labels == ["even", "odd"]
        owner = [tasks[shard.task] for shard in dataset.files.shards for _ in range(shard.rows)]
        seen = 0
        for row, task in zip(dataset, owner, strict=True):
            assert row.sources.dtype == np.int16
            documents = (task["first_record"] + row.doc_ids).tolist()
            found = [labels[task["sources"][place]] for place in row.sources]
            assert found == ["odd" if document % 2 else "even" for document in documents]
            seen += len(found)
        assert seen > len(docs)


def choose_runs(rows, row):
    """The first half of every second segment of a row, and a target in the middle of some others."""
    first, last = rows.row_splits[row], rows.row_splits[row + 1]
    starts = rows.segment_starts()[first:last].tolist()
    runs = []
    for number, (start, length) in enumerate(zip(starts, rows.seq_lengths[first:last].tolist(), strict=True)):
        if number % 2 or row % 3 == 0:
            runs.append((start, start + -(-length // 2)))
        elif length > 5:
            runs.append((start + 3, start + 4))
    return runs


@pytest.fixture(scope="module", params=["column", "table"])
def masked(request, tmp_path_factory, docs):
    """A masked dataset, weighed, and the masked targets of its rows, bool[R, L]."""
    path = tmp_path_factory.mktemp("masked") / "packed"
    write_dataset(path, docs, seq_len=SEQ_LEN, loss_weights=request.param)
    mask_dataset(path, choose_runs)
    plain = exact_prep.open(path, plain=True)
    masks = []
    for block in read_blocks(plain, "target"):
        for row in range(len(block)):
            mask = np.zeros(SEQ_LEN, bool)
            for start, stop in choose_runs(block, row):
                mask[start:stop] = True
            masks.append(mask)
    return SimpleNamespace(path=weigh_dataset(path, **OWN), masks=np.array(masks))


def test_masked_targets_carry_no_weight_and_no_label(masked, tmp_path):
    assert masked.masks.any(1).sum() > 5
    assert verify(masked.path) == []
    table = write_table(masked.path, tmp_path / "other.json", **OTHER)
    for dataset, file in (
        (exact_prep.open(masked.path), read_weights_file(masked.path / "weights.json")),
        (exact_prep.open(masked.path, weights=table), read_weights_file(table)),
        (exact_prep.open(masked.path, plain=True), None),
    ):
        sums = []
        for row, mask in zip(dataset, masked.masks, strict=True):
            unmasked = oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file)
            want = [0.0 if gone else weight for weight, gone in zip(unmasked, mask, strict=True)]
            assert row.loss_weights.tolist() == want
            assert (row.labels()[mask] == -100).all()
            assert (row.weights("prediction")[:-1][mask[1:]] == 0).all()
            assert (row.labels("prediction")[:-1][mask[1:]] == -100).all()
            kept = np.array(want) > 0
            assert (row.labels()[1:][kept[1:]] == row.input_ids[1:][kept[1:]]).all()
            sums.append(sum(want))
        assert dataset.weight_per_row == pytest.approx(sum(sums) / len(sums), rel=1e-12)
        assert weights_of(dataset.shuffle(3)) == [dataset[row].loss_weights.tolist() for row in dataset.shuffle(3).rows]


def test_masked_runs_may_touch_where_two_segments_meet_but_are_in_order_and_not_empty(tmp_path):
    path = write_dataset(tmp_path / "data", documents(30, 40), seq_len=SEQ_LEN, shards=1)
    (record,) = exact_prep.open(path, plain=True).files.shards
    rows = open_shard(path / record.file).batches[0]
    edge = int(rows.seq_lengths[0])
    assert 1 < edge < SEQ_LEN - 1

    def write(*runs):
        writer = ShardWriter(tmp_path / "shard.arrow", SEQ_LEN, masked=True)
        writer.write(with_masks(rows, [list(runs)] + [[]] * (len(rows) - 1)))
        return writer.close(file="shard.arrow", task=0)

    write((0, edge), (edge, edge + 1))
    (batch,) = open_shard(tmp_path / "shard.arrow").batches
    assert (batch.loss_weights[0, : edge + 1] == 0).all()
    assert batch.loss_weights[0].sum() > 0
    for runs in (
        [(1, 3), (2, 4)],
        [(3, 4), (1, 2)],
        [(2, 2)],
        [(3, 2)],
        [(-1, 2)],
        [(1, SEQ_LEN + 1)],
    ):
        with pytest.raises(DatasetError, match="not a complete exact-prep shard"):
            write(*runs)


def test_a_shard_without_the_column_its_manifest_promises_is_refused(made, tmp_path):
    """Shards of the table kind come to lie in a dataset of the column kind after it was opened."""
    lying = exact_prep.open(shutil.copytree(made.column, tmp_path / "lying"))
    for record in lying.files.shards:
        shutil.copy(made.table / record.file, lying.path / record.file)
    with pytest.raises(DatasetError, match=r"holds no weights; run `exact-prep verify"):
        lying[0]
    with pytest.raises((DatasetError, StorageError)):
        list(read_blocks(lying, "target"))
