"""Feeds a target with mutated seeds, in a process that may die of it: every input's seed is printed before a fault."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time

from tests.fuzz.targets import TARGETS, mutated, mutated_json

JSON = ("manifest", "weights", "tokenizer")


def main() -> int:
    """Feed, and print how many inputs it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=sorted(TARGETS))
    parser.add_argument("--inputs", type=int, default=1000, help="per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input, to see it again")
    arguments = parser.parse_args()
    faulthandler.enable()
    for name in arguments.targets:
        seeds, begun = TARGETS[name].seeds(), time.monotonic()
        for number in range(arguments.inputs) if arguments.only is None else [arguments.only]:
            choose = random.Random(f"{name} {arguments.seed} {number}")
            mutate = mutated_json if name in JSON and choose.random() < 0.7 else mutated
            data = mutate(choose.choice(seeds), choose)
            print(f"\r{name} {number}", end="", file=sys.stderr)
            try:
                TARGETS[name].feed(data)
            except BaseException:
                print(f"\n{name}: input {number} of seed {arguments.seed}: {data[:300]!r}", file=sys.stderr)
                raise
        print(f"{name}: {arguments.inputs} inputs, {time.monotonic() - begun:.1f} s", flush=True)
    return 0


sys.exit(main())
