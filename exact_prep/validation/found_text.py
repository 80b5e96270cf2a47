"""Real text that every machine has: the sources of Python and of its installed packages, packed and weighed.

Files are cut into documents of log-normal length, one after the other, because the lengths of sources would make almost
every row one document. Files are divided before they are cut: no file is both trained on and measured on.
"""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import MANIFEST
from exact_prep.errors import UsageError
from exact_prep.pipeline.events import Phase, ignore
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.weigh import weigh
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.stores.local import explained, make_directory, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exact_prep.pipeline.events import Emit

SHARE_HELD_OUT = 0.04
"""Of the files."""
MEDIAN, SIGMA = 0.25, 1.3
"""Of the documents' lengths: median, in bytes per token of a row, so that a third of tokens is tail; and spread."""
SAMPLE_BYTES = 20_000_000
"""Of text that the tokenizer is made from."""
FEWEST_FILES = 20
END = "<|end|>"


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """How much text, and how it is packed."""

    text_bytes: int
    """At most this much is used."""
    vocab_size: int
    seq_len: int
    seed: int = 0


def prepare_text(directory: Path, sizes: TextSizes, emit: Emit = ignore) -> tuple[Path, Path]:
    """Datasets to train on and to measure on in `directory`; made if they are not there.

    Raises UsageError if the machine has too little text, StorageError, and what pack and weigh raise.
    """
    train, held_out = directory / "train", directory / "held-out"
    if (train / MANIFEST).is_file() and (held_out / MANIFEST).is_file():
        return train, held_out
    emit(Phase(text="collecting Python sources"))
    files = find_files(sizes)
    make_directory(directory)
    rng = np.random.default_rng(sizes.seed)
    out = rng.random(len(files)) < SHARE_HELD_OUT
    out[0] = True
    lists = {directory / "train.jsonl": [], directory / "held-out.jsonl": []}
    for file, held in zip(files, out.tolist(), strict=True):
        lists[directory / ("held-out.jsonl" if held else "train.jsonl")].append(file)
    for path, own in lists.items():
        with explained("write", path):
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in cut_files(own, sizes, rng)))
    emit(Phase(text="making a tokenizer"))
    tokenizer = make_tokenizer(directory / "train.jsonl", directory / "tokenizer.json", sizes.vocab_size)
    for path, name in ((directory / "train.jsonl", train), (directory / "held-out.jsonl", held_out)):
        pack([str(path)], make_options(tokenizer, sizes), name, workers=None, emit=emit)
        weigh(name, WeightOptions(), workers=None, emit=emit)
        path.unlink()
    return train, held_out


def find_files(sizes: TextSizes) -> list[Path]:
    """Files of Python source in an order drawn by seed, `text_bytes` in all, each content once; raises UsageError."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    found = sorted({path for root in roots for path in root.rglob("*.py") if path.is_file()})
    order = np.random.default_rng(sizes.seed).permutation(len(found))
    chosen, seen, room = [], set[int](), sizes.text_bytes
    for place in order.tolist():
        data = read_bytes(found[place])
        if len(data) < 200 or hash(data) in seen:
            continue
        seen.add(hash(data))
        chosen.append(found[place])
        room -= len(data)
        if room < 0:
            break
    if len(chosen) < FEWEST_FILES:
        raise UsageError(
            f"below {' and '.join(map(str, roots))} are only {len(chosen)} sources to make text of; give --data DIR, a "
            "dataset that was packed and weighed, or --synthetic"
        )
    return chosen


def cut_files(files: Iterable[Path], sizes: TextSizes, rng: np.random.Generator) -> Iterator[str]:
    """The files' documents."""
    median = MEDIAN * sizes.seq_len
    for file in files:
        text = read_bytes(file).decode(errors="replace")
        start = 0
        while start < len(text):
            stop = start + max(int(rng.lognormal(np.log(median), SIGMA)), 20)
            if text[start:stop].strip():
                yield text[start:stop]
            start = stop


def make_tokenizer(texts: Path, path: Path, vocab_size: int) -> Path:
    """Make a byte-level BPE tokenizer of the first part of some documents, and write it to `path`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with explained("read", texts), texts.open() as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines.readlines(SAMPLE_BYTES)), trainer)
    with explained("write", path):
        tokenizer.save(str(path))
    return path


def make_options(tokenizer: Path, sizes: TextSizes) -> PackOptions:
    """How the documents are packed."""
    return PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer), eos_token=END),
        packing=PackingOptions(seq_lens=(sizes.seq_len,), shuffle=sizes.seed),
    )
