"""Writes a benchmark corpus: the same documents as JSON lines and as Parquet, from a path or installed packages."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = 4
"""Number of files, so that tools that work file by file can use two workers."""
TEXT = (".py", ".pyi", ".txt", ".rst", ".md", ".c", ".h", ".html")


@dataclass(frozen=True)
class Corpus:
    """The same documents in two formats."""

    jsonl: Path
    """A directory of `.jsonl` files with fields id and text."""
    parquet: Path
    text_bytes: int
    documents: int


def documents(source: Path) -> Iterator[str]:
    """Yield the texts of a JSON lines file, or of all text files in a directory tree."""
    if source.is_file():
        with source.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
        return
    for path in sorted(source.rglob("*")):
        if path.suffix in TEXT and path.is_file() and not path.is_symlink():
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def build(source: Path | None, target: Path, megabytes: int) -> Corpus:
    """Write about `megabytes` of text to `target`; repeats documents if there are too few."""
    source = source or Path(sysconfig.get_paths()["purelib"])
    jsonl, parquet = target / "jsonl", target / "parquet"
    jsonl.mkdir(parents=True)
    parquet.mkdir()
    taken: list[str] = []
    size = 0
    while size < megabytes * 1_000_000:
        before = size
        for text in documents(source):
            if text:
                taken.append(text)
                size += len(text.encode())
            if size >= megabytes * 1_000_000:
                break
        if size == before:
            raise SystemExit(f"there is no text in {source}; pass a folder or a JSON lines file with --corpus")
    for part in range(PARTS):
        mine = taken[part::PARTS]
        with (jsonl / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for number, text in enumerate(mine):
                line = {"id": f"{part}-{number}", "source": "benchmark", "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        pq.write_table(
            pa.table({"text": pa.array(mine, pa.large_string())}), parquet / f"{part}.parquet", row_group_size=4096
        )
    return Corpus(jsonl, parquet, size, len(taken))
