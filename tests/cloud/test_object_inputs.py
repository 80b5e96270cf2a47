"""Inputs in a bucket are found, cut and read as the same files on a local disk, and give the same rows."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FAULTS

from exact_prep.errors import SourceError, StorageError, UsageError
from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs
from exact_prep.stores import open_store
from tests.corpora import COMPRESSIONS, FORMATS, SEPARATOR, jsonl, read_all
from tests.runs import exact_prep, list_shards, make_texts, pack_here, read_files

WORDS = ["one", "two", "three", "straße", "東京", "🙂"]
READABLE = [name for name in FORMATS if not name.endswith((".arrow", ".feather"))]
TREE = [
    "data/b/2.jsonl", "data/b/10.jsonl", "data/a.jsonl", "data/a-b.jsonl", "data/.hidden.jsonl", "data/_log/x.jsonl",
    "data/b/_x.jsonl", "data/b/.git/x.jsonl", "data/README.md", "data/c/d/e.jsonl", "data/ä ö.jsonl", "data/noext",
    "data-2/a.jsonl", "other/a.jsonl",
]  # fmt: skip


def upload(bucket, folder: Path, below: str = "") -> None:
    """Everything in a directory, under the same names."""
    store = open_store(bucket.url, bucket.options)
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(below + path.relative_to(folder).as_posix(), path.read_bytes())


def find(bucket, *inputs: str, **options: object):
    named = [f"{bucket.url}/{one}" for one in inputs]
    return find_inputs(named, SourceOptions.model_validate(options), store_options=bucket.options)


@pytest.mark.parametrize(
    "named",
    [
        "data", "data/", "data/*", "data/**", "data/**/*", "data/**/*.jsonl", "data/*.jsonl", "data/?.jsonl",
        "data/[!a]/*", "*/a.jsonl", "data/b*", "data/*/", "data/_log", "data/_log/*", "data/.hidden.jsonl", "data/.h*",
        "data/c/**", "**/e.jsonl", "data*/a*", "data/[a-c]", "data/a.jsonl",
    ],
)  # fmt: skip
def test_the_same_files_are_found_as_on_a_local_disk(bucket, tmp_path, monkeypatch, named):
    for name in TREE:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}\n')
    upload(bucket, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    local = find_inputs([named], SourceOptions(source_from="dir"))
    found = find(bucket, named, source_from="dir")
    assert [file.path for file in found.files] == [f"{bucket.url}/{os.path.relpath(one.path)}" for one in local.files]
    assert [(file.bytes, file.format, file.source) for file in found.files] == [
        (file.bytes, file.format, file.source) for file in local.files
    ]
    assert found.left_out == local.left_out
    assert all(file.etag for file in found.files)


def test_what_is_not_there_or_named_twice_is_refused(bucket):
    store = open_store(bucket.url, bucket.options)
    store.write("data/a.jsonl", b"{}\n")
    store.write("data/x.arrow", b"")
    for named, message in (
        ("nothing", "there is no object or folder s3://.*/nothing"),
        ("dat", "there is no object or folder"),
        ("data/*.csv", "no input files in"),
        ("data/x.arrow", "x.arrow is an Arrow file, which is read from a local disk alone"),
        ("data", "x.arrow is an Arrow file"),
    ):
        with pytest.raises(UsageError, match=message):
            find(bucket, named)
    with pytest.raises(UsageError, match=r"a.jsonl is given twice, the second time by s3://.*\*.jsonl"):
        find(bucket, "data/a.jsonl", "data/*.jsonl")
    with pytest.raises(UsageError, match="given twice"):
        find(bucket, "data/a.jsonl", "data/a.jsonl")


def test_a_table_of_iceberg_is_known(bucket):
    store = open_store(bucket.url, bucket.options)
    for name in ("lake/data/a.jsonl", "lake/metadata/v1.metadata.json", "lake/metadata/snap.json"):
        store.write(name, b'{"text": "x"}\n')
    found = find(bucket, "lake")
    assert [file.path for file in found.files] == [f"{bucket.url}/lake/data/a.jsonl"]
    assert "Iceberg" in found.warnings[0]


@pytest.mark.parametrize("name", READABLE)
def test_every_format_gives_the_documents_of_the_local_file(bucket, tmp_path, name):
    documents = [" ".join(random.Random(n).choices(WORDS, k=n % 50)) for n in range(300)]
    options = SourceOptions(separator=SEPARATOR, task_bytes=3000)
    variants = {"": lambda data: data, **(COMPRESSIONS if name in ("a.jsonl", "h.txt") else {})}
    for suffix, compress in variants.items():
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(FORMATS[name](documents)))
        upload(bucket, tmp_path)
        local = find_inputs([str(path)], options)
        found = find_inputs([f"{bucket.url}/{path.name}"], options, store_options=bucket.options)
        assert found.plan_tasks() == local.plan_tasks()
        assert read_all(found).documents == read_all(local).documents
        assert found.sample_texts() == local.sample_texts()
        path.unlink()


def write_corpus(folder: Path) -> Path:
    """Files of some formats; one has a bad document."""
    folder.mkdir()
    texts = make_texts(400)
    (folder / "a.jsonl").write_bytes(jsonl(texts[:100]) + b'{"bad": 1}\n' + jsonl(texts[100:150]))
    (folder / "b.jsonl.zst").write_bytes(COMPRESSIONS[".zst"](jsonl(texts[150:200])))
    (folder / "c.jsonl.gz").write_bytes(COMPRESSIONS[".gz"](jsonl(texts[200:250])))
    (folder / "d.txt").write_text(texts[250])
    columns = {"url": [f"u{number}" * 50 for number in range(149)], "text": texts[251:]}
    pq.write_table(pa.table(columns), folder / "e.parquet", row_group_size=30)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("faults", [False, True])
def test_rows_and_tree_hash_are_those_of_the_local_files(shaky, proxy, tmp_path, tokenizer_file, workers, faults):
    corpus = write_corpus(tmp_path / "corpus")
    upload(shaky, corpus, "corpus/")
    if faults:
        proxy.faults.extend(["", "503", "", "cut", "", "", "reset", "", "slow"] * 40)
    inputs = [f"{shaky.url}/corpus/*.jsonl*", f"{shaky.url}/corpus/d.txt", f"{shaky.url}/corpus/e.parquet"]
    [local] = pack_here([corpus], tmp_path / "local", tokenizer_file)
    [found] = pack_here(inputs, tmp_path / "found", tokenizer_file, workers=workers, store_options=shaky.options)
    assert found.tree_hash == local.tree_hash
    assert found.documents == local.documents
    assert found.documents.rejected == 1
    assert [p.read_bytes() for p in list_shards(tmp_path / "found")] == [
        p.read_bytes() for p in list_shards(tmp_path / "local")
    ]
    [rejected] = (tmp_path / "found" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["source"] == f"{shaky.url}/corpus/a.jsonl"
    assert json.loads(rejected)["place"] == "line 101"
    assert (len(proxy.made) > 3) is faults


def test_the_command_packs_from_a_bucket_and_keeps_no_secret(bucket, tmp_path, tokenizer_file):
    corpus = write_corpus(tmp_path / "corpus")
    upload(bucket, corpus, "corpus/")
    common = ["--tokenizer", tokenizer_file, "--seq-len", 64, "--on-error", "reject", "--task-size", 2000]
    arguments = ["pack", f"{bucket.url}/corpus", *common, *bucket.arguments()]
    planned = exact_prep(*arguments, "-o", tmp_path / "out", "--dry-run")
    done = exact_prep(*arguments, "-o", tmp_path / "out", "--workers", 2, "-v")
    exact_prep("pack", corpus, *common, "-o", tmp_path / "local")
    hashes = [json.loads((tmp_path / one / "manifest.json").read_bytes())["tree_hash"] for one in ("out", "local")]
    assert hashes[0] == hashes[1]
    # A run that stops leaves its plan.
    open_store(bucket.url, bucket.options).write("corpus/z.jsonl", b'{"text": 1}\n')
    stopped = exact_prep(
        "pack", f"{bucket.url}/corpus", *common[:-4], *bucket.arguments(), "-o", tmp_path / "stopped", check=None
    )
    assert stopped.returncode
    assert (tmp_path / "stopped" / ".work" / "plan.json").is_file()
    kept = {**read_files(tmp_path / "out"), **read_files(tmp_path / "stopped")}
    said = "".join(one.stdout + one.stderr for one in (planned, done, stopped))
    assert len(kept) > 10
    for secret in ("sEcReT", "AKID", bucket.endpoint):
        assert secret not in said
        assert not [name for name, data in kept.items() if secret.encode() in data]


def test_only_the_columns_that_are_needed_are_read(shaky, proxy, tmp_path):
    text = [random.Random(n).randbytes(500).hex() for n in range(4000)]
    heavy = [os.urandom(4000) for _ in range(4000)]
    pq.write_table(pa.table({"heavy": heavy, "text": text}), tmp_path / "x.parquet", row_group_size=1000)
    upload(shaky, tmp_path)
    size = (tmp_path / "x.parquet").stat().st_size
    inputs = find_inputs([f"{shaky.url}/x.parquet"], SourceOptions(), store_options={**shaky.options, "timeout": "60s"})
    proxy.sent = 0
    del proxy.seen[:]
    assert read_all(inputs).texts == text
    assert proxy.sent < 1.1 * sum(map(len, text)) + 200_000 < size / 3
    assert len(proxy.seen) < 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_an_object_that_changes_during_the_run_is_named_and_stops_it(bucket, tmp_path, name):
    def write(seed: int) -> bytes:
        texts = [random.Random(f"{seed} {n}").randbytes(4000).hex() for n in range(3000)]
        if name == "a.parquet":
            pq.write_table(pa.table({"text": texts}), tmp_path / "x", row_group_size=300)
            return (tmp_path / "x").read_bytes()
        return COMPRESSIONS.get(Path(name).suffix, bytes)(jsonl(texts))

    store = open_store(bucket.url, bucket.options)
    store.write(name, write(1))
    for on_error in ("stop", "reject"):
        inputs = find(bucket, name, on_error=on_error)
        [task] = inputs.plan_tasks()
        batches = inputs.read(task)
        next(batches)
        store.write(name, write(random.randrange(10**9)))
        with pytest.raises((StorageError, SourceError), match=rf"{re.escape(name)}: it has changed since it was found"):
            list(batches)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_while_reading_change_nothing(shaky, proxy, fault):
    documents = [random.Random(n).randbytes(300).hex() for n in range(3000)]
    store = open_store(shaky.url, shaky.options)
    store.write("a.jsonl", jsonl(documents))
    store.write("b.jsonl.zst", COMPRESSIONS[".zst"](jsonl(documents)))
    inputs = find(shaky, "a.jsonl", "b.jsonl.zst")
    proxy.faults.extend(["", fault] * 3)
    assert read_all(inputs).texts == documents * 2
    assert proxy.made[fault] == 3
