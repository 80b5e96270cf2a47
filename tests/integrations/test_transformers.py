"""Laws of the Hugging Face route: the real Trainer and the real SFTTrainer train on the weights, and refuse leaks."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from oracle import framework, oracle_loss
from written_dataset import PAD, VOCAB, documents, mask_dataset, weigh_dataset, write_dataset

import exact_prep
from exact_prep.errors import UsageError

torch = framework("torch")
transformers = framework("transformers")

from ranks import run_ranks  # noqa: E402

from exact_prep.integrations.torch import Collator, ContextWatch, assert_documents_isolated  # noqa: E402
from exact_prep.integrations.transformers import WeightedLossMixin, hugging_face_dataset  # noqa: E402
from exact_prep.integrations.transformers.checks import LOSS_OPTIONS  # noqa: E402

SEQ_LEN = 64


class WeightedTrainer(WeightedLossMixin, transformers.Trainer):
    """As in the README."""


def tiny_model(kind="Llama", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=SEQ_LEN,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def arguments(path, kind=transformers.TrainingArguments, **options):
    """One plain SGD step of rate 1, so that a parameter moves by its gradient."""
    asked = {
        "output_dir": str(path),
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }
    return kind(**{**asked, **options})


def trained_gradients(trainer):
    """The gradient of one optimizer step as the parameters moved by it, and the loss that was logged."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    loss = trainer.train().training_loss
    return {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}, loss


def oracle_gradients(model, rows, weights_file):
    """Every document alone, without packing, position_ids or mask."""
    model.zero_grad()
    loss = oracle_loss(
        lambda ids: model(torch.tensor([ids]), use_cache=False).logits[0],
        rows,
        weights_file,
        lambda logits: logits.logsumexp(-1),
    )
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, loss.item()


def assert_trains_as(trainer, rows, weights_file):
    want, want_loss = oracle_gradients(trainer.model, rows, weights_file)
    got, loss = trained_gradients(trainer)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-6, msg=name)
    assert loss == pytest.approx(want_loss, rel=1e-5)


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_rows_train_as_their_documents_alone(two_rows, weights_file, tmp_path, chunk, attention):
    model = tiny_model(attn_implementation=attention)
    trainer = WeightedTrainer(model, arguments(tmp_path), train_dataset=two_rows)
    trainer.head_chunk = chunk
    assert_trains_as(trainer, two_rows, weights_file)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulation_changes_no_gradient(dataset, weights_file, tmp_path, steps):
    rows = dataset[:4]
    asked = arguments(tmp_path, per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps)
    assert_trains_as(WeightedTrainer(tiny_model(), asked, train_dataset=rows), rows, weights_file)


def test_uniform_weights_are_the_trainer_s_own_loss(directory, tmp_path):
    plain = exact_prep.open(directory, plain=True)[:4]
    asked = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "remove_unused_columns": False}

    def collate(rows):
        batch = Collator()(rows)
        del batch["loss_weights"]
        return batch

    theirs = transformers.Trainer(
        tiny_model(use_cache=False), arguments(tmp_path, **asked), data_collator=collate, train_dataset=plain
    )
    ours = WeightedTrainer(tiny_model(), arguments(tmp_path, **asked), train_dataset=plain)
    want, want_loss = trained_gradients(theirs)
    got, loss = trained_gradients(ours)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 10])
def test_what_is_logged_has_the_loss_by_context(dataset, tmp_path, chunk):
    asked = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1)
    trainer = WeightedTrainer(tiny_model(), asked, train_dataset=dataset[:4])
    trainer.head_chunk, trainer.watch = chunk, ContextWatch(dataset)
    trainer.train()
    logged = next(own for own in trainer.state.log_history if "loss" in own)
    share = sum(float(row.loss_weights[row.position_ids >= 16].astype("f8").sum()) for row in dataset[:4])
    whole = sum(float(row.loss_weights.astype("f8").sum()) for row in dataset[:4])
    assert logged["tail share"] == pytest.approx(share / whole, rel=1e-5)
    # An untrained model guesses alike at every distance.
    for context in ("0-7", "8-15", "16-31", "32-63"):
        assert logged[f"loss/context {context}"] == pytest.approx(math.log(VOCAB), rel=0.2)


def test_dividing_by_targets_is_the_same_loss_times_the_mean_weight(two_rows, tmp_path):
    gradients, losses = {}, {}
    for kind in ("weights", "targets"):
        trainer = WeightedTrainer(tiny_model(), arguments(tmp_path), train_dataset=two_rows)
        trainer.denominator = kind
        gradients[kind], losses[kind] = trained_gradients(trainer)
    weights = torch.tensor([float(w) for row in two_rows for w in row.weights() if w > 0])
    assert losses["targets"] == pytest.approx(losses["weights"] * weights.mean().item(), rel=1e-5)


def test_evaluation_reports_the_weighted_loss_and_predictions_have_all_logits(two_rows, weights_file, tmp_path):
    trainer = WeightedTrainer(tiny_model(), arguments(tmp_path), train_dataset=two_rows, eval_dataset=two_rows)
    with torch.no_grad():
        want = oracle_loss(
            lambda ids: trainer.model(torch.tensor([ids]), use_cache=False).logits[0],
            two_rows,
            weights_file,
            lambda logits: logits.logsumexp(-1),
        ).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-5)
    predicted = trainer.predict(two_rows)
    assert predicted.predictions.shape == (2, SEQ_LEN, VOCAB)
    assert predicted.metrics["test_loss"] == pytest.approx(want, rel=1e-5)


def oracle_evaluation(rows, weights_file):
    """Sum of w * CE over sum of w, and over the number of targets."""
    model = tiny_model()
    with torch.no_grad():
        mean = oracle_loss(
            lambda ids: model(torch.tensor([ids]), use_cache=False).logits[0],
            rows,
            weights_file,
            lambda logits: logits.logsumexp(-1),
        ).item()
    weights = torch.tensor([float(w) for row in rows for w in row.weights() if w > 0])
    return {"weights": mean, "targets": mean * weights.mean().item()}


@pytest.mark.parametrize("kind", ["weights", "targets"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_size_of_evaluation_batches_changes_no_loss(dataset, weights_file, tmp_path, size, kind):
    rows = dataset[:5]
    asked = arguments(tmp_path, per_device_eval_batch_size=size)
    trainer = WeightedTrainer(tiny_model(), asked, train_dataset=rows, eval_dataset=rows)
    trainer.denominator = kind
    want = oracle_evaluation(rows, weights_file)[kind]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-5)
    assert trainer.evaluate(metric_key_prefix="held_out")["held_out_loss"] == pytest.approx(want, rel=1e-5)


def test_a_mixture_of_experts_keeps_its_balancing_loss(two_rows, tmp_path):
    losses = []
    for coefficient in (0.0, 3.0):
        model = tiny_model("Mixtral", num_local_experts=4, output_router_logits=True, router_aux_loss_coef=coefficient)
        trainer = WeightedTrainer(model, arguments(tmp_path), train_dataset=two_rows)
        losses.append(trained_gradients(trainer)[1])
    batch = Collator()(list(two_rows))
    ids = {name: batch[name] for name in ("input_ids", "position_ids")}
    router = tiny_model("Mixtral", num_local_experts=4, output_router_logits=True)(**ids, use_cache=False).aux_loss
    assert losses[1] - losses[0] == pytest.approx(3 * router.item(), rel=1e-4)


def train_on_a_rank(rank, directory, path):
    """One Trainer step of two microbatches on one of two ranks; rank 0 writes how parameters moved."""
    import os

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    os.environ.update(MASTER_PORT=(path / "port").read_text())
    torch.set_num_threads(1)
    asked = arguments(path, per_device_train_batch_size=1, gradient_accumulation_steps=2, ddp_backend="gloo")
    trainer = WeightedTrainer(tiny_model(), asked, train_dataset=exact_prep.open(directory)[:4])
    gradients, _ = trained_gradients(trainer)
    if rank == 0:
        (path / "moved.json").write_text(json.dumps({name: moved.tolist() for name, moved in gradients.items()}))


def port_for(path):
    """A free port, where ranks find it."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        (path / "port").write_text(str(probe.getsockname()[1]))


def evaluate_on_a_rank(rank, directory, path):
    """What one of two ranks evaluates, and whether it refuses rows that are too long."""
    import os

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    os.environ.update(MASTER_PORT=(path / "port").read_text())
    torch.set_num_threads(1)
    rows, found = exact_prep.open(directory)[:4], {}
    asked = arguments(path, per_device_eval_batch_size=1, per_device_train_batch_size=1, ddp_backend="gloo")
    for kind in ("weights", "targets"):
        trainer = WeightedTrainer(tiny_model(), asked, train_dataset=rows, eval_dataset=rows)
        trainer.denominator = kind
        found[kind] = trainer.evaluate()["eval_loss"]
    short = tiny_model(use_cache=True)
    short.config.max_position_embeddings = 32
    try:
        WeightedTrainer(short, asked, train_dataset=rows).train()
    except UsageError as error:
        found["refused"] = str(error)
    (path / f"found-{rank}.json").write_text(json.dumps(found))


def test_two_ranks_evaluate_and_refuse_as_one_does(dataset, directory, weights_file, tmp_path):
    port_for(tmp_path)
    run_ranks(evaluate_on_a_rank, directory, tmp_path)
    want = oracle_evaluation(dataset[:4], weights_file)
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert "rows of 64 tokens, but the model knows 32 positions" in found.pop("refused")
        assert found == pytest.approx(want, rel=1e-5)


def test_two_ranks_that_accumulate_give_the_gradient_of_all_rows(dataset, directory, weights_file, tmp_path):
    port_for(tmp_path)
    run_ranks(train_on_a_rank, directory, tmp_path)
    want, _ = oracle_gradients(tiny_model(), dataset[:4], weights_file)
    moved = json.loads((tmp_path / "moved.json").read_text())
    for name, gradient in want.items():
        torch.testing.assert_close(torch.tensor(moved[name]), gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_a_run_that_diverges_says_so_and_is_no_other_head(two_rows, tmp_path):
    model = tiny_model()
    trainer = WeightedTrainer(model, arguments(tmp_path, logging_nan_inf_filter=False), train_dataset=two_rows)
    trainer._isolation_checked = True  # it saw the model before it diverged
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    assert torch.isnan(torch.tensor(trainer.train().training_loss))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # renamed in transformers 5.24
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_and_workers_change_no_gradient(dataset, weights_file, tmp_path, reentrant):
    model, rows = tiny_model(), dataset[:4]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    asked = arguments(tmp_path, dataloader_num_workers=2)
    assert_trains_as(WeightedTrainer(model, asked, train_dataset=rows), rows, weights_file)


def test_tied_embeddings_gather_the_gradient_of_both_ends(two_rows, weights_file, tmp_path):
    model = tiny_model("Qwen2", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_trains_as(WeightedTrainer(model, arguments(tmp_path), train_dataset=two_rows), two_rows, weights_file)


def test_a_stream_of_rows_and_microbatches_of_unequal_size_train_alike(dataset, weights_file, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    rows = dataset[:3]
    asked = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert_trains_as(WeightedTrainer(tiny_model(), asked, train_dataset=rows), rows, weights_file)
    assert_trains_as(WeightedTrainer(tiny_model(), asked, train_dataset=Stream()), rows, weights_file)


def test_a_run_resumed_from_a_checkpoint_ends_as_one_that_was_not_stopped(dataset, tmp_path):
    def run(resume=None):
        asked = arguments(
            tmp_path / "run",
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            save_strategy="steps",
            save_steps=2,
        )
        trainer = WeightedTrainer(tiny_model(), asked, train_dataset=dataset)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    whole, resumed = run(), run(str(tmp_path / "run" / "checkpoint-2"))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


class DropsPositions(transformers.LlamaForCausalLM):
    """What a model does that isolates by an attention mask alone."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_leaks_is_refused_before_its_first_step(two_rows, tmp_path):
    model = DropsPositions(tiny_model().config)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UsageError, match="documents of one row see each other"):
        WeightedTrainer(model, arguments(tmp_path), train_dataset=two_rows).train()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_cache_or_a_mask_would_leak_and_the_check_says_so(two_rows):
    model, batch = tiny_model(), Collator()(list(two_rows))
    assert assert_documents_isolated(model, batch) < 1e-5
    masked = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    with pytest.raises(UsageError, match="see each other"):
        assert_documents_isolated(model, masked)
    with pytest.raises(UsageError, match="see each other"):
        assert_documents_isolated(model, batch, forward=lambda inputs: model(**inputs, use_cache=True))


def test_settings_under_which_weights_get_lost_are_refused(two_rows, tmp_path):
    def refused(message, model=None, **options):
        given = {"data_collator": options.pop("data_collator", None)}
        given["compute_loss_func"] = options.pop("compute_loss_func", None)
        with pytest.raises(UsageError, match=message):
            WeightedTrainer(
                model or tiny_model(), arguments(tmp_path, **options), train_dataset=two_rows, **given
            ).train()

    refused("label smoothing", label_smoothing_factor=0.1)
    refused("never sees the weights", compute_loss_func=lambda outputs, labels, num_items_in_batch: 0)
    refused("set head_chunk = None", torch_compile=True)
    short = tiny_model()
    short.config.max_position_embeddings = 32
    refused("rows of 64 tokens, but the model knows 32 positions.*--seq-len 32", model=short)
    refused(
        "has an attention_mask", data_collator=lambda rows: {**Collator()(rows), "attention_mask": torch.ones(2, 64)}
    )
    refused("has no loss_weights", data_collator=lambda rows: {**Collator()(rows), "loss_weights": None})
    refused("set head_chunk = None", model=tiny_model("Gemma2", head_dim=16, final_logit_softcapping=5.0))


KEEPS_LOSS = {
    "average_tokens_across_devices",  # the mixin counts by itself
    "logging_nan_inf_filter",
    "prediction_loss_only",
    "include_for_metrics",
    "metric_for_best_model",
    "label_names",
    "liger_kernel_config",  # refused with use_liger_kernel
    "router_aux_loss_coef",  # TRL writes it into the model's config, where the mixin reads it
    "eval_do_concat_batches",
    "tf32",  # "negligible accuracy loss"
}
"""Options that speak of losses, labels or kernels, and leave the weighted loss what it is."""


@pytest.mark.parametrize("kind", ["transformers.TrainingArguments", "trl.SFTConfig"])
def test_no_option_of_the_installed_trainers_that_speaks_of_the_loss_is_unknown(kind):
    module, name = kind.split(".")
    fields = dataclasses.fields(getattr(framework(module), name))
    told = {
        own.name
        for own in fields
        if re.search(r"loss|label|liger|logits", f"{own.name} {own.metadata.get('help', '')}", re.IGNORECASE)
    }
    assert told - KEEPS_LOSS <= set(LOSS_OPTIONS)
    assert len(told) > 8


REPLACED = [
    ("completion_only_loss", True, "leave completion_only_loss at None"),
    ("assistant_only_loss", True, "set assistant_only_loss=False"),
    ("loss_type", "dft", "set loss_type='nll'"),
    ("label_smoothing_factor", 0.1, "set label_smoothing_factor=0"),
    ("use_liger_kernel", True, "'fused_linear_cross_entropy': False"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("option", "value", "remedy"), REPLACED)
def test_an_option_that_replaces_the_loss_is_refused_with_its_remedy(two_rows, tmp_path, option, value, remedy):
    trl = framework("trl")

    class WeightedSFTTrainer(WeightedLossMixin, trl.SFTTrainer):
        """As in the README."""

    for kind, trainer in ((transformers.TrainingArguments, WeightedTrainer), (trl.SFTConfig, WeightedSFTTrainer)):
        if option in {own.name for own in dataclasses.fields(kind)}:
            asked = arguments(tmp_path, kind, **{option: value})
            with pytest.raises(UsageError, match=remedy):
                trainer(tiny_model(), asked, train_dataset=two_rows)
    assert set(LOSS_OPTIONS) == {own for own, _, _ in REPLACED}


def test_a_model_that_scales_its_logits_trains_on_full_ones(two_rows, weights_file, tmp_path):
    model = tiny_model("Gemma2", head_dim=16, final_logit_softcapping=5.0, attn_implementation="eager")
    trainer = WeightedTrainer(model, arguments(tmp_path), train_dataset=two_rows)
    trainer.head_chunk = None
    assert_trains_as(trainer, two_rows, weights_file)


def tokenizer():
    tokenizers = framework("tokenizers")
    words = {f"t{i}": i for i in range(VOCAB)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t1")),
        pad_token="t0",
        eos_token="t2",
    )


# TRL passes arguments that Transformers renames.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("steps", [1, 2])
def test_trl_trains_two_rows_as_their_documents_alone(two_rows, weights_file, tmp_path, steps):
    trl = framework("trl")

    class WeightedSFTTrainer(WeightedLossMixin, trl.SFTTrainer):
        """As in the README."""

    asked = arguments(
        tmp_path,
        trl.SFTConfig,
        per_device_train_batch_size=2 // steps,
        gradient_accumulation_steps=steps,
        max_length=16,
    )
    trainer = WeightedSFTTrainer(
        tiny_model(), asked, train_dataset=hugging_face_dataset(two_rows), processing_class=tokenizer()
    )
    assert_trains_as(trainer, two_rows, weights_file)
    for option in ("packing", "padding_free"):
        with pytest.raises(UsageError, match=f"set {option}=False"):
            WeightedSFTTrainer(tiny_model(), arguments(tmp_path, trl.SFTConfig, **{option: True}))


@pytest.fixture(params=["column", "table", "column with a file", "table with a file", "plain"])
def opened(request, directory, table_directory, weights_table):
    """A dataset with its weights in each place, plain ones too."""
    path = directory if request.param.startswith(("column", "plain")) else table_directory
    if request.param == "plain":
        return exact_prep.open(path, plain=True)
    return exact_prep.open(path, weights=weights_table if request.param.endswith("file") else None)


def assert_same_rows(theirs, ours):
    assert len(theirs) == len(ours)
    for one, other in zip(theirs, ours, strict=True):
        assert one["input_ids"].tolist() == other.input_ids.tolist()
        assert one["seq_lengths"].tolist() == other.seq_lengths.tolist()
        assert one["doc_ids"].tolist() == other.doc_ids.tolist()
        assert one["loss_weights"].tolist() == other.loss_weights.tolist()
        assert one["loss_weights"].dtype == "float32"


def test_a_hugging_face_dataset_holds_the_rows_and_weights_of_the_reader(opened):
    assert_same_rows(hugging_face_dataset(opened), opened)


@pytest.mark.parametrize(
    "order",
    [
        lambda rows: rows.shuffle(2)[:7],
        lambda rows: rows[::-1],
        lambda rows: rows[1:],
        lambda rows: rows[2:9:3],
        lambda rows: rows.select([3, 3, 0]),
        lambda rows: rows.shard(1, 3),
    ],
    ids=["shuffled", "reversed", "without the first", "sliced", "repeated", "sharded"],
)
def test_a_hugging_face_dataset_keeps_the_order_of_rows(opened, order):
    assert_same_rows(hugging_face_dataset(order(opened)), order(opened))


def test_a_directory_becomes_a_hugging_face_dataset_with_its_own_weights(dataset, directory, table_directory):
    for path in (directory, str(table_directory)):
        assert_same_rows(hugging_face_dataset(path), dataset)


def test_what_datasets_does_to_rows_changes_no_weight(opened):
    rows, want = hugging_face_dataset(opened), [row.loss_weights.tolist() for row in opened]
    assert [own.tolist() for own in rows[2:5]["loss_weights"]] == want[2:5]
    assert [row["loss_weights"].tolist() for row in rows.select([4, 1])] == [want[4], want[1]]
    split = rows.train_test_split(test_size=5, shuffle=False)
    assert [row["loss_weights"].tolist() for row in split["test"]] == want[-5:]
    assert [row["loss_weights"].tolist() for row in rows.take(3)] == want[:3]


def test_no_view_of_some_columns_shows_other_weights(opened):
    """Weights that are computed need the lengths of segments: without them there are none, and the collator says so."""
    rows = hugging_face_dataset(opened)
    if opened.has_stored_weights:
        assert rows["loss_weights"][0].tolist() == opened[0].loss_weights.tolist()
        return
    assert "loss_weights" not in rows.column_names
    with pytest.raises(UsageError, match="lacks loss_weights, seq_lengths"):
        Collator()([rows.select_columns(["input_ids"])[0]])


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_of_a_data_loader_read_the_same_batches(opened, context):
    shuffled = opened.shuffle(5)
    loader = torch.utils.data.DataLoader(
        hugging_face_dataset(shuffled),
        batch_size=8,
        collate_fn=Collator(),
        num_workers=2,
        multiprocessing_context=context,
    )
    batches = list(loader)
    want = [Collator()(list(shuffled[first : first + 8])) for first in range(0, len(shuffled), 8)]
    assert len(batches) == len(want)
    for got, wanted in zip(batches, want, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_trainer_trains_on_the_weights_wherever_they_are(weighed, tmp_path, workers):
    path, table, file = weighed
    rows = exact_prep.open(path, weights=table)[:4]
    for given in (rows, hugging_face_dataset(rows)):
        asked = arguments(tmp_path, dataloader_num_workers=workers)
        assert_trains_as(WeightedTrainer(tiny_model(), asked, train_dataset=given), rows, file)


# TRL passes arguments that Transformers renames.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_trl_trains_on_the_weights_wherever_they_are(weighed, tmp_path, workers):
    trl = framework("trl")

    class WeightedSFTTrainer(WeightedLossMixin, trl.SFTTrainer):
        """As in the README."""

    path, table, file = weighed
    rows = exact_prep.open(path, weights=table).shuffle(1)[:4]
    asked = arguments(tmp_path, trl.SFTConfig, max_length=16, dataloader_num_workers=workers)
    trainer = WeightedSFTTrainer(
        tiny_model(), asked, train_dataset=hugging_face_dataset(rows), processing_class=tokenizer()
    )
    assert_trains_as(trainer, rows, file)


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_masked_targets_weigh_nothing_in_a_hugging_face_dataset(tmp_path, loss_weights):
    def first_half(rows, row):
        """Of the first segment; a row of one token has nothing to mask."""
        length = int(rows.seq_lengths[rows.row_splits[row]])
        return [(0, length // 2)] if length > 1 else []

    path = write_dataset(tmp_path / "data", documents(40, 200), seq_len=SEQ_LEN, loss_weights=loss_weights)
    weigh_dataset(mask_dataset(path, first_half), alpha=0.7)
    for rows in (exact_prep.open(path), exact_prep.open(path, plain=True), exact_prep.open(path).shuffle(1)):
        theirs = hugging_face_dataset(rows)
        assert_same_rows(theirs, rows)
        for row in theirs:
            assert (row["loss_weights"][: int(row["seq_lengths"][0]) // 2] == 0).all()
        batch = Collator()([theirs[row] for row in range(len(theirs))])
        assert ((batch["loss_weights"] > 0) == (batch["labels"] != -100)).all()
    if loss_weights == "table":
        with pytest.raises(UsageError, match="lacks loss_weights"):
            Collator()([hugging_face_dataset(path).remove_columns("masked_runs")[0]])
