"""Where a dataset's files are, which datasets a directory holds, what makes one load as a Hugging Face dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exact_prep.errors import DatasetError
from exact_prep.records import canonical_json, encode, parse, sealed
from exact_prep.records.manifest import Manifest, WeightsFile
from exact_prep.shards import features
from exact_prep.stores.local import digest, explained, read_bytes, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exact_prep.records.manifest import ShardRecord

MANIFEST = "manifest.json"
WEIGHTS = "weights.json"
REJECTED = "rejected.jsonl"
INFO = "dataset_info.json"
STATE = "state.json"
WORK = ".work"
PLAN = "plan.json"
CLEARING = "clearing"
"""Marker in WORK: what the directory held is being removed, and counts for nothing."""
SPOOL = ".stdin"


def shard_name(index: int, count: int) -> str:
    """Name of a published shard."""
    return f"data-{index:05d}-of-{count:05d}.arrow"


def datasets_in(directory: Path) -> list[Path]:
    """The packed datasets of a directory: itself, or its children named by row length.

    Raises DatasetError if there is none, or one that is not finished; StorageError.
    """
    with explained("read", directory):
        if (directory / MANIFEST).is_file():
            return [directory]
        if not directory.exists():
            raise DatasetError(f"{directory} does not exist; make a dataset with `exact-prep pack`")
        if not directory.is_dir():
            raise DatasetError(f"{directory} is a file; name the directory of the dataset")
        if is_unfinished(directory):
            raise DatasetError(f"{directory} is not finished; start the same `exact-prep pack` again, it continues")
        if is_unfinished_copy(directory):
            raise DatasetError(
                f"{directory} is the unfinished copy of a dataset; start the same `exact-prep weigh --out` again, "
                "it finishes it"
            )
        children = children_of(directory)
        found = [path for path in children if any((path / name).exists() for name in (MANIFEST, WEIGHTS, WORK))]
    if found:
        return [home for path in found for home in datasets_in(path)]
    raise DatasetError(f"{directory} is not a packed dataset (it has no {MANIFEST}); make one with `exact-prep pack`")


def is_unfinished(directory: Path) -> bool:
    """Whether a run that fills `directory`, or clears it, was stopped or is at it."""
    return any((directory / WORK / name).is_file() for name in (PLAN, CLEARING))


def is_unfinished_copy(directory: Path) -> bool:
    """Whether `weigh --out` was stopped while it copied a dataset into `directory`, or is at it."""
    return (directory / WEIGHTS).exists() and (directory / WORK).exists() and not (directory / MANIFEST).exists()


def children_of(directory: Path) -> list[Path]:
    """Directories named by a row length, in its order."""
    numbers = [path for path in directory.iterdir() if path.name.isascii() and path.name.isdecimal() and path.is_dir()]
    return sorted(numbers, key=lambda path: (int(path.name), path.name))


def load_manifest(directory: Path) -> Manifest:
    """The manifest of a dataset, checked against its own checksum; raises DatasetError, StorageError."""
    path = directory / MANIFEST
    if not path.is_file():
        datasets_in(directory)
    data = read_bytes(path)
    manifest = parse(Manifest, data, path)
    if not is_untouched(manifest, data):
        raise DatasetError(f"{path} was changed after it was written (checksum); pack again, or restore the file")
    return manifest


def load_weights_file(directory: Path) -> WeightsFile | None:
    """weights.json of a dataset, checked against its own checksum; None before `weigh`.

    Raises DatasetError, StorageError.
    """
    path = directory / WEIGHTS
    return read_weights_file(path) if path.is_file() else None


def read_weights_file(path: Path) -> WeightsFile:
    """A weights.json, checked against its own checksum; raises DatasetError, StorageError."""
    data = read_bytes(path)
    weights = parse(WeightsFile, data, path)
    if not is_untouched(weights, data):
        raise DatasetError(f"{path} was changed after it was written (checksum); run `exact-prep weigh` again")
    return weights


def is_untouched(record: Manifest | WeightsFile, data: bytes) -> bool:
    """Whether `data` is, byte for byte, what this version wrote for the record."""
    return sealed(record).checksum == record.checksum and encode(record) == data


def tree_hash(shards: Iterable[ShardRecord]) -> str:
    """xxh3-128 over the shards' checksums in order."""
    return digest(f"{shard.content_xxh3} {shard.weights_xxh3}\n".encode() for shard in shards)


def write_info(directory: Path, seq_len: int) -> None:
    """dataset_info.json: what the columns are, for `datasets.load_from_disk`."""
    write_atomically(directory / INFO, canonical_json(info_of(seq_len)))


def info_of(seq_len: int) -> dict[str, Any]:
    """dataset_info.json."""
    return {"citation": "", "description": "", "features": features(seq_len), "homepage": "", "license": ""}


def write_state(directory: Path, shards: Iterable[ShardRecord], *identity: str) -> None:
    """Publish state.json; see `state_of`."""
    write_atomically(directory / STATE, canonical_json(state_of(shards, *identity)))


def state_of(shards: Iterable[ShardRecord], *identity: str) -> dict[str, Any]:
    """state.json: which files, and a fingerprint that follows the content: Hugging Face caches results by it."""
    return {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": digest(word.encode() for word in identity)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
