"""Where supervision goes: one record of facts (`facts`), and its renderings.

`terminal`, `tables` (Markdown, CSV, LaTeX), `figure` (for a paper), `page` (HTML, from `page_data` and the files
page.html, page.css and page.js), and the record's own JSON;
`glossary` says what the words mean. `simulate` says what other settings would do; `repack` estimates other rows.

One row: its facts (`row`), which one (`row_search`), where its documents came from (`origins`), and its renderings
(`row_terminal`, `row_html`, both by `row_parts`). `hostile` says which characters of documents are spelled out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.reports.facts import Facts, MeasuredFacts, make_facts, make_measured_facts

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.stores.paths import Home

__all__ = ["Facts", "MeasuredFacts", "load_facts", "make_facts", "make_measured_facts"]


def load_facts(
    directory: Home, weights: Path | None = None, *, weights_from_elsewhere: bool = False
) -> Facts | MeasuredFacts:
    """The facts of the dataset in `directory`, packed or measured, under its own weights or those in `weights`.

    Raises DatasetError, StorageError. No shard is read.
    """
    from exact_prep.dataset import Measured, open_any
    from exact_prep.reader.lookup import load_table_for

    dataset = open_any(directory)
    if weights is None:
        file = dataset.weights()
    else:
        file = load_table_for(weights, dataset, elsewhere=weights_from_elsewhere).file
    if isinstance(dataset, Measured):
        return make_measured_facts(str(directory), dataset.record, file)
    sources = dataset.table("sources").to_pylist()
    return make_facts(str(directory), dataset.manifest, file, sources, dataset.document_lengths())
