"""The commands as functions: the same words, the same bytes, the same refusals."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from runs import exact_prep as command
from runs import make_texts, read_files, read_json, write_jsonl

import exact_prep
from exact_prep.api import parse_seq_len
from exact_prep.cli.pack import pack as pack_command
from exact_prep.cli.verify import verify as verify_command
from exact_prep.cli.weigh import weigh as weigh_command
from exact_prep.demo import corpus_path, tokenizer_path
from exact_prep.errors import DatasetError, UsageError, WeightsError
from exact_prep.pipeline.events import Finished, Phase
from exact_prep.reports import load_facts, make_facts

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", make_texts(80))


@pytest.mark.parametrize(
    ("function", "of_command"),
    [(exact_prep.pack, pack_command), (exact_prep.weigh, weigh_command), (exact_prep.verify, verify_command)],
)
def test_options_have_the_names_and_defaults_of_the_command(function, of_command):
    ours, theirs = (inspect.signature(each).parameters for each in (function, of_command))
    shell_only = {"verbose", "quiet", "no_lock", "no_space_check", "dry_run", "config", "store_option"}
    shell_only |= {"plan_only", "task_index", "task_count", "finish"}  # of arrays, which schedulers start
    ours_only = {"progress", "lock", "space_check", "store_options"}
    assert ours.keys() - ours_only == theirs.keys() - shell_only
    # Processes are started on demand alone: a script without a main guard would start itself.
    differ = {"workers", "text_field", "join"}
    for name in (ours.keys() & theirs.keys()) - differ:
        assert ours[name].default == theirs[name].default, name
    assert ours["workers"].default == 1


def test_the_functions_give_the_bytes_of_the_commands(source, tokenizer_file, tmp_path, capsys):
    base = ("--tokenizer", tokenizer_file, "--seq-len", 64, "--workers", 1)
    command("pack", source, *base, "--out", tmp_path / "command", "--packing", "best-fit", "--shuffle", 3)
    command("weigh", tmp_path / "command", "--alpha", 0.3)
    out = tmp_path / "function"
    made = exact_prep.pack([source], out, tokenizer=tokenizer_file, seq_len=64, packing="best-fit", shuffle=3)
    assert made == [out]
    (weights,) = exact_prep.weigh(out, alpha=0.3)
    assert isinstance(weights, exact_prep.LoadedWeights)
    assert weights.file.options is not None
    assert weights.file.options.alpha == 0.3
    assert read_files(out) == read_files(tmp_path / "command")
    assert exact_prep.verify(str(out)) == []
    assert capsys.readouterr().out == "", "results are returned, not printed"


def test_several_lengths_tables_and_findings(source, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    made = exact_prep.pack(str(source), str(out), tokenizer=str(tokenizer_file), seq_len=["64", 128], progress=False)
    assert made == [out / "64", out / "128"]
    assert [weights.seq_len for weights in exact_prep.weigh(out, progress=False)] == [64, 128]
    table = tmp_path / "table.json"
    before = read_files(out)
    (weights,) = exact_prep.weigh(made[0], alpha=1.0, out=table, progress=False)
    assert weights.file == exact_prep.load_weights(table).file
    assert read_files(out) == before
    assert exact_prep.verify(made[0], weights=table, progress=False) == []
    shard = next(made[0].glob("data-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert exact_prep.verify(out, quick=True, progress=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", 0.3),
        ("gamma", 0.2),
        ("tail_from", 8),
        ("window", 32),
        ("max_weight", 1.01),
        ("supervise_first", True),
        ("normalize", "mean"),
        ("keep_mixture", True),
        ("eps", 1e-3),
    ],
)
def test_every_option_of_weigh_reaches_the_table(option, value, source, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    exact_prep.pack(source, out, tokenizer=tokenizer_file, seq_len=64, progress=False)
    options = {"keep_mixture": True} if option == "keep_mixture" else {option: value}
    (weights,) = exact_prep.weigh(out, progress=False, **options)
    assert getattr(weights.file.options, option) == value


def test_wrong_options_are_refused_in_a_sentence(source, tokenizer_file, tmp_path):
    def refuse(words: str, **options: object) -> None:
        with pytest.raises(UsageError, match=words):
            exact_prep.pack(source, tmp_path / "out", **{"tokenizer": tokenizer_file, "seq_len": 64} | options)

    refuse("such as 4096, 4k or 16K", seq_len="4kB")
    refuse("at most 134,217,728", seq_len=2**28)
    refuse("packing.*'concat' or 'best-fit'", packing="best")
    refuse("shuffle", shuffle=-1)
    refuse("--tokenizer is missing", tokenizer=None)
    refuse("one character", csv_delimiter="ab")
    with pytest.raises(TypeError, match="sequence_length"):
        exact_prep.pack(source, tmp_path / "out", sequence_length=64)  # type: ignore[call-arg]
    assert not list(tmp_path.glob("out/*.json"))
    with pytest.raises(DatasetError):
        exact_prep.verify(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="alpha"):
        exact_prep.weigh(tmp_path, alpha=-1)


def test_progress_is_shown_hidden_or_given_to_a_function(source, tokenizer_file, tmp_path, capsys):
    def run(name: str, progress: object) -> str:
        exact_prep.pack(source, tmp_path / name, tokenizer=tokenizer_file, seq_len=64, progress=progress)  # type: ignore[arg-type]
        return capsys.readouterr().err

    assert run("shown", True).startswith("exact-prep: EOS ")
    assert run("hidden", False) == ""
    events = []
    assert run("function", events.append) == ""
    assert isinstance(events[0], Phase)
    assert any(isinstance(event, Finished) for event in events)


@pytest.mark.parametrize("options", [{}, {"supervise_first": True, "normalize": "mean"}])
def test_a_notebook_shows_the_histogram_of_the_report(options, source, tokenizer_file, tmp_path):
    out = tmp_path / "<b>out"
    exact_prep.pack(source, out, tokenizer=tokenizer_file, seq_len=64, progress=False)
    exact_prep.weigh(out, **options, progress=False)
    for plain in (False, True):
        shown = exact_prep.open(out, plain=plain)._repr_html_()
        assert "&lt;b&gt;out" in shown
        facts = load_facts(out)
        root = ElementTree.fromstring(shown.replace("<br>", "<br/>"))
        rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")][1:]
        assert len(rows) == len(facts.buckets)
        if plain:
            assert [int(row[1].replace(",", "")) for row in rows] == [
                bucket.targets for bucket in make_facts("", exact_prep.open(out).manifest, None).buckets
            ]
            continue
        for row, bucket in zip(rows, facts.buckets, strict=True):
            assert row == [
                f"{bucket.low:,} - {bucket.high:,}",
                f"{bucket.targets:,}",
                f"{bucket.share:.2%}",
                "",
                f"{bucket.weight:.4f}",
                f"{bucket.weighted_share:.2%}",
                "tail" if bucket.in_tail else "",
            ]


@pytest.mark.parametrize(
    ("text", "length"), [("4096", 4096), (64, 64), ("4k", 4096), ("16K", 16384), ("1M", 1 << 20), ("128m", 1 << 27)]
)
def test_row_lengths_may_be_written_short(text, length):
    assert parse_seq_len(text) == length


@pytest.mark.parametrize("text", ["", "k", "4 k", "4kb", "-4", "4.5k", "1", "0k", "129m", "1e3", "٤", "9" * 30, True])
def test_other_row_lengths_are_refused(text):
    with pytest.raises(UsageError, match="--seq-len"):
        parse_seq_len(text)


def test_the_code_in_the_readme_runs(tmp_path):
    section = README.split("### From Python")[1]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl.gz").write_bytes(corpus_path().read_bytes())
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "tokenizer.json").write_bytes(tokenizer_path().read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, seq_len, *_ = done.stdout.split()
    assert int(rows) == read_json(tmp_path / "packed" / "manifest.json")["rows"]
    assert seq_len == "16384"
