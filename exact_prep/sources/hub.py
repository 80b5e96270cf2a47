"""Hugging Face datasets in, streamed: `hf://NAME[@REVISION][/CONFIG][:SPLIT]`, or `hf://./DIR[:SPLIT]` on this machine.

NAME is `owner/dataset`. The revision of a hub dataset is fixed when it is found, so that all tasks read the same. A
task reads one shard, that is one or some of the dataset's files. No other module here imports datasets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exact_prep.errors import ExactPrepError, SourceError, UsageError
from exact_prep.records.work import InputFile
from exact_prep.sources.column_values import Opened, Rows, count_rows_at_once, pick_columns, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.batches import TextBatch
    from exact_prep.sources.batching import Part

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://(?P<path>.+?)(?::(?P<split>[\w.-]+))?")
HUB_PATH = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.,=+-]+))?")

ROWS = 1 << 10
"""Rows asked for at once."""


class Address(NamedTuple):
    """What an `hf://` name means."""

    name: str
    """Hub id, or local directory."""
    revision: str | None
    config: str | None
    split: str
    local: bool


def parse(named: str) -> Address:
    """The parts of an `hf://` name; raises UsageError."""
    address = ADDRESS.fullmatch(named)
    if address is None:
        raise UsageError(
            f"{named} is not the name of a dataset; write hf://OWNER/NAME[/CONFIG][:SPLIT] or hf://./DIR[:SPLIT]"
        )
    path, split = address["path"], address["split"] or "train"
    if path.startswith(("/", ".", "~")):
        return Address(str(Path(path).expanduser()), None, None, split, True)
    parts = HUB_PATH.fullmatch(path)
    if parts is None:
        raise UsageError(
            f"{named} is not the name of a dataset; write hf://OWNER/NAME[/CONFIG][:SPLIT] or hf://./DIR[:SPLIT]"
        )
    return Address(parts["name"], parts["revision"], parts["config"], split, False)


def find_dataset(named: str) -> InputFile:
    """The input for an `hf://` name, its revision fixed; raises UsageError if there is no such dataset."""
    address = parse(named)
    if address.local:
        load(named)
        return InputFile(path=named, bytes=0, format="hub")
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(address.name, revision=address.revision).sha
    except Exception as error:
        raise UsageError(explain_failure(named, error)) from error
    config = f"/{address.config}" if address.config else ""
    return InputFile(path=f"{SCHEME}{address.name}@{revision}{config}:{address.split}", bytes=0, format="hub")


def load(named: str) -> Any:
    """The dataset of an `hf://` name, as a datasets.IterableDataset of Arrow tables; raises UsageError."""
    import datasets

    address = parse(named)
    try:
        dataset = datasets.load_dataset(
            address.name, address.config, split=address.split, revision=address.revision, streaming=True
        )
    # datasets raises what its builders, its file systems and the network raise: there is no common root.
    except Exception as error:
        raise UsageError(explain_failure(named, error)) from error
    return dataset.with_format("arrow")


def explain_failure(named: str, error: Exception) -> str:
    """The message for a dataset that cannot be opened."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"{named} cannot be opened: {reason};\ncheck the name, the split and the network, or download it and name DIR"
    )


def count_shards(part: Part) -> int:
    """Shards in which the dataset can be read."""
    return max(int(load(part.file.path).num_shards), 1)


def read_hub(part: Part, _block: int | None = None) -> Iterator[TextBatch]:
    """The documents of one shard of a dataset; see `Part` and `TextBatch`."""
    return read_columns(part, open_shard)


def open_shard(part: Part) -> Opened:
    """One shard of a dataset."""
    dataset = load(part.file.path)
    start, stop = part.slice.start, part.slice.stop
    shards = max(int(dataset.num_shards), 1)
    if stop is not None and shards > 1:
        dataset = dataset.shard(num_shards=shards, index=start)

    def rows() -> Iterator[Rows]:
        number = 0
        for table in guard(part, dataset.iter(batch_size=ROWS)):
            columns = pick_columns(part, table.schema)
            for batch in table.select(columns.tops()).to_batches():
                at_once = count_rows_at_once(batch.nbytes, batch.num_rows)
                for low in range(0, batch.num_rows, at_once):
                    piece = columns.rows(batch.slice(low, at_once), number, 0)
                    yield piece
                    number += len(piece.column)

    return Opened(first=0, share=0, rows=rows())


def guard(part: Part, tables: Iterator[Any]) -> Iterator[Any]:
    """The same tables; raises SourceError if reading them fails, also under `on_error="reject"`."""
    try:
        yield from tables
    except ExactPrepError:
        raise
    # As in `load`: builders, file systems and the network may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(f"reading {part.name} failed: {reason};\ncheck the network and run again") from error
