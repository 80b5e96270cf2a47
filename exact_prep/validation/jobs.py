"""Describes an experiment and its jobs: bases, the sweep of the learning rate, the arms. experiment.py runs them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch

from exact_prep.dataset import SPLITS, is_split_in_two
from exact_prep.errors import UsageError
from exact_prep.reader.lookup import load_weights
from exact_prep.validation.arms import Arm, make_arm
from exact_prep.validation.decoder import Decoder, Shape
from exact_prep.validation.found_text import TextSizes, prepare_text
from exact_prep.validation.huggingface_model import load_model
from exact_prep.validation.packed_data import Corpus, CorpusStream, ShortenedStream, open_corpus
from exact_prep.validation.results import Settings
from exact_prep.validation.synthetic_data import SyntheticStream
from exact_prep.validation.training import count_steps
from exact_prep.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from exact_prep.pipeline.events import Emit
    from exact_prep.validation.tiers import Tier
    from exact_prep.validation.training_batches import Batches, Stream

BASE_SEED = 1000
"""Added to the number of a base."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to run. Without `data`, synthetic recall; without `model`, the small decoder."""

    tier_name: str
    tier: Tier
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    data: Path | None = None
    held_out: Path | None = None
    """A dataset to measure on; None measures on rows of `data`."""
    found_text: bool = False
    """Whether data are text found on the machine."""
    model: Path | None = None
    device: str = "cpu"
    weights: Path | None = None
    """A table of weights in place of those of `data`."""
    weights_from_elsewhere: bool = False
    """Whether the table may have been made for other datasets."""
    nolima: Path | None = None
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""
    save_models: bool = False
    """Whether trained Hugging Face models are kept."""
    threads: int = 1
    """Of one run: one is bitwise reproducible, and the cores are used by runs beside each other."""

    @cached_property
    def settings(self) -> Settings:
        """The settings that all files in `out` must have been made with; raises DatasetError."""
        sizes = {name: size for name, size in asdict(self.tier).items() if isinstance(size, int | float)}
        return Settings(
            tool_version=__version__,
            tier=self.tier_name,
            data="text" if self.found_text else str(self.data) if self.data else "synthetic",
            data_checksum=find_checksum(self.weights or self.data) if self.data else "",
            model=str(self.model) if self.model else "small",
            device=self.device,
            nolima=str(self.nolima) if self.nolima else "",
            harness=",".join(self.harness),
            sweep=",".join(f"{factor:g}" for factor in self.tier.sweep),
            sizes=sizes,
        )


def find_checksum(path: Path | None) -> str:
    """Checksum of a table, or of a dataset's weights: the training side's, if it is divided. Raises DatasetError."""
    if path is None:
        return ""
    home = path / SPLITS[0] if path.is_dir() and is_split_in_two(path) else path
    return load_weights(home).file.checksum


def prepare_data(experiment: Experiment, emit: Emit) -> Experiment:
    """The experiment with its data: text is collected, packed and weighed now. Raises what `prepare_text` raises."""
    if not experiment.found_text or experiment.data is not None:
        return experiment
    tier = experiment.tier
    sizes = TextSizes(text_bytes=tier.text_bytes, vocab_size=tier.vocab_size, seq_len=tier.seq_len)
    train, held_out = prepare_text(experiment.out / "text", sizes, emit)
    return replace(experiment, data=train, held_out=held_out)


@lru_cache(maxsize=1)
def make_synthetic_stream(seq_len: int, rows_per_step: int, steps: int, seed: int) -> SyntheticStream:
    """A seed's synthetic data, cached for consecutive arms of the same seed: 41M tokens for a GPU run take 26 s."""
    return SyntheticStream(seq_len=seq_len, rows_per_step=rows_per_step, steps=steps, seed=seed)


@dataclass(frozen=True)
class Job:
    """One arm with one seed; or a base (`arm` is None), with its number as seed."""

    experiment: Experiment
    arm: str | None
    seed: int
    factor: float = 1.0
    """Of the tier's learning rate."""
    sweeps: bool = False
    """Whether this is a run of the sweep."""

    @property
    def name(self) -> str:
        """The name in progress messages."""
        if self.arm is None:
            return f"base {self.seed}"
        return f"{self.arm}, seed {self.seed}" + (f", lr x {self.factor:g}" if self.sweeps else "")

    @property
    def path(self) -> Path:
        """The job's result, which is written last."""
        out = self.experiment.out
        if self.arm is None:
            return out / f"base-{self.seed}.pt"
        return out / (f"sweep-{self.factor:g}-{self.seed}.json" if self.sweeps else f"run-{self.arm}-{self.seed}.json")

    @property
    def base(self) -> Job:
        """The base that this arm continues."""
        return Job(self.experiment, None, self.seed % self.experiment.tier.bases)

    @property
    def lr(self) -> float:
        """Largest learning rate of the schedule, before an arm's own factor."""
        tier = self.experiment.tier
        return tier.base_lr if self.arm is None else tier.lr * self.factor

    @cached_property
    def corpus(self) -> Corpus:
        """A packed dataset, divided; raises UsageError for an experiment without data."""
        experiment, tier = self.experiment, self.experiment.tier
        if experiment.data is None:
            raise UsageError("this experiment has no --data")
        return open_corpus(
            experiment.data,
            experiment.weights,
            weights_from_elsewhere=experiment.weights_from_elsewhere,
            held_out=tier.held_out,
            held_out_from=experiment.held_out,
            tune=bool(tier.sweep and tier.steps),
            trains=tier.steps > 0,
            base_tokens=tier.base_steps * tier.tokens_per_step if experiment.model is None else 0,
        )

    @cached_property
    def stream(self) -> Stream:
        """The data of this seed's arms, as they come."""
        tier = self.experiment.tier
        if self.experiment.data is not None:
            return self.corpus.stream(self.corpus.arms, tier.tokens_per_step, self.seed)
        return make_synthetic_stream(tier.seq_len, tier.tokens_per_step // tier.seq_len, tier.steps, self.seed)

    def base_stream(self) -> Batches:
        """The short rows that the base of this number is trained on; no arm reads any of them."""
        tier, seed = self.experiment.tier, BASE_SEED + self.seed
        if self.experiment.data is not None:
            corpus = self.corpus
            return ShortenedStream(corpus.stream(corpus.base, tier.tokens_per_step, seed), tier.base_len)
        rows = tier.tokens_per_step // tier.base_len
        return SyntheticStream(seq_len=tier.base_len, rows_per_step=rows, steps=tier.base_steps, seed=seed)

    def arm_stream(self, arm: Arm) -> Stream:
        """The data of an arm: this seed's, or fresh rows drawn for the tail's share that it asks for."""
        stream = self.stream
        if arm.tail_share is None:
            return stream
        if not isinstance(stream, CorpusStream):
            raise UsageError(f"{arm.name} draws rows from a dataset; leave it out of --arms, or give --data")
        rows = count_steps(self.experiment.tier.steps, arm) * stream.rows_per_step
        try:
            return stream.resample(arm.tail_share, max(rows, 1))
        except UsageError as error:
            raise UsageError(f"{arm.name}: {error}; choose a smaller alpha, or leave it out of --arms") from None

    @property
    def tail_from(self) -> int:
        """tau: that of the dataset, or a quarter of the row length."""
        stream = self.stream
        return stream.table.tail_start if isinstance(stream, CorpusStream) else self.experiment.tier.tail_from

    def make_arm(self, name: str) -> Arm:
        """The arm called `name` for this job's data."""
        stream = self.stream
        table = stream.table if isinstance(stream, CorpusStream) else None
        return make_arm(name, stream.exposure, stream.seq_len, self.tail_from, exact=table)

    def new_model(self) -> nn.Module:
        """The model before any training."""
        if self.experiment.model is not None:
            # The text suite uses texts of up to twice the trained length.
            times = 2 if self.experiment.tier.ruler_items else 1
            length, device = times * self.stream.seq_len, self.experiment.device
            return load_model(self.experiment.model, self.stream.vocab_size, length=length, device=device)
        tier = self.experiment.tier
        torch.manual_seed(self.seed)
        shape = Shape(vocab_size=self.stream.vocab_size, layers=tier.layers, width=tier.width, heads=tier.heads)
        return Decoder(shape).to(self.experiment.device)
