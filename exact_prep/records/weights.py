"""weights.json: the weights of a dataset, or of a mixture, and all that they follow from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from exact_prep.choices import MAX_WEIGHT
from exact_prep.records import ALIGNMENT, FORMAT_VERSION, Count, Digest, FormatVersion, Record, RowLength, Seal
from exact_prep.records.manifest import ExposureRecord
from exact_prep.records.options import WeightOptions

Number = int | float
"""A count of one dataset, or of a mixture, where rates make fractions."""


class WeighedDataset(Record):
    """A dataset whose exposure the table was computed from."""

    id: Digest
    """Tree hash of a packed dataset, or fingerprint of a measured one."""
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tokens that the trainer reads from this dataset."""
    rows: Count
    tokenizer: str
    """sha256 of the tokenizer.json; empty if it is not known."""
    exposure: ExposureRecord
    divisor: Annotated[float, Field(gt=0)] = 1.0
    """What the weights of this dataset are divided by to keep the mixture; 1 otherwise."""


class TableRecord(Record):
    """One weight per bucket of effective left context, with the figures that justify it."""

    bucket_edges: tuple[int, ...]
    """Bucket b is [bucket_edges[b], bucket_edges[b + 1]), in tokens."""
    counts: tuple[Annotated[Number, Field(ge=0)], ...]
    """Supervised targets per bucket."""
    in_tail: tuple[bool, ...]
    weights: tuple[Annotated[float, Field(ge=0, le=MAX_WEIGHT)], ...]
    """Weight of a supervised target per bucket, before rounding to float16."""
    scale: Annotated[float, Field(gt=0)]
    """What all weights were divided by (`normalize`)."""
    extra: float
    """Extra supervision of the tail as computed; alpha minus what clipping took."""
    tail_share: float
    """The tail's share of supervised targets."""
    weighted_tail_share: float
    """The tail's share of supervision by this table, before the divisors that keep a mixture."""

    @model_validator(mode="after")
    def fits(self) -> TableRecord:
        """Refuse columns of different lengths."""
        if {len(self.counts), len(self.in_tail), len(self.weights)} != {len(self.bucket_edges) - 1}:
            raise ValueError("bucket_edges, counts, in_tail and weights do not describe the same buckets")
        return self


class RoundingRecord(Record):
    """What rounding to float16 did, over the corpus."""

    max_relative_error: float
    """Of a weight of a bucket that holds targets."""
    mean_weight: float
    mean_weight_float16: float
    zeros: Count
    """Targets whose positive weight rounded to zero."""
    extra_float16: float
    """Extra supervision of the tail as stored."""
    extra_relative_error: float
    """Its difference to `extra`, relative to `extra`; 0 where there is no extra."""


class WeightsFile(Record):
    """The weights that a dataset holds (`kind` exact), or that `pack` gave it (plain: 1 per supervised target)."""

    format_version: FormatVersion = FORMAT_VERSION
    tool_version: str
    kind: Literal["plain", "exact"]
    state: Literal["complete", "incomplete"]
    """`incomplete`: some shards hold these weights, others the ones before; run `weigh` again."""
    seq_len: RowLength
    alignment: Literal["target"] = ALIGNMENT
    options: WeightOptions | None
    """None for plain weights."""
    table: TableRecord | None
    rounding: RoundingRecord | None
    datasets: tuple[WeighedDataset, ...] = Field(min_length=1)
    """What the weights are for: one dataset, or the datasets of a mixture."""
    applied_from: Digest | None = None
    """Id of the dataset whose exposure the table comes from, if it is not one of `datasets`."""
    weights_xxh3: Digest | None = None
    """xxh3-128 of tables/weights.parquet; None where no column holds the weights, or not yet."""
    checksum: Seal = ""
    """sha256 of this file with an empty checksum: a change by hand is found."""

    @model_validator(mode="after")
    def is_whole(self) -> WeightsFile:
        """Refuse exact weights without a table, and plain ones with one."""
        parts = {self.options is None, self.table is None, self.rounding is None}
        if parts != {self.kind == "plain"}:
            raise ValueError("exact weights have options, table and rounding; plain ones have none")
        if self.options is not None and self.options.tail_from is None:
            raise ValueError("options.tail_from is missing")
        return self
