"""Contract of every source: the same documents, whatever the format, compression, slicing and block size."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from corpora import COMPRESSIONS, FORMATS, SEPARATOR, gather, read_all, read_inputs, read_part

from exact_prep.errors import SourceError, StorageError
from exact_prep.records.options import SourceOptions
from exact_prep.records.work import Slice
from exact_prep.sources import find_inputs

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = [
    "plain",
    "",
    'quotes " and \\ and \\u0041 and, commas; [brackets] {braces}',
    "lines\nof\r\ntext\n\n",
    "é ü 漢字 😀 \u2028 \ufeff \x7f",
    "\ttabs\x00and\x01control",
    " ",
    "",
    "long " * 60_000,
    "汉" * 30_000,
    "last",
]
WHOLE = [(i, text) for i, text in enumerate(DOCUMENTS) if text]
ARCHIVES = ("p.warc", "q.tar")
"""Their texts have no name of their own, and no byte-order mark comes before the first."""
TEXT_LIKE = [name for name in FORMATS if not name.endswith((".parquet", ".arrow", ".feather"))]
OPTIONS = SourceOptions(separator=SEPARATOR)
REJECT = SourceOptions(separator=SEPARATOR, on_error="reject")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_documents_in_every_format(tmp_path: Path, name: str) -> None:
    read = read_inputs(write(tmp_path / name, FORMATS[name](DOCUMENTS)), separator=SEPARATOR)
    assert [(record, text) for _, record, text in read.documents] == WHOLE
    assert (read.records, read.empty, read.rejected) == (len(DOCUMENTS), 2, [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_documents_gives_none(tmp_path: Path, name: str) -> None:
    assert read_inputs(write(tmp_path / name, FORMATS[name]([])), separator=SEPARATOR).records == 0


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", TEXT_LIKE)
def test_compression_changes_nothing(tmp_path: Path, name: str, suffix: str) -> None:
    data = FORMATS[name](DOCUMENTS)
    path = write(tmp_path / (name + suffix), COMPRESSIONS[suffix](data))
    read = read_inputs(path, separator=SEPARATOR)
    assert [(record, text) for _, record, text in read.documents] == WHOLE
    halves = COMPRESSIONS[suffix](data[:1000]) + COMPRESSIONS[suffix](b"") + COMPRESSIONS[suffix](data[1000:])
    assert read_inputs(write(path, halves), separator=SEPARATOR).documents == read.documents


@pytest.mark.parametrize("block", [5, 64, 4096, 1 << 20])
@pytest.mark.parametrize("name", TEXT_LIKE)
def test_blocks_change_nothing(tmp_path: Path, name: str, block: int) -> None:
    documents = [text[:3000] for text in DOCUMENTS]
    bom = b"" if name in ARCHIVES else b"\xef\xbb\xbf"
    inputs = find_inputs([str(write(tmp_path / name, bom + FORMATS[name](documents)))], OPTIONS)
    for on_error in ("stop", "reject"):
        read = read_part(inputs, block=block, on_error=on_error)
        assert [(record, text) for _, record, text in read.documents] == [(i, t) for i, t in enumerate(documents) if t]
        assert (read.records, read.empty, read.bytes_read) == (len(documents), 2, inputs.files[0].bytes)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.endswith(("l", ".parquet", "l.arrow", ".feather"))])
def test_slices_change_nothing(tmp_path: Path, name: str) -> None:
    documents = [text[:300] for text in DOCUMENTS]
    inputs = find_inputs([str(write(tmp_path / name, FORMATS[name](documents)))], OPTIONS)
    units = inputs.files[0].bytes if name.endswith("jsonl") else 4
    cuts = [*range(0, units, max(units // 40, 1)), units]
    for edges in ([0, units], cuts, [0, units // 2, units // 2 + 1, units]):
        tasks = [(Slice(file=0, start=low, stop=high),) for low, high in itertools.pairwise(edges)]
        read = read_all(inputs, tasks=tasks)
        assert read.texts == [text for text in documents if text]
        assert (read.records, read.empty) == (len(documents), 2)


@pytest.mark.parametrize("name", FORMATS)
def test_records_count_across_the_files_of_a_task(tmp_path: Path, name: str) -> None:
    paths = [write(tmp_path / f"{i}{name}", FORMATS[name](DOCUMENTS[i:])) for i in range(3)]
    inputs = find_inputs([str(path) for path in paths], OPTIONS)
    [slices] = inputs.plan_tasks()
    read = gather(inputs.read(slices))
    every = [text for i in range(3) for text in DOCUMENTS[i:]]
    assert [(record, text) for _, record, text in read.documents] == [(i, t) for i, t in enumerate(every) if t]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_changed_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, FORMATS[name](DOCUMENTS))
    inputs = find_inputs([str(path)], REJECT)
    tasks = inputs.plan_tasks()
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(SourceError, match=f"(?s){name} has changed.*run the same command again"):
        read_all(inputs, tasks=tasks)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SourceError, match="has changed"):
        read_all(replace(inputs, files=(inputs.files[0].model_copy(update={"modified_ns": 0}),)), tasks=tasks)
    path.unlink()
    with pytest.raises(StorageError, match=f"cannot read .*{name}"):
        read_all(inputs, tasks=tasks)


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith("txt") and name not in ARCHIVES])
def test_a_missing_field_is_an_error_that_names_what_there_is(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, FORMATS[name](DOCUMENTS))
    with pytest.raises(SourceError, match=f"(?s){name}.*'body'.*'text'"):
        read_inputs(path, text_field="body")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", TEXT_LIKE)
def test_damaged_compression_is_never_silent(tmp_path: Path, name: str, suffix: str) -> None:
    documents = [f"{i} " + os.urandom(300).hex() for i in range(30)]
    sound = COMPRESSIONS[suffix](FORMATS[name](documents))
    damages = {"cut": sound[:-5], "half": sound[: len(sound) // 2], "empty": b"", "more": sound + b"garbage"}
    for damage, data in damages.items():
        path = write(tmp_path / (damage + name + suffix), data)
        with pytest.raises(SourceError, match=f"(?s){path.name}.*damaged.*--on-error reject"):
            read_inputs(path, separator=SEPARATOR)
        read = read_inputs(path, separator=SEPARATOR, on_error="reject")
        assert read.texts == documents[: len(read.texts)]
        [rejected] = read.rejected
        assert rejected.record == len(read.texts)
        assert rejected.source == str(path)
        assert "damaged" in rejected.reason


def test_a_zstd_window_beyond_reach_has_a_remedy(tmp_path: Path) -> None:
    # A frame header that asks for a window of 2 GiB (exponent 21, RFC 8878 3.1.1.1.2), and an empty last block.
    path = write(tmp_path / "a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00")
    with pytest.raises(SourceError, match=r"a.jsonl.zst was made with zstd --long .*;\ndecompress it first"):
        read_inputs(path, on_error="reject")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TEXT_LIKE])
def test_damaged_columns_are_never_silent(tmp_path: Path, name: str) -> None:
    documents = [f"{i} " + os.urandom(300).hex() for i in range(30)]
    sound = FORMATS[name](documents)
    for damage, data in {"cut": sound[: len(sound) * 2 // 3], "empty": b"", "text": b"{}" * 500}.items():
        path = write(tmp_path / (damage + name), data)
        with pytest.raises(SourceError, match=f"{path.name}, row .*pyarrow cannot read it"):
            read_inputs(path)
        read = read_inputs(path, on_error="reject")
        assert read.texts == documents[: len(read.texts)]
        assert [rejected.record for rejected in read.rejected] == [len(read.texts)]


def test_nothing_slow_is_imported_before_it_is_used() -> None:
    program = """if True:
        import sys, exact_prep.sources
        slow = {"pyarrow", "numpy", "datasets", "torch"} & set(sys.modules)
        assert not slow, slow
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
