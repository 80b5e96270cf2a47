"""Laws of the Megatron export, through megatron-core's own reader, builder and the recipe in examples/."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from oracle import bigram_oracle, framework
from written_dataset import VOCAB

from exact_prep.pipeline.export import export

torch = framework("torch")
framework("megatron.core.datasets.gpt_dataset")

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder  # noqa: E402
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDataset  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from megatron_dataset import PackedGPTDataset  # noqa: E402
from torch_models import Bigram  # noqa: E402

SEQ_LEN = 64


@pytest.fixture(scope="module")
def exported(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("megatron") / "out"
    export(directory, "megatron", out)
    return out / "data"


def test_megatron_reads_every_segment_and_row(dataset, exported):
    indexed = IndexedDataset(str(exported))
    edges = indexed.document_indices
    assert len(edges) == len(dataset) + 1
    for r, row in enumerate(dataset):
        lengths = row.seq_lengths.tolist()
        padding = SEQ_LEN - sum(lengths)
        segments = [indexed[i] for i in range(edges[r], edges[r + 1])]
        assert [len(own) for own in segments] == lengths + [padding] * (padding > 0)
        assert [token for own in segments for token in own.tolist()] == row.input_ids.tolist()


def build(exported, samples, attention_mask=True, seq_len=SEQ_LEN):
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_len,
        blend=([str(exported)], None),
        split="1,0,0",
        path_to_cache=None,
        tokenizer=SimpleNamespace(vocab_size=VOCAB, eod=2, pad=0, eos=2, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=attention_mask,
    )
    return BlendedMegatronDatasetBuilder(PackedGPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_trains_rows_as_their_documents_alone(dataset, weighed, tmp_path):
    directory, table, weights_file = weighed
    export(directory, "megatron", tmp_path / "out", weights=table)
    train = build(tmp_path / "out" / "data", len(dataset))
    assert len(train) == len(dataset)
    by_row = {tuple(sample["tokens"].tolist()): sample for sample in (train[i] for i in range(len(train)))}
    assert len(by_row) == len({tuple(row.input_ids.tolist()) for row in dataset})
    rows = dataset[:4]
    batch = torch.utils.data.default_collate([by_row[tuple(row.input_ids.tolist())] for row in rows])
    model = Bigram()
    losses = torch.nn.functional.cross_entropy(
        model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none"
    )
    mask = batch["loss_mask"].view(-1)
    # As Megatron-LM with --calculate-per-token-loss: the sum over microbatches, divided once by the sum of masks.
    loss = (losses * mask).sum() / mask.sum()
    loss.backward()
    want, gradient = bigram_oracle(model.table.tolist(), rows, weights_file)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(model.table.grad, torch.tensor(gradient), rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_isolates_documents(exported):
    sample = next(s for s in build(exported, 20) if int((s["position_ids"] == 0).sum()) > 2)
    document = (sample["position_ids"] == 0).cumsum(0)
    for i in range(SEQ_LEN):
        for j in range(SEQ_LEN):
            assert sample["attention_mask"][0, i, j].item() == (document[i] != document[j] or j > i)


@pytest.mark.filterwarnings("ignore")
def test_epochs_are_whole_and_a_batch_s_filling_weighs_nothing(dataset, exported):
    train = build(exported, 2 * len(dataset) + 3, attention_mask=False)
    for epoch in range(2):
        drawn = sorted(train.shuffle_index[epoch * len(dataset) : (epoch + 1) * len(dataset)])
        assert drawn == list(range(len(dataset)))
    assert train[None]["loss_mask"].sum() == 0
    assert "attention_mask" not in train[0]


@pytest.mark.filterwarnings("ignore")
def test_another_row_length_is_refused(exported):
    with pytest.raises(Exception, match="rows have 64 tokens"):
        build(exported, 4, seq_len=32)
