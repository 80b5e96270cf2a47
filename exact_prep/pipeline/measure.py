"""`measure`: the exposure of tokens that others wrote, from their index or a scan; no token is copied.

    parts are counted, each leaves a record in .work -> exposure.json, and weights.json with a weight of 1 for all

Killed anywhere, the same call counts only what is missing. `weigh`, `report`, `verify` and `export` take the directory
as they take a packed dataset.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import EXPOSURE, MANIFEST, PART, WEIGHTS, WORK, check_outside_datasets, is_incomplete
from exact_prep.errors import DatasetError, UsageError
from exact_prep.layouts.foreign import load_layout
from exact_prep.pipeline.events import Finished, Note, Phase, ignore
from exact_prep.pipeline.runs import TaskRun, hold, interruptible
from exact_prep.records import encode, seal
from exact_prep.records.measured import MeasuredExposure, PartCounts
from exact_prep.stages.measure import MeasureTask, measure_part
from exact_prep.stores.local import digest, explained, identify_file, load, make_directory, remove, save
from exact_prep.version import __version__
from exact_prep.weighing.cuts import STREAMED, DocumentLengths, Pieces, expect
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import plain_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.layouts.foreign import Part
    from exact_prep.pipeline.events import Emit
    from exact_prep.records.options import MeasureOptions

EXACT_BELOW = 100_000
"""With fewer documents one order is counted, and not the mean over all: a formula for many has no first row."""

BYTES_PER_WORKER = 1 << 30
"""What is worth a worker of its own: reading it takes about as long as starting one."""


def measure(
    paths: Sequence[str],
    out: Path,
    options: MeasureOptions,
    *,
    overwrite: bool = False,
    workers: int | None = 1,
    lock: bool = True,
    emit: Emit = ignore,
) -> MeasuredExposure:
    """Measure the tokens in `paths` and write exposure.json to the directory `out`; returns what it says.

    `workers` None starts as many as the work is worth. Raises UsageError, DatasetError (files that contradict each
    other or the options), StorageError, WorkerError; Interrupted, after which the same call continues.
    """
    check_options(options)
    emit(Phase(text="finding the files"))
    parts, options = find_parts(paths, options)
    check_outside_datasets(out)
    with explained("read", out):
        check_out(out, overwrite=overwrite)
    make_directory(out)
    with hold(out, out / WORK, lock=lock), interruptible(lambda: "stopped; the same command goes on from here"):
        check_out(out, overwrite=overwrite)
        remove(out / EXPOSURE)
        remove(out / WEIGHTS)
        counts = count_parts(parts, options, out / WORK, workers, emit)
        measured = sum_parts(counts, options)
        emit_notes(measured, emit)
        save(seal(plain_weights(measured.described, measured.seq_len)), out / WEIGHTS)
        save(seal(measured), out / EXPOSURE)
        remove(out / WORK)
    emit(Finished())
    return measured


def measure_again(measured: MeasuredExposure, *, workers: int | None, emit: Emit) -> MeasuredExposure:
    """What the same files say now, counted as `measured` was; nothing is written. Raises as `measure` does."""
    paths = [part.path for part in measured.parts]
    parts = load_layout(measured.options.layout).list_parts(paths, measured.options)
    with TemporaryDirectory() as work:
        return sum_parts(count_parts(parts, measured.options, Path(work), workers, emit), measured.options)


def find_differences_to(again: MeasuredExposure, measured: MeasuredExposure) -> Iterator[str]:
    """In what the data differ now from what was measured."""
    for now, then in zip(again.parts, measured.parts, strict=True):
        if now.xxh3 != then.xxh3:
            yield f"{then.path} has changed since it was measured; measure again"
    same = {"tool_version", "checksum", "parts", "fingerprint"}
    if again.parts == measured.parts and again.model_dump(exclude=same) != measured.model_dump(exclude=same):
        yield "the exposure counted from the data is not that of exposure.json"


def check_options(options: MeasureOptions) -> None:
    """Raise UsageError for options that contradict each other, or that the layout does not have."""
    if options.rows in STREAMED | {"fragment", "truncate"} and options.seq_len is None:
        raise UsageError("how many tokens will a row have? give --seq-len")
    if not options.isolated and options.rows in ("fragment", "truncate"):
        raise UsageError(
            f"--not-isolated: rows of {options.rows} pack documents in an order that lengths alone do not tell; "
            "measure them with --rows disjoint"
        )
    if options.order == "cache" and options.layout != "megatron":
        raise UsageError("--order cache:DIR reads what Megatron keeps; leave it out")
    if options.order == "cache" and options.documents == "eos":
        raise UsageError("--order cache:DIR goes with --documents index: by EOS documents are found in file order")
    if options.split is not None and (options.layout != "megatron" or not sum(options.split) > 0):
        raise UsageError("--split takes Megatron's shares, such as 969,30,1; leave it out")
    if options.layout not in ("huggingface", "mds") and options.ids_field:
        raise UsageError(f"--ids-field names a column, and {options.layout} has none")
    if options.layout != "huggingface" and (options.mask_field or options.labels_field):
        raise UsageError(
            f"--mask-field and --labels-field name columns, which are read of huggingface, not {options.layout}"
        )
    if options.mask_field and options.labels_field:
        raise UsageError("--mask-field and --labels-field exclude each other; leave one out")


def find_parts(paths: Sequence[str], options: MeasureOptions) -> tuple[list[Part], MeasureOptions]:
    """The files to read, and the options with what these settle; raises UsageError, DatasetError."""
    layout = load_layout(options.layout)
    parts = layout.list_parts(paths, options)
    if options.documents is None:
        options = options.model_copy(update={"documents": layout.choose_documents(parts[0], options)})
    return parts, options


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless `out` is free, or holds a measurement that may be replaced or goes on."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    if (out / MANIFEST).exists() or is_incomplete(out):
        raise UsageError(f"{out} holds a packed dataset; choose another --out")
    if (out / EXPOSURE).exists():
        if not overwrite:
            raise UsageError(f"{out} holds a measurement; choose another --out, or replace it with --overwrite")
        return
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.name != WEIGHTS)
    if others:
        raise UsageError(f"{out} holds other files ({', '.join(others[:3])}); choose another --out")


def count_parts(
    parts: Sequence[Part], options: MeasureOptions, work: Path, workers: int | None, emit: Emit
) -> list[PartCounts]:
    """Count every part, but those that an earlier call counted."""
    make_directory(work)
    tasks = {
        index: MeasureTask(
            part=part, options=options, key=make_key(part, options), record=work / f"{PART}{index:07d}.json"
        )
        for index, part in enumerate(parts)
    }
    done = {index: counts for index, task in tasks.items() if (counts := find_counted(task)) is not None}
    run = TaskRun("measure", [part.bytes for part in parts], done, emit=emit)
    missing = {index: tasks[index] for index in run.missing}
    done.update(
        run.each(measure_part, missing, name=lambda task: task.name, workers=workers, bytes_per_worker=BYTES_PER_WORKER)
    )
    return [done[index] for index in range(len(parts))]


def make_key(part: Part, options: MeasureOptions) -> str:
    """What a part's count depends on: its files as they are, and the options."""
    files = [identify_file(path) for path in part.files or (part.path,)]
    return digest([repr(files).encode(), repr(part).encode(), encode(options)])


def find_counted(task: MeasureTask) -> PartCounts | None:
    """What an earlier call counted, if the file and the options are still the same."""
    if not task.record.is_file():
        return None
    try:
        counts = load(PartCounts, task.record)
    except DatasetError:
        return None
    return counts if counts.key == task.key else None


def sum_parts(counts: Sequence[PartCounts], options: MeasureOptions) -> MeasuredExposure:
    """The exposure of all parts; raises UsageError where they hold no row."""
    parts = tuple(one.part for one in counts)
    rows = sum(part.rows for part in parts)
    if not rows:
        tokens = sum(part.tokens for part in parts)
        raise UsageError(f"{tokens:,} tokens make no row of {options.seq_len or 0:,}; name more files, or shorter rows")
    estimated = False
    cut: int | None = sum(one.cut for one in counts)
    longest = max(one.longest for one in counts) - 1
    if options.rows == "stored":
        seq_len = options.seq_len or max(max(one.longest_row for one in counts), 2)
        exposure = sum((Exposure.from_record(one.exposure) for one in counts if one.exposure), Exposure())
        exposure = exposure.within(seq_len - 1)
    else:
        seq_len = options.seq_len or 0
        lengths = sum_lengths(counts, 2 * seq_len)
        estimated = options.isolated and (
            options.rows == "crops"
            or (options.order == "expected" and options.rows in STREAMED and lengths.documents >= EXACT_BELOW)
        )
        pieces = sum_pieces(counts, seq_len)
        if estimated:
            exposure, cut = expect(lengths, options.rows, seq_len), None
        else:
            exposure, longest = pieces.expose(seq_len), pieces.longest
    longest = min(max(longest, 0), seq_len - 1)
    identity = [encode(options), *(part.xxh3.encode() for part in parts)]
    return MeasuredExposure(
        tool_version=__version__,
        seq_len=seq_len,
        options=options,
        exposure=exposure.to_record(),
        estimated=estimated,
        rows=rows,
        documents=sum(part.documents for part in parts),
        documents_cut=cut if options.rows != "stored" else None,
        tokens=sum(part.tokens for part in parts),
        dropped=sum_dropped(counts),
        longest_context=longest,
        fingerprint=digest(identity),
        parts=parts,
    )


def sum_lengths(counts: Sequence[PartCounts], cap: int) -> DocumentLengths:
    """The document lengths of all parts."""
    histogram = np.zeros(cap + 1, np.int64)
    for one in counts:
        if one.lengths:
            places, numbers = np.array(one.lengths, np.int64).T
            histogram[places] += numbers
    return DocumentLengths(
        counts=histogram,
        long=sum(one.long for one in counts),
        long_tokens=sum(one.long_tokens for one in counts),
        longest=max((one.longest for one in counts), default=0),
    )


def sum_pieces(counts: Sequence[PartCounts], seq_len: int) -> Pieces:
    """The pieces of all parts."""
    histogram = np.zeros(seq_len + 2, np.int64)
    for one in counts:
        if one.pieces:
            places, numbers = np.array(one.pieces, np.int64).T
            histogram[places] += numbers
    return Pieces(counts=histogram, segments=sum(one.segments for one in counts), cut=sum(one.cut for one in counts))


def sum_dropped(counts: Sequence[PartCounts]) -> dict[str, int]:
    """What the trainer will not read, by reason."""
    dropped: dict[str, int] = {}
    for one in counts:
        for reason, tokens in one.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + tokens
    return dict(sorted(dropped.items()))


def emit_notes(measured: MeasuredExposure, emit: Emit) -> None:
    """Say what the numbers rest on."""
    options = measured.options
    if options.eos_id is None and options.documents in ("index", "seq_lengths", "attention_mask", "rows"):
        emit(
            Note(
                text="not checked: whether documents hold EOS inside; give its id with --eos, and a sample is looked at"
            )
        )
    if not options.isolated:
        emit(
            Note(
                text="documents are not kept apart, so a row counts as one document: the table gives more weight to "
                "late places in the row, and says nothing about long documents"
            )
        )
