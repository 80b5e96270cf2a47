"""weights.json and the table it stands for: one from the other, both ways. No file is opened here."""

from __future__ import annotations

import numpy as np

from exact_prep.records.manifest import ExposureRecord, Manifest, RoundingRecord, WeightsFile
from exact_prep.version import __version__
from exact_prep.weighing.exposure import Exposure, bucket_edges
from exact_prep.weighing.weights import WeightOptions, WeightTable, audit_rounding, weight_table


def exposure_of(record: ExposureRecord) -> Exposure:
    """The exposure that a record stores."""
    return Exposure(counts=np.array(record.counts, np.int64), segments=record.segments)


def record_of(exposure: Exposure) -> ExposureRecord:
    """An exposure as it is stored."""
    return ExposureRecord(counts=tuple(exposure.trimmed().tolist()), segments=exposure.segments)


def weights_file(table: WeightTable, manifest: Manifest) -> WeightsFile:
    """weights.json for a dataset whose shards are about to receive `table`: state `under way`."""
    options, audit = table.options, audit_rounding(table)
    return WeightsFile(
        tool_version=__version__,
        state="under way",
        dataset_tree_hash=manifest.tree_hash,
        seq_len=manifest.seq_len,
        alpha=options.alpha,
        gamma=options.gamma,
        tail_from=options.tail_from,
        tail_start=table.tail_start,
        eps=options.eps,
        max_weight=options.max_weight,
        supervise_first=options.supervise_first,
        normalize=options.normalize,
        bucket_edges=tuple(bucket_edges(table.counts.size).tolist()),
        exposure=manifest.exposure,
        counts=tuple(table.counts.tolist()),
        in_tail=tuple(table.in_tail.tolist()),
        weights=tuple(table.weights.tolist()),
        scale=table.scale,
        extra=table.extra,
        tail_share=table.tail_share,
        weighted_tail_share=table.weighted_tail_share,
        rounding=RoundingRecord(
            max_relative_error=audit.max_relative_error,
            mean_weight=audit.mean_weight,
            mean_weight_float16=audit.mean_weight_float16,
            zeros=audit.zeros,
        ),
    )


def begun(weights: WeightsFile) -> WeightsFile:
    """weights.json as it was while `weigh` was under way: its fingerprint is the table's."""
    return weights.model_copy(update={"state": "under way", "shards": (), "checksum": ""})


def table_of(file: WeightsFile) -> WeightTable:
    """The table that weights.json stands for, computed anew from its exposure and parameters; raises WeightsError."""
    return weight_table(exposure_of(file.exposure), options_of(file))


def options_of(file: WeightsFile) -> WeightOptions:
    """The parameters in weights.json; raises WeightsError for impossible ones."""
    return WeightOptions(
        tail_from=file.tail_from,
        alpha=file.alpha,
        gamma=file.gamma,
        eps=file.eps,
        max_weight=file.max_weight,
        supervise_first=file.supervise_first,
        normalize=file.normalize,
    )
