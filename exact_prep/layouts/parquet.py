"""`parquet`: the shards' columns, `levanter`: two of them, as its prebuilt format reads them. Files of a bounded size.

`sources` are left out: their numbers mean something within a task alone.

Weights are float32, the same numbers: many readers of Parquet know no float16.
"""

from __future__ import annotations

from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exact_prep.reader.blocks import get_weights, read_blocks
from exact_prep.stores.local import explained
from exact_prep.zero_copy import as_arrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from exact_prep.batches import Rows
    from exact_prep.choices import Align
    from exact_prep.reader.rows import PackedDataset

FILE_TOKENS = 1 << 28
"""Tokens after which the next file begins."""


def write(
    dataset: PackedDataset, kind: str, out: Path, align: Align, progress: Callable[[int], None]
) -> dict[str, Any]:
    """data-00000.parquet and so on."""
    as_batch = levanter_batch if kind == "levanter" else full_batch
    files: list[str] = []
    for number, part in groupby(by_file(read_blocks(dataset, align)), itemgetter(0)):
        files.append(f"data-{number:05d}.parquet")
        batches = (as_batch(block) for _, block in part)
        first = next(batches)
        with (
            explained("write", out / files[-1]),
            pq.ParquetWriter(out / files[-1], first.schema, compression="zstd") as writer,
        ):
            for batch in chain([first], batches):
                writer.write_batch(batch)
                progress(batch.num_rows * dataset.seq_len)
    return {"files": files}


def by_file(parts: Iterable[Rows]) -> Iterator[tuple[int, Rows]]:
    """Each block with the number of its file."""
    tokens = 0
    for block in parts:
        yield tokens // FILE_TOKENS, block
        tokens += block.input_ids.size


def levanter_batch(block: Rows) -> pa.RecordBatch:
    """input_ids and loss_weights, a row a list."""
    return pa.record_batch({"input_ids": fixed(block.input_ids), "loss_weights": fixed(get_weights(block), np.float32)})


def full_batch(block: Rows) -> pa.RecordBatch:
    """All columns; `masked_runs` count places of targets in the row, however weights are aligned."""

    def variable(values: np.ndarray, splits: np.ndarray = block.row_splits) -> pa.Array:
        return pa.ListArray.from_arrays(as_arrow(splits), as_arrow(values))

    columns = {
        "input_ids": fixed(block.input_ids),
        "seq_lengths": variable(block.seq_lengths),
        "doc_ids": variable(block.doc_ids),
        "doc_offsets": variable(block.doc_offsets),
    }
    if block.mask_splits is not None and block.masked_runs is not None:
        columns["masked_runs"] = variable(block.masked_runs, block.mask_splits)
    return pa.record_batch(columns | {"loss_weights": fixed(get_weights(block), np.float32)})


def fixed(values: np.ndarray, dtype: type[np.generic] | None = None) -> pa.Array:
    """`values[R, L]` as R lists."""
    rows, seq_len = values.shape
    splits = as_arrow(np.arange(rows + 1, dtype=np.int32) * np.int32(seq_len))
    return pa.ListArray.from_arrays(splits, as_arrow(values.astype(dtype or values.dtype, copy=False).reshape(-1)))
