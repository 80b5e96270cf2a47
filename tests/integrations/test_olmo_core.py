"""Laws of OLMo-core: its own train module trains packed rows with their weights, in microbatches, and resumes exactly.

Its attention for CPUs takes no documents. So gradients are compared without document masking, and masking is proven by
standing dense attention, under the mask that `cu_doc_lens` means, in for FlashAttention.
"""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
from oracle import documents_of, framework
from written_dataset import documents, first_thirds, mask_dataset, read_weights_file, weigh_dataset, write_dataset

from exact_prep.errors import UsageError

torch = framework("torch")
framework("olmo_core.train.train_module")

import olmo_core.nn.lm_head as lm_head  # noqa: E402
from olmo_core.nn.attention import AttentionBackendName  # noqa: E402
from olmo_core.nn.attention import backend as backends  # noqa: E402
from olmo_core.nn.transformer import TransformerConfig  # noqa: E402
from olmo_core.optim import AdamWConfig  # noqa: E402
from olmo_core.train.train_module import TransformerTrainModule  # noqa: E402

from exact_prep.integrations import olmo_core as adapter  # noqa: E402
from exact_prep.reader.order import BatchOrder  # noqa: E402

SEQ_LEN, VOCAB, ROWS = 256, 2048, 4


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Rows in which the first third of each document carries no loss."""
    path = write_dataset(tmp_path_factory.mktemp("olmo") / "packed", documents(90, 200), seq_len=SEQ_LEN)
    return weigh_dataset(mask_dataset(path, first_thirds), alpha=1.5, gamma=0.7, normalize="mean")


@pytest.fixture(autouse=True)
def own_loss():
    """OLMo-core's loss, again after the test."""
    before = lm_head.cross_entropy_loss, lm_head.fused_linear_cross_entropy_loss
    yield
    lm_head.cross_entropy_loss, lm_head.fused_linear_cross_entropy_loss = before


def make_module(microbatch=2, **options):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TransformerConfig.olmo2_30M(vocab_size=VOCAB, n_layers=2, attn_backend=AttentionBackendName.torch)
    module = TransformerTrainModule(
        config.build(init_device="cpu"),
        AdamWConfig(),
        rank_microbatch_size=microbatch * SEQ_LEN,
        max_sequence_length=SEQ_LEN,
        device=torch.device("cpu"),
        **options,
    )
    # What the trainer is to a module: where it reports.
    module._trainer = MagicMock()
    module.record_metric = module.record_ce_loss = lambda *_, **__: None
    return module


def gradients(model):
    return {name: own.grad.clone() for name, own in model.named_parameters()}


def largest_error(found, expected):
    return max(float((found[name] - own).abs().max() / own.abs().max()) for name, own in expected.items())


def open_loader(path, tmp_path, **options):
    options = {"global_batch_size": ROWS * SEQ_LEN, "dp_world_size": 1, "dp_rank": 0, **options}
    return adapter.PackedDataLoader(str(path), work_dir=str(tmp_path), **options)


def expected_gradients(model, rows):
    """The weighted loss in plain torch: each row, each target, its weight."""
    model.zero_grad()
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor(row.input_ids.tolist())
        logits = model(ids[None])[0].float()
        weights = row.weights()
        for t in range(SEQ_LEN - 1):
            if weights[t + 1]:
                loss = torch.nn.functional.cross_entropy(logits[t], ids[t + 1])
                total = total + float(weights[t + 1]) * loss
                count += 1
    (total / count).backward()
    return gradients(model)


def without_documents(batch):
    return {name: own for name, own in batch.items() if name in ("input_ids", "labels")}


@pytest.mark.parametrize("microbatch", [4, 2, 1])
def test_train_batch_trains_with_the_weights(packed, tmp_path, microbatch):
    adapter.use_weights()
    module, loader = make_module(microbatch), open_loader(packed, tmp_path, seed=3)
    batch = next(iter(loader))
    rows = first_rows(loader)
    module.train_batch(without_documents(batch))
    found = gradients(module.model)
    assert largest_error(found, expected_gradients(module.model, rows)) < 2e-5
    # The same rows with every weight 1 train something else: the test can see weights.
    other = open_loader(packed, tmp_path, seed=3, plain=True)
    module.model.zero_grad()
    module.train_batch(without_documents(next(iter(other))))
    assert largest_error(gradients(module.model), found) > 1e-2


def first_rows(loader, batches=1):
    """The rows of the first batches."""
    order = BatchOrder(loader.loader.order.rows, loader.loader.policy)
    return [loader.loader.dataset[number] for _, batch in zip(range(batches), order, strict=False) for number in batch]


def test_plain_weights_are_olmo_cores_own_loss(packed, tmp_path):
    module, loader = make_module(), open_loader(packed, tmp_path, plain=True)
    batch = without_documents(next(iter(loader)))
    plain = batch | {"labels": torch.where(batch["labels"] == -100, -100, batch["labels"] & 0xFFFFFFFF)}
    module.train_batch(dict(plain))
    own = gradients(module.model)
    module.model.zero_grad()
    adapter.use_weights()
    module.train_batch(dict(batch))
    assert largest_error(gradients(module.model), own) < 1e-6


def test_documents_are_those_of_the_rows(packed, tmp_path):
    loader = open_loader(packed, tmp_path)
    rows = first_rows(loader, 3)
    for number, batch in zip(range(3), loader, strict=False):
        for place in range(ROWS):
            row = rows[number * ROWS + place]
            lengths = [length for length in batch["doc_lens"][place].tolist() if length]
            assert lengths[: len(row.seq_lengths)] == row.seq_lengths.tolist()
            assert sum(lengths) == SEQ_LEN
            assert batch["max_doc_lens"][place] == max(lengths)


def test_documents_do_not_see_each_other(packed, tmp_path, monkeypatch):
    """Gradients of packed rows are those of their documents alone, under dense attention by `cu_doc_lens`."""
    monkeypatch.setattr(backends.TorchAttentionBackend, "forward", dense_by_documents)
    adapter.use_weights()
    module = make_module()
    loader = open_loader(packed, tmp_path)
    batch = next(iter(loader))
    rows = first_rows(loader)
    module.train_batch(batch)
    found = gradients(module.model)
    module.model.zero_grad()
    total, count = 0.0, 0
    file = read_weights_file(packed / "weights.json") | {"masked": True}
    for row in rows:
        for ids, weights in documents_of(row, file):
            logits = module.model(torch.tensor([ids]))[0].float()
            for t in range(len(ids) - 1):
                if weights[t + 1]:
                    loss = torch.nn.functional.cross_entropy(logits[t], torch.tensor(ids[t + 1]))
                    total, count = total + float(weights[t + 1]) * loss, count + 1
    (total / count).backward()
    assert largest_error(found, gradients(module.model)) < 5e-5


def dense_by_documents(self, qkv, *, cu_doc_lens=None, **_):
    """Attention [B, T, H, D] that stops at document edges."""
    q, k, v = (part.transpose(1, 2) for part in qkv)
    rows, length = q.shape[0], q.shape[2]
    place = torch.arange(rows * length)
    edges = torch.tensor([0, *range(length, rows * length + 1, length)]) if cu_doc_lens is None else cu_doc_lens
    document = torch.searchsorted(edges, place, right=True).view(rows, length)
    seen = (document[:, :, None] == document[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    groups = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(groups, 1) for part in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
    return out.transpose(1, 2)


def test_a_run_resumes_at_the_batch(packed, tmp_path):
    whole = open_loader(packed, tmp_path, seed=1)
    whole.reshuffle(1)
    batches = list(whole)
    assert len(batches) == whole.total_batches == len(whole)
    first = open_loader(packed, tmp_path, seed=1)
    first.reshuffle(1)
    for _, _ in zip(range(3), first, strict=False):
        pass
    resumed = open_loader(packed, tmp_path, seed=1)
    resumed.load_state_dict(first.state_dict())
    resumed.reshuffle(1)
    rest = list(resumed)
    assert len(rest) == len(batches) - 3
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(rest, batches[3:], strict=True))
    # The next epoch goes on, in another order.
    resumed.reset()
    resumed.reshuffle(2)
    assert not torch.equal(next(iter(resumed))["input_ids"], batches[0]["input_ids"])


def test_ranks_share_the_rows(packed, tmp_path):
    together = next(iter(open_loader(packed, tmp_path)))["input_ids"]
    ranks = [next(iter(open_loader(packed, tmp_path, dp_world_size=2, dp_rank=rank)))["input_ids"] for rank in (0, 1)]
    assert torch.equal(torch.stack(ranks, 1).reshape(ROWS, SEQ_LEN), together)


def test_what_would_train_something_else_is_refused(packed, tmp_path):
    with pytest.raises(UsageError, match=r"is not of whole rows of 256 on each of 2 ranks"):
        open_loader(packed, tmp_path, global_batch_size=3 * SEQ_LEN, dp_world_size=2)
    adapter.use_weights()
    with pytest.raises(UsageError, match=r"fused_linear knows no weights"):
        lm_head.fused_linear_cross_entropy_loss()
    with pytest.raises(UsageError, match=r"some labels carry no weight"):
        lm_head.cross_entropy_loss(torch.zeros(2, VOCAB), torch.tensor([1, 2]), reduction="sum")
    labels = adapter.carry(torch.tensor([1, 2]), torch.ones(2))
    with pytest.raises(UsageError, match=r"reduction 'mean'"):
        lm_head.cross_entropy_loss(torch.zeros(2, VOCAB), labels)
    unnormalized = weigh_dataset(write_dataset(tmp_path / "x", documents(40, 200), seq_len=SEQ_LEN), alpha=1.5)
    with pytest.raises(UsageError, match=r"OLMo-core divides by their number.*--normalize mean"):
        open_loader(unnormalized, tmp_path)
