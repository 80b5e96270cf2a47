"""Laws of the torch loader: the same batches for any number of workers, shared by ranks, resumed to the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracle import framework
from written_dataset import documents, oracle_weights, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import UsageError

torch = framework("torch")

from exact_prep.integrations.torch import Collator, Loader  # noqa: E402

SEQ_LEN = 64


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_a_batch_holds_what_plain_python_derives(two_rows, weights_file, align):
    batch = Collator(align=align, cu_seqlens=True, segment_ids=True)(list(two_rows))
    for i, row in enumerate(two_rows):
        lengths, ids = row.seq_lengths.tolist(), row.input_ids.tolist()
        padding = SEQ_LEN - sum(lengths)
        weights = oracle_weights(lengths, SEQ_LEN, weights_file)
        labels = [token if w else -100 for token, w in zip(ids, weights, strict=True)]
        if align == "prediction":
            weights, labels = [*weights[1:], 0.0], [*labels[1:], -100]
        assert batch["input_ids"][i].tolist() == ids
        assert batch["loss_weights"][i].tolist() == weights
        assert batch["labels"][i].tolist() == labels
        assert batch["position_ids"][i].tolist() == [p for n in lengths for p in range(n)] + [0] * padding
        assert (
            batch["segment_ids"][i].tolist() == [s for s, n in enumerate(lengths, 1) for _ in range(n)] + [0] * padding
        )
    assert batch["loss_weights"].dtype == torch.float32
    assert batch["labels"].dtype == batch["input_ids"].dtype == batch["position_ids"].dtype == torch.int64
    runs = [n for row in two_rows for n in [*row.seq_lengths.tolist(), SEQ_LEN - int(row.seq_lengths.sum())] if n]
    assert batch["cu_seqlens"].tolist() == [0, *itertools.accumulate(runs)]
    assert batch["max_seqlen"] == max(runs)
    assert "attention_mask" not in batch


def test_rows_of_a_hugging_face_dataset_make_the_same_batch(two_rows):
    features = [
        {
            "input_ids": row.input_ids.tolist(),
            "seq_lengths": row.seq_lengths.tolist(),
            "loss_weights": row.loss_weights.tolist(),
        }
        for row in two_rows
    ]
    ours, theirs = Collator()(list(two_rows)), Collator()(features)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_that_cannot_be_batched_are_refused(dataset, tmp_path):
    with pytest.raises(UsageError, match="remove_unused_columns=False"):
        Collator()([{"input_ids": [1, 2]}])
    short = exact_prep.open(weigh_dataset(write_dataset(tmp_path / "short", documents(9, 30), seq_len=16)))
    with pytest.raises(UsageError, match=r"rows of \[16, 64\] tokens"):
        Collator()([dataset[0], short[0]])
    with pytest.raises(UsageError, match="align"):
        Collator(align="left")


def first_tokens(batches):
    return [batch["input_ids"][:, :8].tolist() for batch in batches]


def test_a_map_style_dataset_needs_no_wrapper(dataset):
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, collate_fn=Collator(), num_workers=2)
    want = [[row.input_ids[:8].tolist() for row in dataset[i : i + 5]] for i in range(0, len(dataset), 5)]
    assert first_tokens(loader) == want


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_weights_wherever_they_are(weighed, workers):
    directory, table, file = weighed
    rows = exact_prep.open(directory, weights=table).shuffle(1)
    loaders = [
        Loader(rows, batch_size=5, epochs=1, workers=workers),
        torch.utils.data.DataLoader(rows, batch_size=5, collate_fn=Collator(), num_workers=workers),
    ]
    want = [oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file) for row in rows]
    for loader in loaders:
        assert [weights for batch in loader for weights in batch["loss_weights"].tolist()] == want


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_and_resumption_do_not_depend_on_workers(dataset, workers):
    order = dataset.shuffle(4)
    want = [[row.input_ids[:8].tolist() for row in order[i : i + 4]] for i in range(0, len(order), 4)]
    loader = Loader(dataset, batch_size=4, seed=4, epochs=1, workers=workers)
    got = []
    for number, batch in enumerate(loader):
        got += first_tokens([batch])
        if number == 2:
            state = loader.state_dict()
    assert got == want
    resumed = Loader(dataset, batch_size=4, seed=4, epochs=1, workers=workers)
    resumed.load_state_dict(state)
    assert first_tokens(resumed) == want[3:]
    assert list(resumed) == []


def test_a_loader_goes_on_where_its_last_iteration_stopped(dataset):
    loader = Loader(dataset, batch_size=3, seed=1)
    first = first_tokens(itertools.islice(loader, 2)) + first_tokens(itertools.islice(loader, 30))
    assert first == first_tokens(itertools.islice(Loader(dataset, batch_size=3, seed=1), 32))


def test_ranks_share_every_global_batch(dataset):
    whole = first_tokens(Loader(dataset, batch_size=6, seed=2, epochs=1))
    ranks = [first_tokens(Loader(dataset, batch_size=3, seed=2, epochs=1, rank=r, world_size=2)) for r in range(2)]
    for batch, even, odd in itertools.zip_longest(whole, *ranks, fillvalue=[]):
        assert batch == [row for pair in itertools.zip_longest(even, odd) for row in pair if row]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_pinned_memory_changes_no_batch(dataset):
    pinned = list(Loader(dataset, batch_size=4, epochs=1, workers=1, pin_memory=True))
    assert first_tokens(pinned) == first_tokens(Loader(dataset, batch_size=4, epochs=1))
    if torch.accelerator.is_available():
        assert pinned[0]["loss_weights"].is_pinned()


def test_batches_own_their_memory(two_rows):
    batch = Collator()(list(two_rows))
    batch["input_ids"][:] = 1
    assert not np.array_equal(two_rows[0].input_ids, batch["input_ids"][0].numpy())
