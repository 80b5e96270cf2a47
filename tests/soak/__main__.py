"""The command line of the soak test; see the package."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.soak.scenarios import make_scenarios, soak
from tests.tokenizer import train_tokenizer


def main() -> None:
    """Run the soak test and print its counts."""
    parser = argparse.ArgumentParser(description="Kill runs of exact-prep with SIGKILL and compare their results.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--documents", type=int, default=150, help="per file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(Path(folder) / "tokenizer.json")
        made = make_scenarios(
            Path(folder), tokenizer, files=arguments.files, documents=arguments.documents, workers=arguments.workers
        )
        print(f"seed {arguments.seed}")
        tally = soak(made, arguments.kills, arguments.seed, lambda line: print(line, flush=True))
    print(tally)


main()
