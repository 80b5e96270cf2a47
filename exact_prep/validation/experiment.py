"""Runs an experiment: trains bases, tunes uniform, continues the bases with every arm, measures and compares.

    OUT/text/                         text found on the machine, packed and weighed
    OUT/experiment.json               the settings; another experiment in the same directory is refused
    OUT/base-<number>.pt              a base
    OUT/sweep-<factor>-<seed>.json    uniform at one learning rate
    OUT/run-<arm>-<seed>.json         a finished run with its measures by item, written last
    OUT/models/<arm>-<seed>/          trained Hugging Face models with their tokenizers, if they are saved
    OUT/results.json                  all runs, differences and readings

All arms of a seed start from the same base and see the same batches in the same order. An interrupted experiment
continues: finished runs are kept, unfinished ones continue from their last checkpoint.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from exact_prep.errors import UsageError
from exact_prep.pipeline.events import Finished, Note, Phase, Progress, ignore
from exact_prep.pipeline.runs import TaskRun
from exact_prep.stores.local import explained, load, make_directory, save
from exact_prep.validation.arms import Arm
from exact_prep.validation.budget import fit_to_time
from exact_prep.validation.differences import TUNED, compare_arms, find_levels, name_primary, read_differences
from exact_prep.validation.huggingface_model import CausalLM
from exact_prep.validation.items import take_means
from exact_prep.validation.jobs import Job, prepare_data
from exact_prep.validation.measurements import check_text_suite, count_questions, measure
from exact_prep.validation.results import ItemSums, Results, Run, Settings, SweepPoint
from exact_prep.validation.training import Schedule, count_steps, train
from exact_prep.weighing.context import bucket_edges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from exact_prep.engines import Meter
    from exact_prep.pipeline.events import Emit, Event
    from exact_prep.validation.jobs import Experiment

CLAIM = "experiment.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def choose_device(asked: str) -> str:
    """The device for `auto`, `cpu` or `cuda`; raises UsageError if it is not available."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no CUDA device; leave the option out to train on the CPU")
    return asked if asked != "auto" else "cuda" if available else "cpu"


def run_job(job: Job, meter: Meter) -> None:
    """Run one job, unless it is done already."""
    torch.set_num_threads(job.experiment.threads)
    own = replace(job)  # a copy: its cached data are freed after the job
    if not own.path.exists():
        train_base(own, meter) if own.arm is None else run_arm(own, own.arm, meter)


def train_base(job: Job, meter: Meter) -> None:
    """Train the small decoder on short rows and save it as the base of its number."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    arm = Arm(name="uniform", lut=torch.ones(max(tier.base_len, tier.seq_len, job.stream.seq_len)))
    checkpoint = job.path.with_suffix(".checkpoint")
    train(
        model,
        job.base_stream(),
        arm,
        Schedule(steps=tier.base_steps, lr=job.lr),
        device=experiment.device,
        checkpoint=checkpoint,
        every=tier.checkpoint_every,
        progressed=lambda: meter.add(1, tier.tokens_per_step),
    )
    temporary = job.path.with_suffix(".tmp")
    with explained("write", job.path):
        torch.save(model.state_dict(), temporary)
        temporary.replace(job.path)
        checkpoint.unlink(missing_ok=True)


def run_arm(job: Job, name: str, meter: Meter) -> None:
    """Continue the base with one arm, measure the model, and save the run."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    if experiment.model is None and tier.base_steps:
        model.load_state_dict(torch.load(job.base.path, weights_only=True))
    arm = job.make_arm(name)
    stream, steps = job.arm_stream(arm), count_steps(tier.steps, arm)
    checkpoint = job.path.with_suffix(".checkpoint")
    losses = train(
        model,
        stream,
        arm,
        Schedule(steps=tier.steps, lr=job.lr),
        device=experiment.device,
        checkpoint=checkpoint,
        every=tier.checkpoint_every,
        progressed=lambda: meter.add(1, tier.tokens_per_step),
    )
    diverged = not all(map(math.isfinite, losses))
    measures, items = ({}, {}) if diverged else take_measures(job, model, meter)
    if isinstance(model, CausalLM) and experiment.model is not None and experiment.save_models and not job.sweeps:
        save_model(model, experiment.model, experiment.out / "models" / f"{name}-{job.seed}")
    rows = steps * stream.rows_per_step
    record = Run(
        settings=experiment.settings,
        arm=name,
        seed=job.seed,
        lr=job.lr * arm.lr_factor if steps else 0.0,
        steps=steps,
        tokens=rows * stream.seq_len,
        distinct_tokens=stream.count_distinct(rows) * stream.seq_len,
        diverged=not measures,
        final_loss=losses[-1] if losses and math.isfinite(losses[-1]) else None,
        measures=measures,
        items=items,
    )
    save(record, job.path)
    checkpoint.unlink(missing_ok=True)


def take_measures(job: Job, model: nn.Module, meter: Meter) -> tuple[dict[str, float], dict[str, ItemSums]]:
    """All measures of a trained model, and those by item; nothing if one is not a finite number: it diverged.

    The progress of training is that of its steps; where there are none, that of what is measured.
    """

    def measured(tokens: int) -> None:
        if not job.experiment.tier.steps:
            meter.add(1, tokens)

    meter.add(0)  # measuring begins
    by_item, plain = measure(job, model, measured)
    means = take_means(by_item) | plain
    if not all(map(math.isfinite, means.values())):
        return {}, {}
    items = {
        name: ItemSums(sums=tuple(own.sums.tolist()), counts=tuple(own.counts.tolist()))
        for name, own in by_item.items()
    }
    return means, items


def save_model(model: CausalLM, origin: Path, directory: Path) -> None:
    """Save a trained Hugging Face model with the tokenizer files of `origin`, for lm_eval and other tools."""
    with explained("write", directory):
        model.model.save_pretrained(directory)  # type: ignore[operator]
        home = origin if origin.is_dir() else origin.parent
        for name in TOKENIZER_FILES:
            if (home / name).is_file():
                shutil.copyfile(home / name, directory / name)


def run_experiment(
    experiment: Experiment, *, workers: int = 1, minutes: float | None = None, emit: Emit = ignore
) -> Results:
    """Run the missing runs and write results.json; `emit` receives events. `minutes` scales steps to the time there is.

    Raises UsageError, StorageError, WorkerError.
    """
    make_directory(experiment.out)
    experiment = prepare_data(experiment, emit)
    if minutes is not None:
        emit(Phase(text="measuring how fast this machine is"))
        experiment = fit_to_time(experiment, experiment.out / CLAIM, minutes, workers)
    arms, seeds = tuple(dict.fromkeys(("uniform", *experiment.arms))), experiment.seeds
    if not experiment.tier.steps:  # one model, measured once
        arms, seeds, experiment = ("uniform",), seeds[:1], replace(experiment, threads=workers)
    first = Job(experiment, "uniform", seeds[0])
    for arm in arms:
        first.arm_stream(first.make_arm(arm))  # a wrong name fails here, not after an hour
    if (experiment.out / CLAIM).exists():
        claim(experiment)  # refuses another experiment before its model is loaded
    parameters = sum(p.numel() for p in first.new_model().parameters())  # a wrong path fails here, before the claim
    claim(experiment)
    check_text_suite(experiment, lambda line: emit(Note(text=line)))
    describe_data(first, lambda line: emit(Note(text=line)))
    trains = experiment.model is None and experiment.tier.base_steps > 0
    bases = sorted({seed % experiment.tier.bases for seed in seeds}) if trains else []
    run_jobs("base models", [Job(experiment, None, base) for base in bases], workers, emit)
    factors = experiment.tier.sweep if experiment.tier.steps else ()
    tried = [Job(experiment, "uniform", seed, factor, sweeps=True) for seed in seeds[:2] for factor in factors]
    run_jobs("learning rates", tried, workers, emit)
    sweep = read_sweep(experiment, [(job.factor, load(Run, job.path)) for job in tried])
    factor = choose_factor(sweep)
    if sweep:
        emit(
            Note(text=f"uniform does best at a learning rate of {experiment.tier.lr * factor:g}: all arms train there")
        )
    jobs = [Job(experiment, arm, seed, factor) for seed in seeds for arm in arms]
    run_jobs("arms" if experiment.tier.steps else "measuring", jobs, workers, emit)
    emit(Finished())
    runs = [load(Run, job.path) for job in jobs]
    results = make_results(experiment, arms, seeds, runs, replace(first, factor=factor), sweep, parameters)
    save(results, experiment.out / "results.json")
    return results


def describe_data(job: Job, notify: Callable[[str], None]) -> None:
    """Notify of data that are read more than once, and of rows that no part of the experiment reads."""
    if job.experiment.data is None:
        return
    tier, corpus = job.experiment.tier, job.corpus
    if corpus.tuning:
        notify(
            f"{len(corpus.held_out):,} rows are measured; the learning rate is tuned on {len(corpus.tuning):,} others, "
            "which share no document with them"
        )
    if corpus.left_out:
        notify(f"{corpus.left_out:,} rows are left out: they hold more of documents that are held out")
    base_epochs, epochs = count_epochs(job)
    for what, number in (
        (f"a base of {tier.base_steps} steps", base_epochs),
        (f"an arm of {tier.steps} steps", epochs),
    ):
        if number > 1:
            notify(f"{what} reads its rows {number:.1f} times: the data are few for this tier")


def count_epochs(job: Job) -> tuple[float, float]:
    """How often a base reads each of its rows, and an arm of normal length each of its own."""
    tier, stream = job.experiment.tier, job.stream
    tokens = tier.steps * stream.rows_per_step * stream.seq_len
    if job.experiment.data is None:
        return (1.0 if tier.base_steps else 0.0), 1.0
    base, arms = len(job.corpus.base) * stream.seq_len, len(job.corpus.arms) * stream.seq_len
    return (tier.base_steps * tier.tokens_per_step / base if base else 0.0), tokens / arms if tokens else 0.0


def run_jobs(what: str, jobs: list[Job], workers: int, emit: Emit) -> None:
    """Run the jobs that have no result yet."""
    if not jobs:
        return
    finished = [index for index, job in enumerate(jobs) if job.path.exists()]
    tier = jobs[0].experiment.tier
    steps = tier.base_steps if jobs[0].arm is None else tier.steps
    if not steps:
        emit = foretell(jobs[0], emit)
    size = steps or max(sum(count_measured(jobs[0])), 1)
    run = TaskRun(what, [size] * len(jobs), finished, emit=emit, unit="tasks")
    missing = {index: jobs[index] for index in run.missing}
    if missing and steps:
        emit(Note(text=f"{what}: {len(missing)} of {len(jobs)} to train, {steps} steps each"))
    for count, (index, _) in enumerate(
        run.each(run_job, missing, name=lambda job: job.name, workers=workers), len(finished) + 1
    ):
        emit(Note(text=f"{jobs[index].name}: done ({count} of {len(jobs)})"))


def count_measured(job: Job) -> tuple[int, int]:
    """Held-out rows of text that a job measures, and questions of the text suite."""
    rows = 0 if job.experiment.data is None else len(job.corpus.held_out)
    return rows, count_questions(job.experiment)


def foretell(job: Job, emit: Emit) -> Emit:
    """Passes the events of a job that only measures on; says after its first row how long all of them take."""
    rows, questions = count_measured(job)
    times: list[float] = []

    def watch(event: Event) -> None:
        emit(event)
        if isinstance(event, Progress):
            times.append(time.monotonic())
            if len(times) == 2:
                took = times[1] - times[0]
                text = f"a held-out row took {took:.1f} s: all {rows} take about {rows * took / 60:.1f} minutes"
                if questions:
                    text += f"; then come {questions} questions of the text suite (--no-text-suite leaves them out)"
                emit(Note(text=text))

    return watch


def read_sweep(experiment: Experiment, runs: list[tuple[float, Run]]) -> tuple[SweepPoint, ...]:
    """What uniform reached at each learning rate."""
    points = []
    for factor in dict.fromkeys(factor for factor, _ in runs):
        own = [run for known, run in runs if known == factor]
        losses = [run.measures[TUNED] for run in own if not run.diverged]
        loss = statistics.fmean(losses) if len(losses) == len(own) else None
        points.append(SweepPoint(factor=factor, lr=experiment.tier.lr * factor, loss=loss, seeds=len(own)))
    return tuple(points)


def choose_factor(sweep: tuple[SweepPoint, ...]) -> float:
    """The factor with the lowest loss, 1 without a sweep; raises UsageError if uniform diverged at all of them."""
    known = [(point.loss, point.factor) for point in sweep if point.loss is not None]
    if sweep and not known:
        raise UsageError(
            f"uniform diverged at every learning rate from {sweep[0].lr:g} to {sweep[-1].lr:g}; give a lower --lr"
        )
    return min(known)[1] if known else 1.0


def claim(experiment: Experiment) -> None:
    """Claim `out` for this experiment; raises UsageError if it belongs to another experiment.

    Bases and checkpoints do not store their settings; experiment.json stores them for all files in `out`.
    """
    path = experiment.out / CLAIM
    if not path.exists():
        save(experiment.settings, path)
        return
    there, here = load(Settings, path).model_dump(), experiment.settings.model_dump()
    if different := [name for name in here if here[name] != there[name]]:
        raise UsageError(f"{path} belongs to another experiment ({', '.join(different)} differ); choose another --out")


def make_results(
    experiment: Experiment,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    runs: list[Run],
    job: Job,
    sweep: tuple[SweepPoint, ...],
    parameters: int,
) -> Results:
    """Compare the runs and make the record of the experiment."""
    tier, stream, exposure = experiment.tier, job.stream, job.stream.exposure
    found = compare_arms(runs)
    tail = exposure.counts[bucket_edges(exposure.counts.size)[:-1] >= job.tail_from].sum()
    base_epochs, epochs = count_epochs(job)
    held_out = tier.held_out if experiment.data is None else len(job.corpus.held_out)
    return Results(
        settings=experiment.settings,
        parameters=parameters,
        base_len=tier.base_len,
        seq_len=stream.seq_len,
        tail_from=job.tail_from,
        tail_share=float(tail / exposure.targets),
        primary=name_primary(job.tail_from),
        lr=job.lr,
        sweep=sweep,
        bases=len({seed % tier.bases for seed in seeds}),
        base_tokens=tier.base_steps * tier.tokens_per_step if experiment.model is None else 0,
        base_epochs=base_epochs,
        epochs=epochs,
        tuning=len(job.corpus.tuning) if experiment.data is not None else tier.held_out if sweep else 0,
        held_out=held_out,
        held_out_tokens=held_out * stream.seq_len * (2 if experiment.data is None else 1),
        arms=arms,
        seeds=seeds,
        runs=tuple(run.model_copy(update={"items": {}}) for run in runs),
        levels=find_levels(runs),
        differences=found,
        readings=read_differences(found, job.tail_from),
    )
