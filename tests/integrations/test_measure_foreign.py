"""`measure` against datatrove, litData and OLMo-core: their files through their own datasets, label by label.

In an environment of their own: see `.ci/run`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_documents import DOCUMENTS, EOS, L, by_bucket, measure
from oracle import framework

import exact_prep
from exact_prep.weighing.exposure import Exposure

sys.path.append(str(Path(__file__).parents[2] / "examples"))
framework("torch")
from measured_data import weigh_rows, weigh_windows  # noqa: E402


@pytest.mark.parametrize("size", [2, 4])
def test_datatrove(tmp_path, size):
    framework("datatrove")
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile
    from datatrove.utils.dataset import DatatroveFileDataset

    file = TokenizedFile(str(tmp_path), "x.ds", token_size=size, save_index=True)
    for document in DOCUMENTS:
        file.write(document.tolist(), None)
    file.close()
    for told, eos in (("index", None), ("eos", EOS)):
        dataset = DatatroveFileDataset(
            str(tmp_path / "x.ds"), L, token_size=size, return_positions=True, positions_from_eos_token_id=eos
        )
        # Windows of L + 1: the first is an input alone.
        contexts = [place for n in range(len(dataset)) for place in dataset[n]["positions"].tolist()[1:]]
        measured = measure(
            "datatrove", tmp_path / "x.ds", tmp_path / told, seq_len=L, documents=told, eos=EOS, trainer="nanotron",
            dtype="uint32" if size == 4 else "uint16",
        )  # fmt: skip
        assert measured.rows == len(dataset)
        assert list(measured.exposure.counts) == by_bucket(contexts)
        assert measured.exposure.firsts == contexts.count(0)
        (weights,) = exact_prep.weigh(tmp_path / told, tail_from=64, progress=False)
        total = sum(
            weigh_windows(dataset[n]["positions"], str(tmp_path / told)).double().sum().item() for n in range(9)
        )
        assert total == sum(float(weights.lut[place]) for place in contexts[: 9 * L])


# litData's own way to map a chunk.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_litdata(tmp_path):
    framework("litdata")
    import torch
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming import Cache

    cache = Cache(str(tmp_path / "data"), chunk_size=20_000, item_loader=TokensLoader(block_size=L))
    for number, document in enumerate(DOCUMENTS):
        cache[number] = torch.tensor(document.astype(np.uint16))
    cache.done()
    cache.merge()
    dataset = StreamingDataset(str(tmp_path / "data"), item_loader=TokensLoader(block_size=L))
    contexts = []
    rows = len(dataset)
    for number in range(rows):
        place = 0
        for token in np.asarray(dataset[number]).tolist():
            contexts.append(place)
            place = 0 if token == EOS else place + 1
    measured = measure("litdata", tmp_path / "data", tmp_path / "out", seq_len=L)
    assert measured.rows == rows
    assert list(measured.exposure.counts) == by_bucket(contexts)


@pytest.fixture
def olmo_files(tmp_path):
    """Two files with their indices, written by OLMo-core."""
    framework("olmo_core.data")
    from olmo_core.data.utils import write_document_indices

    paths = []
    for number, own in enumerate((DOCUMENTS[:250], DOCUMENTS[250:])):
        paths.append(tmp_path / f"part-{number}.npy")
        np.concatenate(own).astype(np.uint16).tofile(paths[-1])
        write_document_indices(paths[-1], dtype=np.uint16, eos_token_id=EOS)
    return paths


def walk_olmo(dataset) -> list[int]:
    """Contexts of the labels that OLMo-core trains."""
    from olmo_core.data.utils import get_labels

    contexts = []
    for number in range(len(dataset)):
        one = dataset[number]
        positions = np.concatenate([np.arange(length) for length in one["doc_lens"].tolist()])
        batch = {name: one[name][None] for name in ("input_ids", "label_mask") if name in one}
        labels = get_labels(batch)[0].tolist()
        contexts += [int(positions[t + 1]) for t in range(len(positions) - 1) if labels[t] != -100]
    return contexts


OLMO = {"sequence_length": L, "pad_token_id": 1, "eos_token_id": EOS, "vocab_size": 60_000, "dtype": np.uint16}


@pytest.mark.parametrize("told", ["eos", "index"])
def test_olmo_rows(tmp_path, olmo_files, told):
    from olmo_core.data import NumpyFSLDataset

    dataset = NumpyFSLDataset(*olmo_files, **OLMO, generate_doc_lengths=True)
    dataset.prepare()
    options = {"seq_len": L, "dtype": "uint16", "eos": EOS, "documents": told, "trainer": "olmo"}
    measured = measure("olmo", olmo_files, tmp_path / "out", **options)
    assert measured.rows == len(dataset)
    assert list(measured.exposure.counts) == by_bucket(walk_olmo(dataset))
    (weights,) = exact_prep.weigh(tmp_path / "out", tail_from=64, progress=False)
    lengths = [dataset[number]["doc_lens"] for number in range(len(dataset))]
    total = sum(weigh_rows(own, str(tmp_path / "out")).double().sum().item() for own in lengths)
    assert total == weights.sum_weights(Exposure.from_record(measured.exposure))


@pytest.mark.parametrize("told", ["eos", "index"])
@pytest.mark.parametrize("cut", ["fragment", "truncate"])
def test_olmo_packed(tmp_path, olmo_files, told, cut):
    from olmo_core.data import NumpyPackedFSLDataset
    from olmo_core.data.types import LongDocStrategy

    strategy = LongDocStrategy.fragment if cut == "fragment" else LongDocStrategy.truncate
    dataset = NumpyPackedFSLDataset(*olmo_files, **OLMO, generate_doc_lengths=True, long_doc_strategy=strategy)
    dataset.work_dir = tmp_path / "work"
    dataset.prepare()
    options = {"seq_len": L, "dtype": "uint16", "eos": EOS, "documents": told, "rows": cut}
    measured = measure("olmo", olmo_files, tmp_path / "out", **options)
    assert list(measured.exposure.counts) == by_bucket(walk_olmo(dataset))
    assert measured.rows <= len(dataset)


def test_olmo_drops_what_has_no_eos_from_its_index(tmp_path):
    framework("olmo_core.data")
    from olmo_core.data.utils import write_document_indices

    path = tmp_path / "cut.npy"
    np.concatenate([*DOCUMENTS[:50], np.arange(2, 40)]).astype(np.uint16).tofile(path)
    write_document_indices(path, dtype=np.uint16, eos_token_id=EOS)
    for told in ("index", "eos"):
        options = {"seq_len": L, "dtype": "uint16", "eos": EOS, "rows": "fragment", "documents": told}
        measured = measure("olmo", path, tmp_path / told, **options)
        assert measured.dropped == {"after the last EOS": 38}
        assert measured.documents == 50
