"""Where bytes are kept: one narrow interface, and the places behind it.

    Store         read and write whole files, ranges of them, and files made elsewhere
    local.py      a directory of this machine; also locks, memory maps and durable writes, which only directories have

`open_store(url)` gives the store for what the user named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


class Entry(NamedTuple):
    """A file in a store."""

    name: str
    bytes: int


class Store(Protocol):
    """A place for files with names such as `manifest.json` and `tables/shards.parquet`.

    Every write is whole or not there at all. All methods raise StorageError.
    """

    url: str
    """What messages call it."""

    def child(self, name: str) -> Store:
        """The store of the files whose names begin with `name/`."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Files whose names begin with `prefix`, sorted by name; unfinished writes are left out."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none of that name."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a file; fewer only where it ends."""
        ...

    def version(self, name: str) -> str | None:
        """What identifies the present content of a file, for `replace`; None if there is none of that name."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of that name; whether it was written."""
        ...

    def replace(self, name: str, data: bytes, version: str | None) -> bool:
        """Write a file if its version is still `version`; whether it was written."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whatever was there."""
        ...

    def scratch(self, name: str) -> Path:
        """A local path to make a file at, before it is uploaded as `name`; its name is used by nobody else."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Move a local file, already synced, into the store, whatever was there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        ...


URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}[^/]")
"""An address. pathlib makes one slash of two; one letter before the colon is a drive of Windows."""

COPY = {
    "s3": "copy it with `aws s3 sync`",
    "gs": "copy it with `gcloud storage rsync`",
    "az": "copy it with `azcopy`",
    "abfs": "copy it with `azcopy`",
    "http": "download it with `curl -O`",
    "https": "download it with `curl -O`",
    "hdfs": "copy it with `hdfs dfs -get`",
    "hf": "download it with `hf download`",
}
"""How to bring what an address names to this machine."""


def check_local(name: str | PathLike[str]) -> None:
    """Raise UsageError for an address: no store serves any yet, and a directory of that name is never meant."""
    found = URL.match(str(name))
    if found is None:
        return
    scheme = found["scheme"].lower()
    what = "a web address" if scheme in ("http", "https", "ftp") else f"an address in a store ({scheme}://)"
    remedy = COPY.get(scheme, "copy it to this machine")
    address = re.sub(":/+", "://", str(name), count=1)
    raise UsageError(f"{address} is {what}, which exact-prep cannot open yet;\n{remedy}, and name the local path")


def open_store(url: str | PathLike[str]) -> Store:
    """The store for a directory; raises UsageError for a URL, which no store serves yet."""
    check_local(url)
    from exact_prep.stores.local import LocalStore

    return LocalStore(Path(url))
