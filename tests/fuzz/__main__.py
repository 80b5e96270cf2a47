"""Feeds mutated seeds to the targets. The process may crash, so it prints the number of each input before using it."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time

from tests.fuzz.targets import JSON, TARGETS, mutate_bytes, mutate_json


def main() -> int:
    """Feed the inputs, and print their number and the time for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=sorted(TARGETS))
    parser.add_argument("--inputs", type=int, default=1000, help="per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input, to run it again")
    arguments = parser.parse_args()
    faulthandler.enable()
    for name in arguments.targets:
        seeds, begun = TARGETS[name].seeds(), time.monotonic()
        for number in range(arguments.inputs) if arguments.only is None else [arguments.only]:
            choose = random.Random(f"{name} {arguments.seed} {number}")
            mutate = mutate_json if name in JSON and choose.random() < 0.7 else mutate_bytes
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
