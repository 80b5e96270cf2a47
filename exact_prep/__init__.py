"""exact-prep: pack text corpora for long-context pretraining and weigh every token by its effective context."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from exact_prep.version import __version__

if TYPE_CHECKING:
    from exact_prep.api import measure, pack, verify, weigh
    from exact_prep.reader.lookup import LoadedWeights, load_weights
    from exact_prep.reader.mixture import MixedDataset
    from exact_prep.reader.rows import PackedDataset, Row, open  # noqa: A004

__all__ = [
    "LoadedWeights",
    "MixedDataset",
    "PackedDataset",
    "Row",
    "__version__",
    "load_weights",
    "measure",
    "open",
    "pack",
    "verify",
    "weigh",
]

FACE = {
    "LoadedWeights": "exact_prep.reader.lookup",
    "load_weights": "exact_prep.reader.lookup",
    "MixedDataset": "exact_prep.reader.mixture",
    "PackedDataset": "exact_prep.reader.rows",
    "Row": "exact_prep.reader.rows",
    "open": "exact_prep.reader.rows",
    "measure": "exact_prep.api",
    "pack": "exact_prep.api",
    "verify": "exact_prep.api",
    "weigh": "exact_prep.api",
}
"""What the package offers, and where it lives: imported at first use, so `import exact_prep` costs nothing."""


def __getattr__(name: str) -> object:
    """Import a part of the public interface when it is first used."""
    if name in FACE:
        return getattr(import_module(FACE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
