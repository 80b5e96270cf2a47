"""Laws of the reader: what a trainer gets is what the files hold, in an order that can be shared and resumed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from written_dataset import documents, oracle_weights, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import DatasetError, UsageError, WeightsError
from exact_prep.reader import columns
from exact_prep.reader import rows as reader
from exact_prep.reader.order import BatchOrder, BatchPolicy
from exact_prep.records import encode, seal
from exact_prep.records.weights import WeightsFile

SEQ_LEN = 64


@pytest.fixture(scope="module")
def docs():
    return documents(120, 200)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, docs):
    path = write_dataset(tmp_path_factory.mktemp("data") / "packed", docs, seq_len=SEQ_LEN, shards=3)
    return weigh_dataset(path, alpha=0.6)


@pytest.fixture(scope="module")
def dataset(directory):
    return exact_prep.open(directory)


def plain_row(row, weights_file):
    """What a row derives to, in plain Python."""
    lengths = row.seq_lengths.tolist()
    padding = SEQ_LEN - sum(lengths)
    ids, weights = row.input_ids.tolist(), oracle_weights(lengths, SEQ_LEN, weights_file)
    labels = [token if w > 0 else -100 for token, w in zip(ids, weights, strict=True)]
    edges = [sum(lengths[:s]) for s in range(len(lengths) + 1)]
    return {
        "position_ids": [p for n in lengths for p in range(n)] + [0] * padding,
        "segment_ids": [s + 1 for s, n in enumerate(lengths) for _ in range(n)] + [0] * padding,
        "cu_seqlens": edges + ([SEQ_LEN] if padding else []),
        "weights": weights,
        "labels": labels,
        "shifted_weights": [*weights[1:], 0.0],
        "shifted_labels": [*labels[1:], -100],
    }


def test_every_row_derives_as_the_plain_oracle_says(dataset, directory):
    file = json.loads((directory / "weights.json").read_text())
    assert len({w for w in file["table"]["weights"] if w > 1}) > 1
    assert any(sum(row.seq_lengths) < SEQ_LEN for row in dataset)
    for row in dataset:
        want = plain_row(row, file)
        assert row.position_ids.tolist() == want["position_ids"]
        assert row.segment_ids.tolist() == want["segment_ids"]
        assert row.cu_seqlens.tolist() == want["cu_seqlens"]
        assert row.weights().tolist() == row.loss_weights.tolist() == want["weights"]
        assert row.labels().tolist() == want["labels"]
        assert row.weights("prediction").tolist() == want["shifted_weights"]
        assert row.labels("prediction").tolist() == want["shifted_labels"]


def test_rows_hold_every_token_of_every_document(dataset, docs):
    seen = {}
    first_records = dataset.files.table("tasks").column("first_record").to_pylist()
    first = [first_records[shard.task] for shard in dataset.files.shards for _ in range(shard.rows)]
    for row, record in zip(dataset, first, strict=True):
        starts = np.cumsum(row.seq_lengths) - row.seq_lengths
        for start, length, doc, offset in zip(starts, row.seq_lengths, row.doc_ids, row.doc_offsets, strict=True):
            seen[record + int(doc), int(offset)] = row.input_ids[start : start + length].tolist()
    whole = {}
    for (doc, _), tokens in sorted(seen.items()):
        whole[doc] = whole.get(doc, []) + tokens
    assert whole == dict(enumerate(docs))


def test_rows_are_views_of_the_mapped_files(dataset):
    row = dataset[0]
    for stored in (row.input_ids, row.seq_lengths, row.doc_ids, row.doc_offsets, row.sources, row.loss_weights):
        assert not stored.flags.owndata
        assert not stored.flags.writeable
    assert np.shares_memory(row.input_ids, dataset[0].input_ids)
    assert row.weights() is row.loss_weights


def test_views_outlive_a_shard_that_is_let_go(directory, monkeypatch):
    monkeypatch.setattr(reader, "SHARDS_MAPPED", 1)
    dataset = exact_prep.open(directory)
    rows = list(dataset)
    assert len(dataset._mapped) == 1
    assert [row.input_ids.tolist() for row in rows] == [dataset[i].input_ids.tolist() for i in range(len(dataset))]


def test_threads_may_share_a_dataset_of_more_shards_than_are_kept_mapped(directory, monkeypatch):
    monkeypatch.setattr(reader, "SHARDS_MAPPED", 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        dataset = exact_prep.open(directory)
        rows = ids(exact_prep.open(directory))

        def read(seed):
            places = np.random.default_rng(seed).integers(len(rows), size=2000)
            return all(dataset[place].input_ids.tobytes() == rows[place] for place in places)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, range(8)))
    finally:
        sys.setswitchinterval(before)


def ids(dataset):
    return [row.input_ids.tobytes() for row in dataset]


def test_slices_index_like_a_list(dataset):
    rows = ids(dataset)
    assert ids(dataset[2:9:3]) == rows[2:9:3]
    assert ids(dataset[::-1]) == rows[::-1]
    assert ids(dataset[5:][1:3]) == rows[5:][1:3]
    assert dataset[-1].input_ids.tobytes() == rows[-1]
    assert ids(dataset.select([4, 4, 0])) == [rows[4], rows[4], rows[0]]
    assert dataset[np.int32(3)].input_ids.tobytes() == rows[3]
    assert ids(dataset.select(np.arange(len(dataset)) % 3 == 1)) == rows[1::3]
    for empty in (dataset[3:3], dataset.select([]), dataset[3:3].shuffle(1), pickle.loads(pickle.dumps(dataset[:0]))):
        assert len(empty) == 0
        assert list(empty) == []
    for beyond in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[beyond]
    for none in ("1", 1.5, [1]):
        with pytest.raises(TypeError):
            dataset[none]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_rows_without_overlap_or_loss(dataset, world_size):
    parts = [ids(dataset.shuffle(3).shard(rank, world_size)) for rank in range(world_size)]
    assert sorted(row for part in parts for row in part) == sorted(ids(dataset))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def splitmix_order(size, *key):
    """Things sorted by splitmix64 of (key, number), in plain Python."""

    def mix(word):
        word = (word + 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    state = 0
    for word in key:
        state = mix(state ^ word)
    return sorted(range(size), key=lambda number: mix((state + number) % 2**64))


def test_a_shuffle_is_the_same_for_ever(dataset):
    assert ids(dataset.shuffle(5)) == ids(dataset.shuffle(5)) != ids(dataset.shuffle(6)) != ids(dataset)
    assert ids(dataset.shuffle(5, epoch=1)) != ids(dataset.shuffle(5))
    with pytest.raises(UsageError, match="seed is -1"):
        dataset.shuffle(-1)
    order = BatchOrder(8, BatchPolicy(batch_size=8, seed=7))
    assert [order.batch(epoch).tolist() for epoch in (0, 1)] == [splitmix_order(8, 7, 0), splitmix_order(8, 7, 1)]
    assert order.batch(0).tolist() == [1, 3, 2, 4, 7, 0, 6, 5]


def test_a_dataset_travels_to_another_process(dataset):
    copy = pickle.loads(pickle.dumps(dataset.shuffle(1)[:5]))
    assert ids(copy) == ids(dataset.shuffle(1)[:5])


def test_the_lookup_table_gives_what_the_shards_hold(dataset, directory):
    weights = exact_prep.load_weights(directory / "weights.json")
    assert weights.lut.dtype == np.float32
    for row in dataset:
        stored = row.loss_weights.astype(np.float32)
        assert np.array_equal(weights.lut[row.position_ids], stored)
        assert np.array_equal(weights.of_lengths(row.seq_lengths), stored)
    assert weights.of_lengths([3, 2], 7).tolist() == [0, 1, 1, 0, 1, 0, 0]
    assert weights.table.weights.tolist() == list(weights.file.table.weights)
    total = sum(float(row.loss_weights.astype(np.float64).sum()) for row in dataset)
    supervised = sum(int((row.labels() != -100).sum()) for row in dataset)
    assert weights.mean_weight == pytest.approx(total / supervised, rel=1e-12)


def test_predictions_weigh_what_the_shifted_column_holds(dataset, directory):
    weights = exact_prep.load_weights(directory)
    for row in dataset:
        used = int(row.seq_lengths.sum())
        ends = np.zeros(used, bool)
        ends[np.cumsum(row.seq_lengths) - 1] = True
        want = row.weights("prediction").astype(np.float32)
        assert np.array_equal(weights.of_predictions(row.position_ids[:used], ends), want[:used])
    assert weights.of_predictions([[0, 1], [0, 0]], np.array([[False, True], [True, True]])).tolist() == [
        [weights.lut[1], 0],
        [0, 0],
    ]
    for ends in (np.zeros(3, bool), np.zeros(2, int)):
        with pytest.raises(WeightsError, match="one per position"):
            weights.of_predictions([0, 1], ends)


def test_windows_of_one_token_more_have_a_last_context_that_weighs_as_the_one_before(directory):
    weights = exact_prep.load_weights(directory)
    assert weights.lut.size == SEQ_LEN + 1
    assert weights.lut[SEQ_LEN] == weights.lut[SEQ_LEN - 1] > 1
    inputs = np.arange(SEQ_LEN)
    assert np.array_equal(weights.of_predictions(inputs, np.zeros(SEQ_LEN, bool)), weights.lut[1:])
    assert np.array_equal(weights.of_lengths([SEQ_LEN + 1], SEQ_LEN + 1), weights.lut)


def test_positions_beyond_the_rows_the_weights_were_made_for_are_refused(directory):
    weights = exact_prep.load_weights(directory)
    for call in (lambda: weights.of_positions([SEQ_LEN + 1]), lambda: weights.of_lengths([SEQ_LEN + 2], 2 * SEQ_LEN)):
        with pytest.raises(WeightsError, match="pack and weigh a dataset of the row length"):
            call()
    with pytest.raises(WeightsError, match="do not fit a row of 4"):
        weights.of_lengths([3, 2], 4)


def test_supervised_first_tokens_keep_their_weight_but_for_the_row_itself(tmp_path, docs):
    path = write_dataset(tmp_path / "first", docs, seq_len=SEQ_LEN)
    weigh_dataset(path, supervise_first=True)
    for row in exact_prep.open(path):
        first = np.zeros(SEQ_LEN, bool)
        first[(np.cumsum(row.seq_lengths) - row.seq_lengths)] = True
        assert (row.loss_weights[first] > 0).all()
        assert (row.weights()[first][1:] > 0).all()
        assert (row.labels()[first][1:] == row.input_ids[first][1:]).all()
        assert row.weights()[0] == row.weights("prediction")[-1] == 0
        assert row.labels()[0] == row.labels("prediction")[-1] == -100


def test_plain_weights_are_one_for_supervised_targets_whatever_the_shards_hold(directory, dataset):
    plain = exact_prep.open(directory, plain=True)
    for row, weighed in zip(plain, dataset, strict=True):
        assert row.loss_weights.dtype == np.float16
        assert np.array_equal(row.loss_weights, (weighed.loss_weights > 0).astype(np.float16))


def test_a_dataset_that_cannot_be_trusted_is_refused_with_its_remedy(tmp_path, docs):
    def refused(message, path, **options):
        with pytest.raises(DatasetError, match=message):
            exact_prep.open(path, **options)

    refused(r"not a packed dataset.*no manifest\.json.*exact-prep pack", tmp_path)
    path = write_dataset(tmp_path / "one", docs, seq_len=SEQ_LEN)
    refused("not weighed; run `exact-prep weigh", path)
    assert len(exact_prep.open(path, plain=True)) > 0
    weigh_dataset(path)
    other = weigh_dataset(write_dataset(tmp_path / "two", docs[:50], seq_len=SEQ_LEN))
    own = (path / "weights.json").read_text()
    (path / "weights.json").write_text((other / "weights.json").read_text())
    refused("belongs to another dataset.*exact-prep weigh", path)
    (path / "weights.json").write_text(own.replace('"complete"', '"incomplete"'))
    refused("was changed after it was written", path)
    half = WeightsFile.model_validate_json(own).model_copy(update={"state": "incomplete"})
    (path / "weights.json").write_bytes(encode(seal(half)))
    refused("is incomplete.*exact-prep weigh", path)
    (path / "weights.json").write_text(own)
    shard = next(path.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    refused("has .* bytes, not", path)
    shard.unlink()
    refused("is missing", path)


def test_ranks_and_alignments_that_do_not_exist_are_refused(dataset):
    with pytest.raises(UsageError):
        dataset.shard(2, 2)
    with pytest.raises(UsageError):
        dataset[0].weights("previous")
    with pytest.raises(UsageError):
        columns.labels(dataset[0].input_ids, dataset[0].loss_weights, "next")


def test_importing_exact_prep_loads_no_library():
    heavy = "{'numpy', 'pyarrow', 'torch', 'pydantic', 'numba', 'datasets', 'msgspec'}"
    code = f"import sys, exact_prep; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_public_names_stay_where_they_are(directory):
    """Code that users wrote imports these; a test that must change here breaks it."""
    promised = {"open", "load_weights", "LoadedWeights", "PackedDataset", "Row", "__version__"}
    promised |= {"pack", "weigh", "verify"}
    assert promised <= set(exact_prep.__all__)
    for name in exact_prep.__all__:
        assert getattr(exact_prep, name) is not None
    dataset = exact_prep.open(str(directory))
    assert isinstance(dataset, exact_prep.PackedDataset)
    assert isinstance(dataset[0], exact_prep.Row)
    assert isinstance(dataset.loaded_weights, exact_prep.LoadedWeights)
    assert isinstance(exact_prep.load_weights(str(directory)), exact_prep.LoadedWeights)
    assert len(dataset) == dataset.manifest.rows
    members = {"manifest", "path", "rows", "seq_len", "weight_per_row", "loaded_weights", "select", "shuffle", "shard"}
    assert members <= set(dir(dataset))
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        exact_prep.opne  # noqa: B018
    code = "from exact_prep import *; print(open.__module__, load_weights.__module__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["exact_prep.reader.rows", "exact_prep.reader.lookup"]


def test_reading_loads_no_framework(directory):
    code = (
        f"import sys, exact_prep; exact_prep.open({str(directory)!r})[0].labels();"
        "sys.exit(bool({'torch', 'jax', 'datasets', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
