"""The facts of a dataset: its manifest, its sources and its weights in, one record out. Opens no file.

For tokens that others wrote, what `measure` found takes the manifest's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exact_prep.choices import LossWeights, Packing
from exact_prep.dataset import describe
from exact_prep.records import Count, Record
from exact_prep.records.manifest import DocumentCounts, TokenizerRecord, TokenLedger
from exact_prep.records.options import MeasureOptions, WeightOptions
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import find_divisor, load_table, share_datasets
from exact_prep.weighing.weights import default_tail_from, share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exact_prep.records.manifest import Manifest
    from exact_prep.records.measured import MeasuredExposure
    from exact_prep.records.weights import WeighedDataset, WeightsFile


class BucketFacts(Record):
    """One bucket of effective left context."""

    low: Count
    """Smallest context of the bucket, tokens."""
    high: Count
    """Largest."""
    targets: Count
    """Supervised targets."""
    share: float
    """Of all supervised targets: its share of supervision before weighting."""
    in_tail: bool
    """Whether it is in the tail; before `weigh`, in the one that `weigh` takes by itself."""
    weight: float | None
    """Weight of a target; null before `weigh`."""
    weighted_share: float | None
    """Its share of supervision after weighting; null before `weigh`."""


class SourceFacts(Record):
    """One source of documents."""

    label: str
    documents: Count
    tokens: Count
    share: float
    """Of all supervised targets: its share of supervision before weighting."""
    tail_share: float | None
    """Its own targets in the tail, of all its targets; null before `weigh`."""
    weighted_share: float | None
    """Its share of supervision after weighting; null before `weigh`."""
    median_length: Count
    """Tokens of its median document: half of its documents are at most that long."""
    length_95: Count
    """95 % of its documents have at most so many tokens."""


class MixedDatasetFacts(Record):
    """One dataset of a mixture."""

    id: str
    """Tree hash of a packed dataset, fingerprint of a measured one."""
    directory: str
    """Where it is, if it is the dataset of these facts; empty for the others, which are known by their id alone."""
    rows: Count
    rate: float
    """Its share of the tokens that the trainer reads."""
    share: float
    """Its share of supervision before weighting."""
    weighted_share: float
    """And after."""
    divisor: float
    """What its weights are divided by to keep the mixture; 1 otherwise."""


class MixtureFacts(Record):
    """The datasets that were weighed together."""

    datasets: tuple[MixedDatasetFacts, ...]
    extra: float
    """Mean weight of the tail's targets over the mean weight of the others, minus 1, targets counted at the rates: what
    is left of the extra supervision when each dataset keeps its share."""


class WeightFacts(Record):
    """What `weigh` did."""

    state: Literal["complete", "incomplete"]
    options: WeightOptions
    tail_start: Count
    """Where the tail begins: the first bucket edge at or above tau."""
    extra: float
    """Extra supervision of the tail as computed; alpha minus what clipping took."""
    extra_float16: float
    """The same as stored."""
    tail_share: float
    """The tail's share of supervision before weighting."""
    weighted_tail_share: float
    """And after."""
    max_relative_rounding_error: float
    mixture: MixtureFacts | None
    """Null for a dataset that was weighed alone."""


class ExposureFacts(Record):
    """Where supervision goes, whoever packed the rows."""

    directory: str
    tool_version: str
    seq_len: int
    rows: Count
    longest_context: Count
    segments: Count
    supervised_targets: Count
    mean_left_context_bucketed: float
    """Mean effective left context of a supervised target, taken at bucket middles."""
    weights: WeightFacts | None
    """Null before `weigh`."""
    buckets: tuple[BucketFacts, ...]


class MeasuredFacts(ExposureFacts):
    """What `exact-prep report --json` prints for tokens that others wrote."""

    fingerprint: str
    options: MeasureOptions
    """How the trainer cuts rows and tells documents apart."""
    estimated: bool
    """Whether counts are expected ones, for a random order of the documents."""
    files: Count
    documents: Count
    documents_cut: Count | None
    tokens: Count
    dropped: dict[str, Count]
    """Tokens that the trainer will not read, by reason."""


class Facts(ExposureFacts):
    """What `exact-prep report --json` prints for one packed dataset."""

    packing: Packing
    loss_weights: LossWeights
    tree_hash: str
    padding_rows: Count
    """Rows of padding alone, which complete the dataset."""
    shards: Count
    input_files: Count
    text_bytes: Count
    documents: DocumentCounts
    documents_cut: Count
    ledger: TokenLedger
    padding_share: float
    tokenizer: TokenizerRecord
    sources: tuple[SourceFacts, ...]
    """Sorted by label."""


class Lens:
    """How exposures of one dataset look under its weights: targets and weights per bucket."""

    def __init__(self, seq_len: int, dataset_id: str, weights: WeightsFile | None) -> None:
        """`weights` None, or plain, means that the dataset is not weighed; `dataset_id` as weights.json names it."""
        self.exact = weights if weights and weights.kind == "exact" else None
        self.table = load_table(self.exact) if self.exact else None
        self.default_start = default_tail_from(seq_len)
        self.divisor = find_divisor(self.exact, dataset_id) if self.exact else 1.0

    def count(self, exposure: Exposure) -> np.ndarray:
        """Supervised targets per bucket, int64[B]."""
        return self.table.count(exposure) if self.table else exposure.supervised()

    def weigh(self, buckets: int) -> np.ndarray:
        """Weight of a supervised target per bucket, float64[B]; 1 before `weigh`."""
        return self.table.by_bucket(buckets) / self.divisor if self.table else np.ones(buckets)

    def find_tail(self, counts: np.ndarray) -> np.ndarray:
        """Which buckets are in the tail, bool[B]."""
        start = self.table.tail_start if self.table else self.default_start
        return (bucket_edges(counts.size)[:-1] >= start) & (counts > 0)


def make_facts(
    directory: str,
    manifest: Manifest,
    weights: WeightsFile | None,
    sources: Sequence[Mapping[str, Any]] = (),
    lengths: np.ndarray | None = None,
) -> Facts:
    """The facts of one dataset; `sources` are rows of its table, `lengths` its `Dataset.document_lengths`."""
    lens = Lens(manifest.seq_len, manifest.tree_hash, weights)
    return Facts(
        **expose(lens, directory, describe(manifest), manifest.seq_len),
        tool_version=manifest.tool_version,
        longest_context=manifest.longest_context,
        packing=manifest.packing,
        loss_weights=manifest.loss_weights,
        tree_hash=manifest.tree_hash,
        padding_rows=manifest.padding_rows,
        shards=manifest.shards,
        input_files=manifest.input_files,
        text_bytes=manifest.text_bytes,
        documents=manifest.documents,
        documents_cut=manifest.documents_cut,
        ledger=manifest.ledger,
        padding_share=share(manifest.ledger.padding, manifest.rows * manifest.seq_len),
        tokenizer=manifest.tokenizer,
        sources=make_sources(lens, sources, lengths),
    )


def make_measured_facts(directory: str, measured: MeasuredExposure, weights: WeightsFile | None) -> MeasuredFacts:
    """The facts of tokens that others wrote."""
    lens = Lens(measured.seq_len, measured.fingerprint, weights)
    return MeasuredFacts(
        **expose(lens, directory, measured.described, measured.seq_len),
        tool_version=measured.tool_version,
        longest_context=measured.longest_context,
        fingerprint=measured.fingerprint,
        options=measured.options,
        estimated=measured.estimated,
        files=len(measured.parts),
        documents=measured.documents,
        documents_cut=measured.documents_cut,
        tokens=measured.tokens,
        dropped=measured.dropped,
    )


def expose(lens: Lens, directory: str, dataset: WeighedDataset, seq_len: int) -> dict[str, Any]:
    """What packed and measured datasets have in common, as fields of ExposureFacts."""
    counts = lens.count(Exposure.from_record(dataset.exposure))
    buckets = make_buckets(seq_len, lens, counts)
    targets = sum(bucket.targets for bucket in buckets)
    middles = sum(bucket.targets * (bucket.low + bucket.high) / 2 for bucket in buckets)
    return {
        "directory": directory,
        "seq_len": seq_len,
        "rows": dataset.rows,
        "segments": dataset.exposure.segments,
        "supervised_targets": targets,
        "mean_left_context_bucketed": share(middles, targets),
        "weights": make_weight_facts(lens, counts, directory, dataset.id),
        "buckets": buckets,
    }


def make_weight_facts(lens: Lens, counts: np.ndarray, directory: str, dataset_id: str) -> WeightFacts | None:
    """What weights.json says of the whole; shares are those of this dataset."""
    file, table = lens.exact, lens.table
    if file is None or table is None or file.rounding is None:
        return None
    tail, supervision = lens.find_tail(counts), counts * lens.weigh(counts.size)
    return WeightFacts(
        state=file.state,
        options=table.options,
        tail_start=table.tail_start,
        extra=table.extra,
        extra_float16=file.rounding.extra_float16,
        tail_share=share(counts[tail].sum(), counts.sum()),
        weighted_tail_share=share(supervision[tail].sum(), supervision.sum()),
        max_relative_rounding_error=file.rounding.max_relative_error,
        mixture=make_mixture(file, directory, dataset_id) if len(file.datasets) > 1 else None,
    )


def make_mixture(file: WeightsFile, directory: str, dataset_id: str) -> MixtureFacts:
    """The datasets of a mixture: how each one's share of supervision moves."""
    shares, extra = share_datasets(file)
    return MixtureFacts(
        datasets=tuple(
            MixedDatasetFacts(
                id=dataset.id,
                directory=directory if dataset.id == dataset_id else "",
                rows=dataset.rows,
                rate=dataset.rate,
                share=own.before,
                weighted_share=own.after,
                divisor=dataset.divisor,
            )
            for dataset, own in zip(file.datasets, shares, strict=True)
        ),
        extra=extra,
    )


def make_buckets(seq_len: int, lens: Lens, counts: np.ndarray) -> tuple[BucketFacts, ...]:
    """Every bucket up to the longest context."""
    edges, weights, tail = bucket_edges(counts.size).tolist(), lens.weigh(counts.size), lens.find_tail(counts)
    supervision = counts * weights
    return tuple(
        BucketFacts(
            low=edges[b],
            high=min(edges[b + 1], seq_len) - 1,
            targets=count,
            share=share(count, counts.sum()),
            in_tail=bool(tail[b]),
            weight=float(weights[b]) if lens.exact else None,
            weighted_share=share(supervision[b], supervision.sum()) if lens.exact else None,
        )
        for b, count in enumerate(counts.tolist())
    )


def make_sources(lens: Lens, rows: Sequence[Mapping[str, Any]], lengths: np.ndarray | None) -> tuple[SourceFacts, ...]:
    """Every source: its share of supervision before and after weighting, and how long its documents are."""
    if lengths is None:
        lengths = np.zeros((3, 0), np.int64)
    counted = [
        lens.count(Exposure(counts=np.array(row["counts"], np.int64), segments=row["segments"], firsts=row["firsts"]))
        for row in rows
    ]
    targets = [int(counts.sum()) for counts in counted]
    supervision = [float(counts @ lens.weigh(counts.size)) for counts in counted]
    return tuple(
        SourceFacts(
            label=row["label"],
            documents=row["documents"],
            tokens=row["tokens"],
            share=share(targets[i], sum(targets)),
            tail_share=share(counts[lens.find_tail(counts)].sum(), counts.sum()) if lens.exact else None,
            weighted_share=share(supervision[i], sum(supervision)) if lens.exact else None,
            median_length=find_quantile(lengths[1:, lengths[0] == i], 50),
            length_95=find_quantile(lengths[1:, lengths[0] == i], 95),
        )
        for i, (row, counts) in enumerate(zip(rows, counted, strict=True))
    )


def find_quantile(lengths: np.ndarray, percent: int) -> int:
    """The smallest length, in tokens, that `percent` of the documents do not exceed; 0 without documents.

    `lengths[2, N]` are lengths and the documents that have them.
    """
    order = np.argsort(lengths[0])
    reached = np.cumsum(lengths[1][order])
    if not reached.size:
        return 0
    wanted = -(-percent * int(reached[-1]) // 100)
    return int(lengths[0][order][np.searchsorted(reached, wanted)])
