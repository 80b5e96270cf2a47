"""The facts of a packed dataset, from its manifest and weights.json alone: no shard is read here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from exact_prep.choices import Packing
from exact_prep.dataset import WEIGHTS, load_manifest, load_weights_file
from exact_prep.errors import DatasetError
from exact_prep.records import Record
from exact_prep.records.manifest import Count, DocumentCounts, TokenizerRecord, TokenLedger, WeightsFile
from exact_prep.weighing.exposure import bucket_edges
from exact_prep.weighing.files import exposure_of

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.records.manifest import Manifest


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
    weight: float | None
    """Weight of a target; null before `weigh`."""
    weighted_share: float | None
    """Its share of supervision after weighting; null before `weigh`."""


class WeightFacts(Record):
    """What `weigh` did."""

    state: Literal["under way", "complete"]
    alpha: float
    gamma: float
    tail_from: int
    tail_start: int
    max_weight: float | None
    supervise_first: bool
    normalize: str
    extra: float
    """Extra supervision of the tail as it came out; alpha less what clipping took."""
    tail_share: float
    """The tail's share of supervision before weighting."""
    weighted_tail_share: float
    """And after."""
    max_relative_rounding_error: float


class Facts(Record):
    """What `exact-prep report --json` prints for one dataset."""

    directory: str
    tool_version: str
    seq_len: int
    packing: Packing
    tree_hash: str
    rows: Count
    shards: Count
    input_files: Count
    text_bytes: Count
    documents: DocumentCounts
    documents_cut: Count
    longest_context: Count
    segments: Count
    ledger: TokenLedger
    padding_share: float
    supervised_targets: Count
    mean_left_context_bucketed: float
    """Mean effective left context of a supervised target, taken at bucket middles."""
    tokenizer: TokenizerRecord
    weights: WeightFacts | None
    """Null before `weigh`."""
    buckets: tuple[BucketFacts, ...]


def gather(directory: Path) -> Facts:
    """The facts of the dataset in `directory`; raises DatasetError, StorageError."""
    manifest, weights = load_manifest(directory), load_weights_file(directory)
    if weights and (weights.dataset_tree_hash != manifest.tree_hash or weights.exposure != manifest.exposure):
        raise DatasetError(f"{directory / WEIGHTS} belongs to another dataset; run `exact-prep weigh` again")
    buckets = bucket_facts(manifest, weights)
    positions = manifest.rows * manifest.seq_len
    targets = sum(bucket.targets for bucket in buckets)
    middles = sum(bucket.targets * (bucket.low + bucket.high) / 2 for bucket in buckets)
    return Facts(
        directory=str(directory),
        tool_version=manifest.tool_version,
        seq_len=manifest.seq_len,
        packing=manifest.packing,
        tree_hash=manifest.tree_hash,
        rows=manifest.rows,
        shards=len(manifest.shards),
        input_files=len(manifest.inputs),
        text_bytes=manifest.text_bytes,
        documents=manifest.documents,
        documents_cut=manifest.documents_cut,
        longest_context=manifest.longest_context,
        segments=manifest.exposure.segments,
        ledger=manifest.ledger,
        padding_share=manifest.ledger.padding / positions if positions else 0.0,
        supervised_targets=targets,
        mean_left_context_bucketed=middles / targets if targets else 0.0,
        tokenizer=manifest.tokenizer,
        weights=weight_facts(weights) if weights else None,
        buckets=buckets,
    )


def weight_facts(weights: WeightsFile) -> WeightFacts:
    """What weights.json says of the whole."""
    return WeightFacts(
        state=weights.state,
        alpha=weights.alpha,
        gamma=weights.gamma,
        tail_from=weights.tail_from,
        tail_start=weights.tail_start,
        max_weight=weights.max_weight,
        supervise_first=weights.supervise_first,
        normalize=weights.normalize,
        extra=weights.extra,
        tail_share=weights.tail_share,
        weighted_tail_share=weights.weighted_tail_share,
        max_relative_rounding_error=weights.rounding.max_relative_error,
    )


def bucket_facts(manifest: Manifest, weights: WeightsFile | None) -> tuple[BucketFacts, ...]:
    """Every bucket up to the longest context; raises DatasetError if weights.json has others."""
    first = bool(weights and weights.supervise_first)
    counts = exposure_of(manifest.exposure).supervised(supervise_first=first).tolist()
    if weights and len(weights.weights) != len(counts):
        raise DatasetError(f"{WEIGHTS} does not follow from its exposure; run `exact-prep weigh` again")
    edges = bucket_edges(len(counts)).tolist()
    supervision = [c * w for c, w in zip(counts, weights.weights, strict=True)] if weights else []
    targets, mass = sum(counts), sum(supervision)
    return tuple(
        BucketFacts(
            low=edges[b],
            high=min(edges[b + 1], manifest.seq_len) - 1,
            targets=count,
            share=count / targets if targets else 0.0,
            in_tail=bool(weights and weights.in_tail[b]),
            weight=weights.weights[b] if weights else None,
            weighted_share=(supervision[b] / mass if mass else 0.0) if weights else None,
        )
        for b, count in enumerate(counts)
    )
