"""`measure` against TRL and megatron-core: their own files, walked through their own datasets, label by label."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from foreign_documents import DOCUMENTS, EOS, L, by_bucket, measure
from oracle import framework

import exact_prep
from exact_prep.dataset import open_measured
from exact_prep.weighing.exposure import Exposure

sys.path.append(str(Path(__file__).parents[2] / "examples"))
framework("torch")
from measured_data import weigh_gpt_dataset  # noqa: E402


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_trl(tmp_path, strategy):
    framework("trl")
    from datasets import Dataset
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    packed = pack_dataset(Dataset.from_dict({"input_ids": [one.tolist() for one in DOCUMENTS]}), L, strategy=strategy)
    packed.save_to_disk(tmp_path / "packed")
    collate = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    contexts, labels = [], []
    for start in range(0, len(packed), 8):
        batch = collate([packed[number] for number in range(start, min(start + 8, len(packed)))])
        contexts += batch["position_ids"][0].tolist()
        labels += batch["labels"][0].tolist()
    measured = measure("huggingface", tmp_path / "packed", tmp_path / "out", seq_len=L, trainer="trl")
    assert measured.options.documents == "seq_lengths"
    assert measured.rows == len(packed)
    assert list(measured.exposure.counts) == by_bucket(contexts)
    # TRL trains no first token either.
    assert [label == -100 for label in labels] == [context == 0 for context in contexts]
    assert measured.exposure.segments == contexts.count(0)


class Tokenizer:
    """What GPTDataset asks of one."""

    vocab_size, eod, pad, bos_token_id, eos_token_id = 60_000, EOS, -1, 1, EOS
    unique_identifiers = {"class": "test"}


@pytest.fixture
def indexed(tmp_path):
    """An IndexedDataset that megatron-core wrote."""
    framework("megatron.core.datasets.gpt_dataset")
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(document, [len(document)])
    builder.finalize(str(tmp_path / "d.idx"))
    return tmp_path / "d"


def open_megatron(prefix, cache, split="1", samples=None, dataset=None):
    """Megatron's own train dataset."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=L,
        blend=([str(prefix)], None),
        split=split,
        path_to_cache=str(cache),
        tokenizer=Tokenizer(),
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=False,
        create_attention_mask=False,
        mmap_bin_files=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BlendedMegatronDatasetBuilder(
            dataset or GPTDataset, [samples, None, None], lambda: True, config
        ).build()[0]


def walk_megatron(dataset) -> list[int]:
    """Contexts of all labels: a label belongs to the document of its input unless that ended one."""
    contexts = []
    for number in range(len(dataset)):
        one = dataset[number]
        places = zip(one["tokens"].tolist(), one["position_ids"].tolist(), strict=True)
        contexts += [0 if token == EOS else place + 1 for token, place in places]
    return contexts


@pytest.mark.parametrize("split", ["1", "90,5,5"])
def test_megatron_in_its_own_order(tmp_path, indexed, split):
    dataset = open_megatron(indexed, tmp_path / "cache", split)
    shares = [float(word) for word in split.split(",")]
    options = {"seq_len": L, "split": shares, "trainer": "megatron", "eos": EOS}
    measured = measure("megatron", indexed, tmp_path / "out", order=f"cache:{tmp_path / 'cache'}", **options)
    contexts = walk_megatron(dataset)
    assert measured.rows == len(dataset)
    assert list(measured.exposure.counts) == by_bucket(contexts)
    assert measured.exposure.firsts == contexts.count(0)
    assert measured.longest_context == L - 1
    assert max(contexts) == L
    # In random order: the same corpus, other cuts.
    expected = measure("megatron", indexed, tmp_path / "other", **options)
    assert expected.rows == measured.rows
    shares = [np.array(one.exposure.counts) / sum(one.exposure.counts) for one in (expected, measured)]
    np.testing.assert_allclose(*shares, atol=0.02)


def test_the_weights_that_megatron_serves_are_those_of_the_table(tmp_path, indexed):
    """In its own order: the sum over all samples is that of the exposure, to the last bit."""
    dataset = open_megatron(indexed, tmp_path / "cache")
    out = tmp_path / "out"
    measure("megatron", indexed, out, seq_len=L, order=f"cache:{tmp_path / 'cache'}")
    (weights,) = exact_prep.weigh(out, tail_from=64, progress=False)
    served = open_megatron(indexed, tmp_path / "cache", dataset=weigh_gpt_dataset(type(dataset), str(out)))
    total = sum(served[number]["loss_mask"].double().sum().item() for number in range(len(served)))
    assert total == weights.sum_weights(Exposure.from_record(open_measured(out).record.exposure))
    assert {value for number in range(9) for value in served[number]["loss_mask"].tolist()} <= set(weights.lut.tolist())
    served.config.reset_attention_mask = False
    with pytest.raises(ValueError, match=r"documents see each other"):
        served[0]
