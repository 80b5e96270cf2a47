"""What `pack --dry-run` says is what the run then takes; and a run that the disk cannot hold does not start."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import COMPRESSIONS, arrow, delimited, json_array, json_objects, jsonl, parquet, separated
from runs import exact_prep, make_texts, pack_here, read_files, read_json, write_corpus, write_jsonl
from test_faults import disk, linux_root, strike

from exact_prep.cli.dry_run import escape
from exact_prep.errors import Interrupted, StorageError, UsageError
from exact_prep.pipeline.pack import estimate
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from exact_prep.records.work import Slice
from exact_prep.sources import find_inputs
from exact_prep.sources.extracts import WINDOW, Extract, read_extracts

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = make_texts(800, seed=1)
"""About 1.6 MB, from a few bytes to 15 kB each."""

WRITERS: dict[str, Any] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda texts: gzip.compress(jsonl(texts)),
    "a.jsonl.zst": lambda texts: COMPRESSIONS[".zst"](jsonl(texts)),
    "a.json": json_array,
    "b.json": json_objects,
    "a.csv": delimited(","),
    "a.txt": separated,
    "a.txt.xz": lambda texts: COMPRESSIONS[".xz"](separated(texts)),
    "a.parquet": parquet(rows=40),
    "a.arrow": arrow(stream=False, rows=40),
    "b.arrow": arrow(stream=True, rows=40),
}
"""A writer per format and compression, by the name of the file it makes."""


def make_options(tokenizer: Path | None, *seq_lens: int, packing: Any = "concat", **source: Any) -> PackOptions:
    return PackOptions(
        source=SourceOptions(**{"separator": "<|endofdocument|>\n", **source}),
        tokenizer=TokenizerOptions(tokenizer=None if tokenizer is None else str(tokenizer)),
        packing=PackingOptions(seq_lens=seq_lens or (256,), packing=packing),
    )


def write_files(folder: Path, name: str, texts: list[str]) -> Path:
    folder.mkdir()
    path = folder / name
    path.write_bytes(WRITERS[name](texts))
    return path


def measure_disk(out: Path) -> int:
    return sum(len(data) for data in read_files(out).values())


def assert_near(guess: float, true: float, tolerance: float) -> None:
    assert guess == pytest.approx(true, rel=tolerance)


@pytest.mark.parametrize("name", WRITERS)
def test_tokens_rows_and_disk_are_what_the_run_takes(name, tokenizer_file, tmp_path):
    from exact_prep.pipeline.pack import pack

    path = write_files(tmp_path / "corpus", name, TEXTS)
    options = make_options(tokenizer_file, 256, 1024)
    out = tmp_path / "out"
    guess = estimate([str(path)], options, out)
    assert not out.exists()
    manifests = pack([str(path)], options, out)
    assert_near(guess.tokens, manifests[0].ledger.row_tokens, 0.05)
    assert_near(guess.text_tokens, manifests[0].ledger.text_tokens, 0.05)
    assert_near(guess.text_bytes, manifests[0].text_bytes, 0.05)
    assert_near(guess.documents, manifests[0].documents.packed, 0.25)
    assert guess.tasks == manifests[0].tasks
    for row, manifest in zip(guess.lengths, manifests, strict=True):
        assert_near(row.rows, manifest.rows, 0.05)
        assert_near(row.bytes_with_weights, measure_disk(out / str(row.seq_len)), 0.05)
    assert_near(guess.needed_bytes, measure_disk(out), 0.05)
    assert [(group.files, group.bytes) for group in guess.groups] == [(1, path.stat().st_size)]
    assert guess.first_documents == tuple(text[:80] for text in TEXTS[:3])
    fields = dict.fromkeys(("text",) if "txt" not in name else (), True)
    assert all(field in next(iter(guess.fields.values())) for field in fields)


def test_disk_without_weights_is_a_third_smaller(tokenizer_file, tmp_path):
    path = write_files(tmp_path / "corpus", "a.jsonl", TEXTS)
    (row,) = estimate([str(path)], make_options(tokenizer_file), tmp_path / "out").lengths
    pack_here([path], tmp_path / "out", tokenizer_file, seq_lens=(256,), source={"task_bytes": None})
    pack_here(
        [path], tmp_path / "bare", tokenizer_file, seq_lens=(256,), source={"task_bytes": None}, loss_weights="table"
    )
    assert_near(row.bytes_with_weights, measure_disk(tmp_path / "out"), 0.05)
    assert_near(row.bytes_without_weights, measure_disk(tmp_path / "bare"), 0.05)


def test_rows_of_best_fit_are_simulated(tokenizer_file, tmp_path):
    from exact_prep.pipeline.pack import pack

    # 600 to 700 tokens: with rows of 1,000 each document takes one of its own.
    choose = random.Random(0)
    path = write_jsonl(tmp_path / "a.jsonl", ["0" * choose.randrange(600, 700) for _ in range(900)])
    options = make_options(tokenizer_file, 1000, packing="best-fit")
    guess = estimate([str(path)], options, tmp_path / "out")
    (manifest,) = pack([str(path)], options, tmp_path / "out")
    assert_near(guess.lengths[0].rows, manifest.rows, 0.05)
    assert_near(guess.lengths[0].padding, manifest.ledger.padding, 0.1)


def test_a_corpus_that_changes_in_its_course(tokenizer_file, tmp_path):
    from exact_prep.pipeline.pack import pack

    # Short English, long Japanese, then digits: 4 to 1 bytes per token, lines of 100 bytes to 300 kB.
    texts = ["the long context of a row " * 4] * 5000 + ["東京" * 30_000] * 8 + ["0123456789" * 200] * 500
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    options = make_options(tokenizer_file)
    guess = estimate([str(path)], options, tmp_path / "out")
    (manifest,) = pack([str(path)], options, tmp_path / "out")
    assert_near(guess.tokens, manifest.ledger.row_tokens, 0.05)


def test_formats_are_extrapolated_each_by_itself(tokenizer_file, tmp_path):
    from exact_prep.pipeline.pack import pack

    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(" ".join(TEXTS[number : number + 3]))
    (folder / "z.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    write_jsonl(folder / "y.jsonl", ["0123456789" * 50] * 400)
    options = make_options(tokenizer_file)
    guess = estimate([str(folder)], options, tmp_path / "out")
    (manifest,) = pack([str(folder)], options, tmp_path / "out")
    assert_near(guess.tokens, manifest.ledger.row_tokens, 0.05)
    assert {(group.format, group.compression, group.files) for group in guess.groups} == {
        ("text", "", 60),
        ("jsonl", "gzip", 1),
        ("jsonl", "", 1),
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_corpus_of_ids(name, tmp_path):
    from exact_prep.pipeline.pack import pack

    choose = random.Random(0)
    ids = [[choose.randrange(50_000) for _ in range(int(2000 ** choose.random()))] for _ in range(2000)]
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps({"ids": one}) + "\n" for one in ids))
    else:
        pq.write_table(pa.table({"ids": ids}), path, row_group_size=100)
    options = PackOptions(
        source=SourceOptions(ids_field="ids", documents="rows"),
        tokenizer=TokenizerOptions(eos_token="id:0", eos=True),
        packing=PackingOptions(seq_lens=(128,)),
    )
    guess = estimate([str(path)], options, tmp_path / "out")
    (manifest,) = pack([str(path)], options, tmp_path / "out")
    assert_near(guess.tokens, manifest.ledger.row_tokens, 0.05)
    assert_near(guess.needed_bytes, measure_disk(tmp_path / "out"), 0.05)
    assert guess.first_documents[0].startswith(" ".join(map(str, ids[0]))[:40])


def test_limits_are_respected(tokenizer_file, tmp_path):
    path = write_files(tmp_path / "corpus", "a.jsonl", TEXTS)
    guess = estimate([str(path)], make_options(tokenizer_file, limit_tokens=50_000), tmp_path / "out")
    assert_near(guess.tokens, 50_000, 0.001)
    guess = estimate([str(path)], make_options(tokenizer_file, limit_docs=100), tmp_path / "out")
    assert guess.documents == 100


def test_a_window_holds_as_much_as_its_bytes_hold(tmp_path):
    """Every byte of the text field lies in one window if the windows lie end to end."""
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "x" * (WINDOW * 5), "y" * 10])
    inputs = find_inputs([str(path)], SourceOptions())
    from exact_prep.sources.extracts import read_window

    part = inputs.part(Slice(file=0))
    size = path.stat().st_size
    windows = [read_window(part, low + WINDOW // 2, 1) for low in range(0, size - WINDOW, WINDOW)]
    covered = sum(window.bytes for window in windows)
    assert_near(sum(len(text) for window in windows for text in window.texts), covered * count_characters(path), 0.02)
    assert_near(sum(window.documents for window in windows), covered / size * (len(TEXTS) + 2), 0.02)


def count_characters(path: Path) -> float:
    """Characters of text per byte of a file."""
    return sum(len(json.loads(line)["text"]) for line in path.read_text().splitlines()) / path.stat().st_size


def test_the_first_extracts_are_from_all_over_the_corpus(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [f"{number}|" * 100 for number in range(8000)])
    inputs = find_inputs([str(path)], SourceOptions())
    extracts: list[Extract] = []
    for extract in read_extracts([inputs.part(Slice(file=0))]):
        extracts.append(extract)
        if len(extracts) == 20:
            break
    seen = sorted(int(extract.texts[0].split("|")[1]) for extract in extracts)
    assert seen[0] < 800
    assert seen[-1] > 7200
    assert np.diff(seen).max() < 1000


def test_bad_documents_are_not_counted(tokenizer_file, tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", TEXTS)
    lines = good.read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(f"{line}\n" + '{"body": "no text"}\n' * (i % 2) for i, line in enumerate(lines)))
    options = make_options(tokenizer_file, on_error="reject")
    some, all_of_them = (estimate([str(path)], options, tmp_path / "out") for path in (mixed, good))
    assert_near(some.tokens, all_of_them.tokens, 0.05)
    assert_near(some.documents, all_of_them.documents, 0.3)


def test_the_command_writes_nothing_and_shows_everything(tokenizer_file, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", ["\x1b[2J\rred\nalert", *TEXTS[:50]])
    (corpus / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[:50])))
    before = read_files(tmp_path)
    done = exact_prep(
        "pack", corpus, "--tokenizer", tokenizer_file, "--seq-len", 64, "--seq-len", 128, "--out", tmp_path / "out",
        "--dry-run",
    )  # fmt: skip
    assert read_files(tmp_path) == before
    assert not (tmp_path / "out").exists()
    for word in ("jsonl, gzip", "text", "bytes per token", "tokens", "64", "128", "with weights", "free at", "encode"):
        assert word in done.stdout
    assert r"\x1b[2J\rred\nalert" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_dry_run_says_what_the_run_would_refuse(tokenizer_file, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:20])
    options = make_options(tokenizer_file)
    pack_here([path], tmp_path / "out", tokenizer_file)
    with pytest.raises(UsageError, match="--overwrite"):
        estimate([str(path)], options, tmp_path / "out")
    before = read_files(tmp_path)
    estimate([str(path)], options, tmp_path / "out", overwrite=True)
    assert read_files(tmp_path) == before
    with pytest.raises(UsageError, match="standard input"):
        estimate(["-"], options, tmp_path / "other")
    done = exact_prep("pack", path, "--seq-len", 64, "--out", tmp_path / "x", "--dry-run", check=2)
    assert "--tokenizer is missing" in done.stderr


def test_control_characters_never_reach_the_terminal():
    everything = "".join(map(chr, range(0x2100))) + "\udc80東京🙂"
    assert escape(everything).isprintable()
    assert escape("straße 東京 🙂") == "straße 東京 🙂"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=400)


@linux_root
def test_a_run_that_the_disk_cannot_hold_does_not_start(corpus, tokenizer_file, tmp_path):
    with disk(tmp_path / "disk", "400k") as resize:
        out = tmp_path / "disk" / "out"
        with pytest.raises(StorageError, match=r"disk/out needs about .*MB for .* tokens, and .*/disk.* free") as info:
            pack_here(corpus, out, tokenizer_file)
        assert "--no-space-check" in str(info.value)
        assert "--loss-weights table" in str(info.value)
        assert not list(out.rglob("data-*"))
        assert not (out / ".work").exists()
        with pytest.raises(StorageError, match="No space left"):
            pack_here(corpus, out, tokenizer_file, space_check=False)
        resize("8m")
        pack_here(corpus, out, tokenizer_file)
        assert read_json(out / "manifest.json")["rows"]


@linux_root
def test_what_an_earlier_run_wrote_counts_as_room(corpus, tokenizer_file, tmp_path):
    source = {"task_bytes": 50_000}
    pack_here(corpus, tmp_path / "whole", tokenizer_file, source=source)
    size = measure_disk(tmp_path / "whole")
    with disk(tmp_path / "disk", "64m"):
        out = tmp_path / "disk" / "out"

        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            pack_here(corpus, out, tokenizer_file, source=source, emit=strike(stop, after=6))
        done = sum(path.stat().st_size for path in out.glob("data-*"))
        assert done > size / 4
        # Less is free than the whole takes, but enough for the rest.
        free = shutil.disk_usage(out).free
        (tmp_path / "disk" / "filler").write_bytes(bytes(free - (size - done // 2)))
        with pytest.raises(StorageError, match="needs about"):
            pack_here(corpus, tmp_path / "disk" / "other", tokenizer_file, source=source)
        pack_here(corpus, out, tokenizer_file, source=source)
        assert read_files(out) == read_files(tmp_path / "whole")
