"""Measures how fast text becomes packed rows on disk: a bare loop, exact-prep, and other tools, on the same files.

    python -m tests.benchmarks.pack --tokenizer TOKENIZER_JSON [--corpus PATH] [--size MB] [--python trl=PYTHON ...]

Rounds are interleaved; results are medians. Another tool (a peer) runs with the interpreter given by
`--python NAME=PATH`, by default with this one. Peers that are not installed are reported and skipped.
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
    """Another tool to compare with."""

    script: str
    module: str
    """The module that must be importable."""
    package: str
    """The package to install with pip."""


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
START_UP = "start-up"
"""The cost of a tool for two files of SAMPLE_CHARS: imports, kernels, loading the tokenizer, and the parity check."""

SAMPLE_CHARS = 600_000
"""Two files of this size are more than the parity check reads."""


def format_workers(workers: int) -> str:
    """`1 worker`, `2 workers`."""
    return f"{workers} worker{'s' if workers > 1 else ''}"


def commands(corpus: Corpus, tokenizer: Path, pythons: dict[str, str], out: Path) -> dict[str, list[str]]:
    """The commands to run, by name; peers that are not installed are skipped."""
    made = {}
    for kind, workers in (("parquet", 1), ("jsonl", 1), ("jsonl", 2)):
        made[f"bare loop, {kind}, {format_workers(workers)}"] = bare_loop(
            getattr(corpus, kind), tokenizer, workers, out
        )
    for name, (kind, workers, packing) in OURS.items():
        made[name] = pack_command(getattr(corpus, kind), tokenizer, workers, packing, out)
    for name, peer in PEERS.items():
        python = pythons.get(name, sys.executable)
        probe = subprocess.run([python, "-c", f"import {peer.module}"], capture_output=True, check=False)
        if probe.returncode:
            print(f"{name} is not installed for {Path(python).name}: pip install '{peer.package}'", file=sys.stderr)
            continue
        made[f"{name}, jsonl, {WORKERS} workers"] = [
            *(python, str(HERE / "peers" / peer.script), str(corpus.jsonl), str(tokenizer), str(out)),
            *(str(WORKERS), str(SEQ_LEN)),
        ]
    return made


def bare_loop(source: Path, tokenizer: Path, workers: int, out: Path) -> list[str]:
    """The command for the bare loop."""
    return [
        *(sys.executable, str(HERE / "peers" / "bare_loop.py"), str(source), str(tokenizer), str(out)),
        *(str(workers), str(SEQ_LEN)),
    ]


def pack_command(source: Path, tokenizer: Path, workers: int, packing: str, out: Path) -> list[str]:
    """The command for `exact-prep pack`."""
    return [
        *(sys.executable, "-m", "exact_prep", "pack", str(source), "--tokenizer", str(tokenizer), "--out", str(out)),
        *("--seq-len", str(SEQ_LEN), "--packing", packing, "--workers", str(workers)),
    ]


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
        tiny = root / "tiny"
        tiny.mkdir()
        for number, path in enumerate(sorted(corpus.jsonl.iterdir())[:2]):
            with path.open(encoding="utf-8") as lines:
                (tiny / f"{number}.jsonl").write_text("".join(lines.readlines(SAMPLE_CHARS)), encoding="utf-8")
        out = root / "out"
        todo = commands(corpus, asked.tokenizer, pythons, out)
        if asked.only:
            todo = {name: command for name, command in todo.items() if any(word in name for word in asked.only)}
        start_up = {}
        for workers in (1, 2):
            start_up[f"bare loop, {START_UP}, {format_workers(workers)}"] = bare_loop(
                tiny, asked.tokenizer, workers, out
            )
            packing = pack_command(tiny, asked.tokenizer, workers, "concat", out)
            start_up[f"exact-prep, {START_UP}, {format_workers(workers)}"] = [
                *packing,
                "--task-size",
                str(SAMPLE_CHARS),
            ]
        measured: dict[str, list[Figures]] = {}
        for _ in range(asked.rounds):
            for name, command in {**todo, **start_up}.items():
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
    """Print the table: medians, megabytes of text per CPU-second, and CPU-seconds as a multiple of exact-prep's.

    "x without its start-up" subtracts the start-up of exact-prep; "MB / CPU s" subtracts that of exact-prep and of the
    bare loop. A peer's start-up is always included.
    """
    megabytes = corpus.text_bytes / 1e6
    medians = {name: median(figures) for name, figures in measured.items()}
    net = {name: m.cpu_s - find_start_up(name, medians) for name, m in medians.items()}
    unit = "exact-prep, jsonl, 2 workers"
    print(f"{megabytes:,.0f} MB of text in {corpus.documents:,} documents, rows of {SEQ_LEN} tokens\n")
    print("| | CPU s | wall s | peak MB | MB / CPU s | x exact-prep | x without its start-up | tokens out |")
    print("|---|---|---|---|---|---|---|---|")
    # If most of a run is start-up, the rest is too small to be measured.
    net = {name: own for name, own in net.items() if START_UP not in name and own > medians[name].cpu_s / 4}
    for name, m in medians.items():
        rate = f"{megabytes / net[name]:.1f}" if name in net else ""
        ratio = f"{m.cpu_s / medians[unit].cpu_s:.1f}" if unit in medians else ""
        without = f"{net[name] / net[unit]:.1f}" if name in net and unit in net else ""
        tokens = f"{m.tokens:,}" if m.tokens else ""
        print(
            f"| {name} | {m.cpu_s:.1f} | {m.wall_s:.1f} | {m.peak_bytes / 1e6:,.0f} | {rate} | {ratio} | {without} "
            f"| {tokens} |"
        )


def find_start_up(name: str, medians: dict[str, Figures]) -> float:
    """CPU-seconds of start-up of exact-prep or the bare loop with the same number of workers; 0 for a peer."""
    tool, workers = name.split(", ")[0], name.split(", ")[2]
    small = f"{tool}, {START_UP}, {workers}"
    return medians[small].cpu_s if small in medians and name != small else 0.0


if __name__ == "__main__":
    main()
