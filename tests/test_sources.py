"""Contract of every source: the same documents, whatever the format, the compression and the slicing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from exact_prep.config import SourceOptions
from exact_prep.sources import find_inputs, plan_tasks, read_task


def test_a_line_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(["one", "", "two\nlines"])))
    options = SourceOptions()
    files = find_inputs([str(path)], options).files
    [batch] = [batch for task in plan_tasks(files, options) for batch in read_task(task, files, options)]
    assert batch.texts == ["one", "two\nlines"]
    assert np.array_equal(batch.records, [0, 2])
    assert (batch.read, batch.empty, batch.bytes_read) == (3, 1, path.stat().st_size)
