"""Inputs in stores: the objects that an address, a folder or a glob stands for, by the rules of local files.

One listing for each input: whatever has to be known of the folders is in the names.
"""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TYPE_CHECKING

from exact_prep.errors import UsageError
from exact_prep.stores import split_url
from exact_prep.stores.objects import open_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exact_prep.stores import Entry


def list_objects(named: str, options: Mapping[str, str]) -> Iterator[tuple[str, Entry, int]]:
    """Address, size and ETag of each object that `named` stands for, and how many folders of its key were asked for.

    `options` are those of the store. Raises UsageError if nothing has that name, and StorageError.
    """
    scheme, bucket, key = split_url(named)
    root = f"{scheme}://{bucket}"
    store = open_objects(root, options)
    parts = [part for part in key.split("/") if part]
    if parts and not key.endswith("/") and (entry := store.head(key)) is not None:
        yield f"{root}/{key}", entry, len(parts)
        return
    is_glob = glob.has_magic(key)
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    folder = "".join(f"{part}/" for part in fixed)
    found = False
    for entry in store.list(folder):
        if not is_glob:
            asked = len(parts)
        else:
            names = entry.name.split("/")[len(fixed) :]
            below = match_folders(names, parts[len(fixed) :])
            if below is None or (key.endswith("/") and below == len(names)):  # only folders are asked for
                continue
            asked = len(fixed) + below
        found = True
        yield f"{root}/{entry.name}", entry, asked
    if not found and not is_glob:
        raise UsageError(
            f"there is no object or folder {named};\ncheck its spelling, upper and lower case, and the bucket"
        )


def match_folders(parts: Sequence[str], pattern: Sequence[str]) -> int | None:
    """How many parts of a key a glob takes, at most; the rest lies below a folder that it names. None: it does not fit.

    `*` ends at a slash, `**` does not.
    """
    if not pattern:
        return 0
    if not parts:
        return None
    if pattern[0] == "**":
        if len(pattern) == 1:
            return len(parts)
        deeper = match_folders(parts[1:], pattern)
        taken = None if deeper is None else deeper + 1
        here = match_folders(parts, pattern[1:])
        return max((one for one in (taken, here) if one is not None), default=None)
    if not fnmatchcase(parts[0], pattern[0]):
        return None
    below = match_folders(parts[1:], pattern[1:])
    return None if below is None else below + 1


def find_iceberg(names: Sequence[str]) -> tuple[str, ...]:
    """The folders, ending in a slash, that hold the metadata of a table of Iceberg, among the addresses of objects."""
    described = {name.rpartition("/")[0] + "/" for name in names if name.endswith(".metadata.json")}
    tables = [folder for folder in described if folder.endswith("/metadata/")]
    return tuple(
        folder for folder in tables if any(name.startswith(folder[: -len("metadata/")] + "data/") for name in names)
    )
