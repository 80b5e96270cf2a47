"""Laws of rows cut over ranks (context parallelism) and of a head cut over the vocabulary: one process's gradients."""

from __future__ import annotations

import pytest
from oracle import framework

import exact_prep

torch = framework("torch")

from ranks import run_ranks  # noqa: E402
from test_torch_parallel import small_model  # noqa: E402
from torch import distributed  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    loss_parallel,
    parallelize_module,
)

from exact_prep.errors import UsageError  # noqa: E402
from exact_prep.integrations.torch import (  # noqa: E402
    Collator,
    denominator,
    linear_weighted_cross_entropy,
    weighted_cross_entropy,
)

HALF = 32
ORDERS = {
    "contiguous": [range(HALF), range(HALF, 64)],
    # As torch's context_parallel balances causal attention: each rank has a part of both ends.
    "balanced": [[*range(16), *range(48, 64)], range(16, 48)],
}


def gradients(model):
    return {
        name: own.grad.full_tensor() if isinstance(own.grad, DTensor) else own.grad
        for name, own in model.named_parameters()
    }


def train_on_slices(rows, rank, order, loss):
    """One rank's part of each row; hidden states come from the whole row, as ring attention would give them."""
    batch, model = Collator(align="prediction")(rows), small_model()
    mine = torch.tensor(list(ORDERS[order][rank]))
    labels, weights = batch["labels"][:, mine], batch["loss_weights"][:, mine]
    total = denominator([weights], align="prediction")
    hidden = model.hidden(batch["input_ids"], batch["position_ids"])[:, mine]
    if loss == "chunks":
        value = linear_weighted_cross_entropy(
            hidden, model.head.weight, labels, weights, denominator=total, align="prediction", chunk=9
        )
    else:
        value = weighted_cross_entropy(model.head(hidden), labels, weights, denominator=total, align="prediction")
    value.backward()
    for own in model.parameters():
        distributed.all_reduce(own.grad, op=distributed.ReduceOp.SUM)
        own.grad /= 2  # averaged over ranks, as DDP and FSDP do
    return gradients(model)


def train_sharded_head(rows, mesh, parallel):
    batch, model = Collator()(rows), small_model()
    parallelize_module(model.head, mesh, ColwiseParallel(output_layouts=Shard(-1), use_local_output=False))
    logits = model(batch["input_ids"], batch["position_ids"])
    assert isinstance(logits, DTensor)
    if parallel:
        with loss_parallel():
            weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"]).backward()
    else:
        weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"]).backward()
    return gradients(model)


def train_on_a_rank(rank, directory, store, out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows, mesh = list(exact_prep.open(directory)[:4]), init_device_mesh("cpu", (2,))
    found = {
        (order, loss): train_on_slices(rows, rank, order, loss) for order in ORDERS for loss in ("chunks", "logits")
    }
    for parallel in (False, True):
        found["sharded head", parallel] = train_sharded_head(rows, mesh, parallel)
    model, batch = small_model(), Collator()(rows)
    head = distribute_tensor(model.head.weight.detach(), mesh, [Shard(0)])
    with pytest.raises(UsageError, match="loss_parallel"):
        linear_weighted_cross_entropy(
            model.hidden(batch["input_ids"], batch["position_ids"]), head, batch["labels"], batch["loss_weights"]
        )
    torch.save(found, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def trained(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("slices")
    run_ranks(train_on_a_rank, directory, out / "store", out)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


CASES = [(order, loss) for order in ORDERS for loss in ("chunks", "logits")]


@pytest.mark.parametrize("case", [*CASES, ("sharded head", False), ("sharded head", True)])
def test_two_ranks_give_the_gradient_of_one(dataset, trained, case):
    alone, batch = small_model(), Collator()(list(dataset[:4]))
    logits = alone(batch["input_ids"], batch["position_ids"])
    weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"]).backward()
    for rank in trained:
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(rank[case][name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_slices_of_rows_that_are_aligned_with_targets_are_refused(dataset):
    batch, model = Collator()(list(dataset[:4])), small_model()
    labels, weights = batch["labels"][:, HALF:], batch["loss_weights"][:, HALF:]
    hidden = model.hidden(batch["input_ids"], batch["position_ids"])[:, HALF:]
    for call in (
        lambda: weighted_cross_entropy(model.head(hidden), labels, weights),
        lambda: linear_weighted_cross_entropy(hidden, model.head.weight, labels, weights),
        lambda: denominator([weights]),
    ):
        with pytest.raises(UsageError, match=r"slices of longer ones.*align='prediction' here"):
            call()
