"""Datasets in a bucket: opened, reported, verified and weighed as on a local disk, and rows are read by ranges."""

from __future__ import annotations

import importlib
import itertools
import json
import pickle
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from fault_proxy import FAULTS

import exact_prep as package
from exact_prep.errors import DatasetError, StorageError, UsageError
from exact_prep.reader import ranges
from exact_prep.stores import open_store
from exact_prep.stores.paths import StorePath, find_place
from tests.runs import exact_prep, list_shards, make_texts, pack_here, read_files, weigh_here, write_jsonl

FIELDS = ("input_ids", "seq_lengths", "doc_ids", "doc_offsets", "sources", "loss_weights")


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tokenizer_file) -> dict[str, Path]:
    """Datasets by how they hold their weights, weighed; several shards and record batches each."""
    folder = tmp_path_factory.mktemp("packed")
    corpus = write_jsonl(folder / "corpus.jsonl", make_texts(300))
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exact_prep.shards.BATCH_TOKENS", 64 * 20)
        for kind in ("column", "table"):
            made[kind] = folder / kind
            pack_here([corpus], made[kind], tokenizer_file, loss_weights=kind, source={"task_bytes": 40_000})
            weigh_here(made[kind])
    return made


def upload(bucket, folder: Path, below: str) -> str:
    store = open_store(bucket.url, bucket.options)
    for name, data in read_files(folder).items():
        store.write(f"{below}/{name}", data)
    return f"{bucket.url}/{below}"


def same(row, other) -> bool:
    return all(np.array_equal(getattr(row, name), getattr(other, name)) for name in FIELDS)


@pytest.mark.parametrize("kind", ["column", "table"])
def test_rows_are_those_of_the_local_dataset_in_any_order(bucket, packed, kind):
    local = package.open(packed[kind])
    assert len(list_shards(packed[kind])) > 3
    found = package.open(upload(bucket, packed[kind], "set"), store_options=bucket.options)
    assert len(found) == len(local)
    assert all(itertools.starmap(same, zip(found, local, strict=True)))
    assert all(itertools.starmap(same, zip(found.shuffle(3), local.shuffle(3), strict=True)))
    assert all(itertools.starmap(same, zip(found[5::7], local[5::7], strict=True)))
    for file in found.files.shard_files:
        assert file in {path.name for path in list_shards(packed[kind])}


@pytest.mark.parametrize("largest", [1, 300, 10_000])
def test_rows_are_those_of_the_local_dataset_with_blocks_of_any_size(bucket, packed, largest, monkeypatch):
    monkeypatch.setattr(ranges, "FIRST_BYTES", 1)
    monkeypatch.setattr(ranges, "LARGEST_BYTES", largest)
    monkeypatch.setattr(ranges, "BLOCKS_HELD", 2)
    monkeypatch.setattr(ranges, "HEADS_HELD", 2)
    local = package.open(packed["table"])
    found = package.open(upload(bucket, packed["table"], "set"), store_options=bucket.options)
    order = [*range(50), *range(10), *range(40, 120), *random.Random(1).choices(range(len(local)), k=40)]
    assert all(same(found[number], local[number]) for number in order)
    assert len(found._ranges) == 1


def test_a_masked_dataset_is_read(bucket, tmp_path, tokenizer_file):
    chooser = random.Random(2)
    lines = []
    for _ in range(100):
        size = chooser.randrange(1, 150)
        ids, mask = chooser.choices(range(5, 50), k=size), chooser.choices([0, 1], k=size)
        lines.append(json.dumps({"ids": ids, "mask": mask}))
    (tmp_path / "ids.jsonl").write_text("\n".join(lines))
    source = {"ids_field": "ids", "mask_field": "mask", "documents": "rows"}
    pack_here([tmp_path / "ids.jsonl"], tmp_path / "set", tokenizer_file, loss_weights="table", source=source)
    weigh_here(tmp_path / "set")
    local = package.open(tmp_path / "set")
    assert local.manifest.masked
    found = package.open(upload(bucket, tmp_path / "set", "set"), store_options=bucket.options)
    assert all(itertools.starmap(same, zip(found, local, strict=True)))


def test_a_dataset_in_a_store_can_be_sent_and_read_by_threads(bucket, packed):
    local = package.open(packed["table"])
    found = package.open(upload(bucket, packed["table"], "set"), store_options=bucket.options)
    assert same(found[0], local[0])
    again = pickle.loads(pickle.dumps(found))
    wrong: list[int] = []

    def read(rank: int) -> None:
        wrong.extend(number for number in range(rank, len(local), 4) if not same(again[number], local[number]))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_worker_processes_of_a_loader_read_from_a_store(bucket, packed):
    from torch.utils.data import DataLoader

    from exact_prep.integrations.torch import Collator

    found = package.open(upload(bucket, packed["table"], "set"), store_options=bucket.options)
    loader = DataLoader(found, batch_size=4, collate_fn=Collator(), num_workers=2, multiprocessing_context="forkserver")
    ids = np.concatenate([batch["input_ids"].numpy() for batch in loader])
    assert np.array_equal(ids, np.stack([row.input_ids for row in package.open(packed["table"])]))


def test_in_order_few_requests_are_made_and_every_byte_comes_once(shaky, proxy, packed):
    found = package.open(upload(shaky, packed["table"], "set"), store_options=shaky.options)
    assert found[0] is not None
    proxy.seen.clear()
    proxy.sent = 0
    for row in found:
        assert row.input_ids.size == 64
    size = sum(path.stat().st_size for path in list_shards(packed["table"]))
    assert proxy.sent < size
    batches = sum(map(len, found.files.batches()))
    # A request for the ids and one for the segments of each record batch: these are small here.
    assert len(proxy.seen) <= 2 * batches


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_while_rows_are_read_change_nothing(shaky, proxy, packed, fault):
    local = package.open(packed["table"])
    found = package.open(upload(shaky, packed["table"], "set"), store_options=shaky.options)
    proxy.faults.extend(["", fault] * 2)
    assert all(itertools.starmap(same, zip(found, local, strict=True)))
    assert proxy.made[fault] == 2


def test_what_is_wrong_with_a_dataset_in_a_store_is_said(bucket, packed):
    url = upload(bucket, packed["table"], "set")
    store = open_store(url, bucket.options)
    with pytest.raises(DatasetError, match=r"s3://.*/none does not exist"):
        package.open(f"{bucket.url}/none", store_options=bucket.options)
    shard = list_shards(packed["table"])[1].name
    data = store.read(shard)
    found = package.open(url, store_options=bucket.options)
    store.write(shard, data[:100] + bytes(len(data) - 100))
    with pytest.raises(StorageError, match=rf"{shard}: it has changed since it was found"):
        list(found)
    with pytest.raises(DatasetError, match=rf"{shard} is damaged.*run `exact-prep verify s3://"):
        list(package.open(url, store_options=bucket.options))
    store.write(shard, data[:-8])
    with pytest.raises(DatasetError, match=rf"s3://.*/{shard} has {len(data) - 8} bytes, not {len(data)}"):
        package.open(url, store_options=bucket.options)
    store.remove(shard)
    with pytest.raises(DatasetError, match=rf"s3://.*/{shard} is missing"):
        package.open(url, store_options=bucket.options)


def test_the_halves_of_a_split_are_found(bucket, tmp_path, tokenizer_file):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_texts(200))
    pack_here([corpus], tmp_path / "set", tokenizer_file, validation=0.2, loss_weights="table")
    weigh_here(tmp_path / "set")
    url = upload(bucket, tmp_path / "set", "set")
    for split in ("train", "validation"):
        local = package.open(tmp_path / "set", split=split)
        found = package.open(url, split=split, store_options=bucket.options)
        assert all(itertools.starmap(same, zip(found, local, strict=True)))
    assert package.verify(url, store_options=bucket.options, progress=False) == []
    package.weigh(url, alpha=0.5, store_options=bucket.options, progress=False)
    package.weigh(tmp_path / "set", alpha=0.5, progress=False)
    for split in ("train", "validation"):
        local = package.open(tmp_path / "set", split=split)
        found = package.open(url, split=split, store_options=bucket.options)
        assert same(found[0], local[0])


@pytest.mark.parametrize("kind", ["column", "table"])
def test_report_and_verify_say_what_they_say_of_the_local_dataset(bucket, packed, kind):
    url = upload(bucket, packed[kind], "set")
    options = bucket.arguments()
    [local] = json.loads(exact_prep("report", packed[kind], "--json").stdout)
    [found] = json.loads(exact_prep("report", url, "--json", *options).stdout)
    assert found.pop("directory") == url
    local.pop("directory")
    assert found == local
    assert url in exact_prep("report", url, *options).stdout
    for more in ((), ("--quick",), ("--workers", 2)):
        assert f"{url}: " in exact_prep("verify", url, *more, *options).stdout
    store = open_store(url, bucket.options)
    shard = list_shards(packed[kind])[2].name
    data = bytearray(store.read(shard))
    data[len(data) // 3] ^= 1
    store.write(shard, bytes(data))
    said = exact_prep("verify", url, *options, check=1).stdout
    assert re.search(rf"s3://.*/{shard}: ", said)
    store.remove(shard)
    assert re.search(rf"{shard}", exact_prep("verify", url, *options, check=1).stdout)
    assert exact_prep("report", url, "--html", "x.html", *options, check=2).stderr.count("copy it first") == 1


def test_weights_in_a_store_are_those_of_a_local_weigh_and_nothing_else_is_rewritten(bucket, packed, tmp_path):
    shutil.copytree(packed["table"], tmp_path / "local")
    url = upload(bucket, packed["table"], "set")
    store = open_store(url, bucket.options)
    before = {entry.name: entry.etag for entry in store.list()}
    opened = package.open(url, store_options=bucket.options)
    old = package.open(packed["table"])
    first = opened[3]
    done = exact_prep("weigh", url, "--alpha", 0.7, *bucket.arguments())
    assert f"{url}: rows of 64 tokens" in done.stdout
    exact_prep("weigh", tmp_path / "local", "--alpha", 0.7)
    after = {entry.name: entry.etag for entry in store.list()}
    assert {name for name in after if before.get(name) != after[name]} == {"weights.json", "state.json"}
    assert before.keys() == after.keys()
    assert {name: store.read(name) for name in after} == {
        name: data for name, data in read_files(tmp_path / "local").items() if name in after
    }
    # Who opened it before keeps the old weights throughout, who opens it now has the new ones.
    new, local = package.open(url, store_options=bucket.options), package.open(tmp_path / "local")
    assert same(opened[3], first)
    assert all(itertools.starmap(same, zip(opened, old, strict=True)))
    assert all(itertools.starmap(same, zip(new, local, strict=True)))
    assert package.verify(url, store_options=bucket.options, progress=False) == []


def test_of_two_that_weigh_at_once_one_is_told(bucket, packed, monkeypatch):
    module = importlib.import_module("exact_prep.pipeline.weigh")
    url = upload(bucket, packed["table"], "set")
    check = module.check_shards

    def meanwhile(dataset):
        monkeypatch.setattr(module, "check_shards", check)
        package.weigh(url, alpha=0.2, store_options=bucket.options, progress=False)
        check(dataset)

    monkeypatch.setattr(module, "check_shards", meanwhile)
    with pytest.raises(StorageError, match="was weighed by another run meanwhile"):
        package.weigh(url, alpha=0.9, store_options=bucket.options, progress=False)
    [weights] = [package.load_weights(find_place(url, bucket.options))]
    assert weights.file.options.alpha == 0.2
    assert package.verify(url, store_options=bucket.options, progress=False) == []


def test_a_column_in_a_store_is_not_weighed(bucket, packed):
    url = upload(bucket, packed["column"], "set")
    store = open_store(url, bucket.options)
    before = {entry.name: entry.etag for entry in store.list()}
    said = exact_prep("weigh", url, *bucket.arguments(), check=2).stderr
    assert "pack with --loss-weights table" in " ".join(said.split())
    assert {entry.name: entry.etag for entry in store.list()} == before


def test_a_mixture_of_a_local_dataset_and_one_in_a_store(bucket, packed, tmp_path, tokenizer_file):
    corpus = write_jsonl(tmp_path / "other.jsonl", make_texts(100, seed=9))
    pack_here([corpus], tmp_path / "other", tokenizer_file, loss_weights="table")
    url = upload(bucket, packed["table"], "set")
    package.weigh([url, tmp_path / "other"], rates=[0.5, 0.5], store_options=bucket.options, progress=False)
    assert package.verify([url, tmp_path / "other"], store_options=bucket.options, progress=False) == []
    mixed = package.open([url, tmp_path / "other"], store_options=bucket.options)
    assert mixed[0].input_ids.size == 64


def test_commands_that_read_no_store_say_so(bucket, tmp_path):
    for arguments in (
        ("show", bucket.url),
        ("simulate", bucket.url),
        ("export", bucket.url, "--to", "parquet", "-o", "x"),
    ):
        assert "cannot open here yet" in " ".join(exact_prep(*arguments, check=2).stderr.split()), arguments
    with pytest.raises(UsageError, match="cannot open here yet"):
        pack_here(["x"], Path("s3://bucket/out"), tmp_path)


def test_names_in_a_bucket_behave_as_paths(bucket, tmp_path):
    local = tmp_path / "set"
    (local / "64" / "train").mkdir(parents=True)
    (local / "64" / "train" / "manifest.json").write_bytes(b"12345")
    (local / "data-1.arrow").write_bytes(b"")
    upload(bucket, local, "set")
    found = find_place(f"{bucket.url}/set/", bucket.options)
    assert isinstance(found, StorePath)
    assert str(found) == f"{bucket.url}/set"
    for name in ("", "64", "64/train", "64/train/manifest.json", "data-1.arrow", "none", "6"):
        one, other = (found / name if name else found), local / name
        assert (one.is_file(), one.is_dir(), one.exists()) == (other.is_file(), other.is_dir(), other.exists()), name
        assert one.name == other.name
        assert one.parent.name == (other.parent.name if name else "")
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in local.iterdir())
    assert [path.name for path in found.glob("data-*.arrow")] == ["data-1.arrow"]
    manifest = found / "64" / "train" / "manifest.json"
    assert manifest.stat().st_size == 5
    assert manifest.read_bytes() == b"12345"
    assert manifest.with_name("x") == found / "64/train/x"
    with pytest.raises(FileNotFoundError):
        (found / "none").stat()
