"""Some mutated bytes for every reader; `python -m tests.fuzz` makes as many as one likes."""

import random

import pytest

from tests.fuzz.targets import TARGETS, mutated, mutated_json

INPUTS = {"tokenizer": 6, "manifest": 15, "weights": 15, "shard": 15}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_ends_in_a_result_or_an_error_of_ours(name):
    seeds = TARGETS[name].seeds()
    for number in range(INPUTS.get(name, 60)):
        choose = random.Random(f"{name} suite {number}")
        mutate = mutated_json if name in ("manifest", "weights", "tokenizer") and choose.random() < 0.7 else mutated
        TARGETS[name].feed(mutate(choose.choice(seeds), choose))
