"""`export`: a weighed dataset as another trainer's files, written beside their place and renamed when they are safe."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from typing import TYPE_CHECKING, Any

from exact_prep.dataset import check_outside_datasets, is_measured, open_measured
from exact_prep.errors import StorageError, UsageError
from exact_prep.layouts import MEASURED, choose_align, write_layout
from exact_prep.pipeline.events import Finished, ignore
from exact_prep.pipeline.runs import TaskRun, hold, interruptible
from exact_prep.reader.lookup import MeasuredWeights, load_table_for, load_weights
from exact_prep.reader.rows import open as open_rows
from exact_prep.records import canonical_json
from exact_prep.stores.local import (
    LEFTOVER,
    make_directory,
    publish,
    remove,
    sync_directory,
    sync_file,
    temporary_path,
    write_atomically,
)
from exact_prep.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.choices import Align, ExportFormat
    from exact_prep.engines import Meter
    from exact_prep.pipeline.events import Emit
    from exact_prep.reader.rows import PackedDataset

RECORD = "export.json"

BYTES_PER_TOKEN = 6
"""Of the shards: an id and a weight."""


@dataclass(frozen=True)
class ExportTask:
    """What is written where; the whole dataset is one task."""

    dataset: PackedDataset | MeasuredWeights
    kind: ExportFormat
    out: Path
    align: Align


def export(
    directory: Path,
    kind: ExportFormat,
    out: Path,
    *,
    align: Align | None = None,
    weights: Path | None = None,
    weights_from_elsewhere: bool = False,
    overwrite: bool = False,
    lock: bool = True,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Write the weighed dataset in `directory` to the new directory `out`; returns what export.json says there.

    `align` None is the format's usual alignment; `weights` is a table to use in place of the dataset's own weights.
    Raises UsageError, DatasetError (not weighed, damaged), StorageError.
    """
    chosen = choose_align(kind, align)
    check_outside_datasets(out)
    check_kind(directory, kind)
    if is_measured(directory):
        dataset = open_weights(directory, weights, elsewhere=weights_from_elsewhere)
    else:
        dataset = open_rows(directory, weights=weights, weights_from_elsewhere=weights_from_elsewhere)
    if not len(dataset):
        raise UsageError(f"{directory} has no rows: there is nothing to export")
    out = out.absolute()
    place = out.parent / f".{out.name}.export"
    try:
        with (
            hold(place, lock=lock),
            interruptible(lambda: f"stopped; nothing was written to {out}, the same command starts again"),
        ):
            check_out(out, overwrite=overwrite)
            for path in place.parent.glob(f"{escape(out.name)}.*"):
                if LEFTOVER.fullmatch(path.name):
                    remove(path)
            record = write_export(dataset, kind, out, chosen, emit)
    finally:
        with suppress(OSError):
            place.rmdir()
    emit(Finished())
    return record


def check_kind(directory: Path, kind: ExportFormat) -> None:
    """Raise UsageError for a format that a directory's data, packed or measured, cannot have."""
    if is_measured(directory) and kind not in MEASURED:
        raise UsageError(
            f"{directory} is measured: its tokens are in the files of others already, so --to {kind} has nothing to "
            f"write; --to is one of: {', '.join(MEASURED)}"
        )
    if kind == "sidecar" and not is_measured(directory):
        raise UsageError(
            f"--to sidecar writes weights beside tokens that `exact-prep measure` read; {directory} holds packed rows, "
            "whose weights are in loss_weights: choose another --to"
        )


def open_weights(directory: Path, weights: Path | None, *, elsewhere: bool) -> MeasuredWeights:
    """A measurement and its weights, or those in the file `weights`; raises DatasetError."""
    measured = open_measured(directory)
    loaded = load_weights(directory) if weights is None else load_table_for(weights, measured, elsewhere=elsewhere)
    return MeasuredWeights(measured, loaded)


def write_export(
    dataset: PackedDataset | MeasuredWeights, kind: ExportFormat, out: Path, align: Align, emit: Emit
) -> dict[str, Any]:
    """Write an export and publish it; returns its record."""
    incomplete = temporary_path(out)
    make_directory(incomplete)
    run = TaskRun(f"export to {kind}", [BYTES_PER_TOKEN * len(dataset) * dataset.seq_len], emit=emit)
    try:
        task = ExportTask(dataset, kind, incomplete, align)
        (_, facts), *_ = run.each(write_rows, {0: task}, name=lambda task: str(task.out))
        record = make_record(dataset, kind, align, facts)
        write_atomically(incomplete / RECORD, canonical_json(record))
        for path in sorted(incomplete.rglob("*")):
            if path.is_file():
                sync_file(path)
        sync_directory(incomplete)
        remove(out)
        publish(incomplete, out)
    except BaseException:
        with suppress(StorageError):
            remove(incomplete)
        raise
    return record


def write_rows(task: ExportTask, meter: Meter) -> dict[str, Any]:
    """Write the rows; returns facts about the files."""
    return write_layout(
        task.dataset, task.kind, task.out, task.align, lambda tokens: meter.add(BYTES_PER_TOKEN * tokens, tokens)
    )


def make_record(
    dataset: PackedDataset | MeasuredWeights, kind: ExportFormat, align: Align, facts: dict[str, Any]
) -> dict[str, Any]:
    """export.json."""
    if isinstance(dataset, MeasuredWeights):
        identity = {"fingerprint": dataset.files.record.fingerprint}
    else:
        tokenizer = dataset.manifest.tokenizer
        identity = {
            "dataset_tree_hash": dataset.manifest.tree_hash,
            "pad_id": tokenizer.pad_id,
            "vocab_size": tokenizer.vocab_size,
        }
    return {
        "format": kind,
        "align": align,
        "seq_len": dataset.seq_len,
        "rows": len(dataset),
        "tool_version": __version__,
        "weights_checksum": dataset.loaded_weights.file.checksum if dataset.loaded_weights else "",
        **identity,
        **facts,
    }


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless `out` is free, or an export that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise UsageError(f"{out} exists and is not an export; choose another --out")
    if not overwrite:
        raise UsageError(f"{out} holds an export already; choose another --out, or replace it with --overwrite")
