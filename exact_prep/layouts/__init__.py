"""How packed tokens lie on disk for other trainers. One file per format; each writes all rows of a weighed dataset.

    megatron.py      megatron             .bin and .idx, and weights in a file beside them
    mds.py           mds                  MosaicML streaming, through its own writer
    parquet.py       parquet, levanter    the columns as Parquet
    npy.py           numpy                .npy files to be mapped
    olmo.py          olmo                 bare ids, row after row
    datatrove.py     datatrove            documents end to end, and where they end
    lut.py           lut                  weight by position
    row_weights.py   row-weights          sampling weight by row
    sidecar.py       sidecar              weights beside the tokens of others

Tokens that others wrote are read here too, for `measure`: foreign.py says how, trainers.py what trainers make of them.

    megatron.py  huggingface.py  olmo.py  datatrove.py  litdata.py  mds.py  tokens.py

A layout knows rows, not shards: the reader gives it blocks of rows with aligned weights. Order, locks and progress are
the pipeline's (`pipeline/export.py`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from exact_prep.choices import ExportFormat
from exact_prep.errors import UsageError
from exact_prep.reader.columns import check_align

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align
    from exact_prep.reader.lookup import MeasuredWeights
    from exact_prep.reader.rows import PackedDataset


class Layout(NamedTuple):
    """How a format is written."""

    module: str
    align: tuple[Align, ...]
    """Alignments it can have, the usual one first."""


LAYOUTS: dict[ExportFormat, Layout] = {
    "megatron": Layout("megatron", ("prediction", "target")),
    "mds": Layout("mds", ("target", "prediction")),
    "parquet": Layout("parquet", ("target", "prediction")),
    "levanter": Layout("parquet", ("prediction",)),
    "numpy": Layout("npy", ("target", "prediction")),
    "olmo": Layout("olmo", ("target",)),
    "datatrove": Layout("datatrove", ("target",)),
    "lut": Layout("lut", ("target",)),
    "row-weights": Layout("row_weights", ("target",)),
    "sidecar": Layout("sidecar", ("target",)),
}

MEASURED: tuple[ExportFormat, ...] = ("lut", "sidecar")
"""Formats that need no rows: of data that `measure` read."""


def choose_align(kind: str, align: Align | None) -> Align:
    """The alignment of weights in a format; raises UsageError for one that the format cannot have."""
    if kind not in LAYOUTS:
        raise UsageError(f"there is no format {kind!r}; it is one of: {', '.join(get_args(ExportFormat))}")
    alignments = LAYOUTS[kind].align
    chosen = align or alignments[0]
    check_align(chosen)
    if chosen not in alignments:
        raise UsageError(f"{kind} has weights aligned with {alignments[0]}s only; leave --align out")
    return chosen


def write_layout(
    dataset: PackedDataset | MeasuredWeights,
    kind: ExportFormat,
    out: Path,
    align: Align,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Write all rows of a weighed dataset to the new directory `out`; returns facts about the files.

    `progress` is told of tokens as they are written. Raises UsageError, DatasetError, StorageError.
    """
    return import_module(f"exact_prep.layouts.{LAYOUTS[kind].module}").write(dataset, kind, out, align, progress)
