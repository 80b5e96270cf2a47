"""A few mutated inputs for every reader; `python -m tests.fuzz` runs as many as you like."""

import random

import pytest

from tests.fuzz.targets import JSON, TARGETS, mutate_bytes, mutate_json

INPUTS = {"tokenizer": 6, "manifest": 15, "weights": 15, "shard": 15}
TABLES = 12


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_ends_in_a_result_or_an_error_of_ours(name):
    seeds = TARGETS[name].seeds()
    for number in range(INPUTS.get(name, TABLES if name.startswith("table") else 60)):
        choose = random.Random(f"{name} suite {number}")
        mutate = mutate_json if name in JSON and choose.random() < 0.7 else mutate_bytes
        TARGETS[name].feed(mutate(choose.choice(seeds), choose))
