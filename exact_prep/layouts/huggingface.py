"""`huggingface`: rows of ids in Arrow and Parquet files, as `datasets` saves them and TRL, Axolotl, LLaMA-Factory pack.

Documents of a row are told apart by a column beside the ids:

    seq_lengths      their lengths (TRL, exact-prep)
    position_ids     positions that restart at 0 (Axolotl)
    attention_mask   1, 2, 3, ... by document, 0 for padding (LLaMA-Factory's neat packing)
    eos              their last token
    rows             a row is one document
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from exact_prep.batches import IGNORED
from exact_prep.errors import DatasetError, UsageError
from exact_prep.kernels.cuts import find_restarts
from exact_prep.layouts.foreign import Part, StoredRows, as_bytes, expand, file_size, find_segments, need_eos
from exact_prep.stores.local import explained, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.choices import DocumentsBy
    from exact_prep.layouts.foreign import Watch
    from exact_prep.records.options import MeasureOptions

SUFFIXES = (".arrow", ".parquet")
STATE, DICTIONARY = "state.json", "dataset_dict.json"
TOKENS = ("input_ids", "tokens")
"""Columns that hold token ids, the first that there is."""
LABELS = "labels"
CHECKED_ROWS = 256
"""Rows of a file whose tokens are looked at for EOS where another column tells documents apart."""
BATCH_TOKENS = 1 << 22


def list_parts(paths: Sequence[str], options: MeasureOptions) -> list[Part]:
    """A part per file; raises UsageError, DatasetError."""
    files: list[Path] = []
    for name in paths:
        files += list_files(Path(name)) if Path(name).is_dir() else expand([name], "")
    for path in files:
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{path} is neither .arrow nor .parquet")
    if len(set(files)) < len(files):
        raise UsageError("the same file is named twice; name it once")
    return [Part(path, file_size(path)) for path in files]


def list_files(directory: Path) -> list[Path]:
    """The files of a saved dataset, or of a directory of Parquet and Arrow files; raises UsageError, DatasetError."""
    directory = directory.absolute()
    if (directory / DICTIONARY).is_file():
        raise UsageError(f"{directory} holds several splits; name the directory of one")
    if (directory / STATE).is_file():
        try:
            state = json.loads(read_bytes(directory / STATE))
            files = [directory / file["filename"] for file in state["_data_files"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{directory / STATE} is not what `save_to_disk` writes: {error}") from error
        if state.get("_indices_files"):
            raise DatasetError(
                f"{directory} selects rows by an index beside them; save it again after `dataset.flatten_indices()`"
            )
        return files
    files = sorted(path for path in directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise UsageError(f"{directory} holds no .arrow and no .parquet file")
    return files


def choose_documents(part: Part, options: MeasureOptions) -> DocumentsBy:
    """By which column documents are told apart, where the user does not say; raises UsageError if nothing tells it."""
    names = read_schema(part.path).names
    for column in ("seq_lengths", "position_ids"):
        if column in names:
            return column
    raise UsageError(
        f"{part.path} has the columns {', '.join(names)}, and none says where documents begin; say how they are told "
        "apart with --documents (attention_mask, eos with --eos ID, or rows)"
    )


def read_schema(path: Path) -> pa.Schema:
    """The columns of a file; raises DatasetError, StorageError."""
    with explained("read", path), readable(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return open_arrow(file).schema


def open_arrow(file: pa.NativeFile) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
    """An Arrow file of either kind."""
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


class readable:  # noqa: N801 - reads as a verb, like `explained`
    """Turns what pyarrow raises for a damaged file into a DatasetError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException):
            raise DatasetError(f"{self.path} cannot be read: {error}; it is cut or damaged") from error


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a file, a batch of rows at a time; raises DatasetError, StorageError."""
    with explained("read", path), readable(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=1024, columns=list(columns))
            return
        with pa.memory_map(str(path)) as mapped:
            reader = open_arrow(mapped)
            count = reader.num_record_batches if isinstance(reader, pa.ipc.RecordBatchFileReader) else None
            batches = reader if count is None else (reader.get_batch(number) for number in range(count))
            for batch in batches:
                yield batch.select(list(columns))


def flatten(batch: pa.RecordBatch, name: str, path: Path, row: int) -> tuple[np.ndarray, np.ndarray]:
    """A list column as offsets, int64[R + 1] from 0, and values; raises DatasetError for what is not numbers."""
    column = batch.column(name)
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        raise DatasetError(f"{path}: the column {name} is {kind}; a list of integers is needed")
    if column.null_count:
        raise DatasetError(f"{path}: the column {name} is empty (null) in or after row {row:,}")
    values = column.flatten()
    if values.null_count:
        raise DatasetError(f"{path}: a list of the column {name} has an empty value (null) in or after row {row:,}")
    if pa.types.is_fixed_size_list(kind):
        offsets = np.arange(len(column) + 1, dtype=np.int64) * kind.list_size
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        offsets -= offsets[0]
    return offsets, values.to_numpy(zero_copy_only=False)


def read_rows(part: Part, options: MeasureOptions, watch: Watch) -> Iterator[StoredRows]:
    """The rows of one file; raises DatasetError where columns contradict each other, UsageError for a missing one."""
    path, names = part.path, read_schema(part.path).names
    tokens = find_column(path, names, options)
    beside = options.documents if options.documents in ("seq_lengths", "position_ids", "attention_mask") else None
    mask = options.mask_field or options.labels_field
    for column in (beside, mask):
        if column is not None and column not in names:
            raise UsageError(f"{path} has no column {column}, only: {', '.join(names)}")
    # Labels are read even where nobody asks for them: what they leave out must not go unseen.
    labels = LABELS if mask is None and LABELS in names else None
    wanted = list(dict.fromkeys(column for column in (tokens, beside, mask, labels) if column))
    done = 0
    for batch in read_batches(path, wanted):
        offsets, ids = flatten(batch, tokens, path, done)
        columns = {name: flatten(batch, name, path, done) for name in wanted if name != tokens}
        for values in [ids] * (options.documents == "eos") + [offsets] + [values for _, values in columns.values()]:
            watch(as_bytes(values))
        for name, (own, _) in columns.items():
            if name != "seq_lengths" and not np.array_equal(own, offsets):
                row = int(np.flatnonzero(np.diff(own) != np.diff(offsets))[0])
                raise DatasetError(
                    f"{path}, row {done + row:,}: {name} has {own[row + 1] - own[row]} values for "
                    f"{offsets[row + 1] - offsets[row]} tokens"
                )
        rows = split_rows(options, offsets, ids, columns.get(beside or ""), path, done)
        if labels and bool((columns[labels][1] == IGNORED).any()):
            check_labels(rows, offsets, columns[labels][1], path, done)
        if not done and options.eos_id is not None and options.documents != "eos":
            check_eos_inside(rows, offsets, ids, options.eos_id, path)
        if mask is not None:
            values = columns[mask][1]
            without = values == IGNORED if options.labels_field else values == 0
            rows = rows._replace(masked=without)
        yield rows
        done += batch.num_rows


def find_column(path: Path, names: Sequence[str], options: MeasureOptions) -> str:
    """The column of token ids; raises UsageError."""
    for name in (options.ids_field,) if options.ids_field else TOKENS:
        if name in names:
            return name
    wanted = options.ids_field or " or ".join(TOKENS)
    raise UsageError(f"{path} has no column {wanted}, only: {', '.join(names)}; name the token ids with --ids-field")


def split_rows(
    options: MeasureOptions,
    offsets: np.ndarray,
    ids: np.ndarray,
    beside: tuple[np.ndarray, np.ndarray] | None,
    path: Path,
    done: int,
) -> StoredRows:
    """The segments of some rows; `done` rows came before. Raises DatasetError."""
    widths = np.diff(offsets)
    if beside is None:
        breaks = np.flatnonzero(ids == need_eos(options)) + 1 if options.documents == "eos" else np.empty(0, np.int64)
        lengths, splits = find_segments(breaks[breaks < offsets[-1]], offsets)
        return StoredRows(lengths, splits, widths)
    own, values = beside
    if options.documents == "seq_lengths":
        values = values.astype(np.int64)
        sums = np.concatenate([[0], np.cumsum(values)])
        wrong = np.flatnonzero((sums[own[1:]] - sums[own[:-1]] > widths) | (values.size > 0 and values.min() < 1))
        if wrong.size:
            row = int(wrong[0])
            raise DatasetError(
                f"{path}, row {done + row:,}: seq_lengths {values[own[row] : own[row + 1]].tolist()[:8]} do not fit "
                f"its {widths[row]} tokens"
            )
        return StoredRows(values, own, widths)
    if options.documents == "position_ids":
        return split_positions(offsets, values, path, done)
    return split_attention(offsets, values, path, done)


def split_positions(offsets: np.ndarray, positions: np.ndarray, path: Path, done: int) -> StoredRows:
    """Segments of positions that restart at 0. Zeros that follow a zero at the end of a row are padding."""
    places = np.empty(positions.size, np.int64)
    count = find_restarts(positions.astype(np.int64, copy=False), offsets, places)
    if count < 0:
        place = -count - 1
        row = int(np.searchsorted(offsets, place, side="right")) - 1
        raise DatasetError(
            f"{path}, row {done + row:,}: position_ids neither go on nor restart at 0 in place "
            f"{place - offsets[row]:,} ({positions[place]}); tell documents apart by another --documents"
        )
    lengths, splits = find_segments(places[:count], offsets)
    index, row_of = np.arange(lengths.size), np.repeat(np.arange(splits.size - 1), np.diff(splits))
    last_longer = splits[:-1] - 1
    np.maximum.at(last_longer, row_of, np.where(lengths > 1, index, -1))
    kept = index <= last_longer[row_of] + 1
    return StoredRows(lengths[kept], np.concatenate([[0], np.cumsum(kept)])[splits], np.diff(offsets))


def split_attention(offsets: np.ndarray, values: np.ndarray, path: Path, done: int) -> StoredRows:
    """Segments of equal numbers; 0 is padding, at the end of a row."""
    if values.size and int(values.max()) < 2:
        raise DatasetError(
            f"{path}: attention_mask is 0 or 1 in the rows from {done:,} on, so it does not tell documents apart; use "
            "--documents rows if each row is one document, or eos"
        )
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths, splits = find_segments(changes, offsets)
    starts = np.cumsum(lengths) - lengths
    kept = values[starts] != 0
    own = np.repeat(np.arange(splits.size - 1), np.diff(splits))
    early = np.flatnonzero(~kept[:-1] & kept[1:] & (own[:-1] == own[1:]))
    if early.size:
        raise DatasetError(
            f"{path}, row {done + int(own[early[0]]):,}: attention_mask has tokens after padding; padding is at the end"
        )
    return StoredRows(lengths[kept], np.concatenate([[0], np.cumsum(kept)])[splits], np.diff(offsets))


def used_tokens(rows: StoredRows, offsets: np.ndarray) -> np.ndarray:
    """Which tokens are in segments, and not padding, bool[T]."""
    used = np.zeros(int(offsets[-1]) + 1, np.int64)
    sums = np.concatenate([[0], np.cumsum(rows.seq_lengths)])
    ends = offsets[:-1] + sums[rows.row_splits[1:]] - sums[rows.row_splits[:-1]]
    np.add.at(used, offsets[:-1], 1)
    np.add.at(used, ends, -1)
    return np.cumsum(used)[:-1] > 0


def check_labels(rows: StoredRows, offsets: np.ndarray, labels: np.ndarray, path: Path, done: int) -> None:
    """Raise UsageError where labels of -100 are not padding and nobody asked to count them out."""
    masked = (labels == IGNORED) & used_tokens(rows, offsets)
    if masked.any():
        row = int(np.searchsorted(offsets, int(masked.argmax()), side="right")) - 1
        raise UsageError(
            f"{path}, row {done + row:,}: some labels are -100, so their tokens carry no loss; leave them out of the "
            "exposure with --labels-field labels"
        )


def check_eos_inside(rows: StoredRows, offsets: np.ndarray, ids: np.ndarray, eos_id: int, path: Path) -> None:
    """Raise DatasetError where a document holds EOS before its end, in the first rows of a file."""
    count = min(CHECKED_ROWS, rows.row_lengths.size)
    stop = int(offsets[count])
    segments = int(rows.row_splits[count])
    sums = np.concatenate([[0], np.cumsum(rows.seq_lengths)])
    row = np.repeat(np.arange(rows.row_lengths.size), np.diff(rows.row_splits))[:segments]
    ends = offsets[row] + sums[1 : segments + 1] - sums[rows.row_splits[row]]
    found = np.flatnonzero((ids[:stop] == eos_id) & used_tokens(rows, offsets)[:stop])
    inside = found[~np.isin(found + 1, ends)]
    if inside.size:
        place = int(inside[0])
        row_number = int(np.searchsorted(offsets, place, side="right")) - 1
        raise DatasetError(
            f"{path}, row {row_number:,}: the EOS id {eos_id} is inside a document, in place "
            f"{place - offsets[row_number]:,}, so the row may hold several; use --documents eos if the trainer goes by "
            "EOS, else leave --eos out"
        )
