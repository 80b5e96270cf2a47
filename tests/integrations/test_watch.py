"""Laws of watching: each bucket is what plain Python counts, over microbatches, ranks and alignments."""

from __future__ import annotations

import json
import math

import pytest
from oracle import documents_of, framework
from written_dataset import documents, read_weights_file, weigh_dataset, write_dataset

import exact_prep

torch = framework("torch")

from ranks import run_ranks  # noqa: E402
from torch_models import Bigram  # noqa: E402

from exact_prep.integrations.torch import (  # noqa: E402
    Collator,
    ContextWatch,
    linear_weighted_cross_entropy,
    weighted_cross_entropy,
)


def counted_by_hand(rows, weights_file, tail_start, window=None):
    """Mean loss by bucket and the tail's share, document by document."""
    table = Bigram().table.tolist()
    norms = [math.log(sum(math.exp(logit) for logit in row)) for row in table]
    losses, weight, tail = {}, 0.0, 0.0
    for row in rows:
        for ids, weights in documents_of(row, weights_file):
            for t in range(1, len(ids)):
                context = t if window is None else min(t, window)
                start = 0 if context < 8 else 2 ** int(math.log2(context))
                name = f"loss/context {start}-{max(2 * start, 8) - 1}"
                losses.setdefault(name, []).append(norms[ids[t - 1]] - table[ids[t - 1]][ids[t]])
                weight += weights[t]
                tail += weights[t] if start >= tail_start else 0
    return {name: sum(own) / len(own) for name, own in losses.items()} | {"tail share": tail / weight}


def observe_rows(watch, rows, align, loss):
    batch, model = Collator(align=align)(list(rows)), Bigram()
    labels, weights, observe = batch["labels"], batch["loss_weights"], watch.on(batch, align=align)
    if loss == "logits":
        logits = model(batch["input_ids"])
        weighted_cross_entropy(logits, labels, weights, align=align, observe=observe).backward()
    else:
        # A row of the table is the head applied to the one-hot token before.
        hidden = torch.nn.functional.one_hot(batch["input_ids"], len(model.table)).float()
        head = model.table.T
        linear_weighted_cross_entropy(hidden, head, labels, weights, align=align, chunk=7, observe=observe).backward()


@pytest.mark.parametrize("loss", ["logits", "chunks"])
@pytest.mark.parametrize("align", ["target", "prediction"])
def test_buckets_and_the_tail_are_those_counted_by_hand(dataset, weights_file, align, loss):
    watch = ContextWatch(dataset)
    for start in (0, 3):
        observe_rows(watch, dataset[start : start + 3], align, loss)
    want = counted_by_hand(dataset[:6], weights_file, watch.tail_start)
    assert watch.read() == pytest.approx(want, rel=1e-5)
    assert len(want) > 3
    assert 0 < want["tail share"] < 1
    assert watch.read() == {}


def test_contexts_end_at_the_window(tmp_path):
    path = write_dataset(tmp_path / "packed", documents(20, 200), seq_len=64)
    weigh_dataset(path, window=20, tail_from=8)
    dataset = exact_prep.open(path)
    watch = ContextWatch(dataset)
    observe_rows(watch, dataset[:6], "target", "logits")
    want = counted_by_hand(dataset[:6], read_weights_file(path / "weights.json"), watch.tail_start, window=20)
    got = watch.read()
    assert got.keys() == want.keys()
    assert {name: got[name] for name in got if name != "tail share"} == pytest.approx(
        {name: want[name] for name in want if name != "tail share"}, rel=1e-5
    )


def watch_on_a_rank(rank, directory, store, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dataset = exact_prep.open(directory)
    watch = ContextWatch(dataset)
    observe_rows(watch, dataset[3 * rank : 3 * rank + 3], "target", "logits")
    (out / f"{rank}.json").write_text(json.dumps(watch.read()))


def test_ranks_read_the_same_means_over_all_rows(dataset, directory, weights_file, tmp_path):
    run_ranks(watch_on_a_rank, directory, tmp_path / "store", tmp_path)
    want = counted_by_hand(dataset[:6], weights_file, ContextWatch(dataset).tail_start)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(want, rel=1e-5)
