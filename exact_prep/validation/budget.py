"""Makes an experiment as large as the time allows: measures rates on this machine, and scales the steps of all runs.

The scaled steps are in experiment.json, so the same command continues the same experiment.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from exact_prep.errors import UsageError
from exact_prep.stores.local import load
from exact_prep.validation.arms import Arm
from exact_prep.validation.jobs import Job
from exact_prep.validation.measurements import measure
from exact_prep.validation.results import Settings
from exact_prep.validation.training import Schedule, count_steps, train

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from exact_prep.validation.jobs import Experiment
    from exact_prep.validation.training_batches import Batches

SHARE = 0.85
"""Of the time that is planned for: the rest is for data, loading and what was not foreseen."""
TIMED_STEPS = 5
LEAST_STEPS = 20


def fit_to_time(experiment: Experiment, claim: Path, minutes: float, workers: int) -> Experiment:
    """The experiment with fewer steps, if it would take more than `minutes`; raises UsageError if even few take more.

    An experiment that was begun keeps its steps, whatever `minutes` is now.
    """
    tier = experiment.tier
    if claim.exists():
        sizes = load(Settings, claim).sizes
        kept = replace(tier, base_steps=int(sizes["base_steps"]), steps=int(sizes["steps"]))
        return replace(experiment, tier=kept)
    torch.set_num_threads(1)  # as runs do
    job = Job(experiment, "uniform", experiment.seeds[0])
    model = job.new_model()
    short = time_steps(job, model, job.base_stream()) if experiment.model is None else 0.0
    long = time_steps(job, model, job.stream)
    measure(job, model)  # compiles what is compiled
    runs = len({"uniform", *experiment.arms}) * len(experiment.seeds)
    tried = len(tier.sweep) * len(experiment.seeds[:2])
    bases = len({seed % tier.bases for seed in experiment.seeds}) if experiment.model is None else 0
    longest = sum(count_steps(tier.steps, job.make_arm(arm)) for arm in experiment.arms) * len(experiment.seeds)
    training = bases * tier.base_steps * short + (longest + tried * tier.steps) * long
    measuring = runs * time_measuring(job, model)
    if tried:
        measuring += tried * time_measuring(replace(job, sweeps=True), model)
    left = SHARE * minutes * 60 * workers - measuring
    factor = min(left / training, 1.0) if training else 1.0
    steps, base_steps = int(tier.steps * factor), int(tier.base_steps * factor)
    if steps < LEAST_STEPS <= tier.steps:
        needed = (measuring + training * LEAST_STEPS / tier.steps) / (SHARE * 60 * workers)
        raise UsageError(
            f"--minutes {minutes:g}: {runs + tried} runs of at least {LEAST_STEPS} steps take {needed:.0f} minutes on "
            "this machine; give more, or fewer --arms or --seeds"
        )
    return replace(experiment, tier=replace(tier, steps=steps, base_steps=base_steps))


def time_measuring(job: Job, model: nn.Module) -> float:
    """Seconds that the measures of one run take; a run of the sweep has fewer."""
    begun = time.monotonic()
    measure(job, model)
    return time.monotonic() - begun


def time_steps(job: Job, model: nn.Module, stream: Batches) -> float:
    """Seconds of a training step, after one that is not timed."""
    arm, schedule = Arm(name="uniform", lut=torch.ones(1 << 20)), Schedule(steps=TIMED_STEPS + 1, lr=1e-6)
    batches = list(islice(stream.batches(0), TIMED_STEPS + 1))
    ends: list[float] = []

    class Kept:
        def batches(self, first: int):
            return iter(batches[first:])

    train(model, Kept(), arm, schedule, device=job.experiment.device, progressed=lambda: ends.append(time.monotonic()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)
