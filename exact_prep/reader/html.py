"""A packed dataset as a notebook shows it: where supervision goes, before and after weighing."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.weighing.context import bucket_edges
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import find_divisor

if TYPE_CHECKING:
    from exact_prep.reader.rows import PackedDataset

BAR_PX = 160
"""Width of the bar of the largest bucket."""


def render_html(dataset: PackedDataset) -> str:
    """A heading and a row per bucket of effective context, as the report has them; counts are of the whole corpus.

    Bars are grey on whatever the notebook's theme is, and the tail is marked by a word.
    """
    counts, weights, tail = measure_buckets(dataset)
    weighed = dataset.loaded_weights is not None
    titles = ["context", "targets", "share", "", *(["weight", "after", ""] if weighed else [])]
    head = "".join(f"<th style='text-align: right'>{title}</th>" for title in titles)
    edges = bucket_edges(counts.size).tolist()
    total, supervision = max(counts.sum(), 1), counts * weights
    lines = []
    for b, count in enumerate(counts.tolist()):
        width = round(BAR_PX * count / max(counts.max(), 1))
        bar = f"<div style='width: {width}px; height: 0.8em; background: #888'></div>"
        high = min(edges[b + 1], dataset.seq_len) - 1
        cells = [f"{edges[b]:,} - {high:,}", f"{count:,}", f"{count / total:.2%}", bar]
        if weighed:
            after = supervision[b] / supervision.sum() if supervision.sum() else 0.0
            cells += [f"{weights[b]:.4f}", f"{after:.2%}", "tail" if tail[b] else ""]
        lines.append("<tr>" + "".join(f"<td style='text-align: right'>{cell}</td>" for cell in cells) + "</tr>")
    kind = "weighed" if weighed else "plain weights"
    title = f"<b>{escape(str(dataset.path))}</b>: {len(dataset):,} rows of {dataset.seq_len:,} tokens, {kind}"
    return f"<div>{title}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def measure_buckets(dataset: PackedDataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bucket: supervised targets int64[B], their weight float64[B], and whether it is in the tail bool[B]."""
    exposure, loaded = Exposure.from_record(dataset.manifest.exposure), dataset.loaded_weights
    if loaded is None:
        counts = exposure.supervised()
        return counts, np.ones(counts.size), np.zeros(counts.size, bool)
    table = loaded.table
    counts = table.count(exposure)
    tail = (bucket_edges(counts.size)[:-1] >= table.tail_start) & (counts > 0)
    return counts, table.by_bucket(counts.size) / find_divisor(loaded.file, loaded.dataset_id), tail
