"""`--config`: options from a file, for every command; and `exact-prep config`, which writes one."""

from __future__ import annotations

import tomllib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import exact_prep, make_texts, read_files, read_json, write_jsonl
from typer.main import get_command

from exact_prep.cli import app
from exact_prep.cli.arguments import escape, unescape
from exact_prep.cli.config import PACK, WEIGH, spell
from exact_prep.records.options import PackOptions, WeightOptions


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", make_texts(40))


@pytest.fixture
def write(tmp_path):
    """Write a config; returns the option that names it."""

    def write(text: str):
        (tmp_path / "run.toml").write_text(text)
        return ("--config", tmp_path / "run.toml")

    return write


def test_every_command_takes_a_config():
    for name, command in get_command(app).commands.items():
        assert "--config" in {option for each in command.params for option in each.opts}, name


def test_a_config_says_what_the_command_line_would(source, tokenizer_file, tmp_path, write):
    config = write(
        f"""
        inputs = ["{source}"]
        tokenizer = "{tokenizer_file}"
        seq-len = [32, "64"]
        task-size = 5000
        eos = false
        overwrite = false
        [weigh]
        alpha = 0.5
        supervise-first = true
        """
    )
    exact_prep("pack", *config, "--out", tmp_path / "config")
    words = ("--tokenizer", tokenizer_file, "--seq-len", 32, "--seq-len", 64, "--task-size", 5000, "--no-eos")
    exact_prep("pack", source, *words, "--out", tmp_path / "words")
    assert read_files(tmp_path / "config") == read_files(tmp_path / "words")
    refused = exact_prep("weigh", tmp_path / "config", *config, check=2)
    assert "inputs is not an option of weigh" in refused.stderr


def test_the_command_line_wins(source, tokenizer_file, tmp_path, write):
    config = write(
        f"""
        [pack]
        inputs = "{tmp_path / "missing.jsonl"}"
        tokenizer = "{tokenizer_file}"
        seq-len = ["4k", "16k"]
        packing = "best-fit"
        eos = false
        """
    )
    for words in ((source, *config), (*config, source)):
        exact_prep("pack", *words, "--seq-len", 64, "--eos", "--out", tmp_path / "out", "--overwrite")
        manifest = read_json(tmp_path / "out" / "manifest.json")
        assert (manifest["seq_len"], manifest["packing"]) == (64, "best-fit")
        assert manifest["options"]["packing"]["seq_lens"] == [64]
        assert manifest["options"]["tokenizer"]["eos"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seq_len = 64", "seq_len is not an option of pack; did you mean seq-len"),
        ("tokeniser = 'x'", "tokeniser is not an option of pack; did you mean tokenizer"),
        ("config = 'x'", "config is not an option of pack"),
        ("help = true", "help is not an option of pack"),
        ("[peck]\nalpha = 1", "[peck] is not a command; did you mean pack"),
        ("packing = ['concat', 'best-fit']", "packing takes one value, not a list of 2"),
        ("tokenizer = true", "tokenizer takes text or a number, not True"),
        ("text-field = [[1]]", "text-field takes text or a number, not [1]"),
        ("overwrite = 1", "overwrite is true or false, not 1"),
        ("packing = 'worst-fit'", "worst-fit"),
        ("task-size = 1.5", "Invalid value for '--task-size'"),
        ("packing = ", "not TOML"),
    ],
)
def test_a_wrong_config_is_refused_with_what_is_wrong(text, words, source, tmp_path, write):
    done = exact_prep("pack", source, *write(text), "--seq-len", 64, "--out", tmp_path / "out", check=2)
    assert words in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_config_that_cannot_be_read_is_named(source, tmp_path):
    done = exact_prep("weigh", source, "--config", tmp_path / "none.toml", check=2)
    assert "none.toml: cannot be read (No such file or directory)" in done.stderr
    (tmp_path / "latin.toml").write_bytes(b"tokenizer = '\xe9'")
    assert "not TOML" in exact_prep("weigh", source, f"--config={tmp_path / 'latin.toml'}", check=2).stderr


def test_the_config_of_a_dataset_makes_it_again(source, tokenizer_file, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    options = ("--packing", "best-fit", "--shuffle", 3, "--join", r"a\n\\b\t", "--csv-quote", "none", "--no-bos")
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, *options, "--out", first)
    exact_prep("weigh", first, "--alpha", 0.7, "--window", 40, "--tail-from", 16, "--supervise-first")
    (tmp_path / "run.toml").write_text(exact_prep("config", first).stdout)
    exact_prep("pack", "--config", tmp_path / "run.toml", "-o", again)
    exact_prep("weigh", again, "--config", tmp_path / "run.toml")
    assert read_files(again) == read_files(first)
    assert exact_prep("config", again).stdout == (tmp_path / "run.toml").read_text()


def test_the_config_of_several_row_lengths_and_of_a_mixture(source, tokenizer_file, tmp_path):
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 32, "--seq-len", 64, "-o", tmp_path / "a")
    assert tomllib.loads(exact_prep("config", tmp_path / "a").stdout)["pack"]["seq-len"] == [32, 64]
    write_jsonl(source, make_texts(30, seed=1))
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "-o", tmp_path / "b")
    exact_prep("weigh", tmp_path / "a" / "64", tmp_path / "b", "--rates", "1,3")
    made = tomllib.loads(exact_prep("config", tmp_path / "b").stdout)
    assert made["weigh"]["rates"] == "0.25,0.75"
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "-o", tmp_path / "c")
    assert "weigh" not in tomllib.loads(exact_prep("config", tmp_path / "c").stdout)


def list_leaves(model, prefix: str = "") -> set[str]:
    leaves = set()
    for name, field in model.model_fields.items():
        records = [one for one in (field.annotation, *get_args(field.annotation)) if hasattr(one, "model_fields")]
        leaves |= list_leaves(records[0], f"{prefix}{name}.") if records else {f"{prefix}{name}"}
    return leaves


def test_no_option_is_forgotten():
    """Whatever decides the bytes of a dataset is in its config, under a name that the command knows."""
    commands = get_command(app).commands
    assert set(PACK.values()) == list_leaves(PackOptions)
    assert set(WEIGH.values()) == set(WeightOptions.__dataclass_fields__)
    for name, keys in (("pack", PACK), ("weigh", WEIGH)):
        known = {option for each in commands[name].params for option in each.opts}
        assert {f"--{key}" for key in keys} <= known


@given(st.one_of(st.text(), st.integers(), st.booleans(), st.lists(st.text()), st.floats(allow_nan=False)))
def test_what_is_spelled_is_read_back(value):
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return
    if any("\ud800" <= char <= "\udfff" for char in str(value)):
        return
    assert tomllib.loads(f"key = {spell(value)}")["key"] == value


@given(st.text())
def test_what_is_escaped_is_read_back(text):
    assert unescape(escape(text)) == text
