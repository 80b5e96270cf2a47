"""`pack --validation`: which documents are held out, and that both sides are datasets in their own right."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from runs import exact_prep, read_documents, read_files, read_json, read_table, write_jsonl

import exact_prep as package
from exact_prep.errors import DatasetError
from exact_prep.pipeline.verify import verify

SHARE = 0.3


@pytest.fixture(scope="module")
def texts():
    """Documents of all sizes, some longer than 4 KiB that start alike, and exact duplicates."""
    chooser = random.Random(5)
    words = ["the", "long", "context", "straße", "東京", "🙂", "0123"]
    texts = [" ".join(chooser.choices(words, k=int(900 ** chooser.random()))) for _ in range(150)]
    texts += ["é" * 3000 + str(number) for number in range(3)] + texts[:20]
    return texts


def is_held(text, seed=0, share=SHARE):
    return xxhash.xxh3_64_intdigest(text.encode()[:4096], seed) < int(share * 2**64)


def base(tokenizer, *words):
    return ("pack", *words, "--tokenizer", tokenizer, "--seq-len", 64, "--task-size", 20000, "--id-field", "id")


def write(path, texts, first=0):
    rows = [json.dumps({"text": text, "id": f"doc-{first + n}"}) for n, text in enumerate(texts)]
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def own_ids(home):
    """The own id of every document that has a token in the rows."""
    tables = {
        task: {row["doc_id"]: row["id"] for row in pq.read_table(path).to_pylist()}
        for task, path in enumerate(sorted((home / "tables" / "documents").iterdir()))
    }
    return [tables[task][doc] for task, doc in read_documents(home)]


@pytest.fixture(scope="module")
def packed(texts, tokenizer_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    write(folder / "a.jsonl", texts)
    out = folder / "out"
    exact_prep(*base(tokenizer_file, folder / "a.jsonl"), "--seq-len", 256, "--validation", "30%", "-o", out)
    return out


def test_the_hash_of_its_start_decides_about_a_document(packed, texts):
    held = {f"doc-{n}" for n, text in enumerate(texts) if is_held(text)}
    everything = {f"doc-{n}" for n in range(len(texts))}
    assert 0 < len(held) < len(everything)
    for length in ("64", "256"):
        assert sorted(own_ids(packed / length / "validation")) == sorted(held)
        assert sorted(own_ids(packed / length / "train")) == sorted(everything - held)


def test_documents_and_tokens_add_up_over_both_sides(packed, texts, tokenizer_file, tmp_path):
    exact_prep(*base(tokenizer_file, packed.parent / "a.jsonl"), "-o", tmp_path / "whole")
    whole = read_json(tmp_path / "whole" / "manifest.json")
    train, held = (read_json(packed / "64" / name / "manifest.json") for name in ("train", "validation"))
    assert train["documents"]["packed"] == held["documents"]["held_out"]
    assert train["documents"]["held_out"] == held["documents"]["packed"]
    assert train["documents"]["packed"] + held["documents"]["packed"] == whole["documents"]["packed"] == len(texts)
    assert train["text_bytes"] + held["text_bytes"] == whole["text_bytes"]
    for name in ("text_tokens", "eos_tokens", "row_tokens"):
        assert train["ledger"][name] + held["ledger"][name] == whole["ledger"][name]
    assert read_table(packed / "64" / "train", "tasks")[1:], "one task shows nothing about doc_ids"
    numbers = {doc for _, doc in read_documents(packed / "64" / "validation")}
    assert numbers == {n for n, text in enumerate(texts) if is_held(text)}, "records of the corpus"
    assert len(read_table(packed / "64" / "validation", "tasks")) == 1


def test_verify_checks_both_sides_and_hugging_face_loads_them(packed):
    datasets = pytest.importorskip("datasets")
    assert verify(packed) == []
    loaded = datasets.load_from_disk(packed / "64")
    assert {name: len(rows) for name, rows in loaded.items()} == {
        name: read_json(packed / "64" / name / "manifest.json")["rows"] for name in ("train", "validation")
    }


def test_the_bytes_do_not_depend_on_workers(packed, tokenizer_file, tmp_path):
    words = ("--seq-len", 256, "--validation", SHARE)
    out = tmp_path / "out"
    exact_prep(*base(tokenizer_file, packed.parent / "a.jsonl"), *words, "--workers", 3, "-o", out)
    exact_prep(*base(tokenizer_file, packed.parent / "a.jsonl"), *words, "-o", tmp_path / "one")
    assert read_files(out) == read_files(tmp_path / "one")


def test_what_is_held_out_is_stable_when_inputs_are_added(packed, texts, tokenizer_file, tmp_path):
    write(tmp_path / "0.jsonl", [f"new {n} " * (n + 1) for n in range(30)], first=1000)
    inputs = (tmp_path / "0.jsonl", packed.parent / "a.jsonl")
    exact_prep(*base(tokenizer_file, *inputs), "--validation", SHARE, "-o", tmp_path / "out")
    before = set(own_ids(packed / "64" / "validation"))
    now = {name for name in own_ids(tmp_path / "out" / "validation") if int(name[4:]) < 1000}
    assert now == before
    assert verify(tmp_path / "out") == []


def test_another_seed_holds_out_other_documents(texts, tokenizer_file, tmp_path):
    write(tmp_path / "a.jsonl", texts)
    words = ("--validation", SHARE, "--validation-seed", 7, "-o", tmp_path / "out")
    exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), *words)
    held = sorted(f"doc-{n}" for n, text in enumerate(texts) if is_held(text, 7))
    assert sorted(own_ids(tmp_path / "out" / "validation")) == held


def test_ids_are_hashed_as_int32_and_masks_travel(tmp_path):
    chooser = random.Random(1)
    ids = [[chooser.randrange(500) for _ in range(chooser.choice([1, 5, 60, 1500]))] for _ in range(80)]
    masks = [[chooser.randrange(2) for _ in own] for own in ids]
    table = {"ids": pa.array(ids, pa.list_(pa.int32())), "mask": pa.array(masks, pa.list_(pa.int8()))}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=9)
    words = ("--ids-field", "ids", "--mask-field", "mask", "--seq-len", 32, "--task-size", 5000)
    out = tmp_path / "out"
    exact_prep("pack", tmp_path / "a.parquet", *words, "--validation", SHARE, "-o", out)
    starts = [np.array(own, "<i4").tobytes()[:4096] for own in ids]
    held = [n for n, start in enumerate(starts) if xxhash.xxh3_64_intdigest(start) < int(SHARE * 2**64)]
    documents = {doc: tokens for (_, doc), tokens in read_documents(out / "validation").items()}
    assert documents == {n: ids[n] for n in held}
    manifest = read_json(out / "validation" / "manifest.json")
    carried = sum(sum(masks[n]) for n in held)
    assert sum(manifest["exposure"]["counts"]) + manifest["exposure"]["firsts"] == carried
    assert verify(out) == []


def test_validation_takes_the_table_of_train(packed, tmp_path):
    said = exact_prep("weigh", packed, "--alpha", 0.3).stdout
    for length in ("64", "256"):
        train, held = (read_json(packed / length / name / "weights.json") for name in ("train", "validation"))
        home = packed / length
        assert f"{home / 'validation'}: the weights of {home / 'train'}\n" in said
        assert held["table"] == train["table"]
        assert held["applied_from"] == read_json(packed / length / "train" / "manifest.json")["tree_hash"]
        assert train["applied_from"] is None
        assert [one["exposure"] for one in held["datasets"]] == [
            read_json(packed / length / "validation" / "manifest.json")["exposure"]
        ]
        of_train = package.open(packed / length).loaded_weights
        rows = package.open(packed / length, split="validation")
        assert len(rows)
        for row in rows:
            assert np.array_equal(row.loss_weights, of_train.of_lengths(row.seq_lengths))
    assert verify(packed) == []
    facts = json.loads(exact_prep("report", packed, "--json").stdout)
    assert len(facts) == 4
    exact_prep("weigh", packed / "64" / "train", "--alpha", 0.1)
    assert any("which holds other ones now" in finding for finding in verify(packed))
    exact_prep("weigh", packed)
    assert verify(packed) == []
    exact_prep("weigh", packed / "64", "--out", tmp_path / "table.json")
    dataset = package.open(packed / "64", split="validation", weights=tmp_path / "table.json")
    assert dataset[0].loss_weights.any()


def test_open_takes_train_unless_a_split_is_named(packed):
    assert package.open(packed / "64", plain=True).path.name == "train"
    with pytest.raises(DatasetError, match="not the validation side"):
        package.open(packed / "64" / "train", split="validation", plain=True)


def test_export_and_config_take_the_directory(packed, tokenizer_file, tmp_path):
    exact_prep("weigh", packed)
    said = exact_prep("export", packed / "64", "--to", "numpy", "--out", tmp_path / "npy").stdout
    assert f"training rows alone; export {packed / '64' / 'validation'} for the others" in said
    exact_prep("export", packed / "64" / "validation", "--to", "numpy", "--out", tmp_path / "held")
    held = read_json(packed / "64" / "validation" / "manifest.json")["rows"]
    assert read_json(tmp_path / "held" / "export.json")["rows"] == held
    rows = read_json(packed / "64" / "train" / "manifest.json")["rows"]
    assert read_json(tmp_path / "npy" / "export.json")["rows"] == rows
    (tmp_path / "run.toml").write_text(exact_prep("config", packed).stdout)
    exact_prep("pack", "--config", tmp_path / "run.toml", "-o", tmp_path / "again")
    trees = [
        read_json(home / "64" / "validation" / "manifest.json")["tree_hash"] for home in (packed, tmp_path / "again")
    ]
    assert trees[0] == trees[1]


def test_overwrite_replaces_both_sides(texts, tokenizer_file, tmp_path):
    write(tmp_path / "a.jsonl", texts)
    words = ("-o", tmp_path / "out")
    exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), "--seq-len", 128, "--validation", SHARE, *words)
    refused = exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), *words, check=2)
    assert "--overwrite" in refused.stderr
    exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), *words, "--overwrite")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["tables", "tokenizer"]
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("share", ["0", "1", "100%", "-1%", "many", "nan"])
def test_a_share_that_is_none_is_refused(share, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    done = exact_prep(
        "pack", tmp_path / "a.jsonl", "--seq-len", 64, f"--validation={share}", "-o", tmp_path / "o", check=2
    )
    assert "--validation" in done.stderr


def test_nothing_is_held_out_of_a_small_corpus(tokenizer_file, tmp_path):
    """A validation side without a row is a dataset all the same."""
    write(tmp_path / "a.jsonl", ["one document of a few words " * 40])
    exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), "--validation", "0.001%", "-o", tmp_path / "out")
    exact_prep("weigh", tmp_path / "out")
    assert read_json(tmp_path / "out" / "validation" / "manifest.json")["rows"] == 0
    assert verify(tmp_path / "out") == []
    exact_prep("report", tmp_path / "out")


def test_directories_that_only_have_the_names_are_datasets_of_their_own(texts, tokenizer_file, tmp_path):
    for name, own in (("train", texts[:60]), ("validation", texts[60:120])):
        write(tmp_path / f"{name}.jsonl", own)
        exact_prep(*base(tokenizer_file, tmp_path / f"{name}.jsonl"), "-o", tmp_path / "both" / name)
    exact_prep("weigh", tmp_path / "both")
    for name in ("train", "validation"):
        weights = read_json(tmp_path / "both" / name / "weights.json")
        assert weights["applied_from"] is None
        exposure = read_json(tmp_path / "both" / name / "manifest.json")["exposure"]
        assert [one["exposure"] for one in weights["datasets"]] == [exposure]
    with pytest.raises(DatasetError, match=r"holds several datasets; open one of: .*train, .*validation"):
        package.open(tmp_path / "both")


def test_validation_rows_of_other_training_rows_are_refused(texts, tokenizer_file, tmp_path):
    write(tmp_path / "a.jsonl", texts)
    out = tmp_path / "out"
    held = (*base(tokenizer_file, tmp_path / "a.jsonl"), "--validation", "30%", "-o", out)
    exact_prep(*held)
    shutil.rmtree(out / "train")
    exact_prep(*base(tokenizer_file, tmp_path / "a.jsonl"), "-o", out / "train")
    for command in ("weigh", "verify"):
        done = exact_prep(command, out, check=1)
        assert "was held out of other training rows than those in" in done.stderr + done.stdout
    with pytest.raises(DatasetError, match=r"pack both again with `exact-prep pack --validation`"):
        package.open(out)
    # The remedy.
    exact_prep(*held, "--overwrite")
    exact_prep("weigh", out)
    assert verify(out) == []
