"""Names in a bucket with the few methods of pathlib.Path that readers of datasets use: datasets are read alike."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from exact_prep.stores import check_local, is_object_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from exact_prep.stores.objects import ObjectStore

Home: TypeAlias = "Path | StorePath"
"""Where a dataset is, or one of its files."""


class Status(NamedTuple):
    """What is known of an object."""

    st_size: int
    """Bytes."""


@dataclass(frozen=True, eq=False)
class StorePath:
    """A file or folder in a bucket; methods do what those of Path do, and raise StorageError. It can be pickled."""

    root: ObjectStore
    """The whole bucket."""
    key: str
    """Below it, without slashes at its ends."""

    def __str__(self) -> str:
        return f"{self.root.url}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: StorePath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.root, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> StorePath:
        """The folder; the bucket is its own."""
        return StorePath(self.root, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> StorePath:
        """Another name in the same folder."""
        return self.parent / name

    def absolute(self) -> StorePath:
        """Itself."""
        return self

    def relative_to(self, other: StorePath) -> Path:
        """What comes below a folder."""
        return Path(self.key).relative_to(other.key)

    def folder(self) -> ObjectStore:
        """The store of what lies below."""
        return self.root.child(self.key) if self.key else self.root

    def is_file(self) -> bool:
        """Whether there is an object of that name."""
        return bool(self.key) and self.root.size(self.key) is not None

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return not self.folder().is_empty()

    def exists(self) -> bool:
        """Either."""
        return self.is_file() or self.is_dir()

    def stat(self) -> Status:
        """Its size; raises FileNotFoundError."""
        size = self.root.size(self.key)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return Status(size)

    def version(self) -> str | None:
        """What identifies its content; None if there is none."""
        return self.root.version(self.key)

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.root.read(self.key)

    def iterdir(self) -> Iterator[StorePath]:
        """Files and folders right below."""
        folders, files = self.folder().list_folder()
        return (self / name for name in [*folders, *files] if name)

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Files right below whose names fit."""
        _, files = self.folder().list_folder()
        return (self / name for name in files if fnmatchcase(name, pattern))


def find_place(name: str | PathLike[str] | StorePath, options: Mapping[str, str] | None = None) -> Home:
    """What the user's name for a dataset means: a path, or a place in a store that `options` say how to reach.

    Raises UsageError for an address that no store serves.
    """
    if isinstance(name, StorePath):
        return name
    if isinstance(name, str) and is_object_url(name):
        from exact_prep.stores import split_url
        from exact_prep.stores.objects import open_objects

        scheme, bucket, key = split_url(name)
        return StorePath(open_objects(f"{scheme}://{bucket}", options or {}), key.strip("/"))
    check_local(name)
    return Path(name)
