"""exact-prep: pack text corpora for long-context pretraining and weigh every token by its effective context."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exact_prep.integrations.lookup import LoadedWeights, load_weights
    from exact_prep.integrations.reader import PackedDataset, Row, open  # noqa: A004

__version__ = "0.1.0"
__all__ = ["LoadedWeights", "PackedDataset", "Row", "load_weights", "open"]


def __getattr__(name: str) -> object:
    """The reader, imported when first asked for: `import exact_prep` alone costs nothing."""
    if name in ("LoadedWeights", "load_weights"):
        from exact_prep.integrations import lookup

        return getattr(lookup, name)
    if name in ("PackedDataset", "Row", "open"):
        from exact_prep.integrations import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
