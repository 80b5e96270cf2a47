"""`--id-field`: a document's own id goes from any format into tables/documents, and is found again from a row."""

from __future__ import annotations

import csv
import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import read_inputs
from runs import exact_prep, flip_bit, pack_here, read_documents, read_files, read_json, read_rows, read_table
from tokenizers import Tokenizer

import exact_prep as package
from exact_prep.errors import DatasetError, SourceError, UsageError
from exact_prep.pipeline.verify import verify
from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs
from exact_prep.sources.long_texts import LONG

DOCUMENTS = [
    {"text": "the first", "url": "https://a.example/1", "meta": {"id": 1}},
    {"text": "", "url": "empty", "meta": {"id": 2}},
    {"text": "no id", "meta": {}},
    {"text": "a null", "url": None, "meta": {"id": None}},
    {"text": "straße 東京", "url": "https://a.example/straße", "meta": {"id": 2**40}},
    {"text": "the last", "url": "", "meta": {"id": -1.5}},
]
URLS = ["https://a.example/1", "", "", "https://a.example/straße", ""]
IDS = ["1", "", "", str(2**40), "-1.5"]


def write_jsonl(path):
    path.write_text("".join(f"{json.dumps(one)}\n" for one in DOCUMENTS))


def write_array(path):
    path.write_text(json.dumps(DOCUMENTS, indent=1))


def write_gz(path):
    path.write_bytes(gzip.compress("".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in DOCUMENTS).encode()))


def write_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "url"])
        writer.writerows([one["text"], one.get("url") or ""] for one in DOCUMENTS)


def make_table():
    ids = pa.array([one["meta"].get("id") for one in DOCUMENTS], pa.float64())
    return pa.table(
        {
            "text": [one["text"] for one in DOCUMENTS],
            "url": pa.array([one.get("url") for one in DOCUMENTS], pa.large_string()),
            "meta": pa.StructArray.from_arrays([ids], ["id"]),
        }
    )


def write_parquet(path):
    pq.write_table(make_table(), path, row_group_size=2)


def write_arrow(path):
    with pa.ipc.new_file(path, make_table().schema) as writer:
        writer.write_table(make_table(), max_chunksize=2)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.json": write_array,
    "a.jsonl.gz": write_gz,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_read_from_every_format_with_fields(name, tmp_path):
    WRITERS[name](tmp_path / name)
    found = []
    inputs = find_inputs([str(tmp_path / name)], SourceOptions(id_field="url"))
    for slices in inputs.plan_tasks():
        for batch in inputs.read(slices):
            assert len(batch.own_ids or []) == batch.records.size
            found += batch.own_ids or []
    assert found == URLS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_numbers_inside_of_objects_are_ids_too(name, tmp_path):
    WRITERS[name](tmp_path / name)
    inputs = find_inputs([str(tmp_path / name)], SourceOptions(id_field="meta.id", source_from="field:url"))
    batches = [batch for slices in inputs.plan_tasks() for batch in inputs.read(slices)]
    found = [own for batch in batches for own in batch.own_ids or []]
    assert found == (IDS if name.startswith("a.j") else ["1.0", "", "", str(float(2**40)), "-1.5"])
    assert [label for batch in batches for label in batch.labels or []] == [url or "(none)" for url in URLS]


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tokenizer_file):
    """Documents of 80 words with ids, in several tasks and two row lengths; the texts by id."""
    base = tmp_path_factory.mktemp("own")
    texts = {f"https://b.example/{n}": f"{n} " + "of the long row " * (n % 30) for n in range(60)}
    lines = [json.dumps({"text": text, "url": url}) for url, text in texts.items()]
    (base / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))
    source = {"id_field": "url", "task_bytes": 3000}
    pack_here([base / "in.jsonl"], base / "out", tokenizer_file, seq_lens=(32, 64), source=source)
    return base, texts


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed[0] / "out" / "64", tmp_path / "copy")


def test_the_id_of_every_segment_is_found_again(packed, tokenizer_file):
    base, texts = packed
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for length in (32, 64):
        home = base / "out" / str(length)
        package.weigh(home, allow_empty_tail=True, progress=False)
        dataset = package.open(home)
        documents = {doc: ids[:-1] for doc, ids in read_documents(home).items()}
        tasks = [shard["task"] for shard in read_table(home, "shards") for _ in range(shard["rows"])]
        assert len(set(tasks)) > 2
        seen = set()
        for number, row in enumerate(read_rows(home)):
            own = dataset.document_ids(number)
            seen |= set(own)
            for url, doc_id in zip(own, row["doc_ids"], strict=True):
                assert documents[tasks[number], doc_id] == tokenizer.encode(texts[url], add_special_tokens=False).ids
        assert seen == set(texts)
        shuffled = dataset.shuffle(1)
        assert [shuffled.document_ids(3)] == [dataset.document_ids(int(shuffled.rows[3]))]
    assert verify(base / "out") == []


def test_a_dataset_without_ids_says_so(packed, tokenizer_file, tmp_path):
    pack_here([packed[0] / "in.jsonl"], tmp_path / "out", tokenizer_file)
    assert not (tmp_path / "out" / "tables" / "documents").exists()
    with pytest.raises(UsageError, match="keeps no ids of documents; pack it with --id-field"):
        package.open(tmp_path / "out", plain=True).document_ids(0)


def test_the_command_says_how_many_have_none(tokenizer_file, tmp_path):
    write_jsonl(tmp_path / "in.jsonl")
    base = ("pack", tmp_path / "in.jsonl", "--tokenizer", tokenizer_file, "--seq-len", 16)
    ran = exact_prep(*base, "--id-field", "url", "-o", tmp_path / "out")
    assert "3 of 5 documents do not have the field 'url' of --id-field" in ran.stderr
    ran = exact_prep(*base, "--id-field", "uri", "-o", tmp_path / "none")
    assert "no document has the field 'uri' of --id-field" in ran.stderr
    config = exact_prep("config", tmp_path / "out").stdout
    assert 'id-field = "url"\n' in config


def test_text_files_have_no_fields(tokenizer_file, tmp_path):
    (tmp_path / "in.txt").write_text("text")
    ran = exact_prep(
        *("pack", tmp_path / "in.txt", "--tokenizer", tokenizer_file, "--seq-len", 16, "--id-field", "id"),
        *("-o", tmp_path / "out"),
        check=2,
    )
    assert "in.txt is text, which has no fields" in ran.stderr
    assert "leave out --id-field" in ran.stderr


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('["a"]', "field 'url' is not a string, a number or a boolean, as a document's id must be"),
        ('"' + "x" * 70_000 + '"', "field 'url' has 70000 characters; a document's id has at most 65536"),
        (r'"\ud800"', "field 'url' is not UTF-8"),
    ],
)
def test_what_is_no_id_is_a_bad_document(value, words, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "good", "url": 1}}\n{{"text": "bad", "url": {value}}}\n')
    with pytest.raises(SourceError, match=f"line 2: {words}"):
        read_inputs(path, id_field="url", on_error="stop")
    read = read_inputs(path, id_field="url", on_error="reject")
    assert [one.reason for one in read.rejected] == [words]


def test_a_long_document_keeps_its_id(tmp_path, tokenizer_file):
    """It is given in pieces, and the id once."""
    long = "long " * (LONG // 5 + 1000)
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"url": "a", "text": "short"}) + "\n" + json.dumps({"url": "b", "text": long}) + "\n")
    pq.write_table(pa.table({"text": ["short", long], "url": ["c", "d"]}), tmp_path / "in.parquet")
    pack_here(
        [tmp_path], tmp_path / "out", tokenizer_file, seq_lens=(4096,), source={"id_field": "url", "task_bytes": None}
    )
    found = {}
    for task in range(len(read_table(tmp_path / "out", "tasks"))):
        found |= {
            (task, doc): own for doc, own in package.open(tmp_path / "out", plain=True).files.document_ids(task).items()
        }
    assert sorted(found.values()) == ["a", "b", "c", "d"]
    assert verify(tmp_path / "out") == []


def test_limits_keep_the_ids_of_what_was_read(packed, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    source = {"id_field": "url", "limit_docs": 25, "task_bytes": 3000}
    pack_here([packed[0] / "in.jsonl"], out, tokenizer_file, source=source)
    rows = package.open(out, plain=True)
    own = [one for number in range(len(rows)) for one in rows.document_ids(number)]
    assert list(dict.fromkeys(own)) == list(packed[1])[:25]
    assert verify(out) == []


# ---- damage


def test_verify_reads_the_table(copy):
    assert verify(copy) == []
    table = sorted((copy / "tables" / "documents").iterdir())[1]
    data = table.read_bytes()
    flip_bit(table, len(data) // 2)
    assert verify(copy) == [f"{table} is not the file that was written (checksum)"]
    with pytest.raises(DatasetError, match="was changed after it was written"):
        package.open(copy, plain=True).files.document_ids(1)
    table.unlink()
    (finding,) = verify(copy)
    assert str(table) in finding
    with pytest.raises(DatasetError, match="is missing"):
        package.open(copy, plain=True).files.document_ids(1)
    table.write_bytes(data)
    shutil.copy(table, table.with_name("documents-0000099.parquet"))
    assert verify(copy) == [f"{copy}: tables/documents/documents-0000099.parquet is not a table of this dataset"]


def test_a_dataset_that_is_replaced_leaves_no_ids(copy, packed, tokenizer_file, tmp_path):
    pack_here([packed[0] / "in.jsonl"], copy, tokenizer_file, overwrite=True)
    assert not (copy / "tables" / "documents").exists()
    assert verify(copy) == []
    fresh = tmp_path / "fresh"
    pack_here([packed[0] / "in.jsonl"], fresh, tokenizer_file)
    assert read_files(copy) == read_files(fresh)
    assert read_json(copy / "manifest.json")["options"]["source"]["id_field"] is None
