"""Laws of the order of batches: shared by ranks, resumed to the batch, made ahead without being changed."""

from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_prep.errors import UsageError
from exact_prep.reader.loader import make_ahead
from exact_prep.reader.order import FILLER, BatchOrder, BatchPolicy

orders = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 40),
        "batch_size": st.integers(1, 5),
        "world_size": st.integers(1, 4),
        "epochs": st.integers(1, 3),
        "seed": st.none() | st.integers(0, 9),
    }
)


def make_order(rows, *, rank=0, world_size=1, **policy):
    return BatchOrder(rows, BatchPolicy(**policy), rank=rank, world_size=world_size)


def dealt(rows, world_size, **options):
    return [list(map(list, make_order(rows, rank=r, world_size=world_size, **options))) for r in range(world_size)]


@given(orders)
def test_every_row_comes_once_per_epoch_over_all_ranks(options):
    ranks = dealt(**options)
    rows = [row for rank in ranks for batch in rank for row in batch if row != FILLER]
    assert sorted(rows) == sorted(list(range(options["rows"])) * options["epochs"])
    full = options["rows"] * options["epochs"] // (options["batch_size"] * options["world_size"])
    assert all(row != FILLER for rank in ranks for batch in rank[:full] for row in batch)
    assert dealt(**options, last="drop") == [rank[:full] for rank in ranks]


@given(orders, st.sampled_from(["fill", "drop"]))
def test_all_ranks_have_as_many_batches_of_one_size(options, last):
    ranks = dealt(**options, last=last)
    assert len({len(rank) for rank in ranks}) == 1
    assert {len(batch) for rank in ranks for batch in rank} <= {options["batch_size"]}
    assert len(make_order(**options, last=last)) == len(ranks[0])
    one_pass = make_order(**{**options, "epochs": None})
    assert (len(one_pass) - 1) * one_pass.global_batch < options["rows"] <= len(one_pass) * one_pass.global_batch


@given(orders, st.data())
def test_a_resumed_order_goes_on_exactly_even_with_other_ranks(options, data):
    endless = {**options, "epochs": None}
    rank = data.draw(st.integers(0, options["world_size"] - 1))
    order = make_order(rank=rank, **endless)
    iterator = iter(order)
    for _ in range(data.draw(st.integers(0, 9))):
        next(iterator)
    resumed = make_order(rank=rank, **endless)
    resumed.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert [next(iterator).tolist() for _ in range(4)] == [resumed.batch(i).tolist() for i in range(4)]
    one = make_order(**{**endless, "world_size": 1, "batch_size": 1})
    one.load_state_dict(resumed.state_dict())
    many = [make_order(rank=r, **endless) for r in range(options["world_size"])]
    for other in many:
        other.load_state_dict(resumed.state_dict())
    together = np.stack([other.batch(0) for other in many], axis=1).ravel().tolist()
    assert together == [one.batch(i)[0] for i in range(len(together))]


def test_an_order_of_another_dataset_or_seed_is_refused():
    state = make_order(10, batch_size=2, seed=1).state_dict()
    for other in (make_order(11, batch_size=2, seed=1), make_order(10, batch_size=2, seed=2)):
        with pytest.raises(UsageError, match="resume with the dataset and the seed"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2, "world_size": 2},
        {"rows": 0},
        {"batch_size": 0},
        {"epochs": 0},
        {"seed": -1},
        {"prefetch": -1},
        {"last": "short"},
    ],
)
def test_orders_that_cannot_be_meant_are_refused(options):
    with pytest.raises(UsageError):
        make_order(**{"rows": 10, "batch_size": 1, **options})


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_batches_made_ahead_come_in_order_and_a_failure_comes_in_its_turn(depth):
    def items():
        yield from range(5)
        raise OSError("the disk went away")

    made = make_ahead(items(), depth)
    assert list(itertools.islice(made, 5)) == list(range(5))
    with pytest.raises(OSError, match="went away"):
        next(made)
    assert list(make_ahead(iter(range(7)), depth)) == list(range(7))


def test_no_more_is_made_ahead_than_asked_for_and_the_thread_ends_with_its_reader():
    made = []

    def items():
        for item in itertools.count():
            made.append(item)
            yield item

    threads = threading.active_count()
    reader = make_ahead(items(), 3)
    assert [next(reader) for _ in range(5)] == list(range(5))
    reader.close()
    assert threading.active_count() == threads
    assert 5 <= len(made) <= 5 + 3
