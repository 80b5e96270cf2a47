"""Where bytes are kept: one narrow interface, and the places behind it.

    Store         read and write whole files, ranges of them, and files made elsewhere
    local.py      a directory of this machine; also locks, memory maps and durable writes, which only directories have
    paths.py      names in a bucket, read like paths
    objects.py    a bucket of Amazon S3 and what speaks its language, Google Cloud Storage, or Azure, by obstore

`open_store(url)` gives the store for what the user named.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from os import PathLike


class Entry(NamedTuple):
    """A file in a store."""

    name: str
    bytes: int
    etag: str = ""
    """What tells its content from another under the same name; empty in a directory."""


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

STORES = ("s3", "gs", "az")
"""Schemes that `objects` opens."""

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


def is_object_url(name: str | PathLike[str]) -> bool:
    """Whether a name is an address that `objects` opens."""
    found = URL.match(str(name))
    return found is not None and found["scheme"].lower() in STORES


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key of an address such as `s3://bucket/folder/name`; raises UsageError."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise UsageError(
            f"{redact(url)} holds credentials, which end up in logs and shell histories;\nleave them out: they are "
            "taken from the environment, or from --store-option"
        )
    if not bucket or not re.fullmatch(r"[A-Za-z0-9$._-]+", bucket):
        raise UsageError(f"{redact(url)} names no bucket;\nwrite {scheme}://BUCKET/FOLDER or {scheme}://BUCKET/NAME")
    return scheme.lower(), bucket, key


def redact(address: str) -> str:
    """An address without what may be secret in it: user, password, and the query of a signed URL."""
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    authority, slash, path = rest.partition("/")
    if scheme.lower() not in STORES:  # where a question mark is part of a name
        authority, path = (re.sub(r"(?s)[?#].*", "?...", part) for part in (authority, path))
    return f"{scheme}://{'...@' * ('@' in authority)}{authority.rpartition('@')[2]}{slash}{path}"


def parse_options(given: Iterable[str]) -> dict[str, str]:
    """Options from the words of --store-option, `KEY=VALUE`; raises UsageError, which does not repeat the value."""
    options: dict[str, str] = {}
    for one in given:
        key, found, value = one.partition("=")
        if not found or not key:
            raise UsageError("--store-option is KEY=VALUE, such as endpoint=http://127.0.0.1:9000 or region=eu-west-1")
        options[key] = value
    return options


def check_local(name: str | PathLike[str]) -> None:
    """Raise UsageError for an address where only a local path will do: a directory of that name is never meant."""
    found = URL.match(str(name))
    if found is None:
        return
    scheme = found["scheme"].lower()
    what = "a web address" if scheme in ("http", "https", "ftp") else f"an address in a store ({scheme}://)"
    remedy = COPY.get(scheme, "copy it to this machine")
    address = redact(re.sub(":/+", "://", str(name), count=1))
    where = " here" if scheme in STORES else ""
    raise UsageError(
        f"{address} is {what}, which exact-prep cannot open{where} yet;\n{remedy}, and name the local path"
    )


def open_store(url: str | PathLike[str], options: Mapping[str, str] | None = None) -> Store:
    """The store for a directory, or for an address such as `s3://bucket/folder`; raises UsageError for others.

    `options` are those of --store-option: see `objects`.
    """
    if isinstance(url, str) and is_object_url(url):
        from exact_prep.stores.objects import open_objects

        return open_objects(url, options or {})
    check_local(url)
    from exact_prep.stores.local import LocalStore

    return LocalStore(Path(url))
