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
    """`synthetic`, `text` (found on the machine), or the directory of a packed dataset."""
    data_checksum: str
    """Checksum of the dataset's weights.json, which also identifies its tokens; empty for synthetic data."""
    model: str
    """`small`, or the directory of a model."""
    device: str
    nolima: str
    """Directory of the NoLiMa needle set; empty without it."""
    harness: str = ""
    """Tasks of lm-evaluation-harness, joined by commas."""
    sweep: str = ""
    """Factors of the learning rate that uniform was tried with, joined by commas; empty if the rate is given."""
    sizes: dict[str, int | float]
    """Sizes of models, rows and schedules."""


class ItemSums(Record):
    """A measure by held-out item (row, document or question), so that intervals hold their noise."""

    sums: tuple[float, ...]
    counts: tuple[float, ...]


class Run(Record):
    """One arm with one seed."""

    settings: Settings
    arm: str
    seed: int
    lr: float
    """Largest learning rate of the schedule; 0 if the model was only measured."""
    steps: int
    tokens: int
    """Tokens of all rows that were read."""
    distinct_tokens: int
    """Of rows that are different: fewer if data repeat."""
    diverged: bool = False
    """Whether a loss or a measure was not a finite number; then there are no measures."""
    final_loss: float | None
    """Weighted training loss of the last step; None if it is not finite, or there was no step."""
    measures: dict[str, float]
    """By name: `context 256`, `loss 256-511`, `mixture short`, `recall 256-511`, `gain 768`, `match vt@1024`."""
    items: dict[str, ItemSums] = {}
    """By name of the measure; left out in results.json."""


class Level(Record):
    """What one arm reaches at one measure."""

    arm: str
    measure: str
    mean: float
    low: float
    """Lower end of the 95 % interval over seeds and items; over items alone for one seed. The mean if both are one."""
    high: float
    items: int
    """Held-out rows, documents or questions that have such targets."""
    targets: int
    seeds: int


class Difference(Record):
    """One arm minus another, for one measure, paired by seed and by held-out item."""

    arm: str
    against: str
    measure: str
    mean: float
    low: float
    """Lower end of the 95 % interval over seeds and items; equal to the mean for one seed, which has no interval."""
    high: float
    p: float | None
    """Two-sided, not corrected for the number of comparisons; None for one seed."""
    detectable: float | None
    """The smallest true difference that this comparison finds in four of five experiments (power 0.8)."""
    seeds: int
    reading: Literal["better", "worse", "shows nothing", "one seed", "at its floor", "at its ceiling"]
    """`at its floor` (or ceiling): the measure cannot show a difference in these models, so it is not interpreted."""


class Reading(Record):
    """Whether an EXACT arm helps at one measure, by the rule set before the run."""

    arm: str
    measure: str
    primary: bool
    """Whether this is the one primary measure; the others are a family of their own."""
    against: tuple[str, ...]
    """The controls: uniform, and the learning rate that matches the arm's mass (else any)."""
    p: float
    """The largest of the controls' p-values, since the arm must beat all of them; 1 if it is not above them all."""
    p_holm: float
    """Corrected by Holm's method for all readings of the family, over all EXACT arms."""
    helps: bool
    """Better than every control, and `p_holm` below 0.05."""


class SweepPoint(Record):
    """Uniform at one learning rate: the mean over seeds of the mixture's held-out loss."""

    factor: float
    lr: float
    loss: float | None
    """None if a run diverged."""
    seeds: int


class Results(Record):
    """The results of an experiment."""

    format_version: Literal[2] = 2
    settings: Settings
    parameters: int
    base_len: int
    seq_len: int
    tail_from: int
    tail_share: float
    primary: str
    """The measure that was named before the run: context gain at tau."""
    lr: float
    """The learning rate of all arms (1.05 times that, or more, in `lr`): the sweep's best."""
    sweep: tuple[SweepPoint, ...]
    bases: int
    base_tokens: int
    """Tokens that a base was trained on; 0 for a model from disk."""
    base_epochs: float
    """How often a base read each of its rows."""
    epochs: float
    """How often a run of normal length read each of its rows: above 1, data repeated."""
    tuning: int = 0
    """Rows kept apart to tune the learning rate on, with no document of those measured; 0: none were."""
    held_out: int
    """Rows or documents that everything is measured on."""
    held_out_tokens: int
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    levels: tuple[Level, ...] = ()
    """Of every arm and measure; empty in results of versions before them."""
    differences: tuple[Difference, ...]
    readings: tuple[Reading, ...]


def schema_file() -> bytes:
    """The JSON Schema of results.json, as committed in `schemas/`."""
    schema = Results.model_json_schema(mode="serialization")
    return canonical_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


if __name__ == "__main__":
    (Path(sys.argv[1]) / SCHEMA).write_bytes(schema_file())
