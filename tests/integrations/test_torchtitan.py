"""Laws of torchtitan: its own Trainer, on 1 and 2 processes, trains rows as their documents alone, and resumes exactly.

torchtitan wants an accelerator. What stands in for it on a CPU: the device's name and memory figures, and dense
attention under the very mask that torchtitan gives to compiled flex attention.
"""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
from oracle import documents_of, framework
from written_dataset import documents, first_thirds, mask_dataset, read_weights_file, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import UsageError

torch = framework("torch")
framework("torchtitan")

from ranks import run_ranks  # noqa: E402
from torch.distributed.tensor import distribute_tensor  # noqa: E402

from exact_prep.integrations.torch import carried  # noqa: E402

SEQ_LEN = 256
VOCAB = 2048
ROWS = 8
"""Of one step: 2 ranks and 2 microbatches of 2 rows, or 1 rank and 4 microbatches."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Rows in which the first third of each document carries no loss."""
    path = write_dataset(tmp_path_factory.mktemp("titan") / "packed", documents(90, 200), seq_len=SEQ_LEN)
    return weigh_dataset(mask_dataset(path, first_thirds), alpha=1.5, gamma=0.7, normalize="mean")


def stand_in_for_an_accelerator():
    """Replace what torchtitan asks of a GPU; nothing of its data, loss, optimizer or checkpoints."""
    import torchtitan.tools.utils as utils

    # Before anything else of torchtitan is imported: it takes copies of these names.
    torch.cpu.set_device, torch.cpu.current_device = lambda *_: None, lambda: 0
    utils.device_type, utils.device_module = "cpu", torch.cpu
    utils.get_local_device = lambda: torch.device("cpu")

    import torch.nn.attention.flex_attention as flex
    import torchtitan.components.metrics as metrics
    import torchtitan.distributed.utils as distributed_utils
    import torchtitan.models.common.attention as attention

    def dense(q, k, v, *, block_mask, scale=None, enable_gqa=False, **_):
        place = torch.arange(q.shape[2])
        seen = torch.stack(
            [block_mask.mask_mod(torch.tensor(b), torch.tensor(0), place[:, None], place) for b in range(len(q))]
        )
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen[:, None], scale=scale, enable_gqa=enable_gqa
        )
        return out, SimpleNamespace(lse=torch.zeros(q.shape[:3]))

    stats = metrics.DeviceMemStats(*[0] * len(metrics.DeviceMemStats._fields))
    monitor = SimpleNamespace(
        device_name="cpu", device_capacity_gib=1.0, get_peak_stats=lambda: stats, reset_peak_stats=lambda: None
    )
    flex._validate_device = lambda *_: None
    distributed_utils.set_pg_timeouts = lambda *_, **__: None  # torch 2.13 has no distributed.set_timeout
    metrics.build_device_memory_monitor = lambda: monitor
    attention.FlexAttention._compiled_flex_attn = staticmethod(dense)
    attention._compiled_create_block_mask = attention.create_block_mask


def make_trainer(directory, out, *, shards=1, tensor_parallel=1, chunks=None, steps=1, checkpoint=False):
    import torchtitan.trainer
    from torch.distributed.fsdp import FSDPModule
    from torchtitan.components.loss import ChunkedLossWrapper
    from torchtitan.config import TrainingConfig
    from torchtitan.models.llama3 import model_registry
    from torchtitan.models.llama3.config_registry import llama3_debugmodel

    from exact_prep.integrations.torchtitan import PackedDataLoader, WeightedCrossEntropyLoss

    config, spec = llama3_debugmodel(), model_registry("debugmodel")
    model = spec.model
    model.vocab_size = model.tok_embeddings.num_embeddings = model.lm_head.out_features = VOCAB
    model.layers = model.layers[:2]
    config.model_spec, config.dump_folder = spec, str(out)
    config.loss = WeightedCrossEntropyLoss.Config()
    if chunks:
        config.loss = ChunkedLossWrapper.Config(num_chunks=chunks, loss_fn=config.loss)
    config.dataloader = PackedDataLoader.Config(dataset_path=str(directory), seed=1)
    config.training = TrainingConfig(
        local_batch_size=2,
        global_batch_size=ROWS,
        seq_len=SEQ_LEN,
        steps=steps,
        max_norm=1e9,
        disable_cuda_graphs=True,
        mixed_precision_param="float32",
    )
    config.parallelism.data_parallel_shard_degree = shards
    config.parallelism.tensor_parallel_degree = tensor_parallel
    config.parallelism.spmd_backend = "partial_dtensor"  # the default needs a newer torch than 2.13
    config.activation_checkpoint = None
    config.validator.enable = False
    config.debug.seed = 7
    config.checkpoint.enable = checkpoint
    config.checkpoint.interval = 2
    # Rows are ids: the tokenizer is never used.
    type(config.tokenizer).build = lambda *_, **__: SimpleNamespace()
    trainer = torchtitan.trainer.Trainer(config)
    for module in trainer.model_parts[0].modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo reduces by no other factor
    return trainer


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def set_parameters(model, values):
    with torch.no_grad():
        for name, own in model.named_parameters():
            own.copy_(distribute_tensor(values[name], own.device_mesh, own.placements))


def start(rank, ranks, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    stand_in_for_an_accelerator()


LAYOUTS = {"alone": {}, "shards": {"shards": 2}, "tensor parallel": {"tensor_parallel": 2}}


def train_one_step(rank, directory, out, layout, port):
    start(rank, 2 if LAYOUTS[layout] else 1, port)
    for chunks in (None, 8):
        trainer = make_trainer(directory, out, chunks=chunks, **LAYOUTS[layout])
        model = trainer.model_parts[0]
        if LAYOUTS[layout]:  # a sharded model draws other numbers
            set_parameters(model, torch.load(out.parent / "alone" / f"0-{chunks}.pt")[0])
        before = {name: whole(own) for name, own in model.named_parameters()}
        trainer.step = 1
        trainer.optimizers.step = lambda *_, **__: None
        trainer.train_step(trainer.batch_generator(trainer.dataloader))
        gradients = {name: whole(own.grad) for name, own in model.named_parameters()}
        torch.save((before, gradients), out / f"{rank}-{chunks}.pt")
        if not LAYOUTS[layout]:
            model.zero_grad(set_to_none=True)
            documents_alone(model, directory, chunks).backward()
            torch.save({name: whole(own.grad) for name, own in model.named_parameters()}, out / f"want-{chunks}.pt")


def documents_alone(model, directory, chunks):
    """The loss of one step by torchtitan's model, a document at a time: nothing packed, no batch."""
    total, targets = 0.0, 0
    weights_file = read_weights_file(directory / "weights.json") | {"masked": True}
    for row in exact_prep.open(directory).shuffle(1)[:ROWS]:
        for ids, weights in documents_of(row, weights_file):
            if len(ids) < 2:
                continue
            tokens, positions = torch.tensor([ids]), torch.arange(len(ids))[None]
            masks = model.get_attention_masks(positions=positions)
            made = model(tokens, positions=positions, attention_masks=masks)
            logits = model.lm_head(made) if chunks else made
            losses = torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:], reduction="none")
            total = total + (losses * torch.tensor(weights[1:])).sum()
            targets += sum(weight > 0 for weight in weights[1:])
    return total / targets


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    for layout, options in LAYOUTS.items():
        (out / layout).mkdir()
        arguments = (packed, out / layout, layout, free_port())
        run_ranks(train_one_step, *arguments, nprocs=2 if options else 1, seconds=300)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunks", [None, 8])
def test_a_step_has_the_gradient_of_its_documents_alone(trained, layout, chunks):
    want = torch.load(trained / "alone" / f"want-{chunks}.pt")
    start_alone, _ = torch.load(trained / "alone" / f"0-{chunks}.pt")
    for rank in range(2 if LAYOUTS[layout] else 1):
        before, gradients = torch.load(trained / layout / f"{rank}-{chunks}.pt")
        assert gradients.keys() == want.keys()
        for name, gradient in want.items():
            assert torch.equal(before[name], start_alone[name]), name
            error = (gradients[name] - gradient).abs().max() / gradient.abs().max()
            assert error < 2e-5, (name, error)


def train_and_resume(rank, directory, out, port):
    start(rank, 1, port)
    for name, steps in (("whole", (4,)), ("resumed", (2, 4))):
        for until in steps:
            trainer = make_trainer(directory, out / name, steps=until, checkpoint=name == "resumed")
            trainer.train()
            parameters = {name: whole(own) for name, own in trainer.model_parts[0].named_parameters()}
            place = trainer.dataloader.state_dict()
            trainer.close()
        torch.save([place, parameters], out / f"{name}.pt")


def test_a_checkpoint_of_torchtitan_resumes_to_the_batch(packed, tmp_path):
    run_ranks(train_and_resume, packed, tmp_path, free_port(), nprocs=1, seconds=300)
    (whole_place, parameters), (resumed_place, resumed) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("whole", "resumed")
    )
    assert whole_place == resumed_place
    assert whole_place["position"] == 4 * ROWS
    for name, parameter in parameters.items():
        assert torch.equal(resumed[name], parameter), name


def make_loader(directory, seq_len=SEQ_LEN, **options):
    from exact_prep.integrations.torchtitan import PackedDataLoader

    config = PackedDataLoader.Config(dataset_path=str(directory), **options)
    return config.build(dp_world_size=1, dp_rank=0, seq_len=seq_len, local_batch_size=2)


def test_rows_of_another_length_are_refused(packed):
    with pytest.raises(UsageError, match=r"rows have 256 tokens: set training\.seq_len"):
        make_loader(packed, seq_len=128)


def test_weights_that_would_scale_every_step_are_refused_and_the_remedy_works(packed, tmp_path):
    path = write_dataset(tmp_path / "packed", documents(40, 200), seq_len=SEQ_LEN)
    weigh_dataset(path, alpha=1.5)
    with pytest.raises(UsageError, match=r"targets weigh [12].*exact-prep weigh .*packed --normalize mean"):
        make_loader(path)
    plain = next(iter(make_loader(path, plain=True)))[1]
    weigh_dataset(path, alpha=1.5, normalize="mean")
    labels = next(iter(make_loader(path)))[1]
    assert torch.equal(carried(labels)[0], carried(plain)[0])
    assert set(carried(plain)[1].unique().tolist()) == {0.0, 1.0}
    assert len(carried(labels)[1].unique()) > 3
