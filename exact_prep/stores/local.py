"""Bytes on disk: atomic publish, checksums, the lock. Reads and writes records whole, knows none of them.

A file is published by writing it under a temporary name beside its place, syncing it, and renaming it: a reader sees
the whole file or none. A directory entry is synced too, so a rename survives a power cut.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import xxhash

from exact_prep.errors import StorageError
from exact_prep.records import RecordT, encode, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from exact_prep.records import Record

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; whatever carries it after a run has ended is rubbish."""

BLOCK_BYTES = 1 << 20

LOCK_FILES = (".lock", ".lock-holder")
"""The lock of a directory, and who holds it."""


@contextmanager
def explained(what: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError inside into a StorageError that says what was being done to which path."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {what} {path}: {error.strerror or error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Publish `data` at `path`; raises StorageError."""
    temporary = path.with_name(path.name + TEMPORARY)
    with explained("write", path):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)


def publish(source: Path, target: Path) -> None:
    """Rename `source`, already synced, to `target`, and sync the directory entry."""
    with explained("publish", target):
        source.replace(target)
        sync_directory(target.parent)


def sync_file(path: Path) -> None:
    """Wait until the bytes of `path` are on the device."""
    with explained("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the names in `path` are on the device; a no-op where directories cannot be opened (Windows)."""
    if os.name == "nt":
        return
    sync_file(path)


def make_directory(path: Path) -> None:
    """Create `path` and its parents; raises StorageError."""
    with explained("create", path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file or a whole directory, if there is one; raises StorageError."""
    with explained("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`; raises StorageError."""
    with explained("read", path):
        return path.read_bytes()


def mapped(path: Path) -> memoryview:
    """The bytes of `path` as a read-only memory map; it is closed with the last view of it. Raises StorageError."""
    with explained("map", path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_blocks(path: Path, ranges: Iterable[slice]) -> Iterator[memoryview]:
    """The bytes of some ranges of `path`, in blocks that share one buffer; raises StorageError.

    Cheaper than a map for bytes that are looked at once (no page faults), and they do not count as memory.
    """
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with explained("read", path), path.open("rb", buffering=0) as file:
        for part in ranges:
            file.seek(part.start)
            left = part.stop - part.start
            while left > 0 and (count := file.readinto(buffer[:left])):
                yield buffer[:count]
                left -= count


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """xxh3-128 of the parts end to end, as 32 hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def load(record: type[RecordT], path: Path) -> RecordT:
    """Read `path` as a `record`; raises StorageError or DatasetError."""
    return parse(record, read_bytes(path), path)


def save(record: Record, path: Path) -> None:
    """Publish `record` at `path`; raises StorageError."""
    write_atomically(path, encode(record))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; raises StorageError if another run holds it.

    The operating system drops the lock with its holder, however that dies; host and pid are kept for the message.
    """
    from filelock import FileLock, Timeout

    make_directory(directory)
    path, holder = (directory / name for name in LOCK_FILES)
    lock = FileLock(path)
    with explained("lock", path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = ""
            with suppress(OSError):
                who = holder.read_text()
            who = who or "another process"
            raise StorageError(
                f"{directory} is in use by {who}; wait for it, stop it, or choose another directory"
            ) from None
    try:
        with explained("write", holder):
            holder.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        # Where nothing can be removed any more (a device that went read-only) the files stay: they lock nothing.
        try:
            with suppress(OSError):
                for name in (holder, path):
                    name.unlink(missing_ok=True)
        finally:
            lock.release()
