"""Laws of weighted training on two processes: gradients are those of one process on all rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from oracle import framework

import exact_prep

torch = framework("torch")

from ranks import run_ranks  # noqa: E402
from torch import distributed, nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from written_dataset import VOCAB  # noqa: E402

from exact_prep.integrations.torch import Collator, denominator, weighted_cross_entropy  # noqa: E402
from exact_prep.integrations.torch.head import loss_at_head  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from tiny_model import TinyDecoder  # noqa: E402
from torch_loop import WithLoss  # noqa: E402

SEQ_LEN = 64


class WithLogitsLoss(WithLoss):
    def forward(self, batch, total):
        logits = self.model(batch["input_ids"], batch["position_ids"])
        return weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"], denominator=total)


LOSSES = {"chunks": WithLoss, "logits": WithLogitsLoss}


def small_model():
    torch.manual_seed(0)
    return TinyDecoder(VOCAB, SEQ_LEN, width=16)


def wrap(kind, loss, mesh):
    train = LOSSES[loss](small_model())
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(train)
    for layer in train.model.mixing:
        fully_shard(layer, mesh=mesh)
    return fully_shard(train, mesh=mesh, reshard_after_forward=kind == "fsdp, resharded")


CASES = [(kind, loss) for kind in ("ddp", "fsdp", "fsdp, resharded") for loss in LOSSES]


def train_on_a_rank(rank, directory, store, out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    batch = Collator()(list(exact_prep.open(directory)[2 * rank : 2 * rank + 2]))
    total = denominator([batch["loss_weights"]])
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for kind, loss in CASES:
        train = wrap(kind, loss, mesh)
        train(batch, total).backward()
        gradients = {name.removeprefix("module."): own.grad for name, own in train.named_parameters()}
        found[kind, loss] = {
            name: own.full_tensor() if hasattr(own, "full_tensor") else own for name, own in gradients.items()
        }
    for kind in ("fsdp", "fsdp, resharded"):
        model = fully_shard(small_model(), mesh=mesh, reshard_after_forward=kind == "fsdp, resharded")
        labels, weights = batch["labels"], batch["loss_weights"]
        with loss_at_head(model.head, labels, weights, denominator=total, chunk=10) as made:
            logits = model(batch["input_ids"], batch["position_ids"])
        made.checked_loss(logits).backward()
        found[kind, "head"] = {f"model.{name}": own.grad.full_tensor() for name, own in model.named_parameters()}
    torch.save(found, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def trained(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    run_ranks(train_on_a_rank, directory, out / "store", out)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("kind", "loss"), [*CASES, ("fsdp", "head"), ("fsdp, resharded", "head")])
def test_the_loss_inside_forward_gives_the_gradient_of_all_rows(dataset, trained, kind, loss):
    alone = WithLogitsLoss(small_model())
    alone(Collator()(list(dataset[:4])), None).backward()
    for rank in trained:
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(rank[kind, loss][name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
