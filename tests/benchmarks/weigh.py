"""Measures the cost of weighing: `weigh` in place, and of the table alone, compared with `cp -r` of the same dataset.

python -m tests.benchmarks.weigh [--dataset DIR] [--tokens MILLIONS] [--rounds N]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep.pipeline.pack import pack
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from tests.benchmarks.measure import Figures, median, run

SEQ_LEN = 4096


def make_dataset(target: Path, millions: int) -> Path:
    """Make a packed dataset of `millions` of tokens; document lengths are log-normal."""
    rng = np.random.default_rng(0)
    source = target / "ids"
    source.mkdir(parents=True)
    for part in range(-(-millions // 32)):
        lengths = rng.lognormal(6.5, 1.4, 40_000).astype(np.int64).clip(1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        stop = np.searchsorted(offsets, 32_000_000) if offsets[-1] > 32_000_000 else lengths.size
        ids = rng.integers(0, 50_000, int(offsets[stop]), dtype=np.int32)
        lists = pa.LargeListArray.from_arrays(pa.array(offsets[: stop + 1]), pa.array(ids))
        pq.write_table(pa.table({"input_ids": lists}), source / f"{part:04d}.parquet", row_group_size=4096)
    options = PackOptions(
        source=SourceOptions(ids_field="input_ids"),
        tokenizer=TokenizerOptions(pad_token="0"),
        packing=PackingOptions(seq_lens=(SEQ_LEN,)),
    )
    pack([str(source)], options, target / "packed")
    return target / "packed"


def main() -> None:
    """Run the benchmark and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a packed dataset; it is copied, not changed")
    parser.add_argument(
        "--tokens", type=int, default=256, metavar="MILLIONS", help="size of a generated dataset; 4 bytes per token"
    )
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exact-prep-benchmark-") as folder:
        root = Path(folder)
        dataset = root / "dataset"
        if asked.dataset:
            shutil.copytree(asked.dataset, dataset)
        else:
            make_dataset(root / "made", asked.tokens).rename(dataset)
        tiny = make_dataset(root / "tiny", 1)
        weigh = [sys.executable, "-m", "exact_prep", "weigh"]
        todo = {
            "cp -r": ["cp", "-r", str(dataset), str(root / "out")],
            "weigh in place, 1 worker": [*weigh, str(dataset), "--workers", "1"],
            "weigh --out, the table alone": [*weigh, str(dataset), "--out", str(root / "table.json"), "--workers", "1"],
            "weigh, 1M tokens (start-up)": [*weigh, str(tiny), "--workers", "1"],
        }
        measured: dict[str, list[Figures]] = {}
        for _ in range(asked.rounds):
            for name, command in todo.items():
                shutil.rmtree(root / "out", ignore_errors=True)
                measured.setdefault(name, []).append(run(command))
        size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
        show(measured, size)


def show(measured: dict[str, list[Figures]], size: int) -> None:
    """Print the table: medians, and CPU-seconds without start-up as a multiple of those of `cp -r`."""
    copy = median(measured["cp -r"])
    start = median(measured["weigh, 1M tokens (start-up)"])
    print(f"a dataset of {size / 1e9:.2f} GB\n")
    print("| | CPU s | wall s | CPU s without start-up | x cp -r |")
    print("|---|---|---|---|---|")
    for name, figures in measured.items():
        m = median(figures)
        net = m.cpu_s - (start.cpu_s if name.startswith("weigh") else 0.0)
        print(f"| {name} | {m.cpu_s:.2f} | {m.wall_s:.2f} | {net:.2f} | {net / copy.cpu_s:.2f} |")


if __name__ == "__main__":
    main()
