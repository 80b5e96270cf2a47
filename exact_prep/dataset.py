"""A packed dataset on disk: which file is where, how to find and load one, and what makes it a Hugging Face dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exact_prep.errors import DatasetError, UsageError
from exact_prep.records import canonical_json, is_sealed, parse
from exact_prep.records.manifest import Manifest
from exact_prep.records.measured import MeasuredExposure
from exact_prep.records.weights import WeighedDataset, WeightsFile
from exact_prep.shards import features
from exact_prep.stores import Entry, open_store
from exact_prep.stores.local import digest, explained, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import pyarrow as pa

    from exact_prep.records.work import BatchRecord, ShardRecord
    from exact_prep.stores import Store
    from exact_prep.stores.paths import Home

MANIFEST = "manifest.json"
EXPOSURE = "exposure.json"
"""In place of the manifest where the rows are not ours: what `measure` found."""
WEIGHTS = "weights.json"
REJECTED = "rejected.jsonl"
INFO = "dataset_info.json"
STATE = "state.json"
CARD = "README.md"
DICTIONARY = "dataset_dict.json"
"""Beside the datasets of two splits: what Hugging Face calls a DatasetDict."""
SPLITS = ("train", "validation")
TABLES = "tables"
TOKENIZER = "tokenizer"
WORK = ".work"
PLAN = "plan.json"
PART = "part-"
"""How names of records of `measure` in WORK begin."""
CLEARING = "clearing"
"""Marker in WORK: what the directory held is being removed, and counts for nothing."""
SPOOL = ".stdin"


HomeT = TypeVar("HomeT", bound="Home")
"""A directory, or a folder in a store; what lies in it is of the same kind."""


def shard_name(task: int, part: int) -> str:
    """Name of a shard: by its task, and its place among the task's shards. It never changes."""
    return f"data-{task:07d}-{part:03d}.arrow"


def table_name(name: str) -> str:
    """Name of a table's file."""
    return f"{TABLES}/{name}.parquet"


def documents_name(task: int) -> str:
    """Name of the table of the documents' own ids of one task."""
    return f"{TABLES}/documents/documents-{task:07d}.parquet"


@dataclass(frozen=True)
class Dataset:
    """The records of a packed dataset. Tables are read, and checked against the manifest, when they are asked for."""

    path: Home
    manifest: Manifest

    @cached_property
    def store(self) -> Store:
        """Its directory, or its folder in a bucket."""
        return open_store(self.path) if isinstance(self.path, Path) else self.path.folder()

    @cached_property
    def shard_files(self) -> dict[str, Entry]:
        """Its shards as they are: sizes, and ETags in a store. By one listing, when they are first asked for."""
        return {entry.name: entry for entry in self.store.list("data-")}

    @property
    def described(self) -> WeighedDataset:
        """The dataset as weights.json names it."""
        return describe(self.manifest)

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.manifest.seq_len

    @property
    def longest_context(self) -> int:
        """The largest effective left context."""
        return self.manifest.longest_context

    @property
    def tokenizer_name(self) -> str:
        """What messages call its tokenizer; empty if it came as ids."""
        return self.manifest.tokenizer.name

    @property
    def has_column(self) -> bool:
        """Whether its shards hold the weights."""
        return self.manifest.loss_weights == "column"

    def read(self, name: str) -> bytes:
        """A file beside the shards; raises DatasetError if it is missing or not what the manifest says."""
        if self.store.size(name) is None:
            raise DatasetError(f"{self.path / name} is missing; restore it, or pack again")
        data = self.store.read(name)
        if digest([data]) != self.manifest.digests.get(name):
            raise DatasetError(
                f"{self.path / name} was changed after it was written (checksum); restore it, or pack again"
            )
        return data

    def table(self, name: str) -> pa.Table:
        """A table of `records.tables`; raises DatasetError, StorageError."""
        from exact_prep.records.tables import SCHEMAS, decode_table

        file = table_name(name)
        return decode_table(SCHEMAS[name], self.read(file), self.path / file)

    def document_lengths(self) -> np.ndarray:
        """The histogram of document lengths, int64[3, N]: source, length in tokens, documents. As `table` raises."""
        import numpy as np

        from exact_prep.records.tables import read_numbers

        table = self.table("document_lengths")
        return np.stack([read_numbers(table, name) for name in ("source", "length", "count")])

    @cached_property
    def shards(self) -> tuple[ShardRecord, ...]:
        """The shards in order, without their record batches; raises DatasetError, StorageError."""
        from exact_prep.records.tables import decode_shards

        name = table_name("shards")
        return decode_shards(self.read(name), self.path / name)

    def batches(self) -> list[tuple[BatchRecord, ...]]:
        """Where the record batches of each shard lie; raises DatasetError, StorageError."""
        from exact_prep.records.tables import decode_batches

        name = table_name("batches")
        return decode_batches(self.read(name), len(self.shards), self.path / name)

    def document_ids(self, task: int) -> dict[int, str]:
        """The own ids of the documents of one task, by `doc_id`; raises DatasetError, StorageError.

        Empty for a dataset that was packed without --id-field.
        """
        from exact_prep.records.tables import decode_documents

        known = self.table("tasks").column("documents_xxh3")[task].as_py()
        if not known:
            return {}
        name = documents_name(task)
        if self.store.size(name) is None:
            raise DatasetError(f"{self.path / name} is missing; restore it, or pack again")
        data = self.store.read(name)
        if digest([data]) != known:
            raise DatasetError(
                f"{self.path / name} was changed after it was written (checksum); restore it, or pack again"
            )
        return decode_documents(data, self.path / name)

    def weights(self) -> WeightsFile:
        """Its weights.json.

        Raises DatasetError if it is missing, damaged, belongs to another dataset, or is not the one that `weigh` wrote
        together with the shards' column: a table that was copied here would say other weights than the shards hold.
        """
        path = self.path / WEIGHTS
        weights = load_weights_file(path)
        if not belongs_to(weights, self.manifest):
            raise DatasetError(f"{path} belongs to another dataset; run `exact-prep weigh {self.path}`")
        if self.manifest.loss_weights == "column" and weights.state == "complete":
            table = table_name("weights")
            again = f"run `exact-prep weigh {self.path}` again"
            if self.store.size(table) is None:
                raise DatasetError(f"{self.path / table} is missing; {again}")
            if digest([self.store.read(table)]) != weights.weights_xxh3:
                raise DatasetError(
                    f"{path} and {table} do not belong together: one was replaced or is damaged; {again} "
                    "(other weights come from a table elsewhere, with --weights)"
                )
        return weights


def describe(manifest: Manifest) -> WeighedDataset:
    """A packed dataset as weights.json names it."""
    return WeighedDataset(
        id=manifest.tree_hash,
        rows=manifest.rows,
        tokenizer=manifest.tokenizer.sha256,
        exposure=manifest.exposure,
    )


@dataclass(frozen=True)
class Measured:
    """What `measure` found in data that others wrote: an exposure, and weights that follow from it, without rows."""

    path: Path
    record: MeasuredExposure

    has_column = False
    tokenizer_name = ""
    shards: tuple[ShardRecord, ...] = ()

    @property
    def described(self) -> WeighedDataset:
        """The data as weights.json names them."""
        return self.record.described

    @property
    def seq_len(self) -> int:
        """Tokens per row."""
        return self.record.seq_len

    @property
    def longest_context(self) -> int:
        """The largest effective left context."""
        return self.record.longest_context

    def weights(self) -> WeightsFile:
        """Its weights.json; raises DatasetError if it is missing, damaged, or belongs to other data."""
        weights = load_weights_file(self.path / WEIGHTS)
        if not is_named(weights, self):
            raise DatasetError(f"{self.path / WEIGHTS} belongs to other data; run `exact-prep weigh {self.path}`")
        return weights


def check_outside_datasets(path: Path) -> None:
    """Raise UsageError if `path` lies inside a dataset, as it is named or where links lead."""
    parents = [Path(os.path.abspath(path)).parent, path.parent.resolve()]  # noqa: PTH100 - links are not followed
    for place in dict.fromkeys(place for parent in parents for place in (parent, *parent.parents)):
        if (place / MANIFEST).is_file() or (place / WORK).is_dir() or is_measured(place):
            raise UsageError(f"{path} lies inside the dataset {place}; choose an --out elsewhere")


def open_dataset(directory: Home) -> Dataset:
    """The dataset in a directory, by its absolute path: the working directory may change. Raises DatasetError."""
    return Dataset(directory.absolute(), load_manifest(directory))


def open_measured(directory: Path) -> Measured:
    """What `measure` wrote into a directory; raises DatasetError, StorageError."""
    path = directory.absolute() / EXPOSURE
    data = read_bytes(path)
    record = parse(MeasuredExposure, data, path)
    if not is_sealed(data):
        raise DatasetError(f"{path} was changed after it was written (checksum); measure again, or restore the file")
    return Measured(directory.absolute(), record)


def open_any(directory: Home) -> Dataset | Measured:
    """The packed dataset or the measurement in a directory; raises DatasetError, StorageError."""
    if isinstance(directory, Path) and is_measured(directory):
        return open_measured(directory)
    return open_dataset(directory)


def is_measured(directory: Home) -> bool:
    """Whether a directory holds what `measure` wrote: on this machine, for it writes to no store."""
    return isinstance(directory, Path) and (directory / EXPOSURE).is_file()


def find_datasets(directory: HomeT) -> list[HomeT]:
    """The datasets of a directory: itself, packed or measured, or its children named by row length.

    Raises DatasetError if there is none, or one that is incomplete; StorageError.
    """
    with explained("read", directory):
        if (directory / MANIFEST).is_file() or is_measured(directory):
            return [directory]
        if not directory.exists():
            raise DatasetError(f"{directory} does not exist; make a dataset with `exact-prep pack`")
        if not directory.is_dir():
            raise DatasetError(f"{directory} is a file; name the directory of the dataset")
        if is_incomplete(directory):
            raise DatasetError(f"{directory} is incomplete; start the same `exact-prep pack` again, it continues")
        if isinstance(directory, Path) and any((directory / WORK).glob(f"{PART}*")):
            raise DatasetError(f"{directory} is incomplete; start the same `exact-prep measure` again, it continues")
        children: list[Any] = list_children(directory)
        found = [
            path
            for path in children
            if any((home / name).exists() for home in (path, *list_homes(path)) for name in (MANIFEST, WORK))
        ]
    if found:
        return [home for path in found for home in find_datasets(path)]
    raise DatasetError(f"{directory} is not a packed dataset (it has no {MANIFEST}); make one with `exact-prep pack`")


def is_incomplete(directory: Home) -> bool:
    """Whether a run that fills or clears `directory` was stopped, or is still running."""
    return any((directory / WORK / name).is_file() for name in (PLAN, CLEARING))


def list_children(directory: HomeT) -> list[HomeT]:
    """Directories named by a row length, in its order, then those named by a split."""
    place: Any = directory
    numbers = [path for path in place.iterdir() if path.name.isascii() and path.name.isdecimal() and path.is_dir()]
    splits = [place / split for split in SPLITS if (place / split).is_dir()]
    return sorted(numbers, key=lambda path: (int(path.name), path.name)) + splits


def list_homes(directory: HomeT) -> list[HomeT]:
    """Directories below `directory` that a run of `pack` may fill: each row length's before those of its splits."""
    homes: list[Any] = []
    children: list[Any] = list_children(directory)
    for child in children:
        splits = [] if child.name in SPLITS else [child / split for split in SPLITS if (child / split).is_dir()]
        homes += [child, *splits]
    return homes


def find_home(out: Path, seq_lens: Sequence[int], seq_len: int, split: str | None) -> Path:
    """Where `pack` puts the dataset of a row length and split: DIR/[SEQ_LEN/][train|validation]."""
    home = out if len(seq_lens) == 1 else out / str(seq_len)
    return home if split is None else home / split


def is_split_in_two(directory: Home) -> bool:
    """Whether a directory holds the training rows and the validation rows of one run of `pack --validation`.

    Two datasets that merely have these names are none. Raises DatasetError if the validation rows were held out of
    other training rows: documents might be on both sides.
    """
    train, validation = (directory / split for split in SPLITS)
    if not all((home / MANIFEST).is_file() for home in (train, validation)):
        return False
    held = load_manifest(validation)
    if held.split is None:
        return False
    if held.train_hash != load_manifest(train).tree_hash:
        raise DatasetError(explain_other_train(validation, train))
    return True


def explain_other_train(validation: Home, train: Home) -> str:
    """What is wrong where training rows were replaced, and what to do."""
    return (
        f"{validation} was held out of other training rows than those in {train}, so documents may be on both sides; "
        "pack both again with `exact-prep pack --validation`, or move one of them elsewhere"
    )


def load_manifest(directory: Home) -> Manifest:
    """The manifest of a dataset, checked against its seal; raises DatasetError, StorageError."""
    path = directory / MANIFEST
    if not path.is_file():
        if is_measured(directory):
            raise DatasetError(
                f"{directory} holds a measurement of tokens that others wrote, and no rows; this needs a dataset that "
                "`exact-prep pack` made"
            )
        find_datasets(directory)
        several = ", ".join(map(str, find_datasets(directory)))
        raise DatasetError(f"{directory} holds several datasets; name one of them: {several}")
    data = read_bytes(path)
    manifest = parse(Manifest, data, path)
    if not is_sealed(data):
        raise DatasetError(f"{path} was changed after it was written (checksum); pack again, or restore the file")
    return manifest


def load_weights_file(path: Home) -> WeightsFile:
    """A weights.json, checked against its seal; raises DatasetError, StorageError."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing; `exact-prep weigh {path.parent}` writes it")
    data = read_bytes(path)
    weights = parse(WeightsFile, data, path)
    if not is_sealed(data):
        raise DatasetError(f"{path} was changed after it was written (checksum); run `exact-prep weigh` again")
    return weights


def is_named(weights: WeightsFile, dataset: Dataset | Measured) -> bool:
    """Whether weights were made for a dataset, packed or measured."""
    if isinstance(dataset, Dataset):
        return belongs_to(weights, dataset.manifest)
    return dataset.record.fingerprint in {one.id for one in weights.datasets} and weights.seq_len == dataset.seq_len


def belongs_to(weights: WeightsFile, manifest: Manifest) -> bool:
    """Whether weights were made for a dataset: it is one of theirs, or the one their table comes from."""
    named = {dataset.id for dataset in weights.datasets} | {weights.applied_from}
    own = {manifest.tree_hash, manifest.train_hash or manifest.tree_hash}
    return bool(named & own) and weights.seq_len == manifest.seq_len


def tree_hash(shards: Iterable[ShardRecord]) -> str:
    """xxh3-128 over the shards' content checksums in order: the same with and without weights."""
    return digest(f"{shard.content_xxh3}\n".encode() for shard in shards)


def make_info(manifest: Manifest) -> bytes:
    """dataset_info.json: what the columns are, for `datasets.load_from_disk`."""
    description = (
        f"Text packed by exact-prep into rows of {manifest.seq_len} tokens with a loss weight per token (EXACT, "
        "arXiv 2605.10544). seq_lengths are the lengths of the documents in a row; attention must not cross them."
    )
    columns = features(manifest.seq_len, masked=manifest.masked, weights=manifest.loss_weights == "column")
    return canonical_json(
        {"citation": "", "description": description, "features": columns, "homepage": "", "license": ""}
    )


def make_state(files: Iterable[str], *identity: str) -> bytes:
    """state.json: which files, and a fingerprint that follows the content: Hugging Face caches results by it."""
    return canonical_json(
        {
            "_data_files": [{"filename": file} for file in files],
            "_fingerprint": digest(word.encode() for word in identity)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
    )


def make_card(manifest: Manifest, files: Sequence[str]) -> bytes:
    """README.md: the dataset card. Its front matter lists the shards, so that `load_dataset` finds them on the hub."""
    names = "\n".join(f"    - {file}" for file in files)
    if manifest.loss_weights == "column":
        column = "* `loss_weights`: the weight of each target.\n"
        weights = (
            "`loss_weights[t]` belongs to the target `input_ids[t]`, as Hugging Face labels do; the loss is "
            "`sum(w * ce) / sum(w)`.\n`weights.json` says which weights they are: plain (1 per target) or exact."
        )
    else:
        column = ""
        weights = (
            "The shards hold no weights: `exact_prep.open` computes them from `weights.json`, "
            "`w = lut[position in the segment]`.\nThe loss is `sum(w * ce) / sum(w)`, with `w[t]` for the target "
            "`input_ids[t]`."
        )
    return CARD_TEXT.format(
        split=manifest.split or "train", names=names, manifest=manifest, column=column, weights=weights
    ).encode()


CARD_TEXT = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path:
{names}
tags:
- exact-prep
- long-context
---

# Packed rows of {manifest.seq_len} tokens

{manifest.rows} rows from {manifest.documents.packed} documents, packed by exact-prep {manifest.tool_version}
({manifest.packing}). Tree hash: `{manifest.tree_hash}`.

## Columns

* `input_ids`: {manifest.seq_len} token ids; padding follows the last document.
* `seq_lengths`: lengths of the row's segments. Attention must not cross their edges.
* `doc_ids`, `doc_offsets`, `sources`: for each segment its document, where it starts in it, and its source.
{column}
{weights}

## Load it

```python
import exact_prep

rows = exact_prep.open("DIR")  # after `exact-prep weigh DIR`; before it, exact_prep.open("DIR", plain=True)
```

or, as a Hugging Face dataset, `datasets.load_from_disk("DIR")` for a local copy and
`datasets.load_dataset("OWNER/NAME")` from the hub. `manifest.json` says how the dataset was made; `tokenizer/` holds
the tokenizer, if there was one.

## Method

The loss weights follow EXACT:

```bibtex
@misc{{exact2026,
  title = {{Where Does Long-Context Supervision Actually Go? Effective-Context Exposure Balancing}},
  year = {{2026}},
  eprint = {{2605.10544}},
  archivePrefix = {{arXiv}}
}}
```
"""
