"""What an experiment found, as records: runs, paired differences, readings. `results.json` is this."""

from __future__ import annotations

from typing import Literal

from exact_prep.config import Record


class Settings(Record):
    """What all runs of an experiment share."""

    tool_version: str
    tier: str
    data: str
    """`synthetic`, or a packed dataset."""
    model: str
    """`small`, or a model directory."""
    device: str


class Run(Record):
    """One arm with one seed."""

    settings: Settings
    arm: str
    seed: int
    steps: int
    final_loss: float
    """Weighted training loss of the last step."""
    measures: dict[str, float]
    """By name: `loss 256-511`, `recall 256-511`, `gain 768`, `match vt@1024`."""


class Difference(Record):
    """An arm less another, paired by seed."""

    arm: str
    against: str
    measure: str
    mean: float
    low: float
    """Lower end of the 95 % t-interval over seeds; equal to the mean with one seed, which has none."""
    high: float
    seeds: int
    reading: Literal["better", "worse", "shows nothing", "one seed"]


class Reading(Record):
    """Whether an EXACT arm is said to help, by the rule decided before the run."""

    arm: str
    measure: str
    helps: bool
    """Better than both uniform and lr, each with an interval that excludes zero."""


class Results(Record):
    """An experiment."""

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
