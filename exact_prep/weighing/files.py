"""weights.json from a table, and a table from weights.json. No file is opened here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import numpy as np

from exact_prep.errors import WeightsError
from exact_prep.records.weights import RoundingRecord, TableRecord, WeighedDataset, WeightsFile
from exact_prep.version import __version__
from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.mixture import Part, PartShare, mix, share_supervision
from exact_prep.weighing.weights import WeightTable, audit_rounding, float16_runs, plain_runs, weight_table

if TYPE_CHECKING:
    from collections.abc import Sequence


def plain_weights(dataset: WeighedDataset, seq_len: int) -> WeightsFile:
    """weights.json as `pack` leaves it: 1 for every supervised target."""
    return WeightsFile(
        tool_version=__version__,
        kind="plain",
        state="complete",
        seq_len=seq_len,
        options=None,
        table=None,
        rounding=None,
        datasets=(dataset,),
    )


def exact_weights(
    table: WeightTable,
    datasets: Sequence[WeighedDataset],
    seq_len: int,
    *,
    state: Literal["complete", "incomplete"] = "complete",
) -> WeightsFile:
    """weights.json for a table that follows from `datasets`."""
    return WeightsFile(
        tool_version=__version__,
        kind="exact",
        state=state,
        seq_len=seq_len,
        options=table.options,
        table=TableRecord(
            bucket_edges=tuple(bucket_edges(table.counts.size).tolist()),
            counts=tuple(table.counts.tolist()),
            in_tail=tuple(table.in_tail.tolist()),
            weights=tuple(table.weights.tolist()),
            scale=table.scale,
            extra=table.extra,
            tail_share=table.tail_share,
            weighted_tail_share=table.weighted_tail_share,
        ),
        rounding=RoundingRecord(**asdict(audit_rounding(table))),
        datasets=tuple(datasets),
    )


def identify(weights: WeightsFile) -> WeightsFile:
    """weights.json without its progress: equal, and so of equal fingerprint, while incomplete and when complete."""
    return weights.model_copy(update={"state": "incomplete", "weights_xxh3": None, "checksum": ""})


def compute_table(file: WeightsFile) -> WeightTable:
    """The table that weights.json stands for, computed anew from its exposures and options; raises WeightsError."""
    if file.options is None or file.table is None:
        raise WeightsError("these weights are plain: there is no table")
    if file.applied_from is not None:
        exposure = Exposure(counts=np.array(file.table.counts))
        return weight_table(exposure, file.options)
    return weight_table(mix(list_parts(file)), file.options)


def list_parts(file: WeightsFile) -> list[Part]:
    """The datasets of a weights.json as parts of a mixture."""
    return [
        Part(
            exposure=Exposure.from_record(dataset.exposure),
            tokens=dataset.rows * file.seq_len,
            rate=None if len(file.datasets) == 1 else dataset.rate,
        )
        for dataset in file.datasets
    ]


def share_datasets(file: WeightsFile) -> tuple[list[PartShare], float]:
    """Each dataset's share of supervision, and the extra that the tail really gets: see `share_supervision`."""
    return share_supervision(list_parts(file), load_table(file), [dataset.divisor for dataset in file.datasets])


def load_table(file: WeightsFile) -> WeightTable:
    """The table in weights.json as it was written; raises WeightsError for plain weights."""
    if file.options is None or file.table is None:
        raise WeightsError("these weights are plain: there is no table")
    record = file.table
    return WeightTable(
        options=file.options,
        counts=np.array(record.counts),
        weights=np.array(record.weights),
        in_tail=np.array(record.in_tail, bool),
        scale=record.scale,
        extra=record.extra,
    )


def find_divisor(file: WeightsFile, dataset_id: str) -> float:
    """What a dataset's weights are divided by; 1 for a dataset that the file does not name."""
    return next((dataset.divisor for dataset in file.datasets if dataset.id == dataset_id), 1.0)


def weight_runs(file: WeightsFile, dataset_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The weights of one dataset as float16 runs by position (`float16_runs`); raises WeightsError."""
    if file.kind == "plain":
        return plain_runs(file.seq_len)
    return float16_runs(load_table(file), file.seq_len, divisor=find_divisor(file, dataset_id))
