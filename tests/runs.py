"""Runs of the pipeline in this process, on small corpora: what tests of faults and of integrity begin with."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from exact_prep.pipeline import WeighOptions, pack, weigh
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.records.manifest import Manifest, WeightsFile

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


def pack_here(
    inputs: Any, out: Path, tokenizer: Path, *, seq_lens: tuple[int, ...] = (64,), **more: Any
) -> list[Manifest]:
    """`exact-prep pack --on-error reject --tokenizer-backend tokenizers --task-size 2000`, in this process."""
    options = PackOptions(
        source=SourceOptions(on_error="reject", task_bytes=2000),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer), backend="tokenizers"),
        packing=PackingOptions(seq_lens=seq_lens),
    )
    return pack([str(one) for one in inputs], options, out, **more)


def weigh_here(directory: Path, *, alpha: float = 0.15, **more: Any) -> list[WeightsFile]:
    """`exact-prep weigh`, in this process."""
    return weigh(directory, WeighOptions(alpha=alpha), **more)


def files_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory, by name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
