"""The commands as a user types them: real processes, real files; every document is found again in the rows."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import (
    error_lines,
    exact_prep,
    flip_bit,
    list_shards,
    make_texts,
    read_documents,
    read_files,
    read_json,
    read_rows,
    read_table,
    write_jsonl,
)
from tokenizers import Tokenizer

from exact_prep.pipeline.events import Progress
from exact_prep.pipeline.pack import pack
from exact_prep.reader.rows import open as open_dataset
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from exact_prep.reports.schemas import schema_files

ROOT = Path(__file__).parents[1]
SHARD = "data-0000000-000.arrow"
"""The one shard of the corpus."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 documents, three of them empty."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = make_texts(300)
    for empty in (5, 100, 299):
        texts[empty] = ""
    return write_jsonl(folder / "corpus.jsonl", texts), texts


@pytest.fixture(scope="module")
def dataset(corpus, tokenizer_file, tmp_path_factory):
    """The corpus packed to rows of 256 and weighed; not to be changed."""
    out = tmp_path_factory.mktemp("dataset") / "packed"
    exact_prep("pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 256, "--out", out, "--workers", 1)
    exact_prep("weigh", out)
    return out


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy of the dataset that may be changed."""
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", dataset, target], check=True)
    return target


def test_every_document_comes_back_token_by_token_with_its_eos(dataset, corpus, tokenizer_file):
    reference = Tokenizer.from_file(str(tokenizer_file))
    eos = reference.token_to_id("<|endoftext|>")
    expected = {
        (0, record): [*reference.encode(text, add_special_tokens=False).ids, eos]
        for record, text in enumerate(corpus[1])
        if text
    }
    assert read_documents(dataset) == expected


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_packing_and_shuffling_lose_nothing(packing, corpus, dataset, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    options = ("--packing", packing, "--shuffle", 7, "--workers", 1)
    exact_prep("pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 128, "--out", out, *options)
    assert read_documents(out) == read_documents(dataset)
    if packing == "best-fit":
        cut = {(d, o) for row in read_rows(out) for d, o in zip(row["doc_ids"], row["doc_offsets"], strict=True) if o}
        assert all(offset % 128 == 0 for _, offset in cut)
    assert exact_prep("verify", out).stdout.endswith("everything is correct\n")


def test_weights_are_what_the_formula_says_at_every_position(dataset):
    weights = read_json(dataset / "weights.json")
    rows = read_rows(dataset)
    counts = [0] * 20
    for row in rows:
        for length in row["seq_lengths"]:
            for context in range(1, length):
                counts[max(context.bit_length() - 3, 0)] += 1
    tail = [b for b in range(20) if counts[b] and (8 << (b - 1) if b else 0) >= 64]
    q = {b: counts[b] / sum(counts[b] for b in tail) for b in tail}
    mean = sum(q[b] * (q[b] + 1e-6) ** -0.5 for b in tail)
    table = {b: 1 + 0.15 * (q[b] + 1e-6) ** -0.5 / mean if b in q else 1.0 for b in range(20)}
    assert weights["table"]["counts"] == counts[: len(weights["table"]["counts"])]
    assert weights["table"]["in_tail"] == [b in tail for b in range(len(weights["table"]["counts"]))]
    assert weights["options"]["tail_from"] == 64
    assert weights["kind"] == "exact"
    assert weights["state"] == "complete"
    for row in rows:
        expected = []
        for length in row["seq_lengths"]:
            expected += [0.0, *(float(np.float16(table[max(c.bit_length() - 3, 0)])) for c in range(1, length))]
        expected += [0.0] * (256 - len(expected))
        assert row["loss_weights"] == expected


def test_hugging_face_loads_the_directory_and_its_fingerprint_follows_the_weights(copy):
    load = "from datasets import load_from_disk; import sys; d = load_from_disk(sys.argv[1]);"
    show = load + "print(len(d), d._fingerprint, d.features['loss_weights'].feature.dtype)"

    def run():
        done = subprocess.run([sys.executable, "-c", show, copy], capture_output=True, text=True, check=True)
        return done.stdout.split()

    rows, before, dtype = run()
    assert int(rows) == len(read_rows(copy))
    assert dtype == "float16"
    exact_prep("weigh", copy, "--alpha", 0.3)
    assert run()[1] != before


def test_the_report_says_the_same_in_words_and_in_json(dataset, corpus, tokenizer_file, tmp_path):
    plain = ("--tokenizer", tokenizer_file, "--seq-len", 256, "--workers", 1)
    facts = json.loads(exact_prep("report", dataset, "--json").stdout)
    assert len(facts) == 1
    text = exact_prep("report", dataset, env={**os.environ, "COLUMNS": "160"}).stdout
    for bucket in facts[0]["buckets"]:
        assert f"{bucket['targets']:,}" in text
        assert f"{bucket['weight']:.4f}" in text
    assert f"{facts[0]['weights']['weighted_tail_share']:.2%}" in text
    assert facts[0]["documents"] == {"records": 300, "packed": 297, "empty": 3, "rejected": 0, "held_out": 0}
    assert sum(bucket["share"] for bucket in facts[0]["buckets"]) == pytest.approx(1)
    assert sum(bucket["weighted_share"] for bucket in facts[0]["buckets"]) == pytest.approx(1)
    exact_prep("pack", corpus[0], *plain, "--out", tmp_path / "plain")
    before = json.loads(exact_prep("report", tmp_path / "plain", "--json").stdout)[0]
    assert before["weights"] is None
    assert [b["targets"] for b in before["buckets"]] == [b["targets"] for b in facts[0]["buckets"]]
    assert "not weighed" in exact_prep("report", tmp_path / "plain").stdout


def test_schemas_are_generated_from_the_records_and_hold_for_real_output(dataset, tmp_path):
    committed = {path.name: path.read_bytes() for path in (ROOT / "schemas").glob("*.json")}
    for name, data in schema_files().items():
        assert committed[name] == data, "run python -m exact_prep.reports.schemas schemas"
    manifest = read_json(dataset / "manifest.json")
    instances = {
        "manifest": manifest,
        "weights": read_json(dataset / "weights.json"),
        "report": json.loads(exact_prep("report", dataset, "--json").stdout),
        "simulation": json.loads(exact_prep("simulate", dataset, "--tail-share", "0.9", "--json").stdout),
        "row": json.loads(exact_prep("show", dataset, "--json").stdout),
    }
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    options = ("--dtype", "uint16", "--eos", 500, "--seq-len", 64, "-o", tmp_path / "measured")
    exact_prep("measure", "tokens", tmp_path / "ids.bin", *options)
    instances["exposure"] = read_json(tmp_path / "measured" / "exposure.json")
    assert {f"{name}.schema.json" for name in (*instances, "task-record", "results")} == committed.keys()
    for name, instance in instances.items():
        schema = json.loads(committed[f"{name}.schema.json"])
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(instance, schema)
    measured = json.loads(exact_prep("report", tmp_path / "measured", "--json").stdout)
    jsonschema.validate(measured, json.loads(committed["report.schema.json"]))


def test_the_same_bytes_for_any_workers_and_any_naming_of_the_inputs(tokenizer_file, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(6):
        write_jsonl(folder / f"{n}.jsonl", make_texts(400, seed=n))
    namings = {
        "directory": [folder],
        "glob": [folder / "*.jsonl"],
        "list": [folder / f"{n}.jsonl" for n in (3, 1, 0, 5, 4, 2)],
    }
    hashes = set()
    for (naming, inputs), workers in zip(namings.items(), (1, 2, 5), strict=True):
        out = tmp_path / naming
        options = ("--workers", workers, "--task-size", 200000)
        exact_prep("pack", *inputs, "--tokenizer", tokenizer_file, "--seq-len", 512, "--out", out, *options)
        manifest = read_json(out / "manifest.json")
        hashes.add(manifest["tree_hash"])
        assert manifest["tasks"] == len(read_table(out, "tasks")) > 1
        tables = ("inputs", "tasks", "shards", "batches", "sources", "document_lengths", "weights")
        assert read_files(out).keys() == {
            *("manifest.json", "weights.json", "dataset_info.json", "state.json", "README.md"),
            *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
            *(f"tables/{name}.parquet" for name in tables),
            *(path.name for path in list_shards(out)),
        }
    assert len(hashes) == 1


def test_several_row_lengths_are_several_datasets_from_one_tokenization(corpus, tokenizer_file, tmp_path, dataset):
    out = tmp_path / "out"
    lengths = ("--seq-len", 128, "--seq-len", 256)
    exact_prep("pack", corpus[0], "--tokenizer", tokenizer_file, *lengths, "--out", out, "--workers", 1)
    exact_prep("weigh", out)
    assert sorted(path.name for path in out.iterdir()) == ["128", "256"]
    one = read_json(dataset / "manifest.json")
    assert read_json(out / "256" / "manifest.json")["tree_hash"] == one["tree_hash"]
    assert [fact["seq_len"] for fact in json.loads(exact_prep("report", out, "--json").stdout)] == [128, 256]
    assert exact_prep("verify", out).returncode == 0


def test_a_second_weigh_replaces_the_first_and_returns_to_the_same_bytes(copy):
    before = read_files(copy)
    exact_prep(
        "weigh", copy, "--alpha", 0.5, "--gamma", 0, "--normalize", "mean", "--supervise-first", "--tail-from", 128
    )
    assert exact_prep("verify", copy).returncode == 0
    assert read_files(copy)[SHARD] != before[SHARD]
    exact_prep("weigh", copy, "--recount")
    assert read_files(copy) == before


def change_json(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES = {
    "a flipped bit among the ids": (lambda d: flip_bit(d / SHARD, 5000), "tokens or segments are not those that were"),
    "a truncated shard": (lambda d: os.truncate(d / SHARD, 999), "999 bytes, the table of shards says"),
    "a missing shard": (lambda d: (d / SHARD).unlink(), "No such file"),
    "an unlisted shard": (
        lambda d: (d / "data-9999999-000.arrow").write_bytes(b"x"),
        "data-9999999-000.arrow is not a shard",
    ),
    "an edited manifest": (lambda d: change_json(d / "manifest.json", text_bytes=1), "was changed after"),
    "a manifest with an unknown field": (lambda d: change_json(d / "manifest.json", more=1), "more"),
    "edited weights": (lambda d: change_json(d / "weights.json", tool_version="0"), "was changed after"),
    "weights with an unknown field": (lambda d: change_json(d / "weights.json", more=1), "more"),
    "no weights.json": (lambda d: (d / "weights.json").unlink(), "weights.json is missing"),
    "no state.json": (lambda d: (d / "state.json").unlink(), "state.json cannot be read"),
    "other features": (
        lambda d: change_json(d / "dataset_info.json", features={}),
        "dataset_info.json is not the file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds(damage, copy):
    harm, says = DAMAGES[damage]
    harm(copy)
    done = exact_prep("verify", copy, "--workers", 1, check=1)
    assert says in done.stdout, done.stdout


def test_verify_finds_every_flipped_bit_of_a_weight_with_its_row_and_position(copy):
    (place,) = read_table(copy, "batches")
    flip_bit(copy / SHARD, place["loss_weights"] + 2 * (256 * 3 + 70))
    found = exact_prep("verify", copy, "--workers", 1, check=1).stdout
    assert "loss_weights are not those" in found
    assert "row 3, position 70: weight" in found


def test_quick_verify_sees_sizes_alone(copy):
    assert exact_prep("verify", copy, "--quick").returncode == 0
    flip_bit(copy / SHARD, 5000)
    assert exact_prep("verify", copy, "--quick").returncode == 0
    os.truncate(copy / SHARD, 5000)
    exact_prep("verify", copy, "--quick", check=1)


BAD_INPUTS = {
    "not JSON": (b'{"text": "a"}\nnope\n', "bad.jsonl, line 2:"),
    "no text field": (b'{"text": "a"}\n{"body": "b"}\n', "bad.jsonl, line 2:"),
    "a number for a text": (b'{"text": 7}\n{"text": "b"}\n', "bad.jsonl, line 1:"),
    "not UTF-8": (b'{"text": "a"}\n{"text": "\xff"}\n', "bad.jsonl, line 2:"),
}


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_a_bad_document_stops_the_run_with_file_and_line_or_is_skipped(fault, tmp_path, tokenizer_file):
    data, says = BAD_INPUTS[fault]
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "first"}\n'[:0] + data)
    arguments = (
        "pack",
        tmp_path / "bad.jsonl",
        "--tokenizer",
        tokenizer_file,
        "--seq-len",
        16,
        "--out",
        tmp_path / "out",
    )
    done = exact_prep(*arguments, check=1)
    assert says in done.stderr
    assert "--on-error reject" in done.stderr
    assert len(error_lines(done.stderr)) <= 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    exact_prep(*arguments, "--on-error", "reject", "--overwrite")
    line = read_json(tmp_path / "out" / "rejected.jsonl")
    assert line["source"].endswith("bad.jsonl")
    assert says == f"bad.jsonl, {line['place']}:"
    facts = json.loads(exact_prep("report", tmp_path / "out", "--json").stdout)[0]
    assert facts["documents"]["rejected"] == 1
    assert exact_prep("verify", tmp_path / "out").returncode == 0


def make_truncated_gz(path: Path) -> list:
    (path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 1000)[:-20])
    return [path / "t.jsonl.gz"]


def make_invalid_txt(path: Path) -> list:
    (path / "t.txt").write_bytes(b"fine\nnot \xff fine\n")
    return [path / "t.txt"]


def make_jsonl(path: Path) -> list:
    return [write_jsonl(path / "ok.jsonl", ["some text"])]


MISUSES = {
    "truncated gz": (make_truncated_gz, [], 1, "t.jsonl.gz"),
    "text that is not UTF-8": (
        make_invalid_txt,
        [],
        1,
        "t.txt, document 1: wrong UTF-8 (invalid start byte at byte 9 of the file, in line 2)",
    ),
    "no such file": (lambda d: [d / "absent.jsonl"], [], None, "absent.jsonl"),
    "an unknown suffix": (lambda d: [(d / "x.docx").write_bytes(b"x") and d / "x.docx"], [], 2, "--input-format"),
    "an empty directory": (lambda d: [(d / "none").mkdir() or d / "none"], [], None, "none"),
    "rows of one token": (make_jsonl, ["--seq-len", 1], 2, "--seq-len"),
    "a tokenizer that is not one": (make_jsonl, ["--tokenizer", ROOT / "pyproject.toml"], None, "pyproject.toml"),
    "a tokenizer that does not exist": (make_jsonl, ["--tokenizer", "./no/such/tokenizer.json"], None, "tokenizer"),
    "a hub id, offline": (make_jsonl, ["--tokenizer", "no-such-org/no-such-model"], None, "tokenizer.json"),
    "an unknown EOS": (make_jsonl, ["--eos-token", "<nope>"], None, "<nope>"),
    "a place that cannot be written": (make_jsonl, ["--out", "/proc/nowhere"], 1, "/proc/nowhere"),
    "an unknown option": (make_jsonl, ["--sequence-length", 4], 2, "--sequence-length"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_ends_in_two_lines_that_say_what_and_how_to_fix_it(misuse, tmp_path, tokenizer_file):
    make, options, code, says = MISUSES[misuse]
    defaults = {"--tokenizer": tokenizer_file, "--seq-len": 16, "--out": tmp_path / "out"}
    arguments = [w for name, value in defaults.items() if name not in options for w in (name, value)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = exact_prep("pack", *make(tmp_path), *arguments, *options, check=None, env=env)
    assert done.returncode in ((1, 2) if code is None else (code,)), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if "Usage:" not in done.stderr:
        assert len(error_lines(done.stderr)) <= 2, done.stderr
    assert not list(tmp_path.glob("out/**/manifest.json"))


def test_an_existing_dataset_is_not_replaced_unless_asked(copy, corpus, tokenizer_file):
    arguments = ("pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", copy)
    assert "--overwrite" in exact_prep(*arguments, check=2).stderr
    exact_prep(*arguments, "--overwrite")
    assert read_json(copy / "weights.json")["kind"] == "plain"
    assert exact_prep("verify", copy).returncode == 0


def test_a_directory_with_files_of_somebody_else_is_left_alone(tmp_path, corpus, tokenizer_file):
    (tmp_path / "thesis.tex").write_text("mine")
    arguments = ("pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", tmp_path, "--overwrite")
    assert "thesis.tex" in exact_prep(*arguments, check=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_limits_stop_after_the_document_that_reaches_them(corpus, tokenizer_file, tmp_path):
    base = ("pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 64, "--workers", 2)
    exact_prep(*base, "--out", tmp_path / "docs", "--limit-docs", 101)
    manifest = read_json(tmp_path / "docs" / "manifest.json")
    assert manifest["documents"] == {"records": 103, "packed": 101, "empty": 2, "rejected": 0, "held_out": 0}
    exact_prep(*base, "--out", tmp_path / "tokens", "--limit-tokens", 5000)
    found = read_documents(tmp_path / "tokens")
    total = sum(map(len, found.values()))
    assert total >= 5000 > total - len(found[max(found)])
    assert exact_prep("verify", tmp_path / "tokens").returncode == 0


def test_progress_never_goes_back_where_tasks_run_one_by_one(corpus, tokenizer_file, tmp_path):
    options = PackOptions(
        source=SourceOptions(limit_docs=200, task_bytes=20_000),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file)),
        packing=PackingOptions(seq_lens=(64,)),
    )
    events = []
    manifest = pack([str(corpus[0])], options, tmp_path / "out", emit=events.append)[0]
    seen = [(event.bytes, event.tokens) for event in events if isinstance(event, Progress)]
    assert seen == sorted(seen)
    assert seen[-1][1] == manifest.ledger.row_tokens
    assert manifest.tasks > 3


def test_stdin_and_other_formats_give_the_same_rows(corpus, dataset, tokenizer_file, tmp_path):
    base = ("--tokenizer", tokenizer_file, "--seq-len", 256, "--workers", 1)
    want = read_json(dataset / "manifest.json")["tree_hash"]
    compressed = tmp_path / "corpus.jsonl.gz"
    compressed.write_bytes(gzip.compress(corpus[0].read_bytes()))
    columns = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": corpus[1]}), columns)
    for name, source in (("gz", compressed), ("parquet", columns)):
        exact_prep("pack", source, *base, "--out", tmp_path / name)
        assert read_json(tmp_path / name / "manifest.json")["tree_hash"] == want
    with corpus[0].open() as stdin:
        exact_prep("pack", "-", *base, "--out", tmp_path / "stdin", stdin=stdin)
    assert read_json(tmp_path / "stdin" / "manifest.json")["tree_hash"] == want


EMPTY = "import typer\napp = typer.Typer()\nfor name in 'ab':\n    app.command(name)(lambda: None)\n"
"""A Typer application with nothing in it: as quick as one can be on a given machine."""


def time_command(application: str, *arguments: str) -> float:
    """CPU-seconds that a command line takes; that it imports nothing slow is checked on the way."""
    script = (
        f"import sys, time\n{application}\ntry:\n    app(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "slow = {'numba', 'numpy', 'datasets', 'pyarrow', 'torch', 'tokenizers'} & sys.modules.keys()\n"
        "print('slow:', sorted(slow), 'cpu:', time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("slow: []"), last
    return float(last.split("cpu: ")[1])


def test_help_is_quick_and_imports_nothing_slow():
    ours = "from exact_prep.cli import app"
    time_command(ours, "pack", "-h")
    time_command(ours, "--version")
    # 0.3 s; on a machine where an empty application takes that long, half as much again as it does. In turn, for the
    # machine's speed changes with what else runs on it.
    pairs = [(time_command(EMPTY, "--help"), time_command(ours, "--help")) for _ in range(5)]
    empty, own = (min(column) for column in zip(*pairs, strict=True))
    assert own < max(0.3, 1.5 * empty), pairs


COMMANDS = (
    "pack",
    "measure",
    "weigh",
    "report",
    "simulate",
    "show",
    "verify",
    "export",
    "config",
    "explain",
    "demo",
    "validate",
)


def show_help(*command: str, columns: int = 80) -> list[str]:
    """The lines of a command's help on a terminal of that width."""
    return exact_prep(*command, "-h", env={**os.environ, "COLUMNS": str(columns)}).stdout.splitlines()


def read_sections(lines: list[str]) -> dict[str, list[str]]:
    """The sections of a help text, by title; `` holds what comes before the first."""
    sections: dict[str, list[str]] = {"": []}
    for line in lines:
        if re.fullmatch("[A-Z][a-z]+:", line):
            sections[line[:-1]] = []
        else:
            sections[list(sections)[-1]].append(line)
    return sections


def test_every_command_and_option_is_explained():
    assert set(COMMANDS) == {line.split()[0] for line in read_sections(show_help())["Commands"] if line[:3].strip()}
    for command in COMMANDS:
        for title, lines in read_sections(show_help(command, columns=200)).items():
            for number, line in enumerate(lines):
                if title not in ("", "Examples") and re.match("  (-|[A-Z])", line):
                    explained = line[26:] if line[24:26] == "  " else lines[number + 1].strip()
                    assert len(explained) > 3, line


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_a_terminal_and_cuts_no_name(command):
    lines = show_help(*command)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line or "<" in line for line in lines)
    for columns in (50, 200):
        words = " ".join(show_help(*command, columns=columns)).split()
        assert words == " ".join(lines).split(), "only the place of the line ends depends on the terminal"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_of_options_that_exist(command):
    sections = read_sections(show_help(command))
    *explained, lines = sections.values()
    assert list(sections)[-1] == "Examples"
    options = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(line for lines in explained for line in lines)))
    examples = "\n".join(lines).replace("\\\n", " ")
    for line in filter(None, map(str.strip, examples.splitlines())):
        assert f"exact-prep {command}" in line
        used = re.findall(r"(?<!\S)--?[a-z][a-z-]*", line.partition(f"exact-prep {command}")[2])
        assert set(used) <= options, line


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("pack",), "INPUT...; -o, --out DIR; --seq-len N|4k|16K"),
        (("pack", "in.jsonl", "--packing", "concat"), "-o, --out DIR; --seq-len N|4k|16K"),
        (("weigh",), "DIR..."),
        (("export", "packed"), "--to"),
    ],
)
def test_all_that_is_missing_is_named_at_once(words, missing):
    said = exact_prep(*words, check=2).stderr
    assert f"missing: {missing}" in said
    assert f"exact-prep {words[0]} --help`" in said


def test_help_shows_no_number_that_nobody_can_read():
    """The limits of int64 and of a row are said where they are exceeded."""
    for command in COMMANDS:
        shown = "\n".join(show_help(command, columns=200)).replace("0.000001", "")
        assert not re.search(r"\d{7}", shown), re.findall(r".*\d{7}.*", shown)


def test_out_and_row_lengths_have_short_forms(corpus, dataset, tokenizer_file, tmp_path):
    base = ("pack", corpus[0], "--tokenizer", tokenizer_file, "--workers", 1, "-q")
    exact_prep(*base, "-o", tmp_path / "short", "--seq-len", "1k", "--seq-len", "2K", "--seq-len", "512")
    assert {path.name for path in (tmp_path / "short").iterdir() if path.is_dir()} == {"1024", "2048", "512"}
    assert (
        "a --seq-len is given twice"
        in exact_prep(*base, "-o", "x", "--seq-len", "1k", "--seq-len", 1024, check=2).stderr
    )
    for wrong in ("1kb", "1", "256M", "-1", ""):
        assert "--seq-len" in exact_prep(*base, "-o", "x", f"--seq-len={wrong}", check=2).stderr
    exact_prep("weigh", dataset, "-o", tmp_path / "table.json")
    exact_prep("export", dataset, "--to", "lut", "-o", tmp_path / "lut")


def test_a_result_is_one_line_however_narrow_the_terminal_is(dataset):
    narrow = {**os.environ, "COLUMNS": "20"}
    assert exact_prep("verify", dataset, env=narrow).stdout == f"{dataset}: everything is correct\n"


@pytest.fixture(scope="module")
def long_run(tokenizer_file, tmp_path_factory):
    """A `pack` that takes seconds, but for its --out, and the tree hash it comes to."""
    folder = tmp_path_factory.mktemp("long")
    source = write_jsonl(folder / "in.jsonl", make_texts(3000, longest=20000))
    command = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 512, "--task-size", 1000000, "--workers", 2]
    exact_prep(*command, "--out", folder / "whole")
    return command, read_json(folder / "whole" / "manifest.json")["tree_hash"]


@pytest.mark.xdist_group("long run")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_a_run_within_two_seconds_and_it_continues(number, long_run, tmp_path):
    base, whole = long_run
    out = tmp_path / "out"
    command = [sys.executable, "-m", "exact_prep", *map(str, base), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob(".work/task-*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, talk = process.communicate(timeout=10)
        took = time.monotonic() - started
    assert process.returncode == 130
    assert took < 2
    _, alive = psutil.wait_procs(children, timeout=1)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    assert len(error_lines(talk)) == 1
    assert "same command again to continue" in talk
    done = exact_prep(*base, "--out", out)
    assert "were finished already" in done.stderr
    assert read_json(out / "manifest.json")["tree_hash"] == whole


def test_another_plan_is_refused_with_what_differs(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["good", "also good"])
    bad = tmp_path / "last.jsonl"
    bad.write_bytes(b"bad\n")
    base = ["pack", source, bad, "--tokenizer", tokenizer_file, "--out", tmp_path / "out", "--task-size", 16]
    exact_prep(*base, "--seq-len", 64, check=1)
    done = exact_prep(*base, "--seq-len", 32, "--packing", "best-fit", check=2)
    assert "seq_lens was 64, is 32" in done.stderr
    assert "packing was 'concat', is 'best-fit'" in done.stderr
    assert "--overwrite, which gives up its 3 finished tasks" in done.stderr
    write_jsonl(bad, ["good"])
    exact_prep(*base, "--seq-len", 32, "--packing", "best-fit", "--overwrite")
    assert exact_prep("verify", tmp_path / "out").returncode == 0


def test_a_run_without_a_finished_task_gives_way_to_other_options(tokenizer_file, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"bad\n")
    base = ["pack", source, "--tokenizer", tokenizer_file, "--out", tmp_path / "out"]
    exact_prep(*base, "--seq-len", 64, check=1)
    write_jsonl(source, ["good", "also good"])
    exact_prep(*base, "--seq-len", 32)
    assert read_json(tmp_path / "out" / "manifest.json")["seq_len"] == 32
    assert exact_prep("verify", tmp_path / "out").returncode == 0


def test_a_corpus_of_ids_is_packed_as_it_is_with_and_without_a_tokenizer(tokenizer_file, tmp_path):
    ids = [[5, 6, 7], [8] * 100, [], [9]]
    pq.write_table(pa.table({"input_ids": pa.array(ids, pa.list_(pa.int64()))}), tmp_path / "ids.parquet")
    base = ("pack", tmp_path / "ids.parquet", "--ids-field", "input_ids", "--seq-len", 16)
    assert "padding id 0 (nothing names one" in exact_prep(*base, "--out", tmp_path / "unnamed").stderr
    assert read_documents(tmp_path / "unnamed") == {(0, 0): ids[0], (0, 1): ids[1], (0, 3): ids[3]}
    exact_prep(*base, "--pad-token", 0, "--out", tmp_path / "plain")
    assert read_documents(tmp_path / "plain") == {(0, 0): ids[0], (0, 1): ids[1], (0, 3): ids[3]}
    exact_prep(*base, "--tokenizer", tokenizer_file, "--eos", "--out", tmp_path / "eos")
    assert read_documents(tmp_path / "eos") == {(0, 0): [*ids[0], 0], (0, 1): [*ids[1], 0], (0, 3): [*ids[3], 0]}
    for name in ("plain", "eos"):
        assert exact_prep("verify", tmp_path / name).returncode == 0


def test_a_document_that_spells_a_special_token_is_named_by_file_and_line(tokenizer_file, tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", ["fine"] * 3 + ["", f"forged {'<|endoftext|>' if name == 'b' else ''}"])
    policy = ("--special-tokens-in-text", "error")
    base = ("pack", tmp_path, "--tokenizer", tokenizer_file, "--seq-len", 16, *policy, "--out", tmp_path / "out")
    assert f"{tmp_path / 'b.jsonl'}, line 5: the text spells" in exact_prep(*base, check=1).stderr
    exact_prep(*base, "--on-error", "reject", "--overwrite")
    line = read_json(tmp_path / "out" / "rejected.jsonl")
    assert (line["source"], line["place"]) == (str(tmp_path / "b.jsonl"), "line 5")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
def test_a_corpus_of_ids_may_be_longer_than_a_batch(name, tmp_path):
    """The last batch of a file only accounts for bytes, and stands alone if the one before it was full."""
    rows = [list(range(1, 700_001)), [], [5, 6], list(range(3, 900_003)), list(range(1_100_000))]
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=1)
    elif name == "a.arrow":
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    else:
        (tmp_path / name).write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    options = ["--ids-field", "input_ids", "--pad-token", 0, "--seq-len", 4096, "--out", tmp_path / "out"]
    exact_prep("pack", tmp_path / name, *options, "--workers", 1)
    dataset = open_dataset(tmp_path / "out", plain=True)
    ids = [row.input_ids[: row.seq_lengths.sum()] for row in dataset]
    assert np.concatenate(ids).tolist() == [token for row in rows for token in row]
    assert exact_prep("verify", tmp_path / "out").returncode == 0


def test_runs_load_no_library_that_they_do_not_use(tokenizer_file, tmp_path):
    """Pandas above all: pyarrow imports it on the slightest occasion, for a third of a second in every process."""
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(50))
    pack = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", tmp_path / "out"]
    for command in (pack, ["weigh", tmp_path / "out"], ["verify", tmp_path / "out"], ["report", tmp_path / "out"]):
        script = """if True:
            import sys
            from exact_prep.cli import main
            try:
                main()
            except SystemExit as end:
                heavy = {"pandas", "datasets", "torch", "transformers", "matplotlib"} & set(sys.modules)
                sys.exit(end.code or " ".join(heavy) or 0)
        """
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, command), *(["--workers", "1"] if command[0] != "report" else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_brackets_in_paths_are_no_markup_in_the_report_and_at_a_terminal(tokenizer_file, tmp_path):
    folder = tmp_path / "[/b] [red]x"
    folder.mkdir(parents=True)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer_file.read_bytes())
    source = write_jsonl(folder / "in.jsonl", make_texts(20))
    base = ("pack", source, "--tokenizer", tokenizer, "--seq-len", 64, "--out", folder / "out", "--workers", 1)
    for command in (base, ("weigh", folder / "out"), ("verify", folder / "out")):
        terminal, end = os.openpty()
        # On a slow machine more is drawn than a terminal holds that nobody reads.
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        exact_prep_at(end, *command)
        os.close(end)
        reader.join()
        os.close(terminal)
    shown = exact_prep("report", folder / "out", env={**os.environ, "COLUMNS": "400"}).stdout
    assert f"{folder / 'out'}  " in shown
    assert f"tokenizer  {tokenizer}, " in shown


def drain(terminal: int) -> None:
    """Read a terminal until its other end is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            continue


def exact_prep_at(terminal: int, *arguments: object) -> None:
    """A command whose talk goes to a terminal."""
    command = [sys.executable, "-m", "exact_prep", *map(str, arguments)]
    subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=120, check=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_or_encoded_is_no_internal_error(dataset, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        for command in (["report", dataset], ["report", dataset, "--json"], ["verify", dataset, "--quick"]):
            command = [sys.executable, "-m", "exact_prep", *map(str, command)]
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=environment
            )
            assert done.returncode == 1
            assert done.stderr == "exact-prep: cannot write to standard output: No space left on device\n"
    for encoding in ("ascii", "latin-1"):
        done = exact_prep("report", dataset, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert "tree hash" in done.stdout


def test_arguments_that_are_not_text_and_numbers_beyond_the_record_are_misuse(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["some text"])
    base = ["pack", str(source), "--tokenizer", str(tokenizer_file), "--seq-len", "16", "--out"]
    for arguments in (
        [*base, os.fsencode(tmp_path) + b"/\xff"],
        [*base, str(tmp_path / "out"), "--text-field", b"\xff"],
        [*base, str(tmp_path / "out"), "--separator", b"\xff"],
        [*base, str(tmp_path / "out"), "--shuffle", str(2**63)],
        ["report", b"\xff"],
    ):
        command = [sys.executable, "-m", "exact_prep", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 2, done.stderr
        assert b"internal error" not in done.stderr
        assert b"is not UTF-8" in done.stderr or b"--shuffle" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_closed_standard_input_is_misuse(tokenizer_file, tmp_path):
    command = [sys.executable, "-m", "exact_prep", "pack", "-", "--tokenizer", tokenizer_file, "--seq-len", 16]
    shell = " ".join(map(str, [*command, "--out", tmp_path / "out"])) + " <&-"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


def test_a_corpus_without_a_token_is_a_dataset_without_rows_and_says_so(tokenizer_file, tmp_path):
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", ["", ""])
    (tmp_path / "in" / "b.txt").touch()
    out = tmp_path / "out"
    base = ("--tokenizer", tokenizer_file, "--seq-len", 16, "--seq-len", 32, "--out", out)
    assert "the dataset has no rows" in exact_prep("pack", tmp_path / "in", *base).stderr
    assert "nothing to weigh" in exact_prep("weigh", out, check=2).stderr
    for weighed in (False, True):
        if weighed:
            exact_prep("weigh", out, "--allow-empty-tail")
        exact_prep("verify", out)
        facts = json.loads(exact_prep("report", out, "--json").stdout)
        assert [(one["rows"], one["documents"]["empty"]) for one in facts] == [(0, 3), (0, 3)]
        assert len(open_dataset(out / "32", plain=not weighed)) == 0
        load = "from datasets import load_from_disk; import sys; d = load_from_disk(sys.argv[1]);"
        show = load + "print(len(d), d.features['input_ids'].length)"
        done = subprocess.run([sys.executable, "-c", show, out / "32"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["0", "32"]
