"""Laws of finding inputs: every naming of the same files is the same; nothing is left out unseen or read twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
from corpora import read_all, read_inputs

from exact_prep.errors import StorageError, UsageError
from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs

AUTO = SourceOptions()


def find(*inputs: object, **options: object) -> tuple[list[str], dict[str, int]]:
    found = find_inputs([str(one) for one in inputs], SourceOptions.model_validate(options))
    return [file.path for file in found.files], dict(found.left_out)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> Path:
    """data/ with files in two levels, some of them not to be read; the working directory is its parent."""
    for name in ("b.jsonl", "a.jsonl", "a-b/x.jsonl", "a/x.jsonl", "z.JSONL.GZ", "ä.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text('{"text": "x"}\n')
    for name in ("README.md", "a/notes.md", "Makefile", "old.zip", ".hidden.jsonl", ".git/a.jsonl", "a/.x/b.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("no\n")
    monkeypatch.chdir(tmp_path)
    return Path("data")


FILES = ["data/a-b/x.jsonl", "data/a.jsonl", "data/a/x.jsonl", "data/b.jsonl", "data/z.JSONL.GZ", "data/ä.txt"]


@pytest.mark.parametrize(
    "inputs",
    [
        ["data"],
        ["data/"],
        ["./data/../data"],
        list(reversed(FILES)),
        ["data/**"],
        ["data/*"],
        ["data/**/*.jsonl", "data/*.[GJ]*", "data/*.txt"],
        ["data/a*", "data/[b-z]*.jsonl", "data/*.GZ", "data/ä.txt"],
        ["./data/a", "data/a-b", *[name for name in FILES if name.count("/") == 1]],
    ],
)
def test_every_naming_of_the_same_files_gives_the_same(corpus: Path, inputs: list[str]) -> None:
    assert find(*inputs)[0] == FILES


def test_absolute_names_give_the_same_order(corpus: Path) -> None:
    mixed = [str(Path(name).absolute()) if i % 2 else name for i, name in enumerate(FILES)]
    assert find(*mixed)[0] == mixed
    assert [os.path.relpath(path) for path in find(corpus.absolute())[0]] == FILES


@pytest.mark.parametrize("inputs", [["data"], ["data/*"], ["data/**"], ["data/**/*"]])
def test_what_is_left_out_is_counted(corpus: Path, inputs: list[str]) -> None:
    assert find(*inputs)[1] == {".md": 2, ".zip": 1, "hidden": 3, "no suffix": 1}


def test_files_are_described(corpus: Path) -> None:
    files = {file.path: file for file in find_inputs(["data"], AUTO).files}
    status = Path("data/ä.txt").stat()
    assert files["data/ä.txt"].modified_ns == status.st_mtime_ns
    assert files["data/ä.txt"].bytes == status.st_size
    assert [file.format for file in files.values()] == ["jsonl"] * 5 + ["text"]


def test_a_name_that_exists_is_no_pattern(corpus: Path) -> None:
    Path("data/[ab].jsonl").write_text("{}\n")
    assert find("data/[ab].jsonl")[0] == ["data/[ab].jsonl"]
    Path("data/[ab].jsonl").unlink()
    assert find("data/[ab].jsonl")[0] == ["data/a.jsonl", "data/b.jsonl"]


def test_the_format_may_be_forced(corpus: Path) -> None:
    Path("data/x.dump.gz").write_bytes(b"")
    assert find_inputs(["data/README.md"], SourceOptions(input_format="text")).files[0].format == "text"
    assert find_inputs(["data/x.dump.gz"], SourceOptions(input_format="csv")).files[0].format == "csv"
    with pytest.raises(UsageError, match=r"x.dump.gz cannot be read \(.dump.gz\)"):
        find("data/x.dump.gz", input_format="parquet")


@pytest.mark.parametrize(
    "inputs",
    [["data/a.jsonl", "./data/a.jsonl"], ["data", "data/a.jsonl"], ["data/*.jsonl", "data/a*"], ["data"] * 2],
)
def test_a_file_that_is_named_twice_is_refused(corpus: Path, inputs: list[str]) -> None:
    with pytest.raises(UsageError, match=r"is given twice"):
        find(*inputs)


def test_links_are_followed_once(corpus: Path) -> None:
    Path("more").mkdir()
    Path("more/x.txt").write_text("x")
    Path("data/more").symlink_to("../more")
    assert "data/more/x.txt" in find("data")[0]
    with pytest.raises(UsageError, match=r"more/x.txt is given twice: by data and by more"):
        find("data", "more")
    Path("more/twin.txt").hardlink_to("more/x.txt")
    assert find("more")[0] == ["more/twin.txt", "more/x.txt"]
    Path("more/up").symlink_to("../data")
    with pytest.raises(UsageError, match=r"leads back to a directory"):
        find("data")


def test_what_cannot_be_read_is_refused(corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"no file or directory data/c.jsonl"):
        find("data/c.jsonl")
    with pytest.raises(UsageError, match=r"no input files in data/c*"):
        find("data/c*")
    with pytest.raises(UsageError, match=r"no input files in no input at all"):
        find()
    Path("docs").mkdir()
    Path("docs/a.md").write_text("x")
    with pytest.raises(UsageError, match=r"no input files in docs \(left out: 1 .md\);\nformats go by suffix .*.jsonl"):
        find("docs")
    with pytest.raises(UsageError, match=r"docs/a.md cannot be read \(.md\);\n.*--input-format"):
        find("docs/a.md")
    with pytest.raises(UsageError, match=r"separator is empty"):
        find("data", separator="")
    os.mkfifo("data/pipe.jsonl")
    assert find("data")[1]["not a regular file"] == 1
    with pytest.raises(UsageError, match=r"pipe.jsonl cannot be read .*not a regular file.*\n.*stdin"):
        find("data/pipe.jsonl")
    Path("data/broken.jsonl").symlink_to("nowhere")
    with pytest.raises(StorageError, match=r"cannot read data/broken.jsonl"):
        find("data")


def test_ids_come_from_formats_that_have_them(corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"ä.txt is text, which holds no token ids"):
        find("data", ids_field="ids")


def test_a_name_that_is_not_unicode_is_refused(corpus: Path) -> None:
    Path(os.fsdecode(b"data/\xff.txt")).write_text("x")
    with pytest.raises(UsageError, match=r"is not UTF-8"):
        find("data")


def test_stdin_has_the_format_asked_for(tmp_path: Path) -> None:
    assert find_inputs(["-"], AUTO).files[0].format == "jsonl"
    [file] = find_inputs(["-"], SourceOptions(input_format="text")).files
    assert (file.path, file.bytes, file.format) == ("-", 0, "text")
    with pytest.raises(UsageError, match=r"- is given twice"):
        find("-", "-")


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_stdin_may_be_compressed(tmp_path: Path, suffix: str) -> None:
    from corpora import COMPRESSIONS

    spool = tmp_path / "spool"
    content = b'{"text": "one"}\n{"text": "two"}\n'
    spool.write_bytes(COMPRESSIONS[suffix](content) if suffix else content)
    read = read_all(find_inputs(["-"], AUTO, stdin=spool))
    assert read.texts == ["one", "two"]
    assert read.bytes_read == spool.stat().st_size


class TestDatasetsOnDisk:
    """Directories that `save_to_disk` wrote."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(10)]})
        rows.save_to_disk(str(tmp_path / "set"), num_shards=3)
        return tmp_path / "set"

    def test_they_are_read_in_order(self, saved: Path) -> None:
        (saved / "cache-123.arrow").write_bytes(b"")
        paths, left_out = find(saved)
        assert [Path(path).name for path in paths] == [f"data-0000{i}-of-00003.arrow" for i in range(3)]
        assert left_out == {"beside a saved dataset": 3}
        assert read_inputs(saved).texts == [f"row {i}" for i in range(10)]
        assert find(saved.parent)[0] == paths

    def test_their_order_is_the_states(self, saved: Path) -> None:
        state = json.loads((saved / "state.json").read_text())
        state["_data_files"].reverse()
        (saved / "state.json").write_text(json.dumps(state))
        assert read_inputs(saved).texts == [f"row {i}" for i in (7, 8, 9, 4, 5, 6, 0, 1, 2, 3)]

    def test_a_selection_is_refused(self, saved: Path) -> None:
        state = json.loads((saved / "state.json").read_text()) | {
            "_indices_data_files": [{"filename": "indices.arrow"}]
        }
        (saved / "state.json").write_text(json.dumps(state))
        with pytest.raises(UsageError, match=r"flatten_indices"):
            find(saved)

    def test_a_lost_shard_is_refused(self, saved: Path) -> None:
        (saved / "data-00001-of-00003.arrow").unlink()
        with pytest.raises(UsageError, match=r"without its file data-00001-of-00003.arrow"):
            find(saved)
        (saved / "state.json").write_text("[]")
        with pytest.raises(UsageError, match=r"state.json should describe a saved dataset"):
            find(saved)

    def test_splits_are_named_one_by_one(self, saved: Path) -> None:
        rows = datasets.Dataset.from_dict({"text": ["a"]})
        both = saved.parent / "both"
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(both))
        with pytest.raises(UsageError, match=f"(?s)a dataset per split: train, test.*{both}/train"):
            find(both)
        assert read_inputs(both / "train").texts == ["a"]


def test_links_inside_a_directory_are_counted_and_their_files_read_once(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "real.txt").write_text("text")
    (tmp_path / "a.txt").symlink_to(tmp_path / "m" / "real.txt")
    (tmp_path / "z.txt").symlink_to(tmp_path / "m" / "real.txt")
    found = find_inputs([str(tmp_path)], SourceOptions())
    assert [file.path for file in found.files] == [str(tmp_path / "m" / "real.txt")]
    assert found.left_out == {"link to a file that is read": 2}
    with pytest.raises(UsageError, match="given twice"):
        find_inputs([str(tmp_path / "a.txt"), str(tmp_path / "m")], SourceOptions())


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text('{"text": "x"}\n')


def test_names_that_begin_with_an_underscore_are_left_out_and_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch("job/part-0.jsonl", "job/_temporary/0/part-0.jsonl", "job/_SUCCESS", "job/a/_committed_1.jsonl")
    for inputs in (["job"], ["job/**"], ["job/*"]):
        assert find(*inputs) == (["job/part-0.jsonl"], {"name begins with _": 3})
    # What the user names is read.
    assert find("job/_temporary")[0] == ["job/_temporary/0/part-0.jsonl"]
    assert find("job/a/_*.jsonl")[0] == ["job/a/_committed_1.jsonl"]
    assert find("job/_temporary/0/part-0.jsonl")[0] == ["job/_temporary/0/part-0.jsonl"]


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("Delta Lake", ["_delta_log/00000000000000000000.json"]),
        ("Iceberg", ["metadata/v1.metadata.json", "metadata/snap-1.avro"]),
        ("Hudi", [".hoodie/hoodie.properties"]),
    ],
)
def test_tables_are_recognised_with_what_that_means(tmp_path: Path, monkeypatch, kind: str, others: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    touch("lake/table/data/part-0.jsonl", *(f"lake/table/{name}" for name in others))
    inputs = find_inputs(["lake"], AUTO)
    assert [file.path for file in inputs.files] == ["lake/table/data/part-0.jsonl"]
    assert sum(inputs.left_out.values()) == len(others)
    [warning] = inputs.warnings
    assert warning.startswith(f"lake/table is a table of {kind}: its files may hold rows that were deleted")
    assert "name the export" in warning
    # A directory that happens to be called metadata is read.
    touch("plain/metadata/a.jsonl", "plain/data/b.jsonl")
    assert find("plain")[0] == ["plain/data/b.jsonl", "plain/metadata/a.jsonl"]
    assert not find_inputs(["plain"], AUTO).warnings


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    touch("home/corpus/a.jsonl")
    assert find("~/corpus")[0] == find("~/corpus/*.jsonl")[0] == [str(tmp_path / "home/corpus/a.jsonl")]
    touch("~/corpus/b.jsonl")
    assert find("~/corpus")[0] == ["~/corpus/b.jsonl"]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("s3://bucket/corpus", "in a store.*aws s3"),
        ("gs://bucket/a.jsonl", "in a store.*gcloud"),
        ("https://example.org/a.jsonl", "a web address.*curl"),
        ("hdfs://host/a", "in a store.*hdfs"),
    ],
)
def test_addresses_are_called_what_they_are(tmp_path: Path, monkeypatch, address: str, what: str) -> None:
    from exact_prep.pipeline.pack import pack
    from exact_prep.records.options import PackingOptions, PackOptions, TokenizerOptions
    from exact_prep.stores import is_object_url, open_store
    from exact_prep.tokenization import locate

    monkeypatch.chdir(tmp_path)
    options = PackOptions(
        source=AUTO, tokenizer=TokenizerOptions(tokenizer="t.json"), packing=PackingOptions(seq_lens=(16,))
    )
    attempts = [
        lambda: locate(address),
        lambda: open_store(Path(address)),
        lambda: pack(["a.jsonl"], options, Path(address)),
    ]
    if not is_object_url(address):
        attempts += [lambda: find(address), lambda: open_store(address)]
    for attempt in attempts:
        with pytest.raises(UsageError, match=f"(?s){what}"):
            attempt()
    assert not list(tmp_path.iterdir())
