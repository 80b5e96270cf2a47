"""What users of similar tools reported of their inputs, as one table: the input, and what is right.

A row names the public report where there is one (repository#number), else the kind of report. Others of each kind are
in the tests of its source.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import read_inputs, zstd
from runs import exact_prep, read_documents, read_json, read_rows, write_jsonl
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from exact_prep.errors import ExactPrepError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def lines(*texts: str) -> bytes:
    return "".join(f"{json.dumps({'text': text})}\n" for text in texts).encode()


def parquet(column: pa.Array, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": column}), sink, **options)
    return sink.getvalue()


def sync_flushed(data: bytes) -> bytes:
    """Gzip as a server writes it that flushes after each line, padded with zeros as tapes are."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH) for line in data.splitlines(keepends=True)]
    return b"".join([*parts, packer.flush()]) + bytes(512)


class Report(NamedTuple):
    """An input, and the texts that are in it or what is said of it."""

    name: str
    data: bytes | Callable[[Path], None]
    texts: list[str] | str
    """The texts, or a pattern of the error."""
    options: dict[str, object] = {}
    rejected: list[str] = []
    """Patterns of what is rejected, if `on_error` is reject."""


REPORTS = {
    "NVIDIA/Megatron-LM#62: the first document is empty": Report("a.jsonl", lines("", "a", "", "b"), ["a", "b"]),
    "indygreg/python-zstandard#59: frames after the first": Report(
        "a.jsonl.zst", zstd(lines("a")) + zstd(b"") + zstd(lines("b")), ["a", "b"]
    ),
    "daaain/claude-code-log#139: escaped lone surrogates": Report(
        "a.jsonl",
        b'{"text": "good"}\n{"text": "bad \\udcb2"}\n{"text": "pair \\ud83d\\ude00"}\n',
        ["good", "pair 😀"],
        {"on_error": "reject"},
        ["line 2: field 'text' holds a lone surrogate at character 4"],
    ),
    "members of gzip": Report("a.jsonl.gz", gzip.compress(lines("a")) + gzip.compress(lines("b")), ["a", "b"]),
    "members of bz2, one of them empty": Report(
        "a.jsonl.bz2", bz2.compress(lines("a")) + bz2.compress(b"") + bz2.compress(lines("b")), ["a", "b"]
    ),
    "streams of xz": Report("a.jsonl.xz", lzma.compress(lines("a")) + lzma.compress(lines("b")), ["a", "b"]),
    "gzip flushed per line, zeros behind it": Report("a.jsonl.gz", sync_flushed(lines("a", "b")), ["a", "b"]),
    "a gzip that is cut: whole lines before the cut are kept": Report(
        "a.jsonl.gz",
        sync_flushed(lines("a", "b", "c"))[:-530],
        ["a", "b"],
        {"on_error": "reject"},
        ["its compressed bytes are damaged: they end too early; lost: "],
    ),
    "compression against the name": Report("a.jsonl", gzip.compress(lines("a")), ["a"]),
    "no compression against the name": Report("a.jsonl.gz", lines("a"), ["a"]),
    "a byte-order mark": Report("a.jsonl", b"\xef\xbb\xbf" + lines("a"), ["a"]),
    "UTF-16": Report("a.jsonl", lines("a").decode().encode("utf-16"), "text in UTF-16.*iconv -f UTF-16 -t UTF-8"),
    "lines that end with CR LF, and no newline at the end": Report(
        "a.jsonl", lines("a", "b").replace(b"\n", b"\r\n").rstrip(), ["a", "b"]
    ),
    "U+2028 and NEL are no ends of lines": Report("a.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
    "NaN in another field": Report(
        "a.jsonl", b'{"score": NaN, "text": "a"}\n{"x": -Infinity, "text": "b"}\n', ["a", "b"]
    ),
    "the same key twice: the last counts": Report("a.jsonl", b'{"text": "a", "text": "b"}\n', ["b"]),
    "an array in .jsonl": Report("a.jsonl", b'[{"text": "a"},\n{"text": "b"}]', ["a", "b"]),
    "pretty-printed objects": Report("a.json", b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n', ["a", "b"]),
    "a text field inside an object": Report(
        "a.jsonl", b'{"meta": {"text": "a"}}\n', ["a"], {"text_field": ("meta.text",)}
    ),
    "another text field in some files": Report(
        "a.jsonl", b'{"content": "a"}\n{"text": "b"}\n', ["a", "b"], {"text_field": ("text", "content")}
    ),
    "a list of strings": Report("a.jsonl", b'{"text": ["a", "b"]}\n', ["a\nb"]),
    "a field that is missing": Report(
        "a.jsonl", b'{"body": "a"}\n', "line 1: field 'text' is missing.*--text-field.*'body'"
    ),
    "binary columns of text": Report("a.parquet", parquet(pa.array([b"a", "é".encode()])), ["a", "é"]),
    "large strings and dictionaries": Report(
        "a.parquet", parquet(pa.array(["a", "a", "b"], pa.large_string()).dictionary_encode()), ["a", "a", "b"]
    ),
    "nulls in a column": Report(
        "a.parquet",
        parquet(pa.array(["a", None, "b"])),
        ["a", "b"],
        {"on_error": "reject"},
        ["row 1: column 'text' is null"],
    ),
    "a Git LFS pointer": Report(
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "an error page in place of a download": Report(
        "a.jsonl", b"<!DOCTYPE html><html>404</html>", "HTML page.*download"
    ),
    "a stray quote in CSV costs one document": Report(
        "a.csv",
        b'text\n"good"\nbad " quote "x\n"also good"\n',
        ["good", 'bad " quote "x', "also good"],
    ),
    "CSV with another delimiter": Report("a.csv", b"id;text\n1;a, b\n", ["a, b"], {"csv_delimiter": ";"}),
    "a field of more than 128 KiB in CSV": Report("a.csv", b"text\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
    "a separator as a shell gives it": Report("a.txt", b"a\n\nb\n\nc", ["a", "b", "c"], {"separator": "\n\n"}),
    "bytes that are not UTF-8": Report(
        "a.jsonl",
        b'{"text": "good"}\n{"text": "b\xe9d"}\n',
        ["good"],
        {"on_error": "reject"},
        ["line 2: field 'text' holds wrong UTF-8 at character 1"],
    ),
    "a brace too few": Report(
        "a.jsonl", b'{"text": "a"\n{"text": "b"}\n', ["b"], {"on_error": "reject"}, ["line 1: not JSON"]
    ),
    "NUL and control characters": Report("a.jsonl", b'{"text": "a\\u0000b\\u001bc"}\n', ["a\x00b\x1bc"]),
}


@pytest.mark.parametrize("report", REPORTS)
def test_what_was_reported_is_right(report, tmp_path):
    name, data, texts, options, rejected = REPORTS[report]
    (tmp_path / name).write_bytes(data)
    if isinstance(texts, str):
        with pytest.raises(ExactPrepError, match=f"(?s){texts}"):
            read_inputs(tmp_path / name, **options)
        return
    read = read_inputs(tmp_path / name, **options)
    assert read.texts == texts
    said = [f"{one.place}: {one.reason}" for one in read.rejected]
    assert len(said) == len(rejected), said
    for text, pattern in zip(said, rejected, strict=True):
        assert re.search(re.escape(pattern), text), text


# ---- directories


def test_temporary_files_of_spark_are_no_documents(tokenizer_file, tmp_path):
    """apache/spark: `_temporary` holds a second copy of what is being written, `_SUCCESS` and checksums are no data."""
    folder = tmp_path / "in"
    (folder / "_temporary" / "0").mkdir(parents=True)
    write_jsonl(folder / "part-0.jsonl", ["a"])
    write_jsonl(folder / "_temporary" / "0" / "part-0.jsonl", ["a"])
    (folder / "_SUCCESS").write_text("")
    ran = exact_prep("pack", folder, "--tokenizer", tokenizer_file, "--seq-len", 8, "-o", tmp_path / "out")
    assert "name begins with _" in ran.stderr
    assert len(read_documents(tmp_path / "out")) == 1


# ---- special tokens


def write_tokenizer(folder: Path, words: list[str], special: list[str], config: dict[str, object]) -> Path:
    """A tokenizer of whole words, with special tokens behind them, and its tokenizer_config.json."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pack(tmp_path):
    def run(tokenizer: Path, *texts: str, **options: object):
        source = write_jsonl(tmp_path / "in.jsonl", list(texts))
        words = [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", *([] if value is True else [value]))
        ]
        base = ("pack", source, "--tokenizer", tokenizer, "--seq-len", 8, "--tokenizer-backend", "tokenizers")
        return exact_prep(*base, *words, "-o", tmp_path / "out")

    return run


def test_eos_is_counted_with_its_document(pack, tmp_path):
    """NVIDIA/Megatron-LM#431: EOS was added after the length was taken."""
    pack(write_tokenizer(tmp_path / "t", ["<unk>", "a", "b"], ["</s>"], {"eos_token": "</s>"}), "a b", "a")
    (row,) = read_rows(tmp_path / "out")
    assert (row["seq_lengths"], row["input_ids"][:5]) == ([3, 2], [1, 2, 3, 1, 3])
    ledger = read_json(tmp_path / "out" / "manifest.json")["ledger"]
    assert (ledger["text_tokens"], ledger["eos_tokens"], ledger["row_tokens"]) == (3, 2, 5)


def test_the_end_of_a_turn_is_not_taken_for_the_end_of_a_document_in_silence(pack, tmp_path):
    """QwenLM/Qwen3-Coder#182: is it <|endoftext|> or <|im_end|>?"""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = write_tokenizer(tmp_path / "t", ["<unk>", "a"], special, {"eos_token": "<|im_end|>"})
    said = pack(tokenizer, "a").stderr
    assert "EOS '<|im_end|>' (id 4, tokenizer_config.json)" in said
    assert "--eos-token '<|endoftext|>'" in said
    pack(tokenizer, "a", eos_token="<|endoftext|>", overwrite=True)
    assert read_rows(tmp_path / "out")[0]["input_ids"][:2] == [1, 2]


def test_an_id_that_is_no_end_of_document_is_named_with_its_text(pack, tmp_path):
    """allenai/OLMo#757: `eos_token_id: 0` was |||IP_ADDRESS|||, and documents ended with another id."""
    tokenizer = write_tokenizer(tmp_path / "t", ["|||IP_ADDRESS|||", "a"], ["<|endoftext|>"], {})
    said = pack(tokenizer, "a", eos_token="id:0").stderr
    assert "EOS '|||IP_ADDRESS|||' (id 0, --eos-token)" in said


@pytest.mark.parametrize("text", ["<|endoftext|>", "a <|endoftext|> a"])
def test_text_that_spells_a_special_token_stays_text(text, pack, tmp_path):
    """openai/tiktoken: scraped text that holds the token's name ended documents, or stopped the run."""
    tokenizer = write_tokenizer(tmp_path / "t", ["<unk>", "a"], ["<|endoftext|>"], {"eos_token": "<|endoftext|>"})
    pack(tokenizer, text)
    (row,) = read_rows(tmp_path / "out")
    ids = row["input_ids"][: sum(row["seq_lengths"])]
    assert ids.count(2) == 1
    assert ids[-1] == 2
