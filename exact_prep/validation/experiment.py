"""An experiment: a base per seed, every arm continued from it, measured, compared. Restartable run by run.

    OUT/experiment.json          what is run; another experiment in the same place is refused
    OUT/base-<seed>.pt           the base of a seed
    OUT/run-<arm>-<seed>.json    a finished run, written last
    OUT/models/<arm>-<seed>/     trained Hugging Face models with their tokenizers, for other evaluations
    OUT/results.json             all runs, differences, readings

All arms of a seed start from the same base and see the same batches in the same order.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from exact_prep.engines import run as run_items
from exact_prep.errors import UsageError
from exact_prep.stores.local import explained, load, make_directory, save
from exact_prep.validation import compare
from exact_prep.validation.arms import make_arm
from exact_prep.validation.batches import Batch, Batches
from exact_prep.validation.huggingface import CausalLM
from exact_prep.validation.measures import measure, tell_of_text_suite
from exact_prep.validation.plan import Job
from exact_prep.validation.results import Results, Run, Settings
from exact_prep.validation.synthetic import SyntheticStream
from exact_prep.validation.train import Schedule, train
from exact_prep.weighing.exposure import bucket_edges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.engines import Meter
    from exact_prep.validation.corpus import CorpusStream
    from exact_prep.validation.plan import Experiment

CLAIM = "experiment.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Shortened:
    """A stream with segments cut every `length` tokens: what a base sees of a corpus packed for longer rows."""

    stream: CorpusStream
    length: int

    def batch(self, step: int) -> Batch:
        """The batch of a step, no context longer than `length`."""
        whole = self.stream.batch(step)
        rows = torch.arange(0, int(whole.edges[-1]) + 1, self.length)
        edges = torch.cat([whole.edges, rows]).unique()
        supervised = whole.supervised.clone()
        supervised[edges[:-1]] = False
        return Batch(whole.ids, edges, supervised)


def choose_device(asked: str) -> str:
    """The device for `auto`, `cpu` or `cuda`; raises UsageError if it is not there."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no such device here; leave it out to train on the CPU")
    return asked if asked != "auto" else "cuda" if there else "cpu"


def work(job: Job, meter: Meter) -> None:
    """Run one job, unless it is done."""
    # One thread: bitwise reproducible, and runs share the cores instead.
    torch.set_num_threads(1)
    own = replace(job)  # what it keeps at hand goes with it
    if not own.path.exists():
        train_base(own) if own.arm is None else run_arm(own, own.arm)
    meter.add(1)


def train_base(job: Job) -> None:
    """Train the small decoder on short rows and keep it."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    rows = tier.tokens_per_step // tier.base_len
    stream: Batches
    if experiment.data is None:
        stream = SyntheticStream(seq_len=tier.base_len, rows_per_step=rows, steps=tier.base_steps, seed=1000 + job.seed)
    else:
        stream = Shortened(job.corpus[0], tier.base_len)
    arm = make_arm("uniform", job.stream.exposure, max(tier.base_len, job.stream.seq_len), tier.base_len)
    checkpoint = job.path.with_name(f"base-{job.seed}.checkpoint")
    schedule = Schedule(steps=tier.base_steps, lr=tier.base_lr)
    train(model, stream, arm, schedule, device=experiment.device, checkpoint=checkpoint)
    temporary = job.path.with_suffix(".tmp")
    with explained("write", job.path):
        torch.save(model.state_dict(), temporary)
        temporary.replace(job.path)
        checkpoint.unlink(missing_ok=True)


def run_arm(job: Job, name: str) -> None:
    """Continue the base as one arm says, measure, and save the run."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    if experiment.model is None:
        model.load_state_dict(torch.load(experiment.out / f"base-{job.seed}.pt", weights_only=True))
    arm = job.make_arm(name)
    checkpoint = job.path.with_suffix(".checkpoint")
    schedule = Schedule(steps=tier.steps, lr=tier.lr)
    losses = train(model, job.stream, arm, schedule, device=experiment.device, checkpoint=checkpoint)
    if isinstance(model, CausalLM) and experiment.model is not None:
        keep(model, experiment.model, experiment.out / "models" / f"{name}-{job.seed}")
    record = Run(
        settings=experiment.settings,
        arm=name,
        seed=job.seed,
        steps=round(tier.steps * arm.steps_factor),
        final_loss=losses[-1],
        measures=measure(job, model),
    )
    save(record, job.path)
    checkpoint.unlink(missing_ok=True)


def keep(model: CausalLM, origin: Path, directory: Path) -> None:
    """Save a trained Hugging Face model beside the tokenizer it came with: what lm_eval and others load."""
    with explained("write", directory):
        model.model.save_pretrained(directory)  # type: ignore[operator]
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, directory / name)


def run_experiment(
    experiment: Experiment, *, workers: int = 1, told: Callable[[str], None] = lambda line: None
) -> Results:
    """Run what is missing and write results.json; raises UsageError, StorageError, WorkerError."""
    make_directory(experiment.out)
    arms = tuple(dict.fromkeys(("uniform", *experiment.arms)))
    first = Job(experiment, "uniform", experiment.seeds[0])
    for arm in arms:
        first.make_arm(arm)  # a wrong name ends here, not after an hour
    if not (experiment.out / CLAIM).exists():
        first.new_model()  # so does a wrong path, before it takes the place
    claim(experiment)
    tell_of_text_suite(experiment, told)
    jobs = [Job(experiment, arm, seed) for seed in experiment.seeds for arm in arms]
    bases = [Job(experiment, None, seed) for seed in experiment.seeds] if experiment.model is None else []
    for batch in (bases, jobs):
        missing = [job for job in batch if not job.path.exists()]
        if len(missing) < len(batch):
            told(f"{len(batch) - len(missing)} of {len(batch)} runs were done already")
        for count, (index, _) in enumerate(run_items(work, missing, workers=workers, name=lambda job: job.name), 1):
            told(f"{missing[index].name}: done ({count} of {len(missing)})")
    results = results_of(experiment, arms, [load(Run, job.path) for job in jobs], first)
    save(results, experiment.out / "results.json")
    return results


def claim(experiment: Experiment) -> None:
    """Take `out` for this experiment, or find it taken by the same one; raises UsageError if by another.

    Bases and checkpoints carry no settings of their own: this file vouches for them.
    """
    path = experiment.out / CLAIM
    if not path.exists():
        save(experiment.settings, path)
        return
    there, here = load(Settings, path).model_dump(), experiment.settings.model_dump()
    if different := [name for name in here if here[name] != there[name]]:
        raise UsageError(f"{path} is of another experiment ({', '.join(different)} differ); choose another --out")


def results_of(experiment: Experiment, arms: tuple[str, ...], runs: list[Run], job: Job) -> Results:
    """Runs and what follows from them."""
    found = compare.differences(runs)
    exposure = job.stream.exposure
    tail = exposure.counts[bucket_edges(exposure.counts.size)[:-1] >= job.tail_from].sum()
    return Results(
        settings=experiment.settings,
        parameters=sum(p.numel() for p in job.new_model().parameters()),
        base_len=experiment.tier.base_len,
        seq_len=job.stream.seq_len,
        tail_from=job.tail_from,
        tail_share=float(tail / exposure.targets),
        arms=arms,
        seeds=experiment.seeds,
        runs=tuple(runs),
        differences=found,
        readings=compare.readings(found, job.tail_from),
    )
