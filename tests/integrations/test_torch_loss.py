"""Laws of the weighted losses: plain Python is the oracle, and chunks, accumulation and ranks change nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracle import bigram_oracle, framework, oracle_loss
from written_dataset import VOCAB

import exact_prep
from exact_prep.errors import UsageError

torch = framework("torch")

from ranks import run_ranks  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch_models import Bigram, TinyAttention  # noqa: E402

from exact_prep.integrations.torch import (  # noqa: E402
    BatchPolicy,
    Collator,
    Loader,
    assert_documents_isolated,
    denominator,
    linear_weighted_cross_entropy,
    weighted_cross_entropy,
)


def compute_loss(model, batch, align, **options):
    logits = model(batch["input_ids"], batch["position_ids"])
    return weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"], align=align, **options)


@pytest.mark.parametrize("align", ["target", "prediction"])
def test_loss_and_gradient_are_those_of_plain_python(two_rows, weights_file, align):
    model = Bigram()
    loss = compute_loss(model, Collator(align=align)(list(two_rows)), align)
    loss.backward()
    want, gradient = bigram_oracle(model.table.tolist(), two_rows, weights_file)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(model.table.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


def test_packed_documents_train_as_documents_alone(two_rows, weights_file):
    model = TinyAttention()
    compute_loss(model, Collator()(list(two_rows)), "target").backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    def alone(ids):
        return model(torch.tensor([ids]), torch.arange(len(ids))[None])[0]

    oracle_loss(alone, two_rows, weights_file, lambda logits: logits.logsumexp(-1)).backward()
    for got, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-7)


def test_uniform_weights_are_the_framework_s_own_mean(directory):
    batch = Collator()(list(exact_prep.open(directory, plain=True)[:4]))
    logits = torch.randn(*batch["labels"].shape, VOCAB)
    own = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(weighted_cross_entropy(logits, batch["labels"], batch["loss_weights"]), own)


def linear_case(dtype=torch.float32, bias=False):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 40, 16, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(VOCAB, 16, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(VOCAB, generator=generator, dtype=dtype).requires_grad_() if bias else None
    labels = torch.randint(0, VOCAB, (2, 40), generator=generator)
    weights = torch.rand(2, 40, generator=generator) * (torch.rand(2, 40, generator=generator) < 0.8)
    labels[0, 5] = -100
    weights[:, 0] = 0  # nothing predicts the first token of a row
    return hidden, head, offset, labels, weights


def relative(got, want):
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("align", ["target", "prediction"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 79, 1000])
def test_the_chunked_loss_is_the_plain_one(chunk, bias, align):
    hidden, head, offset, labels, weights = linear_case(bias=bias)
    leaves = [leaf for leaf in (hidden, head, offset) if leaf is not None]
    logits = nn.functional.linear(hidden, head, offset)
    plain = weighted_cross_entropy(logits, labels, weights, align=align, denominator=3.5) * 2
    want = torch.autograd.grad(plain, leaves)
    chunked = linear_weighted_cross_entropy(
        hidden, head, labels, weights, bias=offset, align=align, denominator=3.5, chunk=chunk
    )
    got = torch.autograd.grad(chunked * 2, leaves, retain_graph=True)
    again = torch.autograd.grad(chunked * 2, leaves)
    assert relative(chunked.detach() * 2, plain.detach()) < 1e-5
    assert max(map(relative, got, want)) < 1e-5
    assert all(map(torch.equal, got, again))


def test_the_chunked_loss_works_without_some_gradients_and_in_bfloat16():
    hidden, head, _, labels, weights = linear_case()
    want = torch.autograd.grad(weighted_cross_entropy(hidden @ head.T, labels, weights), [hidden, head])
    for frozen in (0, 1):
        leaves = [leaf.detach().requires_grad_(i != frozen) for i, leaf in enumerate((hidden, head))]
        linear_weighted_cross_entropy(*leaves, labels, weights).backward()
        assert leaves[frozen].grad is None
        assert relative(leaves[1 - frozen].grad, want[1 - frozen]) < 1e-5
    with torch.no_grad():
        linear_weighted_cross_entropy(hidden, head, labels, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = linear_weighted_cross_entropy(hidden, head, labels, weights, chunk=11)
    got = torch.autograd.grad(lower, [hidden, head])
    assert [grad.dtype for grad in got] == [torch.float32] * 2
    assert max(map(relative, got, want)) < 0.02


def test_gradients_of_a_large_denominator_are_not_lost_in_float16():
    hidden, head, _, labels, weights = linear_case()
    scale, targets = 2.0**16, 2e5  # a GradScaler's first scale; a step of 200K targets
    want = torch.autograd.grad(
        weighted_cross_entropy(hidden @ head.T, labels, weights, denominator=targets) * scale, [hidden, head]
    )
    with torch.autocast("cpu", dtype=torch.float16):
        loss = linear_weighted_cross_entropy(hidden, head, labels, weights, denominator=targets)
    got = torch.autograd.grad(loss * scale, [hidden, head])
    assert max(map(relative, got, want)) < 5e-3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing
@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_loss_compiles_into_one_graph(bias):
    hidden, head, offset, labels, weights = linear_case(bias=bias)
    plain = [own.clone().detach().requires_grad_() if own is not None else None for own in (hidden, head, offset)]
    options = {"chunk": 7, "align": "prediction"}
    want = linear_weighted_cross_entropy(*plain[:2], labels, weights, bias=plain[2], **options)
    want.backward()
    compiled = torch.compile(linear_weighted_cross_entropy, backend="aot_eager", fullgraph=True)
    loss = compiled(hidden, head, labels, weights, bias=offset, **options)
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    for got, own in zip((hidden, head, offset), plain, strict=True):
        if own is not None:
            torch.testing.assert_close(got.grad, own.grad)


def test_a_second_derivative_of_the_chunked_loss_is_refused():
    hidden, head, _, labels, weights = linear_case()
    factor = torch.ones((), requires_grad=True)
    loss = factor * linear_weighted_cross_entropy(hidden, head, labels, weights)
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Largest(TorchDispatchMode):
    """Watches the largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [own for own in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(own, torch.Tensor)]
        self.elements = max([self.elements, *(own.numel() for own in made)])
        return out


def test_the_chunked_loss_never_makes_the_full_logits():
    hidden, head, _, labels, weights = linear_case()
    with Largest() as plain:
        weighted_cross_entropy(hidden @ head.T, labels, weights).backward()
    with Largest() as chunked:
        linear_weighted_cross_entropy(hidden, head, labels, weights, chunk=8).backward()
    assert plain.elements >= 2 * 40 * VOCAB
    assert chunked.elements <= max(8 * VOCAB, head.numel(), hidden.numel())


def test_no_weight_is_no_loss_and_no_gradient():
    hidden, head, _, labels, weights = linear_case()
    for loss in (
        weighted_cross_entropy(hidden @ head.T, labels, weights * 0),
        linear_weighted_cross_entropy(hidden, head, labels, weights * 0),
    ):
        assert loss.item() == 0
        assert all(not grad.any() for grad in torch.autograd.grad(loss, [hidden, head]))


def test_infinite_logits_of_unsupervised_targets_do_not_matter():
    _, _, _, labels, weights = linear_case()
    weights[1] = 0
    logits = torch.zeros(2, 40, VOCAB)
    logits[1] = float("-inf")
    assert weighted_cross_entropy(logits, labels, weights).item() == pytest.approx(np.log(VOCAB), rel=1e-6)


def test_weights_that_lost_their_fractions_or_shapes_are_refused():
    hidden, head, _, labels, weights = linear_case()
    with pytest.raises(UsageError, match="integer type has lost the weights"):
        weighted_cross_entropy(hidden @ head.T, labels, weights.long())
    with pytest.raises(UsageError, match="must agree"):
        linear_weighted_cross_entropy(hidden, head, labels[:, 1:], weights)
    with pytest.raises(UsageError, match="at least 1 target"):
        linear_weighted_cross_entropy(hidden, head, labels, weights, chunk=0)
    with pytest.raises(UsageError, match="at least one microbatch"):
        denominator([])


@pytest.mark.parametrize("align", ["target", "prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulation_changes_no_gradient(dataset, weights_file, steps, align):
    model, rows = Bigram(), dataset[:4]
    collate = Collator(align=align)
    size = len(rows) // steps
    batches = [collate(list(rows[i : i + size])) for i in range(0, len(rows), size)]
    total = denominator([batch["loss_weights"] for batch in batches], align=align)
    for batch in batches:
        compute_loss(model, batch, align, denominator=total).backward()
    _, gradient = bigram_oracle(model.table.tolist(), rows, weights_file)
    np.testing.assert_allclose(model.table.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


def train_on_a_rank(rank, directory, store, out):
    """Two accumulation steps of one rank under DDP; rank 0 writes the averaged gradient."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loader = iter(Loader(exact_prep.open(directory), BatchPolicy(batch_size=2)))
    model = nn.parallel.DistributedDataParallel(Bigram())
    batches = [next(loader), next(loader)]
    total = denominator([batch["loss_weights"] for batch in batches])
    alone = denominator([batches[0]["loss_weights"]], averaged=False)
    with model.no_sync():
        compute_loss(model, batches[0], "target", denominator=total).backward()
    compute_loss(model, batches[1], "target", denominator=total).backward()
    if rank == 0:
        out.write_text(json.dumps([model.module.table.grad.tolist(), alone.item()]))


def test_two_ranks_that_accumulate_give_the_gradient_of_all_rows(dataset, directory, weights_file, tmp_path):
    out = tmp_path / "gradient.json"
    run_ranks(train_on_a_rank, directory, tmp_path / "store", out)
    got, alone = json.loads(out.read_text())
    _, gradient = bigram_oracle(Bigram().table.tolist(), dataset[:8], weights_file)
    np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-7)
    assert alone == pytest.approx(sum(float(row.weights().astype(float).sum()) for row in dataset[:4]), rel=1e-6)


def test_isolation_holds_for_a_model_that_masks_and_a_leak_is_refused(two_rows):
    batch = Collator()(list(two_rows))
    assert assert_documents_isolated(TinyAttention(), batch) == 0
    with pytest.raises(UsageError, match="documents of one row see each other"):
        assert_documents_isolated(TinyAttention(leaks=True), batch)


def test_a_leak_into_later_documents_alone_is_found_from_either_parity(two_rows):
    batch = Collator()(list(two_rows))
    number = (batch["position_ids"] == 0).cumsum(-1)

    class LeaksOnce(Bigram):
        """The second document sees the first, or the third the second; nothing else leaks."""

        def forward(self, input_ids, position_ids=None):
            source = (input_ids * (number == self.source)).sum(-1, keepdim=True).float()
            return super().forward(input_ids) + ((number == self.source + 1) * source)[..., None]

    for source in (1, 2):
        model = LeaksOnce()
        model.source = source
        with pytest.raises(UsageError, match="see each other"):
            assert_documents_isolated(model, batch)


def test_an_isolation_check_that_could_not_fail_is_refused(two_rows):
    batch = Collator()(list(two_rows))
    with pytest.raises(UsageError, match="does the model read input_ids"):
        assert_documents_isolated(Bigram(), batch, forward=lambda inputs: torch.zeros(*inputs["input_ids"].shape, 3))
    single = {"input_ids": torch.arange(1, 9)[None], "position_ids": torch.arange(8)[None]}
    with pytest.raises(UsageError, match="no row of the batch holds two documents"):
        assert_documents_isolated(TinyAttention(), {**single, "cu_seqlens": torch.tensor([0, 8])})


def test_rows_of_one_document_are_checked_as_two(two_rows):
    single = {"input_ids": torch.arange(1, 9)[None], "position_ids": torch.arange(8)[None]}
    assert assert_documents_isolated(TinyAttention(), single) == 0
    with pytest.raises(UsageError, match="see each other"):
        assert_documents_isolated(TinyAttention(leaks=True), single)
    assert single["position_ids"].tolist() == [list(range(8))]
