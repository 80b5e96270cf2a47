"""What a packed dataset is on disk: a small manifest, tables that add up, a card, the same bytes for any workers.

Each law is checked on a real small pack; the oracles read rows and tables with pyarrow and count in plain Python.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from runs import (
    exact_prep,
    list_shards,
    pack_here,
    read_documents,
    read_files,
    read_json,
    read_rows,
    read_shard,
    read_table,
    weigh_here,
    write_corpus,
)
from tokenizers import Tokenizer

from exact_prep import shards
from exact_prep.pipeline.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = {
    "input": lambda root, file, language: str(root),
    "dir": lambda root, file, language: str(file.parent.relative_to(root)),
    "field:language": lambda root, file, language: language or "(none)",
}
"""How each `--source-from` labels a document; `language` None: the record has no such field."""


def write_labelled(root: Path) -> dict[str, tuple[Path, str | None]]:
    """Files in two directories; returns file and language of each text. A number makes every text another."""
    choose, known = random.Random(5), {}
    for name in ("web/0.jsonl", "web/1.jsonl", "books/old/2.jsonl"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for _ in range(15):
            text = f"{len(known)} " + "the long context of a row " * int(30 ** choose.random())
            language = choose.choice(["en", "de", "", None])
            known[text] = file, language
            lines.append(json.dumps({"text": text} | ({} if language is None else {"language": language})))
        file.write_text("\n".join(lines) + "\n")
    return known


def find_bucket(context: int) -> int:
    """0 for [0, 7], 1 for [8, 15], 2 for [16, 31], ..."""
    bucket, edge = 0, 8
    while context >= edge:
        bucket, edge = bucket + 1, 2 * edge
    return bucket


def count_sources(out: Path) -> tuple[dict[str, dict[str, Any]], Counter[tuple[str, int]]]:
    """Counts by label, and documents by (label, length), from rows and labels of tasks alone."""
    labels = [row["label"] for row in read_table(out, "sources")]
    tasks = read_table(out, "tasks")
    counted: dict[str, dict[str, Any]] = {}
    lengths: Counter[tuple[int, int]] = Counter()
    owner: dict[tuple[int, int], str] = {}
    for shard in read_table(out, "shards"):
        for row in read_shard(out / shard["file"]):
            columns = (row[name] for name in ("doc_ids", "seq_lengths", "sources"))
            for doc, length, source in zip(*columns, strict=True):
                label = labels[tasks[shard["task"]]["sources"][source]]
                assert owner.setdefault((shard["task"], doc), label) == label
                own = counted.setdefault(label, {"tokens": 0, "segments": 0, "counts": Counter()})
                own["tokens"] += length
                own["segments"] += 1
                own["counts"].update(find_bucket(context) for context in range(1, length))
                lengths[shard["task"], doc] += length
    for label, own in counted.items():
        own["documents"] = sum(one == label for one in owner.values())
    return counted, Counter((owner[doc], length) for doc, length in lengths.items())


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
@pytest.mark.parametrize("source_from", SOURCES)
def test_sources_and_document_lengths_are_those_of_the_rows_and_sum_to_the_whole(
    source_from, packing, tokenizer_file, tmp_path
):
    root, out = tmp_path / "corpus", tmp_path / "out"
    known = write_labelled(root)
    options = ("--seq-len", 64, "--task-size", 4000, "--packing", packing, "--workers", 1)
    exact_prep("pack", root, "--tokenizer", tokenizer_file, "--out", out, *options, "--source-from", source_from)
    manifest, table = read_json(out / "manifest.json"), read_table(out, "sources")
    assert manifest["tasks"] > 3
    assert [row["label"] for row in table] == sorted({SOURCES[source_from](root, *one) for one in known.values()})
    counted, lengths = count_sources(out)
    for row in table:
        own = counted[row["label"]]
        counts = [own["counts"][bucket] for bucket in range(len(row["counts"]))]
        assert row == {"label": row["label"], **own, "firsts": own["segments"], "counts": counts}
        assert sum(own["counts"].values()) == sum(counts)
    labels = [row["label"] for row in table]
    assert read_table(out, "document_lengths") == [
        {"source": source, "length": length, "count": lengths[labels[source], length]}
        for source, length in sorted((labels.index(label), length) for label, length in lengths)
    ]
    size = len(manifest["exposure"]["counts"])
    sums = [sum((row["counts"] + [0] * size)[bucket] for row in table) for bucket in range(size)]
    assert sums == manifest["exposure"]["counts"]
    assert sum(row["segments"] for row in table) == manifest["exposure"]["segments"]
    assert sum(row["tokens"] for row in table) == manifest["ledger"]["row_tokens"]
    assert sum(row["documents"] for row in table) == manifest["documents"]["packed"] == len(known)
    assert manifest["sources"] == len(table)
    # Every document has the label that its own text calls for.
    tokenizer, tasks = Tokenizer.from_file(str(tokenizer_file)), read_table(out, "tasks")
    found = {doc: tokenizer.decode(ids[:-1]) for doc, ids in read_documents(out).items()}
    assert sorted(found.values()) == sorted(known)
    for shard in read_table(out, "shards"):
        for row in read_shard(out / shard["file"]):
            for doc, source in zip(row["doc_ids"], row["sources"], strict=True):
                label = labels[tasks[shard["task"]]["sources"][source]]
                assert label == SOURCES[source_from](root, *known[found[shard["task"], doc]])
    assert verify(out) == []


def test_tasks_say_which_records_of_the_corpus_are_theirs(tokenizer_file, tmp_path):
    """`first_record + doc_id` is the place of a document in the corpus, rejected and empty records included."""
    paths = write_corpus(tmp_path / "in", files=3, documents=30)
    with paths[1].open("a") as file:
        file.write('{"text": ""}\n')
    out = tmp_path / "out"
    pack_here(paths, out, tokenizer_file)
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    tasks, before = read_table(out, "tasks"), 0
    for task in tasks:
        assert task["first_record"] == before
        assert task["records"] == task["packed"] + task["empty"] + task["rejected"]
        before += task["records"]
    assert before == len(lines)
    assert [sum(task[name] for task in tasks) for name in ("empty", "rejected")] == [1, 3]
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    found = {
        tasks[task]["first_record"] + doc: tokenizer.decode(ids[:-1])
        for (task, doc), ids in read_documents(out).items()
    }
    assert found == {number: line["text"] for number, line in enumerate(lines) if line.get("text")}
    inputs = read_table(out, "inputs")
    assert [(row["path"], row["bytes"]) for row in inputs] == [(str(path), path.stat().st_size) for path in paths]
    # Slices are consecutive, and cover every byte of every file once.
    parts = [part for task in tasks for part in zip(task["files"], task["starts"], task["stops"], strict=True)]
    for file, path in enumerate(paths):
        own = [(start, path.stat().st_size if stop < 0 else stop) for number, start, stop in parts if number == file]
        assert [own[0][0], *(stop for _, stop in own)] == [*(start for start, _ in own), path.stat().st_size]
    assert [file for file, *_ in parts] == sorted(file for file, *_ in parts)


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_batches_say_where_every_buffer_lies(loss_weights, tokenizer_file, tmp_path, monkeypatch):
    """Read by offset from the bare file, as a store would be."""
    monkeypatch.setattr(shards, "BATCH_TOKENS", 3 * 64)
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in", files=2), out, tokenizer_file, loss_weights=loss_weights)
    batches = read_table(out, "batches")
    rows_by_shard = [read_shard(path) for path in list_shards(out)]
    assert max(row["rows"] for row in batches) == 3
    assert len(batches) > len(rows_by_shard)
    next_row = [0] * len(rows_by_shard)
    for batch in batches:
        data = list_shards(out)[batch["shard"]].read_bytes()
        assert batch["first_row"] == next_row[batch["shard"]]
        next_row[batch["shard"]] += batch["rows"]
        rows = rows_by_shard[batch["shard"]][batch["first_row"] : batch["first_row"] + batch["rows"]]
        assert batch["segments"] == sum(len(row["seq_lengths"]) for row in rows)

        def read(name: str, dtype: str, count: int, batch: dict = batch, data: bytes = data) -> list:
            return np.frombuffer(data, dtype, count, batch[name]).tolist()

        splits = np.cumsum([0, *(len(row["seq_lengths"]) for row in rows)]).tolist()
        assert read("row_splits", "<i4", len(rows) + 1) == splits
        assert read("input_ids", "<i4", 64 * len(rows)) == [value for row in rows for value in row["input_ids"]]
        for name, dtype in (("seq_lengths", "<i4"), ("doc_ids", "<i8"), ("doc_offsets", "<i8"), ("sources", "<i2")):
            assert read(name, dtype, batch["segments"]) == [value for row in rows for value in row[name]]
        if loss_weights == "column":
            assert read("loss_weights", "<f2", 64 * len(rows)) == [w for row in rows for w in row["loss_weights"]]
        else:
            assert batch["loss_weights"] == -1
        assert (batch["mask_splits"], batch["masked_runs"]) == (-1, -1)
    assert next_row == [row["rows"] for row in read_table(out, "shards")] == [len(rows) for rows in rows_by_shard]
    assert verify(out) == []


def test_shards_are_named_by_task_and_their_checksums_are_those_of_the_columns(tokenizer_file, tmp_path):
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in", files=2), out, tokenizer_file)
    table, weights = read_table(out, "shards"), read_table(out, "weights")
    assert [row["file"] for row in table] == [f"data-{row['task']:07d}-000.arrow" for row in table]
    assert [row["file"] for row in weights] == [row["file"] for row in table]
    tree = xxhash.xxh3_128()
    for row, weight in zip(table, weights, strict=True):
        content, values = xxhash.xxh3_128(), xxhash.xxh3_128()
        for batch in pa.ipc.open_stream((out / row["file"]).read_bytes()):
            content.update(batch.column("input_ids").values.to_numpy())
            for name in ("seq_lengths", "doc_ids", "doc_offsets"):
                content.update(batch.column(name).offsets.to_numpy())
                content.update(batch.column(name).values.to_numpy())
            values.update(batch.column("loss_weights").values.to_numpy())
        assert content.hexdigest() == row["content_xxh3"]
        assert values.hexdigest() == weight["weights_xxh3"]
        tree.update(f"{row['content_xxh3']}\n".encode())
    manifest = read_json(out / "manifest.json")
    assert tree.hexdigest() == manifest["tree_hash"]
    for name, digest in manifest["digests"].items():
        assert xxhash.xxh3_128_hexdigest((out / name).read_bytes()) == digest
    beside = {"manifest.json", "weights.json", "state.json", "README.md", "tables/weights.parquet"}
    assert read_files(out).keys() - {row["file"] for row in table} - manifest["digests"].keys() == beside


def test_the_manifest_does_not_grow_with_the_corpus(tokenizer_file, tmp_path):
    """Inputs, tasks and shards are in tables. 100,000 files of one word took 25 s; 10,000 tell the same."""
    sizes = []
    for files in (10, 10_000):
        folder, out = tmp_path / f"{files}", tmp_path / f"out-{files}"
        folder.mkdir()
        for number in range(files):
            (folder / f"{number}.txt").write_text("word")
        source = {"input_format": "text", "task_bytes": 4 * files // 5}
        (manifest,) = pack_here([folder], out, tokenizer_file, source=source)
        assert manifest.input_files == len(read_table(out, "inputs")) == manifest.documents.packed == files
        assert manifest.tasks >= 5
        sizes.append((out / "manifest.json").stat().st_size)
        assert verify(out) == []
    assert max(sizes) < 10_000
    assert sizes[1] - sizes[0] < 100  # digits of the counts


def test_every_file_is_the_same_for_any_number_of_workers(tokenizer_file, tmp_path):
    corpus = write_corpus(tmp_path / "in", files=4, documents=40)
    made = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}"
        pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64), workers=workers)
        packed = read_files(out)
        weigh_here(out, workers=workers)
        made.append((packed, read_files(out)))
    assert made[0] == made[1]
    assert made[0][0].keys() == made[0][1].keys()


@pytest.fixture(scope="module")
def copy(tokenizer_file, tmp_path_factory):
    """A weighed dataset of several shards as it lies in a repository: without state.json."""
    folder = tmp_path_factory.mktemp("card")
    pack_here(write_corpus(folder / "in"), folder / "out", tokenizer_file)
    weigh_here(folder / "out")
    shutil.copytree(folder / "out", folder / "copy")
    (folder / "copy" / "state.json").unlink()
    return folder / "copy"


def test_the_card_lists_the_shards_and_says_how_to_load_them(copy):
    text = (copy / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    listed = [line.strip().removeprefix("- ") for line in front.splitlines() if ".arrow" in line]
    assert listed == [path.name for path in list_shards(copy)]
    assert len(listed) > 3
    for word in ("exact_prep.open(", "load_from_disk(", "load_dataset(", "@misc{", "2605.10544", "loss_weights"):
        assert word in body
    assert read_json(copy / "manifest.json")["tree_hash"] in body


@pytest.mark.parametrize("loader", ["load_dataset", "load_from_disk"])
def test_hugging_face_loads_the_rows(loader, copy, tmp_path):
    """`load_dataset` by the card, as from the hub; `load_from_disk` by state.json."""
    home = shutil.copytree(copy, tmp_path / "home")
    (home / "data-9999999-000.arrow").write_bytes(b"not listed")
    if loader == "load_from_disk":
        shutil.copy2(copy.parent / "out" / "state.json", home)
        load = "load_from_disk(sys.argv[1])"
    else:
        load = "load_dataset(sys.argv[1], cache_dir=sys.argv[2], split='train')"
    script = (
        f"import sys, json; from datasets import load_dataset, load_from_disk; rows = {load}\n"
        "json.dump([list(rows), rows.features['loss_weights'].feature.dtype], open(sys.argv[3], 'w'))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", script, home, tmp_path / "cache", tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    rows, dtype = read_json(tmp_path / "rows.json")
    assert rows == read_rows(copy)
    assert dtype == "float16"


def test_a_newer_minor_version_is_read_and_a_newer_major_one_is_refused(tokenizer_file, tmp_path):
    """Fields that this version does not know are ignored, and still sealed."""
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in"), out, tokenizer_file)

    def write(version: str, more: str) -> None:
        """With another version and a field more, sealed as any version seals: over the bytes."""
        import hashlib

        values = read_json(out / "manifest.json") | {"format_version": version, "checksum": ""}
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        text = text.replace('  "tool_version"', f'{more}  "tool_version"', 1)
        seal = hashlib.sha256(text.encode()).hexdigest()
        (out / "manifest.json").write_text(text.replace('"checksum": ""\n}', f'"checksum": "{seal}"\n}}'))

    whole = (out / "manifest.json").read_bytes()
    write("2.7", '  "of_the_future": [1, 2],\n')
    assert verify(out) == []
    data = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(data.replace('"of_the_future": [', '"of_the_future": [ '))
    assert any("changed after" in finding for finding in verify(out))
    for version, more, says in (("3.0", "", "has format 3.0"), ("2.0", '  "of_the_future": 1,\n', "of_the_future")):
        (out / "manifest.json").write_bytes(whole)
        write(version, more)
        assert any(says in finding for finding in verify(out)), verify(out)
