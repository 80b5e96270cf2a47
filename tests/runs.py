"""What tests of runs share: small corpora, the commands in this process and in one of their own, and slow readers.

The readers use pyarrow alone, nothing of the package under test.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.weigh import weigh
from exact_prep.records import encode, seal
from exact_prep.records.options import (
    PackingOptions,
    PackOptions,
    SourceOptions,
    TokenizerOptions,
    WeightOptions,
    make_validation,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from exact_prep.records.manifest import Manifest
    from exact_prep.records.weights import WeightsFile

WORDS = ["the", "long", "context", "of", "a", "row", "straße", "東京", "🙂", "0123"]


def write_corpus(folder: Path, files: int = 3, documents: int = 20, longest: int = 400) -> list[Path]:
    """Files of JSON lines; the second line of each is bad."""
    folder.mkdir(parents=True, exist_ok=True)
    choose, paths = random.Random(3), []
    for number in range(files):
        texts = [" ".join(choose.choices(WORDS, k=int(longest ** choose.random()))) for _ in range(documents)]
        lines = [json.dumps({"text": text}) for text in texts]
        lines.insert(1, '{"body": "no text"}')
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths


def make_texts(count: int, seed: int = 0, longest: int = 3000) -> list[str]:
    """Texts of log-uniform length from a small vocabulary, some with characters outside ASCII."""
    words = ["the", "long", "context", "of", "a", "row", "straße", "東京", "🙂", "\n", "0123", "{", "}", "'s", "  "]
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words, k=int(longest ** chooser.random()))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def exact_prep(*arguments: object, check: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, in a process of its own; `check` is the exit code that it must have."""
    words = list(map(str, arguments))
    if sys.platform == "linux" and not options and all(word.isprintable() for word in words):
        done = SERVER.run(words)
    else:
        command = [sys.executable, "-m", "exact_prep", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    assert check is None or done.returncode == check, done.stderr + done.stdout
    return done


class CommandServer:
    """A process that forks one for each command (`tests.command_server`), started at the first."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; fails after two minutes, as a test of its own would."""
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.command_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
                start_new_session=True,
            )
            atexit.register(self._server.kill)
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            streams = {name: Path(folder, name) for name in ("stdout", "stderr")}
            for path in streams.values():
                path.touch()
            request = {"arguments": arguments, "directory": os.getcwd(), "stdin": os.devnull}  # noqa: PTH109
            server.stdin.write(json.dumps(request | {name: str(path) for name, path in streams.items()}) + "\n")
            server.stdin.flush()
            if not select.select([server.stdout], [], [], 120)[0]:
                os.killpg(server.pid, signal.SIGKILL)
                pytest.fail(f"exact-prep {arguments} did not end within two minutes")
            code = int(server.stdout.readline())
            out, err = (path.read_text() for path in streams.values())
        return subprocess.CompletedProcess(arguments, code, out, err)


SERVER = CommandServer()


def pack_here(
    inputs: Any,
    out: Path,
    tokenizer: Path,
    *,
    seq_lens: tuple[int, ...] = (64,),
    source: dict[str, Any] | None = None,
    loss_weights: Any = "column",
    validation: float | None = None,
    **more: Any,
) -> list[Manifest]:
    """`exact-prep pack --on-error reject --tokenizer-backend tokenizers --task-size 2000`, in this process.

    `source` are other SourceOptions.
    """
    options = PackOptions(
        source=SourceOptions(**{"on_error": "reject", "task_bytes": 2000, **(source or {})}),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer), backend="tokenizers"),
        packing=PackingOptions(seq_lens=seq_lens),
        validation=make_validation(validation, 0),
        loss_weights=loss_weights,
    )
    return pack([str(one) for one in inputs], options, out, **more)


def weigh_here(directory: Path, *, alpha: float = 0.15, tail_from: int | None = None, **more: Any) -> list[WeightsFile]:
    """`exact-prep weigh`, in this process."""
    return weigh(directory, WeightOptions(alpha=alpha, tail_from=tail_from), **more)


def read_files(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def read_table(directory: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table of a dataset."""
    return pq.ParquetFile(directory / "tables" / f"{name}.parquet").read().to_pylist()


def list_shards(directory: Path) -> list[Path]:
    """The shards of a dataset, in the order of its table."""
    return [directory / row["file"] for row in read_table(directory, "shards")]


def read_shard(path: Path) -> list[dict[str, Any]]:
    """The rows of one shard."""
    return pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a dataset."""
    return [row for path in list_shards(directory) for row in read_shard(path)]


def read_documents(directory: Path) -> dict[tuple[int, int], list[int]]:
    """Ids by (task, document), joined from their segments."""
    segments: dict[tuple[int, int], dict[int, list[int]]] = {}
    for shard in read_table(directory, "shards"):
        for row in read_shard(directory / shard["file"]):
            position = 0
            for doc, offset, length in zip(row["doc_ids"], row["doc_offsets"], row["seq_lengths"], strict=True):
                tokens = row["input_ids"][position : position + length]
                segments.setdefault((shard["task"], doc), {})[offset] = tokens
                position += length
    return {doc: [t for offset in sorted(parts) for t in parts[offset]] for doc, parts in segments.items()}


def flip_bit(path: Path, byte: int, bit: int = 2) -> None:
    """Flip one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def reseal(path: Path, record: Any, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record and make its checksum right again, as somebody who knows how would."""
    values = read_json(path)
    change(values)
    path.write_bytes(encode(seal(record.model_validate_json(json.dumps(values)))))


def error_lines(stderr: str) -> list[str]:
    """The lines of an error, without the one that states EOS, BOS and padding before it."""
    return [line for line in stderr.strip().splitlines() if not line.startswith("exact-prep: EOS ")]
