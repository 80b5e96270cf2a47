"""Three sizes of experiment, each with the time that it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The sizes of one experiment. The base is trained at `base_len`; every arm continues it at `seq_len`."""

    layers: int
    width: int
    heads: int
    base_len: int
    base_steps: int
    base_lr: float
    seq_len: int
    steps: int
    lr: float
    tokens_per_step: int
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    held_out: int
    """Documents or rows that loss and recall are measured on."""
    questions: int
    """Questions per distance of the ablation probe."""
    ruler_items: int
    """Questions per task and length of the text suite, for models that read text."""
    short_documents: int = 0
    """Synthetic documents of eight tokens to measure `loss 0-7` on: even a long one has only seven such targets."""

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
    layers=2,
    width=96,
    heads=3,
    base_len=128,
    base_steps=150,
    base_lr=3e-3,
    seq_len=1024,
    steps=40,
    lr=5e-4,
    tokens_per_step=4096,
    arms=("uniform", "exact@1", "mirror@1"),
    seeds=(0,),
    held_out=12,
    questions=8,
    ruler_items=0,
    short_documents=1024,
)
"""Under two minutes on one core."""

EXAMPLE = Tier(
    layers=2,
    width=96,
    heads=3,
    base_len=128,
    base_steps=600,
    base_lr=3e-3,
    seq_len=1024,
    steps=120,
    lr=5e-4,
    tokens_per_step=4096,
    arms=("uniform", "exact", "exact@1", "flat", "mirror", "permuted", "lr", "steps", "null"),
    seeds=(0, 1, 2),
    held_out=20,
    questions=48,
    ruler_items=2,
)
"""Under half an hour on two cores."""

GPU = Tier(
    layers=8,
    width=512,
    heads=8,
    base_len=512,
    base_steps=2000,
    base_lr=1e-3,
    seq_len=4096,
    steps=600,
    lr=3e-4,
    tokens_per_step=65536,
    arms=("uniform", "exact", "exact@1", "flat", "lr"),
    seeds=(0, 1, 2),
    held_out=48,
    questions=48,
    ruler_items=16,
    short_documents=4096,
)
"""Planned for half an hour on one GPU: 25M parameters."""

TIERS = {"smoke": SMOKE, "example": EXAMPLE, "gpu": GPU}
