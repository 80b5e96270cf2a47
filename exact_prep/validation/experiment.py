"""An experiment: a base per seed, every arm continued from it, measured, compared. Restartable run by run.

    OUT/base-<seed>.pt           the base of a seed
    OUT/run-<arm>-<seed>.json    a finished run, written last
    OUT/models/<arm>-<seed>/     trained Hugging Face models, for other evaluations (lm_eval reads them)
    OUT/results.json             all runs, differences, readings

All arms of a seed start from the same base and see the same batches in the same order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from exact_prep import __version__
from exact_prep.engines import run as run_items
from exact_prep.errors import UsageError
from exact_prep.exposure import bucket_edges
from exact_prep.storage import explained, load, make_directory, save
from exact_prep.validation import compare, probes, ruler
from exact_prep.validation.arms import Arm, make_arm
from exact_prep.validation.batches import Batch, Stream, batch_of
from exact_prep.validation.corpus import CorpusStream, open_corpus
from exact_prep.validation.huggingface import CausalLM, load_model
from exact_prep.validation.model import Decoder, Shape
from exact_prep.validation.results import Results, Run, Settings
from exact_prep.validation.synthetic import SyntheticStream, document
from exact_prep.validation.train import Schedule, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from exact_prep.engines import Meter
    from exact_prep.validation.tiers import Tier


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to run. `data` None is synthetic recall, `model` None the small decoder."""

    tier_name: str
    tier: Tier
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    data: Path | None = None
    model: Path | None = None
    device: str = "cpu"

    @property
    def settings(self) -> Settings:
        """What a run found on disk must have been made with."""
        return Settings(
            tool_version=__version__,
            tier=self.tier_name,
            data=str(self.data) if self.data else "synthetic",
            model=str(self.model) if self.model else "small",
            device=self.device,
        )


@dataclass(frozen=True)
class Job:
    """One base (`arm` None) or one arm, with one seed."""

    experiment: Experiment
    arm: str | None
    seed: int

    @property
    def name(self) -> str:
        """As progress shows it."""
        return f"{self.arm or 'base'}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """What is written last."""
        out = self.experiment.out
        return out / (f"run-{self.arm}-{self.seed}.json" if self.arm else f"base-{self.seed}.pt")

    @cached_property
    def corpus(self) -> tuple[CorpusStream, list[Batch]]:
        """Training rows and held-out batches of a packed dataset."""
        experiment, tier = self.experiment, self.experiment.tier
        if experiment.data is None:
            raise UsageError("this experiment has no --data")
        stream, held_out = open_corpus(experiment.data, rows_per_step=1, held_out=tier.held_out, seed=self.seed)
        stream.rows_per_step = max(tier.tokens_per_step // stream.seq_len, 1)
        return stream, held_out

    @cached_property
    def stream(self) -> Stream:
        """What arms train on."""
        tier = self.experiment.tier
        if self.experiment.data is not None:
            return self.corpus[0]
        rows = tier.tokens_per_step // tier.seq_len
        return SyntheticStream(seq_len=tier.seq_len, rows_per_step=rows, steps=tier.steps, seed=self.seed)

    @property
    def tail_from(self) -> int:
        """tau: the dataset's own, or a quarter of the row."""
        stream = self.stream
        return stream.table.options.tail_from if isinstance(stream, CorpusStream) else self.experiment.tier.tail_from

    def make_arm(self, name: str) -> Arm:
        """An arm for this job's data."""
        stream = self.stream
        table = stream.table if isinstance(stream, CorpusStream) else None
        return make_arm(name, stream.exposure, stream.seq_len, self.tail_from, exact=table)

    def new_model(self) -> nn.Module:
        """The model before any training."""
        if self.experiment.model is not None:
            return load_model(self.experiment.model, device=self.experiment.device)
        tier = self.experiment.tier
        torch.manual_seed(self.seed)
        shape = Shape(vocab_size=self.stream.vocab_size, layers=tier.layers, width=tier.width, heads=tier.heads)
        return Decoder(shape).to(self.experiment.device)


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
    if not job.path.exists():
        train_base(job) if job.arm is None else run_arm(job, job.arm)
    meter.add(1)


def train_base(job: Job) -> None:
    """Train the small decoder on short rows and keep it."""
    experiment, tier = job.experiment, job.experiment.tier
    model = job.new_model()
    rows = tier.tokens_per_step // tier.base_len
    stream: Stream | Shortened
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
    if isinstance(model, CausalLM):
        model.model.save_pretrained(experiment.out / "models" / f"{name}-{job.seed}")
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


def measure(job: Job, model: nn.Module) -> dict[str, float]:
    """All measures of a trained model; held-out data are the same for every arm and seed."""
    experiment, tier = job.experiment, job.experiment.tier
    device = experiment.device
    if experiment.data is None:
        length = 2 * tier.seq_len
        rng = np.random.default_rng(4242)
        held_out = [batch_of([(document(rng, length)[0], np.array([length], np.int32))]) for _ in range(tier.held_out)]
        return {
            **probes.loss_by_bucket(model, held_out, device),
            **probes.recall_by_distance(model, length, tier.held_out, 4242, device),
            **probes.evidence_ablation(model, tier.distances, 4242, device),
        }
    stream, held_out = job.corpus
    measures = probes.loss_by_bucket(model, held_out, device)
    codec = codec_of(stream.rows.manifest.tokenizer.name)
    if codec and tier.ruler_items:
        lengths = (stream.seq_len // 2, stream.seq_len, 2 * stream.seq_len)
        measures |= ruler.suite(model, codec, lengths, tier.ruler_items, 4242, device)
    return measures


def codec_of(tokenizer: str) -> ruler.Codec | None:
    """The dataset's tokenizer if it is still where it was; else the text suite is left out."""
    from tokenizers import Tokenizer

    from exact_prep.tokenization import locate

    if not tokenizer or not os.path.exists(tokenizer):  # noqa: PTH110 - a name, perhaps a hub id
        return None
    loaded = Tokenizer.from_file(str(locate(tokenizer)))

    class Text:
        def encode(self, text: str) -> list[int]:
            return loaded.encode(text, add_special_tokens=False).ids

        def decode(self, ids: list[int]) -> str:
            return loaded.decode(ids)

    return Text()


def run_experiment(
    experiment: Experiment, *, workers: int = 1, told: Callable[[str], None] = lambda line: None
) -> Results:
    """Run what is missing and write results.json; raises UsageError, StorageError, WorkerError."""
    make_directory(experiment.out)
    arms = tuple(dict.fromkeys(("uniform", *experiment.arms)))
    jobs = [Job(experiment, arm, seed) for seed in experiment.seeds for arm in arms]
    for job in jobs:
        job.make_arm(job.arm or "uniform")  # a wrong name ends here, not after an hour
        if job.path.exists() and load(Run, job.path).settings != experiment.settings:
            raise UsageError(f"{job.path} is from another experiment; choose another --out")
    bases = [Job(experiment, None, seed) for seed in experiment.seeds] if experiment.model is None else []
    for batch in (bases, jobs):
        missing = [job for job in batch if not job.path.exists()]
        if len(missing) < len(batch):
            told(f"{len(batch) - len(missing)} of {len(batch)} runs were done already")
        for count, (index, _) in enumerate(run_items(work, missing, workers=workers, name=lambda job: job.name), 1):
            told(f"{missing[index].name}: done ({count} of {len(missing)})")
    results = results_of(experiment, arms, [load(Run, job.path) for job in jobs], jobs[0])
    save(results, experiment.out / "results.json")
    return results


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
