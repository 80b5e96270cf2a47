"""Where a dataset's files are, which datasets a directory holds, what makes one load as a Hugging Face dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.errors import DatasetError
from exact_prep.manifest import Manifest, WeightsFile, canonical_json, sealed
from exact_prep.shards import features
from exact_prep.storage import digest, load, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exact_prep.manifest import ShardRecord

MANIFEST = "manifest.json"
WEIGHTS = "weights.json"
REJECTED = "rejected.jsonl"
INFO = "dataset_info.json"
STATE = "state.json"
WORK = ".work"
PLAN = "plan.json"
SPOOL = ".stdin"


def shard_name(index: int, count: int) -> str:
    """Name of a published shard."""
    return f"data-{index:05d}-of-{count:05d}.arrow"


def datasets_in(directory: Path) -> list[Path]:
    """The packed datasets of a directory: itself, or its children named by row length; raises DatasetError."""
    if (directory / MANIFEST).is_file():
        return [directory]
    children = [path.parent for path in directory.glob(f"*/{MANIFEST}") if path.parent.name.isdigit()]
    if children and not (directory / WORK).exists():
        return sorted(children, key=lambda path: int(path.name))
    if (directory / WORK / PLAN).is_file():
        raise DatasetError(f"{directory} is not finished; start the same `exact-prep pack` again, it continues")
    if not directory.exists():
        raise DatasetError(f"{directory} does not exist; make a dataset with `exact-prep pack`")
    raise DatasetError(f"{directory} is not a packed dataset (it has no {MANIFEST}); make one with `exact-prep pack`")


def load_manifest(directory: Path) -> Manifest:
    """The manifest of a dataset, checked against its own checksum; raises DatasetError, StorageError."""
    path = directory / MANIFEST
    if not path.is_file():
        datasets_in(directory)
    manifest = load(Manifest, path)
    if sealed(manifest).checksum != manifest.checksum:
        raise DatasetError(f"{path} was changed after it was written (checksum); pack again, or restore the file")
    return manifest


def load_weights_file(directory: Path) -> WeightsFile | None:
    """weights.json of a dataset; None before `weigh`."""
    path = directory / WEIGHTS
    return load(WeightsFile, path) if path.is_file() else None


def tree_hash(shards: Iterable[ShardRecord]) -> str:
    """xxh3-128 over the shards' checksums in order."""
    return digest(f"{shard.content_xxh3} {shard.weights_xxh3}\n".encode() for shard in shards)


def write_info(directory: Path, seq_len: int) -> None:
    """dataset_info.json: what the columns are, for `datasets.load_from_disk`."""
    info = {"citation": "", "description": "", "features": features(seq_len), "homepage": "", "license": ""}
    write_atomically(directory / INFO, canonical_json(info))


def write_state(directory: Path, shards: Iterable[ShardRecord], *identity: str) -> None:
    """state.json: which files, and a fingerprint that follows the content: Hugging Face caches results by it."""
    state = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": digest(word.encode() for word in identity)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_atomically(directory / STATE, canonical_json(state))
