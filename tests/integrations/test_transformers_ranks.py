"""Laws of the Trainer on two processes, with DDP or FSDP2 as accelerate lays it out: as one process does."""

from __future__ import annotations

import json
import os

import pytest
from oracle import framework

import exact_prep

torch = framework("torch")
transformers = framework("transformers")

from ranks import run_ranks  # noqa: E402
from test_transformers import (  # noqa: E402
    WeightedTrainer,
    arguments,
    oracle_evaluation,
    oracle_gradients,
    port_for,
    tiny_model,
)

from exact_prep.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*FSDP.*", "ignore::FutureWarning")


def join(rank, path):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    os.environ.update(MASTER_PORT=(path / "port").read_text())
    torch.set_num_threads(1)


def shard_on_cpu(trainer, asked):
    """Set what accelerate sets on accelerators only, so that it shards this model by its own code."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**asked.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True


LAYOUTS = {
    "resharded": {"reshard_after_forward": True},
    "kept": {"reshard_after_forward": False},
}
CASES = [(layout, chunk, tied) for layout in LAYOUTS for chunk in (None, 10) for tied in (False, True)]


def train_sharded_on_a_rank(rank, directory, path):
    join(rank, path)
    rows, found = exact_prep.open(directory)[:4], {}
    for layout, chunk, tied in CASES:
        model = tiny_model("Qwen2", tie_word_embeddings=tied)
        before = {name: own.detach().clone() for name, own in model.named_parameters()}
        layers = {"transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"], "version": 2, **LAYOUTS[layout]}
        asked = arguments(path, per_device_train_batch_size=2, fsdp=True, fsdp_config=layers)
        trainer = WeightedTrainer(model, asked, train_dataset=rows)
        trainer.head_chunk = chunk
        shard_on_cpu(trainer, asked)
        trainer.train()
        moved = {name: before[name] - own.detach().full_tensor() for name, own in model.named_parameters()}
        state = trainer.accelerator.state
        state.distributed_type, state.fsdp_plugin = "MULTI_CPU", None
        found[layout, chunk, tied] = (type(model.lm_head).__name__, moved)
    torch.save(found, path / f"sharded-{rank}.pt")


@pytest.fixture(scope="module")
def sharded(directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    port_for(path)
    run_ranks(train_sharded_on_a_rank, directory, path)
    return [torch.load(path / f"sharded-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("layout", "chunk", "tied"), CASES)
def test_a_sharded_model_trains_as_one_process_does(dataset, weights_file, sharded, layout, chunk, tied):
    want, _ = oracle_gradients(tiny_model("Qwen2", tie_word_embeddings=tied), dataset[:4], weights_file)
    for rank in sharded:
        head, moved = rank[layout, chunk, tied]
        assert head == "FSDPLinear"
        for name, gradient in want.items():
            torch.testing.assert_close(moved[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def evaluate_on_a_rank(rank, directory, path):
    join(rank, path)
    found = {}
    for count, size in ((3, 1), (4, 1), (5, 2), (1, 2)):
        rows = exact_prep.open(directory)[:count]
        asked = arguments(path, per_device_eval_batch_size=size, ddp_backend="gloo")
        found[f"{count}"] = WeightedTrainer(tiny_model(), asked, eval_dataset=rows).evaluate()["eval_loss"]

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(exact_prep.open(directory)[:3])

    asked = arguments(path, per_device_eval_batch_size=1, ddp_backend="gloo")
    try:
        found["stream"] = WeightedTrainer(tiny_model(), asked, eval_dataset=Stream()).evaluate()["eval_loss"]
    except UsageError as error:
        found["stream"] = str(error)
    (path / f"evaluated-{rank}.json").write_text(json.dumps(found))


def test_two_ranks_evaluate_each_row_once(dataset, directory, weights_file, tmp_path):
    port_for(tmp_path)
    run_ranks(evaluate_on_a_rank, directory, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"evaluated-{rank}.json").read_text())
        stream = found.pop("stream")
        for count, loss in found.items():
            want = oracle_evaluation(dataset[: int(count)], weights_file)["weights"]
            assert loss == pytest.approx(want, rel=1e-5), count
        assert stream == pytest.approx(oracle_evaluation(dataset[:3], weights_file)["weights"], rel=1e-5)
