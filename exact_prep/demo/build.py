"""Rebuild the demo's corpus and tokenizer, byte for byte: `python -m exact_prep.demo.build KJV JARGON OUT`.

KJV is the output of Debian's `bible -f` for `gen1:1-rev22:21`; JARGON is Debian's jargon.txt. SOURCES.md names the
packages.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EOS = "<|endoftext|>"
WHOLE = {"Ge", "Exo", "Isa", "Job", "Mat", "Acts", "Rom", "Rev", "Jonah", "Ruth"}
"""Books that become one document each."""
VERSES = {"Prv", "Eccl", "SSol", "Jas", "1Jn"}
"""Books in which each verse is a document. In all other books, each chapter is one."""
LEFT_OUT = {"Lev", "Num", "Deu", "1Chr", "2Chr", "1Ki", "2Ki", "Eze", "Jer"}
"""Books left out to keep the package small."""


def read_bible(text: str) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of every document: a book, chapter or verse."""
    parts: dict[str, list[str]] = {}
    for book, chapter, verse, words in re.findall(r"^(\d?[A-Z][A-Za-z]*)(\d+):(\d+) (.+)$", text, re.MULTILINE):
        if book in LEFT_OUT:
            continue
        title = book if book in WHOLE else f"{book} {chapter}:{verse}" if book in VERSES else f"{book} {chapter}"
        line = parts.setdefault(title, [])
        if words not in line:
            line.append(words)
    for title, lines in parts.items():
        yield title, "\n".join(lines)


def read_jargon(text: str) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of the Jargon File's chapters and appendices, without the lexicon."""
    text = re.sub(r"(?s)\nGlossary\n.*?\n(?=Appendix A\. )", "\n", text)
    headings = list(re.finditer(r"^(?:Chapter \d+|Appendix [A-C])\. .+$|^Bibliography$", text, re.MULTILINE))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        body = text[heading.start() : following.start() if following else len(text)]
        yield f"The Jargon File, {heading[0]}", re.sub(r"(?m)^   ", "", body).strip()


def main(kjv: Path, jargon_file: Path, out: Path) -> None:
    """Write corpus.jsonl.gz, tokenizer.json and tokenizer_config.json to `out`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    documents = [*read_bible(kjv.read_text()), *read_jargon(jargon_file.read_text().replace("\xa0", " "))]
    random.Random(20260510).shuffle(documents)
    lines = [{"id": number, "title": title, "text": text} for number, (title, text) in enumerate(documents)]
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    (out / "corpus.jsonl.gz").write_bytes(gzip.compress(data, 9, mtime=0))

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in documents), trainer)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {"eos_token": EOS, "pad_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
