"""Laws of the torch loader: the same batches for any number of workers, shared by ranks, resumed to the batch."""

from __future__ import annotations

import datetime
import itertools
import json
import os

import numpy as np
import pytest
from oracle import framework
from written_dataset import documents, oracle_weights, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import UsageError

torch = framework("torch")

from ranks import run_ranks  # noqa: E402

from exact_prep.integrations.torch import BatchPolicy, Collator, Loader, denominator  # noqa: E402

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


def test_a_flattened_batch_is_one_sequence_with_the_edges_that_flash_attention_reads(two_rows):
    batch, rows = Collator(flatten=True)(list(two_rows)), Collator()(list(two_rows))
    for name, values in rows.items():
        assert torch.equal(batch[name], values.reshape(1, -1))
    edges = [0]
    for row in two_rows:
        padding = SEQ_LEN - int(row.seq_lengths.sum())
        for length in [*row.seq_lengths.tolist(), *([padding] if padding else [])]:
            edges.append(edges[-1] + length)
    longest = max(stop - start for start, stop in itertools.pairwise(edges))
    for side in "qk":
        assert batch[f"cu_seq_lens_{side}"].tolist() == edges
        assert batch[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert (batch[f"max_length_{side}"], type(batch[f"max_length_{side}"])) == (longest, int)
    with pytest.raises(UsageError, match="leave one out"):
        Collator(flatten=True, segment_ids=True)(list(two_rows))


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


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_carry_the_weights_wherever_they_are(weighed, prefetch):
    directory, table, file = weighed
    rows = exact_prep.open(directory, weights=table).shuffle(1)
    loaders = [
        Loader(rows, BatchPolicy(batch_size=5, epochs=1, prefetch=prefetch)),
        torch.utils.data.DataLoader(rows, batch_size=5, collate_fn=Collator(), num_workers=prefetch),
    ]
    want = [oracle_weights(row.seq_lengths.tolist(), SEQ_LEN, file) for row in rows]
    for loader in loaders:
        assert [weights for batch in loader for weights in batch["loss_weights"].tolist()][: len(want)] == want


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_and_resumption_do_not_depend_on_what_is_made_ahead(dataset, prefetch):
    order = dataset.shuffle(4)
    want = [[row.input_ids[:8].tolist() for row in order[i : i + 4]] for i in range(0, len(order), 4)]
    policy = BatchPolicy(batch_size=4, seed=4, epochs=1, prefetch=prefetch)
    loader = Loader(dataset, policy)
    assert len(loader) == len(want)
    got = []
    for number, batch in enumerate(loader):
        got += first_tokens([batch])
        if number == 2:
            state = loader.state_dict()
    assert got[:-1] == want[:-1]
    assert got[-1][: len(want[-1])] == want[-1]
    resumed = Loader(dataset, policy)
    resumed.load_state_dict(state)
    assert first_tokens(resumed) == got[3:]
    assert list(resumed) == []


def test_a_loader_goes_on_where_its_last_iteration_stopped(dataset):
    policy = BatchPolicy(batch_size=3, seed=1)
    loader = Loader(dataset, policy)
    first = first_tokens(itertools.islice(loader, 2)) + first_tokens(itertools.islice(loader, 30))
    assert first == first_tokens(itertools.islice(Loader(dataset, policy), 32))


def test_ranks_share_every_global_batch(dataset):
    whole = first_tokens(Loader(dataset, BatchPolicy(batch_size=6, seed=2, epochs=1)))
    policy = BatchPolicy(batch_size=3, seed=2, epochs=1)
    ranks = [first_tokens(Loader(dataset, policy, rank=rank, world_size=2)) for rank in range(2)]
    for batch, even, odd in zip(whole, *ranks, strict=True):
        assert batch == [row for pair in zip(even, odd, strict=True) for row in pair]


def test_rows_that_complete_the_last_batch_carry_no_loss(dataset):
    rows = dataset[:5]
    loaders = [Loader(rows, BatchPolicy(batch_size=2, epochs=1), rank=rank, world_size=2) for rank in range(2)]
    batches = [batch for pair in zip(*loaders, strict=True) for batch in pair]
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 2, 2]
    weights = torch.cat([batch["loss_weights"] for batch in batches])
    assert weights.sum() == sum(float(row.weights().astype("f8").sum()) for row in rows)
    empty = weights.sum(-1) == 0
    assert int(empty.sum()) == 3
    assert torch.cat([batch["labels"] for batch in batches])[empty].eq(-100).all()
    dropped = list(Loader(rows, BatchPolicy(batch_size=2, epochs=1, last="drop"), rank=1, world_size=2))
    assert len(dropped) == 1


def read_with_a_group(rank, directory, store, out):
    """Read through a loader that was made before the process group, to its end and in step with the other rank."""
    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = "2"
    loader = Loader(exact_prep.open(directory)[:5], BatchPolicy(batch_size=1, epochs=1))
    with pytest.raises(UsageError, match="init_process_group"):
        next(iter(loader))
    timeout = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout
    )
    seen, totals = [], []
    for batch in loader:
        totals.append(denominator([batch["loss_weights"]], averaged=False).item())
        seen.append((batch["input_ids"][0, :8].tolist(), float(batch["loss_weights"].sum())))
    (out / f"{rank}.json").write_text(json.dumps([seen, totals]))


def test_two_ranks_read_all_rows_and_stop_together_though_the_loader_came_before_the_group(
    dataset, directory, tmp_path
):
    run_ranks(read_with_a_group, directory, tmp_path / "store", tmp_path)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(seen) for seen, _ in ranks] == [3, 3]
    assert ranks[0][1] == ranks[1][1]
    read = [ids for pair in zip(ranks[0][0], ranks[1][0], strict=True) for ids, weight in pair if weight]
    assert read == [row.input_ids[:8].tolist() for row in dataset[:5]]


def test_half_a_place_is_refused(dataset):
    with pytest.raises(UsageError, match="both or none"):
        Loader(dataset, BatchPolicy(batch_size=1), rank=1)


def test_pinned_memory_changes_no_batch(dataset):
    policy = BatchPolicy(batch_size=4, epochs=1)
    pinned = list(Loader(dataset, policy, pin_memory=True))
    assert first_tokens(pinned) == first_tokens(Loader(dataset, policy))
    assert pinned[0]["loss_weights"].is_pinned() == torch.accelerator.is_available()


def test_batches_own_their_memory(two_rows):
    batch = Collator()(list(two_rows))
    batch["input_ids"][:] = 1
    assert not np.array_equal(two_rows[0].input_ids, batch["input_ids"][0].numpy())
