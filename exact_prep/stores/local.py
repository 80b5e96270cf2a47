"""A directory as a store: durable writes, checksums, memory maps, and the lock that keeps two runs apart.

A file is written under a temporary name beside its place, synced, and renamed: a reader sees the whole file or none.
The directory entry is synced too, so a rename survives a power cut. A temporary name carries host, process id and a
nonce, so that two attempts at one file never meet; who holds the lock removes what dead attempts left.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import shutil
import socket
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import xxhash

from exact_prep.errors import StorageError
from exact_prep.records import RecordT, encode, parse
from exact_prep.stores import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exact_prep.records import Record
    from exact_prep.stores.paths import Home

TEMPORARY = ".tmp"
"""Suffix of a file that is being written."""

BLOCK_BYTES = 1 << 20

COPY_BYTES = 32 << 20
"""Bytes of an object that are asked for at once where all of it is copied."""

LEFTOVER = re.compile(r".+\.[A-Za-z0-9-]*\.[0-9]+\.[0-9a-f]{8}\.tmp")
"""Temporary names as `temporary_path` makes them; other people's files are not touched."""

LOCK, HOLDER = ".lock", ".lock-holder"
"""The lock of a directory, and who holds it."""

UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems without locks answer."""


@contextmanager
def explained(what: str, path: object) -> Iterator[None]:
    """Turn an OSError inside into a StorageError that says what was being done to which path."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {what} {path}: {error.strerror or error}") from error


def temporary_path(path: Path) -> Path:
    """A name beside `path` to write at, that no other process or attempt uses."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    return path.with_name(f"{path.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")


def write_atomically(path: Path, data: bytes) -> None:
    """Publish `data` at `path`; raises StorageError."""
    temporary = temporary_path(path)
    with explained("write", path), removed_on_error(temporary):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove `path` if what happens inside fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


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
    """Wait until the names in `path` are on the device; a no-op where directories cannot be synced.

    That is Windows, and network file systems that answer EINVAL.
    """
    if os.name == "nt":
        return
    with explained("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


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


def read_bytes(path: Home) -> bytes:
    """The bytes of `path`; raises StorageError."""
    with explained("read", path):
        return path.read_bytes()


def map_file(path: Home) -> memoryview:
    """The bytes of `path` as a read-only memory map; it is closed with the last view of it. Raises StorageError.

    Of an object a local copy is mapped, that has no name and goes with the map.
    """
    with explained("map", path), open_copy(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def open_copy(path: Home) -> IO[bytes]:
    """The file at `path`, for reading; of an object, a copy in the directory for temporary files."""
    if isinstance(path, Path):
        return path.open("rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - for who asked
    size = path.stat().st_size
    for start in range(0, size, COPY_BYTES):
        file.write(path.root.read_range(path.key, start, min(start + COPY_BYTES, size)))
    file.flush()
    return file


def read_blocks(path: Path, ranges: Iterable[slice]) -> Iterator[memoryview]:
    """The bytes of some ranges of `path`, in blocks that share one buffer; raises StorageError.

    Cheaper than a map for bytes that are read once (no page faults), and they do not count as memory.
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


def digest_file(path: Home) -> str:
    """xxh3-128 of a whole file; raises StorageError."""
    if not isinstance(path, Path):
        return digest([path.read_bytes()])
    with explained("read", path):
        size = path.stat().st_size
    return digest(read_blocks(path, [slice(0, size)]))


def identify_file(path: Home | str) -> tuple[int, int, int] | str | None:
    """What tells whether a file was replaced: inode, size and time; None if there is no such file. Takes 1 us.

    Of an object its ETag, which takes a request.
    """
    if not isinstance(path, (Path, str)):
        return path.version()
    try:
        status = os.stat(path)  # noqa: PTH116 - for every row that is read
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def load(record: type[RecordT], path: Home) -> RecordT:
    """Read `path` as a `record`; raises StorageError or DatasetError."""
    return parse(record, read_bytes(path), path)


def save(record: Record, path: Path) -> None:
    """Publish `record` at `path`; raises StorageError."""
    write_atomically(path, encode(record))


class LocalStore:
    """A directory of this machine; see `Store`. Directories are made when something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def child(self, name: str) -> LocalStore:
        """See Store."""
        return LocalStore(self.path / name)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        directory = self.path / prefix.rpartition("/")[0]
        if not directory.is_dir():
            return
        with explained("list", directory):
            # Sorted as strings, as object stores do: paths would sort `a/b` before `a-b`.
            names = sorted(path.relative_to(self.path).as_posix() for path in directory.rglob("*") if path.is_file())
        for name in names:
            if not name.startswith(prefix) or LEFTOVER.fullmatch(name.rpartition("/")[2]):
                continue
            if (size := self.size(name)) is not None:  # None: removed meanwhile
                yield Entry(name, size)

    def size(self, name: str) -> int | None:
        """See Store."""
        with explained("read", self.path / name):
            try:
                status = (self.path / name).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size

    def read(self, name: str) -> bytes:
        """See Store."""
        return read_bytes(self.path / name)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See Store."""
        return b"".join(bytes(block) for block in read_blocks(self.path / name, [slice(start, stop)]))

    def version(self, name: str) -> str | None:
        """See Store."""
        return None if self.size(name) is None else digest_file(self.path / name)

    def create(self, name: str, data: bytes) -> bool:
        """See Store."""
        path = self.path / name
        make_directory(path.parent)
        temporary = temporary_path(path)
        with explained("write", path), removed_on_error(temporary):
            temporary.write_bytes(data)
            sync_file(temporary)
            try:
                # A hard link is the one local operation that fails where the name is taken.
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            sync_directory(path.parent)
        return True

    def replace(self, name: str, data: bytes, version: str | None) -> bool:
        """See Store. Between the look and the write only the lock of the directory keeps others away."""
        if self.version(name) != version:
            return False
        self.write(name, data)
        return True

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        make_directory((self.path / name).parent)
        write_atomically(self.path / name, data)

    def scratch(self, name: str) -> Path:
        """See Store."""
        make_directory((self.path / name).parent)
        return temporary_path(self.path / name)

    def upload(self, path: Path, name: str) -> None:
        """See Store."""
        make_directory((self.path / name).parent)
        publish(path, self.path / name)

    def remove(self, name: str) -> None:
        """See Store."""
        with explained("remove", self.path / name), suppress(FileNotFoundError, NotADirectoryError):
            (self.path / name).unlink()


def remove_leftovers(*directories: Path) -> None:
    """Remove temporary files in these directories, below none of them; for who holds their lock: nobody writes them."""
    for directory in directories:
        with explained("list", directory):
            found = list(directory.iterdir()) if directory.is_dir() else []
        for path in found:
            if LEFTOVER.fullmatch(path.name):
                remove(path)


@contextmanager
def locked(directory: Path, *, lock: bool = True) -> Iterator[None]:
    """Hold `directory` for this process; raises StorageError if another run holds it, or if it cannot be locked.

    The operating system drops the lock with its holder, however that dies; host and pid are kept for the message. With
    `lock` False the directory is taken to be free.
    """
    make_directory(directory)
    if not lock:
        yield
        return
    from filelock import FileLock, Timeout

    path, holder = directory / LOCK, directory / HOLDER
    # Without flock the library would fall back to a plain file, which a holder killed on another host never removes.
    held = FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        who = ""
        with suppress(OSError):
            who = holder.read_text()
        raise StorageError(
            f"{directory} is in use by {who or 'another process'}; wait for it, stop it, or choose another directory"
        ) from None
    except NotImplementedError as error:
        raise StorageError(explain_no_lock(directory)) from error
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise StorageError(explain_no_lock(directory)) from error
        raise StorageError(f"cannot lock {path}: {error.strerror or error}") from error
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
            held.release()


def find_holder(directory: Home) -> str | None:
    """Who holds `directory`, in words; None if nobody does. For who only reads: it takes no lock. Stores have none."""
    if not isinstance(directory, Path):
        return None
    from filelock import FileLock, Timeout

    path = directory / LOCK
    if not path.exists():
        return None
    probe = FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        with suppress(OSError):
            return (directory / HOLDER).read_text() or "another process"
        return "another process"
    except (OSError, NotImplementedError):  # read-only, or without locks: nobody can hold it from here
        return None
    probe.release()
    return None


def explain_no_lock(directory: Path) -> str:
    """The message for a file system without locks."""
    return (
        f"{directory} is on a file system that has no locks; choose another directory, "
        "or pass --no-lock and make sure that no other run uses it"
    )
