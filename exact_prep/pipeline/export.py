"""A weighed dataset as other trainers' files. One module per format; each reads rows in blocks and writes in order.

    blocks.py        rows in blocks, checked against their checksums, weights aligned
    memmaps.py       numpy       .npy files to be mapped
    parquet.py       parquet, levanter
    megatron.py      megatron    .bin and .idx, and weights in a file beside them
    mds.py           mds         MosaicML streaming, through its own writer
    tables.py        lut, row-weights   weight by position; sampling weight by row

An export is written beside its place and renamed when every byte is on the device.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from exact_prep.choices import ExportFormat
from exact_prep.errors import StorageError, UsageError
from exact_prep.reader.columns import check_align
from exact_prep.reader.rows import open  # noqa: A004
from exact_prep.records import canonical_json
from exact_prep.stores.local import (
    TEMPORARY,
    make_directory,
    publish,
    remove,
    sync_directory,
    sync_file,
    write_atomically,
)
from exact_prep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exact_prep.choices import Align

RECORD = "export.json"


class Format(NamedTuple):
    """How a format is written."""

    module: str
    align: tuple[Align, ...]
    """Alignments it can have, the usual one first."""


FORMATS: dict[ExportFormat, Format] = {
    "megatron": Format("megatron", ("prediction", "target")),
    "mds": Format("mds", ("target", "prediction")),
    "parquet": Format("parquet", ("target", "prediction")),
    "levanter": Format("parquet", ("prediction",)),
    "numpy": Format("npy", ("target", "prediction")),
    "lut": Format("tables", ("target",)),
    "row-weights": Format("tables", ("target",)),
}


def export(
    directory: Path,
    kind: ExportFormat,
    out: Path,
    *,
    align: Align | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Write the weighed dataset in `directory` to the new directory `out`; returns what export.json says there.

    `align` None is the format's usual alignment; `progress` is told of tokens as they are written. Raises UsageError,
    DatasetError (not weighed, damaged), StorageError.
    """
    if kind not in FORMATS:
        raise UsageError(f"there is no format {kind!r}; it is one of: {', '.join(get_args(ExportFormat))}")
    module, alignments = FORMATS[kind]
    chosen = align or alignments[0]
    check_align(chosen)
    if chosen not in alignments:
        raise UsageError(f"{kind} has weights aligned with {alignments[0]}s only; leave --align out")
    writer = import_module(f"exact_prep.layouts.{module}")
    dataset = open(directory)
    if not len(dataset):
        raise UsageError(f"{directory} has no rows: there is nothing to export")
    claim(out, overwrite=overwrite)
    out = out.resolve()  # `.` has no name
    unfinished = out.with_name(out.name + TEMPORARY)
    remove(unfinished)
    make_directory(unfinished)
    try:
        facts = writer.write(dataset, kind, unfinished, chosen, progress)
    except BaseException:
        with suppress(StorageError):
            remove(unfinished)
        raise
    record = {
        "format": kind,
        "align": chosen,
        "seq_len": dataset.seq_len,
        "rows": len(dataset),
        "tool_version": __version__,
        "dataset_tree_hash": dataset.manifest.tree_hash,
        "weights_checksum": dataset.loaded_weights.file.checksum if dataset.loaded_weights else "",
        "pad_id": dataset.manifest.tokenizer.pad_id,
        "vocab_size": dataset.manifest.tokenizer.vocab_size,
        **facts,
    }
    write_atomically(unfinished / RECORD, canonical_json(record))
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            sync_file(path)
    sync_directory(unfinished)
    remove(out)
    publish(unfinished, out)
    return record


def claim(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless `out` is free, or an export that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise UsageError(f"{out} exists and is no export; choose another --out")
    if not overwrite:
        raise UsageError(f"{out} holds an export already; choose another --out, or replace it with --overwrite")
