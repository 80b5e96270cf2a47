"""The records in `results.json`: settings, runs, paired differences, readings.

`python -m exact_prep.validation.results DIR` writes its JSON Schema.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from exact_prep.records import Record, canonical_json

SCHEMA = "results.schema.json"


class Settings(Record):
    """The settings that all runs of an experiment share; written to `experiment.json` before anything else."""

    tool_version: str
    tier: str
    data: str
    """`synthetic`, or the directory of a packed dataset."""
    data_checksum: str
    """Checksum of the dataset's weights.json, which also identifies its tokens; empty for synthetic data."""
    model: str
    """`small`, or the directory of a model."""
    device: str
    nolima: str
    """Directory of the NoLiMa needle set; empty without it."""
    harness: str = ""
    """Tasks of lm-evaluation-harness, joined by commas."""
    sizes: dict[str, int | float]
    """Sizes of models, rows and schedules."""


class Run(Record):
    """One arm with one seed."""

    settings: Settings
    arm: str
    seed: int
    steps: int
    final_loss: float
    """Weighted training loss of the last step."""
    measures: dict[str, float]
    """By name: `loss 256-511`, `mixture short`, `recall 256-511`, `gain 768`, `match vt@1024`."""


class Difference(Record):
    """One arm minus another, for one measure, paired by seed."""

    arm: str
    against: str
    measure: str
    mean: float
    low: float
    """Lower end of the 95 % t-interval over seeds; equal to the mean if there is only one seed, thus no interval."""
    high: float
    seeds: int
    reading: Literal["better", "worse", "shows nothing", "one seed"]


class Reading(Record):
    """Whether an EXACT arm helps at one measure, by the rule set before the run."""

    arm: str
    measure: str
    helps: bool
    """Better than both uniform and lr, each with an interval that excludes zero."""


class Results(Record):
    """The results of an experiment."""

    format_version: Literal[1] = 1
    settings: Settings
    parameters: int
    base_len: int
    seq_len: int
    tail_from: int
    tail_share: float
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    readings: tuple[Reading, ...]


def schema_file() -> bytes:
    """The JSON Schema of results.json, as committed in `schemas/`."""
    schema = Results.model_json_schema(mode="serialization")
    return canonical_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


if __name__ == "__main__":
    (Path(sys.argv[1]) / SCHEMA).write_bytes(schema_file())
