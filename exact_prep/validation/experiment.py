"""Runs an experiment: trains a base per seed, continues it with every arm, measures and compares the results.

    OUT/experiment.json          the settings; another experiment in the same directory is refused
    OUT/base-<seed>.pt           the base of a seed
    OUT/run-<arm>-<seed>.json    a finished run, written last
    OUT/models/<arm>-<seed>/     trained Hugging Face models with their tokenizers, for other evaluations
    OUT/results.json             all runs, differences and readings

All arms of a seed start from the same base and see the same batches in the same order. An interrupted experiment
continues: finished runs are kept, unfinished ones continue from their last checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from exact_prep.errors import UsageError
from exact_prep.pipeline.events import Finished, Note, ignore
from exact_prep.pipeline.runs import TaskRun
from exact_prep.stores.local import explained, load, make_directory, save
from exact_prep.validation.arms import make_arm
from exact_prep.validation.differences import compare_arms, read_differences
from exact_prep.validation.huggingface_model import CausalLM
from exact_prep.validation.jobs import Job
from exact_prep.validation.measurements import check_text_suite, measure
from exact_prep.validation.results import Results, Run, Settings
from exact_prep.validation.synthetic_data import SyntheticStream
from exact_prep.validation.training import Schedule, train
from exact_prep.validation.training_batches import Batch, Batches
from exact_prep.weighing.context import bucket_edges

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.engines import Meter
    from exact_prep.pipeline.events import Emit
    from exact_prep.validation.jobs import Experiment
    from exact_prep.validation.packed_data import CorpusStream

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
class ShortenedStream:
    """A stream with segments cut every `length` tokens: how a base sees a corpus that was packed into longer rows."""

    stream: CorpusStream
    length: int

    def batch(self, step: int) -> Batch:
        """The batch of a step; no context is longer than `length`."""
        whole = self.stream.batch(step)
        rows = torch.arange(0, int(whole.edges[-1]) + 1, self.length)
        edges = torch.cat([whole.edges, rows]).unique()
        supervised = whole.supervised.clone()
        supervised[edges[:-1]] = False
        return Batch(whole.ids, edges, supervised)


def choose_device(asked: str) -> str:
    """The device for `auto`, `cpu` or `cuda`; raises UsageError if it is not available."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no CUDA device; leave the option out to train on the CPU")
    return asked if asked != "auto" else "cuda" if available else "cpu"


def run_job(job: Job, meter: Meter) -> None:
    """Run one job, unless it is done already."""
    # One thread per run is bitwise reproducible; the cores are used by parallel runs instead.
    torch.set_num_threads(1)
    own = replace(job)  # a copy: its cached data are freed after the job
    if not own.path.exists():
        train_base(own) if own.arm is None else run_arm(own, own.arm)
    meter.add(1)


def train_base(job: Job) -> None:
    """Train the small decoder on short rows and save it as the base of its seed."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    rows = tier.tokens_per_step // tier.base_len
    stream: Batches
    if experiment.data is None:
        stream = SyntheticStream(seq_len=tier.base_len, rows_per_step=rows, steps=tier.base_steps, seed=1000 + job.seed)
    else:
        stream = ShortenedStream(job.corpus[0], tier.base_len)
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
    """Continue the base with one arm, measure the model, and save the run."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    if experiment.model is None:
        model.load_state_dict(torch.load(experiment.out / f"base-{job.seed}.pt", weights_only=True))
    arm = job.make_arm(name)
    checkpoint = job.path.with_suffix(".checkpoint")
    schedule = Schedule(steps=tier.steps, lr=tier.lr)
    losses = train(model, job.stream, arm, schedule, device=experiment.device, checkpoint=checkpoint)
    if isinstance(model, CausalLM) and experiment.model is not None:
        save_model(model, experiment.model, experiment.out / "models" / f"{name}-{job.seed}")
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


def save_model(model: CausalLM, origin: Path, directory: Path) -> None:
    """Save a trained Hugging Face model with the tokenizer files of `origin`, for lm_eval and other tools."""
    with explained("write", directory):
        model.model.save_pretrained(directory)  # type: ignore[operator]
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, directory / name)


def run_experiment(experiment: Experiment, *, workers: int = 1, emit: Emit = ignore) -> Results:
    """Run the missing runs and write results.json; `emit` receives events.

    Raises UsageError, StorageError, WorkerError.
    """
    make_directory(experiment.out)
    arms = tuple(dict.fromkeys(("uniform", *experiment.arms)))
    first = Job(experiment, "uniform", experiment.seeds[0])
    for arm in arms:
        first.make_arm(arm)  # a wrong name fails here, not after an hour
    if not (experiment.out / CLAIM).exists():
        first.new_model()  # a wrong path fails here, before the output directory is claimed
    claim(experiment)
    check_text_suite(experiment, lambda line: emit(Note(text=line)))
    jobs = [Job(experiment, arm, seed) for seed in experiment.seeds for arm in arms]
    bases = [Job(experiment, None, seed) for seed in experiment.seeds] if experiment.model is None else []
    for what, batch in (("base models", bases), ("arms", jobs)):
        finished = [index for index, job in enumerate(batch) if job.path.exists()]
        run = TaskRun(what, [1] * len(batch), finished, emit=emit, unit="tasks")
        missing = {index: batch[index] for index in run.missing}
        for count, (index, _) in enumerate(
            run.each(run_job, missing, name=lambda job: job.name, workers=workers), len(finished) + 1
        ):
            emit(Note(text=f"{batch[index].name}: done ({count} of {len(batch)})"))
    emit(Finished())
    results = make_results(experiment, arms, [load(Run, job.path) for job in jobs], first)
    save(results, experiment.out / "results.json")
    return results


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


def make_results(experiment: Experiment, arms: tuple[str, ...], runs: list[Run], job: Job) -> Results:
    """Compare the runs and make the record of the experiment."""
    found = compare_arms(runs)
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
        readings=read_differences(found, job.tail_from),
    )
