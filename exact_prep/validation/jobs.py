"""Describes an experiment and its jobs: a base per seed, and the arms of each seed. experiment.py runs them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch

from exact_prep.errors import UsageError
from exact_prep.reader.lookup import load_weights
from exact_prep.validation.arms import Arm, make_arm
from exact_prep.validation.decoder import Decoder, Shape
from exact_prep.validation.huggingface_model import load_model
from exact_prep.validation.packed_data import CorpusStream, open_corpus
from exact_prep.validation.results import Settings
from exact_prep.validation.synthetic_data import SyntheticStream
from exact_prep.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from exact_prep.validation.tiers import Tier
    from exact_prep.validation.training_batches import Batch, Stream


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to run. Without `data`, synthetic recall; without `model`, the small decoder."""

    tier_name: str
    tier: Tier
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    data: Path | None = None
    model: Path | None = None
    device: str = "cpu"
    weights: Path | None = None
    """A table of weights in place of those of `data`."""
    weights_from_elsewhere: bool = False
    """Whether the table may have been made for other datasets."""
    nolima: Path | None = None
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""

    @cached_property
    def settings(self) -> Settings:
        """The settings that all files in `out` must have been made with; raises DatasetError."""
        sizes = {name: size for name, size in asdict(self.tier).items() if isinstance(size, int | float)}
        return Settings(
            tool_version=__version__,
            tier=self.tier_name,
            data=str(self.data) if self.data else "synthetic",
            data_checksum=load_weights(self.weights or self.data).file.checksum if self.data else "",
            model=str(self.model) if self.model else "small",
            device=self.device,
            nolima=str(self.nolima) if self.nolima else "",
            harness=",".join(self.harness),
            sizes=sizes,
        )


@lru_cache(maxsize=1)
def make_synthetic_stream(seq_len: int, rows_per_step: int, steps: int, seed: int) -> SyntheticStream:
    """A seed's synthetic data, cached for consecutive arms of the same seed: 41M tokens for a GPU run take 26 s."""
    return SyntheticStream(seq_len=seq_len, rows_per_step=rows_per_step, steps=steps, seed=seed)


@dataclass(frozen=True)
class Job:
    """One arm, or the base (`arm` is None), with one seed."""

    experiment: Experiment
    arm: str | None
    seed: int

    @property
    def name(self) -> str:
        """The name in progress messages."""
        return f"{self.arm or 'base'}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """The job's result, which is written last."""
        out = self.experiment.out
        return out / (f"run-{self.arm}-{self.seed}.json" if self.arm else f"base-{self.seed}.pt")

    @cached_property
    def corpus(self) -> tuple[CorpusStream, list[Batch]]:
        """Training rows and held-out batches of a packed dataset."""
        experiment, tier = self.experiment, self.experiment.tier
        if experiment.data is None:
            raise UsageError("this experiment has no --data")
        stream, held_out = open_corpus(
            experiment.data,
            experiment.weights,
            weights_from_elsewhere=experiment.weights_from_elsewhere,
            rows_per_step=1,
            held_out=tier.held_out,
            seed=self.seed,
        )
        stream.rows_per_step = max(tier.tokens_per_step // stream.seq_len, 1)
        return stream, held_out

    @cached_property
    def stream(self) -> Stream:
        """The data that arms train on."""
        tier = self.experiment.tier
        if self.experiment.data is not None:
            return self.corpus[0]
        rows = tier.tokens_per_step // tier.seq_len
        return make_synthetic_stream(tier.seq_len, rows, tier.steps, self.seed)

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
            # Measures use documents of up to twice the trained length.
            length, device = 2 * self.stream.seq_len, self.experiment.device
            return load_model(self.experiment.model, self.stream.vocab_size, length=length, device=device)
        tier = self.experiment.tier
        torch.manual_seed(self.seed)
        shape = Shape(vocab_size=self.stream.vocab_size, layers=tier.layers, width=tier.width, heads=tier.heads)
        return Decoder(shape).to(self.experiment.device)
