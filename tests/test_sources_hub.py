"""Laws of Hugging Face datasets that are streamed, on a local one; what the hub itself says is simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import datasets
import huggingface_hub
import pytest
from corpora import read_all, read_inputs

from exact_prep.errors import SourceError, UsageError
from exact_prep.records.options import SourceOptions
from exact_prep.sources import find_inputs, hub

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch) -> Path:
    """Four files of 25 rows in split train, one in split test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for i in range(4):
        rows = ({"id": j, "text": f"row {i} {j}", "ids": [i, j + 1]} for j in range(25))
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"train-{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "set" / "test.jsonl").write_text('{"id": 0, "text": "for the test", "ids": [1]}\n')
    return tmp_path / "set"


def test_a_task_is_a_shard(dataset: Path) -> None:
    inputs = find_inputs([f"hf://{dataset}"], SourceOptions())
    assert [(file.path, file.bytes, file.format) for file in inputs.files] == [(f"hf://{dataset}", 0, "hub")]
    tasks = inputs.plan_tasks()
    assert [[(one.start, one.stop) for one in task] for task in tasks] == [[(i, i + 1)] for i in range(4)]
    read = read_all(inputs)
    assert read.documents == [(i, j, f"row {i} {j}") for i in range(4) for j in range(25)]


def test_splits_and_ids(dataset: Path) -> None:
    assert read_inputs(f"hf://{dataset}:test").texts == ["for the test"]
    read = read_inputs(f"hf://{dataset}", ids_field="ids")
    assert read.ids == [(i, j, [i, j + 1]) for i in range(4) for j in range(25)]


def test_bad_rows_are_named(dataset: Path) -> None:
    (dataset / "train-2.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    with pytest.raises(SourceError, match=r"hf://.*/set shard 2, row 1: column 'text' is null"):
        read_inputs(f"hf://{dataset}")
    read = read_inputs(f"hf://{dataset}", on_error="reject")
    assert [(bad.source[-7:], bad.place) for bad in read.rejected] == [("shard 2", "row 1")]
    with pytest.raises(SourceError, match="there is no column 'body'"):
        read_inputs(f"hf://{dataset}", text_field="body")


def test_what_fails_on_the_way_stops_the_run_even_if_bad_documents_do_not(dataset: Path) -> None:
    (dataset / "train-3.jsonl").write_text('{"text": "a"}\nno json\n')
    with pytest.raises(SourceError, match=r"reading hf://.* shard 3 failed: .*;\ncheck the network"):
        read_inputs(f"hf://{dataset}", on_error="reject")


def test_a_sample_can_be_had(dataset: Path) -> None:
    inputs = find_inputs([f"hf://{dataset}"], SourceOptions())
    assert "row 0 0" in inputs.sample_texts()


def test_what_cannot_be_opened_is_told_in_a_line(dataset: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^hf://.*:dev cannot be opened: .*\ncheck the name, the split and the network"
    ):
        find_inputs([f"hf://{dataset}:dev"], SourceOptions())
    for named in ("hf://", "hf://a/b/c/d/e", "hf://a b"):
        with pytest.raises(UsageError, match="is not the name of a dataset"):
            find_inputs([named], SourceOptions())


def test_without_a_network_one_line_says_so() -> None:
    program = """if True:
        from exact_prep.records.options import SourceOptions
        from exact_prep.errors import UsageError
        from exact_prep.sources import find_inputs
        try:
            find_inputs(["hf://owner/name:train"], SourceOptions())
        except UsageError as error:
            print(error)
    """
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert result.stdout.startswith("hf://owner/name:train cannot be opened: ")
    assert result.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("hf://owner/name", ("owner/name", None, None, "train")),
        ("hf://name:test", ("name", None, None, "test")),
        ("hf://owner/name/config-1.0:validation", ("owner/name", None, "config-1.0", "validation")),
        ("hf://owner/name@v1.0/en", ("owner/name", "v1.0", "en", "train")),
    ],
)
def test_a_hub_name_is_pinned_to_its_commit(monkeypatch, named: str, address: tuple[str | None, ...]) -> None:
    asked = []

    def dataset_info(_: object, name: str, *, revision: str | None) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha="0123abc")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    name, revision, config, split = address
    [file] = find_inputs([named], SourceOptions()).files
    assert asked == [(name, revision)]
    assert hub.parse(file.path) == (name, "0123abc", config, split, False)
