"""Laws of runs that reject: how many are too many, what the message says, how to go on; where each document is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from exact_prep.errors import SourceError, UsageError
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.rejections import parse_limit
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.records.manifest import Manifest


@pytest.fixture
def run(tokenizer_file: Path, tmp_path: Path):
    def call(path: Path, *, max_rejected: str | None = None, notes: list[str] | None = None, **source: object):
        options = PackOptions(
            source=SourceOptions.model_validate({"on_error": "reject", **source}),
            tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file), backend="tokenizers"),
            packing=PackingOptions(seq_lens=(64,)),
        )
        said = [] if notes is None else notes
        [manifest] = pack(
            [str(path)],
            options,
            tmp_path / "out",
            max_rejected=max_rejected,
            emit=lambda event: said.append(getattr(event, "text", "")),
        )
        return manifest

    return call


def write(path: Path, good: int, bad: int) -> Path:
    lines = ['{"text": "good"}\n'] * good + ['{"body": "bad"}\n'] * bad
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("good", "bad", "fits"), [(0, 1, False), (1, 100, True), (1, 101, False), (9899, 101, False), (9999, 101, True)]
)
def test_the_default_is_a_hundred_or_one_percent(run, tmp_path: Path, good: int, bad: int, fits: bool) -> None:
    path = write(tmp_path / "a.jsonl", good, bad)
    if fits:
        assert run(path).documents.rejected == bad
        return
    with pytest.raises(SourceError, match=f"(?s){bad} of .* records.*line {good + 1}: field 'text' is missing"):
        run(path)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_same_command_with_a_higher_limit_publishes(run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 10, 10)
    for limit in ("9", "49%", "0"):
        with pytest.raises(SourceError, match=r"(?s)10 of 20 records \(50%\) were rejected.*--max-rejected 10"):
            run(path, max_rejected=limit)
    work = sorted((tmp_path / "out" / ".work").glob("task-*"))
    before = [one.stat().st_mtime_ns for one in work]
    notes: list[str] = []
    manifest: Manifest = run(path, max_rejected="10", notes=notes)
    assert any("continuing" in note for note in notes)
    assert before
    assert (manifest.documents.packed, manifest.documents.rejected) == (10, 10)
    assert "max_rejected" not in (tmp_path / "out" / "manifest.json").read_text()


def test_a_limit_is_a_number_or_a_share() -> None:
    assert parse_limit(None)(1000) == 100
    assert parse_limit(None)(1_000_000) == 10_000
    assert parse_limit("7")(1000) == 7
    assert parse_limit("2.5%")(1000) == 25
    for wrong in ("", "x", "-1", "101%", "5 %", "%"):
        with pytest.raises(UsageError, match="--max-rejected"):
            parse_limit(wrong)


def test_nothing_packed_is_a_failure_that_names_the_field(run, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?s)nothing was packed: 3 of 3.*check --text-field text"):
        run(write(tmp_path / "a.jsonl", 0, 3), max_rejected="100%")


def test_places_in_a_file_cut_into_tasks_are_its_lines(run, tmp_path: Path) -> None:
    """What readers and the tokenizer skip alike: the tasks' counts say how many lines came before."""
    lines = [json.dumps({"text": f"good {i}"} if i % 7 else {"body": "bad"}) for i in range(1000)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + "\n")
    manifest = run(path, task_bytes=1500, max_rejected="100%")
    assert manifest.tasks > 10
    entries = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(one["source"], one["place"]) for one in entries] == [
        (str(path), f"line {i + 1}") for i in range(1000) if not i % 7
    ]


def test_empty_input_is_said(run, tokenizer_file: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "a.jsonl").touch()
    assert run(tmp_path / "a.jsonl", notes=notes).rows == 0
    assert any("all input files are empty (0 bytes)" in note for note in notes)
    command = [sys.executable, "-m", "exact_prep", "pack", "-", "--tokenizer", str(tokenizer_file), "--seq-len", "16"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "piped"], input=b"", capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert b"standard input is empty (0 bytes)" in done.stderr


def test_a_separator_that_parts_nothing_is_said(run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    notes: list[str] = []
    run(tmp_path / "a.txt", notes=notes, separator="\\n\\n")
    assert any("parts no text file" in note for note in notes)


def test_a_separator_is_understood_as_typed_in_a_shell(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    command = [sys.executable, "-m", "exact_prep", "pack", tmp_path / "a.txt", "--tokenizer", tokenizer_file]
    command += ["--seq-len", "16", "--out", tmp_path / "out", "--tokenizer-backend", "tokenizers"]
    subprocess.run([*map(str, command), "--separator", r"\n\n"], check=True, capture_output=True, timeout=120)
    assert json.loads((tmp_path / "out" / "manifest.json").read_bytes())["documents"]["packed"] == 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("tokenizer.json", b"\x1f\x8b\x08\0rest", "compressed with gzip"),
        ("tokenizer.json", b"<!doctype html><p>404", "HTML page"),
        (
            "tokenizer_config.json",
            b'{"eos_token": "x"}',
            "tokenizer_config.json, which only names special tokens; .*save_pretrained",
        ),
        ("tekken.json", b'{"config": {}}', "mistral-common.*save_pretrained"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    from exact_prep.errors import TokenizerError
    from exact_prep.tokenization.files import locate, parse

    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=f"(?s){name} is not a tokenizer.json: .*{reason}"):
        parse(content, tmp_path / name)
    if name == "tekken.json":
        with pytest.raises(TokenizerError, match=r"only tekken.json, a tokenizer of mistral-common"):
            locate(str(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "a.jsonl", "--tokenizer", "t.json", "--seq-len", "16", "--out", "s3://bucket/out"],
        ["pack", "hdfs://host/a.jsonl", "--tokenizer", "t.json", "--seq-len", "16", "--out", "out"],
        ["weigh", "packed", "--out", "s3://bucket/weights.json"],
        ["report", "https://example.org/packed"],
        ["show", "s3://bucket/packed"],
        ["export", "packed", "--to", "numpy", "--out", "s3://bucket/out"],
        ["demo", "--out", "s3://bucket/out"],
    ],
)
def test_no_command_makes_a_directory_of_an_address(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "exact_prep", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "://" in done.stderr
    assert "name the local path" in done.stderr
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
