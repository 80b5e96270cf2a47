"""What other settings would do to a dataset: weights, row length, packing. From its records alone; nothing is written.

Under the rows that are there, everything follows from the counted exposure. Other rows are estimated (`repack`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from exact_prep.choices import Packing
from exact_prep.errors import UsageError
from exact_prep.reader.resample import choose_rows, count_block, count_rows, weigh_for_drawing
from exact_prep.reader.rows import open_one
from exact_prep.records import Count, Record
from exact_prep.records.options import WeightOptions
from exact_prep.reports.repack import load_lengths, repack
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import list_parts, load_table
from exact_prep.weighing.mixture import mix
from exact_prep.weighing.weights import (
    audit_rounding,
    check_tail_from,
    default_tail_from,
    resolve_options,
    share,
    weight_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.batches import Rows
    from exact_prep.dataset import Dataset
    from exact_prep.records.manifest import Manifest
    from exact_prep.records.weights import WeightsFile
    from exact_prep.weighing.weights import WeightTable


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values to try, in every combination; an empty one keeps what the dataset has."""

    alpha: Sequence[float] = ()
    gamma: Sequence[float] = ()
    tail_from: Sequence[int] = ()
    window: Sequence[int | None] = ()
    seq_len: Sequence[int] = ()
    packing: Sequence[Packing] = ()
    tail_share: Sequence[float] = ()
    """Shares of supervision that the tail is to have; alpha follows."""


class DrawingFacts(Record):
    """Rows drawn, with uniform weights, so that the tail's share of targets is the one asked for."""

    tail_share: float
    """The tail's share of the supervised targets that are drawn."""
    distinct_share: float
    """Rows that are drawn at least once, of all rows; the others, and their tokens, are not read."""
    repeats: float
    """How often a row that is drawn comes, on average."""


class Outcome(Record):
    """One setting and what it does."""

    kind: Literal["present", "counted", "estimated"]
    """`present`: as the dataset is. `counted`: its rows under other weights. `estimated`: other rows."""
    seq_len: int
    packing: Packing
    window: int | None
    alpha: float
    gamma: float
    tail_from: Count
    """Where the tail begins, tokens."""
    rows: Count
    padding_share: float
    """Padding of all positions."""
    documents_cut: Count
    supervised_targets: Count
    tail_share: float
    """The tail's share of supervision before weighting."""
    weighted_tail_share: float
    """And after."""
    extra: float
    """Extra supervision of the tail; alpha minus what clipping took."""
    extra_float16: float
    """The same as stored."""
    largest_weight: float
    wanted_tail_share: float | None = None
    """What `--tail-share` asked for."""
    drawing: DrawingFacts | None = None
    """What drawing rows would take to reach it; null without `--tail-share`, or if no drawing reaches it."""


class Simulation(Record):
    """What `exact-prep simulate --json` prints."""

    directory: str
    tree_hash: str
    outcomes: tuple[Outcome, ...]
    """The present setting first."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Rows of the dataset, as they are or as estimated."""

    kind: Literal["counted", "estimated"]
    seq_len: int
    packing: Packing
    rows: int
    padding: int
    cut: int
    exposure: Exposure
    """Of the dataset."""
    weighed: Exposure
    """What weights are made from: the same, unless the dataset is part of a mixture."""
    sample: Rows | None = None
    """Some of the rows; None: they are on disk."""


def simulate(name: str, dataset: Dataset, settings: Settings) -> Simulation:
    """Try every combination of `settings` on a dataset, which the result calls `name`.

    Raises UsageError and WeightsError for settings that make no sense, DatasetError, StorageError.
    """
    manifest = dataset.manifest
    check_settings(name, manifest, settings)
    file = dataset.weights()
    base = file.options or WeightOptions()
    outcomes = [find_present(manifest, file)]
    others = settings.seq_len or (manifest.seq_len,), settings.packing or (manifest.packing,)
    for seq_len, packing in product(*others):
        if (seq_len, packing) == (manifest.seq_len, manifest.packing):
            layout = keep_layout(manifest, file)
        else:
            layout = estimate_layout(name, dataset, file, seq_len, packing)
        for options in list_options(base, settings, manifest.seq_len, seq_len):
            outcomes += [find_outcome(layout, options, wanted, dataset) for wanted in settings.tail_share or (None,)]
    return Simulation(directory=name, tree_hash=manifest.tree_hash, outcomes=tuple(outcomes))


def check_settings(name: str, manifest: Manifest, settings: Settings) -> None:
    """Raise UsageError or WeightsError unless the settings can be tried on the dataset."""
    if not any(asdict(settings).values()):
        raise UsageError(
            "simulate needs a setting to try, such as --alpha 0.3, --seq-len 16k, --packing best-fit or "
            "--tail-share 0.4"
        )
    if settings.alpha and settings.tail_share:
        raise UsageError("--alpha and --tail-share exclude each other: the share of the tail decides alpha")
    for wanted in settings.tail_share:
        if not 0 < wanted < 1:
            raise UsageError(f"--tail-share {wanted:g}: a share of supervision above 0 and below 1, such as 0.4")
    for tail_from in settings.tail_from:
        check_tail_from(tail_from)
    if manifest.split == "validation":
        raise UsageError(f"{name} holds validation rows, whose weights are those of the train rows; name these instead")
    if not manifest.documents.packed:
        raise UsageError(f"{name} has no documents: there is nothing to simulate")


def find_present(manifest: Manifest, file: WeightsFile) -> Outcome:
    """The dataset as it is: its own weights, or 1 for every supervised target."""
    layout = keep_layout(manifest, file)
    if file.kind == "plain":
        table = weight_table(layout.weighed, resolve_options(WeightOptions(alpha=0.0), manifest.seq_len))
    else:
        table = load_table(file)
    return make_outcome(layout, table).model_copy(update={"kind": "present"})


def keep_layout(manifest: Manifest, file: WeightsFile) -> Layout:
    """The rows that are there."""
    return Layout(
        kind="counted",
        seq_len=manifest.seq_len,
        packing=manifest.packing,
        rows=manifest.rows,
        padding=manifest.ledger.padding,
        cut=manifest.documents_cut,
        exposure=Exposure.from_record(manifest.exposure),
        weighed=mix(list_parts(file)),
    )


def estimate_layout(name: str, dataset: Dataset, file: WeightsFile, seq_len: int, packing: Packing) -> Layout:
    """Other rows; raises UsageError where the lengths of documents do not say enough."""
    manifest = dataset.manifest
    only = "--alpha, --gamma, --tail-from, --window and --tail-share work; for other rows, pack it again"
    if manifest.masked:
        raise UsageError(f"{name} has masked targets, and the lengths of documents do not say which:\n{only}")
    if len(file.datasets) > 1:
        raise UsageError(
            f"{name} is weighed together with {len(file.datasets) - 1} more, whose documents are not known here:\n"
            f"{only}"
        )
    other = repack(load_lengths(dataset), seq_len, packing, manifest.options.packing)
    return Layout(
        kind="estimated",
        seq_len=seq_len,
        packing=packing,
        rows=other.rows,
        padding=other.padding,
        cut=other.cut,
        exposure=other.exposure,
        weighed=other.exposure,
        sample=other.sample,
    )


def list_options(base: WeightOptions, settings: Settings, present: int, seq_len: int) -> Iterator[WeightOptions]:
    """The options of weights to try, for rows of `seq_len` tokens.

    A tail that begins where the default for the present rows is begins at the default for other rows too.
    """
    own = None if base.tail_from == default_tail_from(present, base.window) else base.tail_from
    for window, tail_from, gamma, alpha in product(
        settings.window or (base.window,),
        settings.tail_from or (own,),
        settings.gamma or (base.gamma,),
        settings.alpha or (base.alpha,),
    ):
        options = replace(base, window=window, tail_from=tail_from, gamma=gamma, alpha=alpha)
        yield resolve_options(options, seq_len)


def find_outcome(layout: Layout, options: WeightOptions, wanted: float | None, dataset: Dataset) -> Outcome:
    """What options do to rows; `wanted` is the share of the tail that decides alpha, if any."""
    table = weight_table(layout.weighed, options)
    if wanted is None:
        return make_outcome(layout, table)
    if not table.tail_share:
        raise UsageError(
            f"no target of rows of {layout.seq_len:,} tokens has an effective context of {table.tail_start:,} or more: "
            "the tail is empty, and no alpha gives it a share; lower --tail-from"
        )
    table = weight_table(layout.weighed, replace(options, alpha=find_alpha(table.tail_share, wanted)))
    drawing = find_drawing(layout, options, wanted, dataset)
    return make_outcome(layout, table).model_copy(update={"wanted_tail_share": wanted, "drawing": drawing})


def find_alpha(tail_share: float, wanted: float) -> float:
    """The alpha that gives the tail the share `wanted` of supervision; 0 if it has that much already.

    From S = t (1 + alpha) / (1 + t alpha).
    """
    return max((wanted - tail_share) / (tail_share * (1 - wanted)), 0.0) if tail_share < 1 else 0.0


def find_drawing(layout: Layout, options: WeightOptions, wanted: float, dataset: Dataset) -> DrawingFacts | None:
    """What drawing rows takes to give the tail the share `wanted` of targets; None if no drawing does."""
    table = weigh_for_drawing(layout.exposure, options)
    if layout.sample is not None:
        counts = count_block(layout.sample, table)
    else:
        counts = count_rows(open_one(dataset.path, weights=None, plain=True, weights_from_elsewhere=False), table)
    try:
        _, drawing = choose_rows(counts, dataset.path, wanted, seed=0, rows=counts.targets.size)
    except UsageError:
        return None
    return DrawingFacts(
        tail_share=drawing.tail_share,
        distinct_share=drawing.distinct_rows / counts.targets.size,
        repeats=drawing.repeats,
    )


def make_outcome(layout: Layout, table: WeightTable) -> Outcome:
    """What a table does to rows; shares are those of the dataset, also where it is part of a mixture."""
    counts = table.count(layout.exposure)
    weights = table.by_bucket(counts.size)
    tail = bucket_edges(counts.size)[:-1] >= table.tail_start
    held = counts > 0
    return Outcome(
        kind=layout.kind,
        seq_len=layout.seq_len,
        packing=layout.packing,
        window=table.options.window,
        alpha=table.options.alpha,
        gamma=table.options.gamma,
        tail_from=table.tail_start,
        rows=layout.rows,
        padding_share=share(layout.padding, layout.rows * layout.seq_len),
        documents_cut=layout.cut,
        supervised_targets=int(counts.sum()),
        tail_share=share(counts[tail].sum(), counts.sum()),
        weighted_tail_share=share((counts * weights)[tail].sum(), (counts * weights).sum()),
        extra=table.extra,
        extra_float16=audit_rounding(table).extra_float16,
        largest_weight=float(weights[held].max(initial=0.0)),
    )
