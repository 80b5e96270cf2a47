"""How fast text becomes packed rows on disk: the bare loop, exact-prep, and what else there is, on the same files.

    python -m tests.benchmarks.pack --tokenizer TOKENIZER_JSON [--corpus PATH] [--size MB] [--python trl=PYTHON ...]

Rounds are interleaved, figures are medians. A peer runs with the interpreter that `--python NAME=PATH` names, by
default this one; one that is not installed is listed as such.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import corpus as corpora
from tests.benchmarks.measure import Figures, median, run

if TYPE_CHECKING:
    from tests.benchmarks.corpus import Corpus

HERE = Path(__file__).parent
WORKERS, SEQ_LEN = 2, 4096


@dataclass(frozen=True)
class Peer:
    """Another tool."""

    script: str
    module: str
    """What must be importable."""
    package: str
    """What pip installs."""


PEERS = {
    "datatrove": Peer("datatrove_tokens.py", "datatrove", "datatrove[io,processing]"),
    "dolma": Peer("dolma_tokens.py", "dolma", "dolma"),
    "datasets": Peer("hf_datasets.py", "datasets", "datasets"),
    "trl": Peer("trl_bfd.py", "trl", "trl"),
    "litdata": Peer("litdata_tokens.py", "litdata", "litdata"),
}
OURS = {
    "exact-prep, parquet, 1 worker": ("parquet", 1, "concat"),
    "exact-prep, jsonl, 1 worker": ("jsonl", 1, "concat"),
    "exact-prep, jsonl, 1 worker, best-fit": ("jsonl", 1, "best-fit"),
    "exact-prep, jsonl, 2 workers": ("jsonl", 2, "concat"),
}


def commands(corpus: Corpus, tokenizer: Path, pythons: dict[str, str], out: Path) -> dict[str, list[str]]:
    """What is run, by name; peers that are not installed are left out."""
    made = {}
    for kind in ("parquet", "jsonl"):
        source = getattr(corpus, kind)
        made[f"bare loop, {kind}, 1 worker"] = [
            *(
                sys.executable,
                str(HERE / "peers" / "floor.py"),
                str(source),
                str(tokenizer),
                str(out),
                "1",
                str(SEQ_LEN),
            )
        ]
    for name, (kind, workers, packing) in OURS.items():
        made[name] = [
            *(sys.executable, "-m", "exact_prep", "pack", str(getattr(corpus, kind)), "--tokenizer", str(tokenizer)),
            *("--seq-len", str(SEQ_LEN), "--packing", packing, "--workers", str(workers), "--out", str(out)),
        ]
    for name, peer in PEERS.items():
        python = pythons.get(name, sys.executable)
        probe = subprocess.run([python, "-c", f"import {peer.module}"], capture_output=True, check=False)
        if probe.returncode:
            print(f"{name} is not installed for {Path(python).name}: pip install '{peer.package}'", file=sys.stderr)
            continue
        made[f"{name}, {WORKERS} workers"] = [
            *(python, str(HERE / "peers" / peer.script), str(corpus.jsonl), str(tokenizer), str(out)),
            *(str(WORKERS), str(SEQ_LEN)),
        ]
    return made


def main() -> None:
    """Run the benchmark and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--corpus", type=Path, help="JSON lines with a field text, or a folder of text files")
    parser.add_argument("--size", type=int, default=50, help="megabytes of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names that contain one of these")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    asked = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in asked.python)
    with tempfile.TemporaryDirectory(prefix="exact-prep-benchmark-") as folder:
        root = Path(folder)
        corpus = corpora.build(asked.corpus, root / "corpus", asked.size)
        tiny = corpora.Corpus(root / "tiny", root / "tiny", 0, 1)
        tiny.jsonl.mkdir()
        (tiny.jsonl / "0.jsonl").write_text('{"id": "0", "text": "one document"}\n')
        out = root / "out"
        todo = commands(corpus, asked.tokenizer, pythons, out)
        if asked.only:
            todo = {name: command for name, command in todo.items() if any(word in name for word in asked.only)}
        start_up = commands(tiny, asked.tokenizer, {}, out)["exact-prep, jsonl, 1 worker"]
        measured: dict[str, list[Figures]] = {}
        for _ in range(asked.rounds):
            for name, command in {**todo, "exact-prep, one document": start_up}.items():
                shutil.rmtree(out, ignore_errors=True)
                try:
                    figures = run(command)
                    if (out / "manifest.json").is_file():
                        ledger = json.loads((out / "manifest.json").read_bytes())["ledger"]
                        figures = replace(figures, tokens=ledger["text_tokens"] + ledger["eos_tokens"])
                    measured.setdefault(name, []).append(figures)
                except subprocess.CalledProcessError as error:
                    print(f"{name} failed:\n{error.output[-2000:]}", file=sys.stderr)
                    todo.pop(name, None)
        show(measured, corpus)


def show(measured: dict[str, list[Figures]], corpus: Corpus) -> None:
    """The table: medians, megabytes of text per CPU-second, CPU-seconds as a multiple of exact-prep's."""
    megabytes = corpus.text_bytes / 1e6
    ours = median(measured["exact-prep, jsonl, 2 workers"]) if "exact-prep, jsonl, 2 workers" in measured else None
    print(f"{megabytes:,.0f} MB of text in {corpus.documents:,} documents, rows of {SEQ_LEN} tokens\n")
    print("| | CPU s | wall s | peak MB | MB / CPU s | x exact-prep's CPU | tokens out |")
    print("|---|---|---|---|---|---|---|")
    for name, figures in measured.items():
        m = median(figures)
        ratio = f"{m.cpu_s / ours.cpu_s:.1f}" if ours else ""
        rate = f"{megabytes / m.cpu_s:.1f}" if name != "exact-prep, one document" else ""
        tokens = f"{m.tokens:,}" if m.tokens else ""
        print(f"| {name} | {m.cpu_s:.1f} | {m.wall_s:.1f} | {m.peak_bytes / 1e6:,.0f} | {rate} | {ratio} | {tokens} |")


if __name__ == "__main__":
    main()
