"""Four sizes of experiment, each with the time that it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The sizes of one experiment. A base is trained at `base_len`; every arm continues it at `seq_len`."""

    layers: int = 2
    width: int = 96
    heads: int = 3
    bases: int = 1
    """Seed s continues base s modulo `bases`."""
    base_len: int = 128
    base_steps: int = 0
    base_lr: float = 3e-3
    seq_len: int = 1024
    steps: int
    lr: float
    """Learning rate that `sweep` multiplies."""
    sweep: tuple[float, ...] = ()
    """Factors of `lr` that uniform is tried with, on the first two seeds; the best one is for all arms."""
    tokens_per_step: int = 4096
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    held_out: int
    """Rows or documents that everything is measured on."""
    questions: int = 0
    """Questions per distance of the ablation probe, and whether recall is measured."""
    ruler_items: int = 0
    """Questions per task and length of the text suite, for models that read text."""
    short_documents: int = 0
    """Synthetic documents of eight tokens to measure `loss 0-7` on: even a long one has only seven such targets."""
    context_gain: bool = True
    gain_targets: int = 0
    """Targets of context gain per row and number of visible tokens; 0 measures all, which costs more."""
    text_bytes: int = 0
    """Of text found on the machine that is used if no data are given; 0: synthetic recall."""
    vocab_size: int = 1024
    """Of the tokenizer that is made of this text."""
    checkpoint_every: int = 100
    """Steps."""

    @property
    def tail_from(self) -> int:
        """tau: a quarter of the row length."""
        return self.seq_len // 4

    @property
    def distances(self) -> tuple[int, ...]:
        """The evidence distances of the ablation probe; half of them lie beyond the trained length."""
        n = self.seq_len
        return (n // 8, 3 * n // 8, 3 * n // 4, 5 * n // 4, 3 * n // 2, 2 * n)


SMOKE = Tier(
    base_steps=150,
    steps=40,
    lr=5e-4,
    arms=("uniform", "exact@1", "mirror@1"),
    seeds=(0,),
    held_out=12,
    short_documents=1024,
    context_gain=False,
)
"""Under 100 CPU-seconds; shows that loss moves where weights are, and can show no more: one seed, no control."""

EXAMPLE = Tier(
    bases=2,
    base_len=64,
    base_steps=1400,
    base_lr=4e-3,
    seq_len=512,
    steps=200,
    lr=1e-3,
    sweep=(0.5, 1, 2, 4, 8),
    arms=(
        "uniform",
        "exact",
        "exact@1",
        "flat@1",
        "upsample@1",
        "mirror@1",
        "permuted@1",
        "lr",
        "lr@1",
        "steps@1",
    ),
    seeds=(0, 1, 2, 3, 4),
    held_out=128,
    questions=24,
    text_bytes=30_000_000,
)
"""Under two hours on two cores: 0.4M parameters on text."""

GPU = Tier(
    layers=8,
    width=512,
    heads=8,
    base_len=512,
    base_steps=1000,
    base_lr=1e-3,
    seq_len=4096,
    steps=200,
    lr=3e-4,
    sweep=(0.5, 1, 2, 4),
    tokens_per_step=65536,
    arms=("uniform", "exact@1", "upsample@1", "lr@1", "exact"),
    seeds=(0, 1, 2, 3, 4),
    held_out=96,
    gain_targets=512,
    questions=24,
    short_documents=4096,
    text_bytes=240_000_000,
    vocab_size=4096,
    checkpoint_every=50,
)
"""25M parameters, one base of 65M tokens, arms of 13M; `--minutes` makes it as large as the time allows."""

MODEL = Tier(
    steps=100,
    lr=2e-5,
    sweep=(0.5, 1, 2, 4),
    tokens_per_step=32768,
    arms=("uniform", "exact", "exact@1", "upsample@1", "lr@1"),
    seeds=(0, 1, 2),
    held_out=48,
    gain_targets=256,
    ruler_items=2,
    checkpoint_every=50,
)
"""The user's own checkpoint on the user's own data: --model, --data."""

TIERS = {"smoke": SMOKE, "example": EXAMPLE, "gpu": GPU, "model": MODEL}
