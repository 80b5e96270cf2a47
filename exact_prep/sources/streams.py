"""Bytes from plain and compressed files, in blocks of bounded size. Knows nothing of documents."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from exact_prep.errors import SourceError
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exact_prep.records.work import InputFile

BLOCK = 1 << 20
"""Bytes per read: large enough to make reads cheap, small enough for the cache (4 MiB: 10% slower)."""

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression by suffix."""

MAGIC = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2"}
"""How compressed files begin; used only for standard input, which has no name."""

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte-order mark: a signature at the start of a file, not part of its text."""


class Damaged(Exception):
    """The rest of a file cannot be read: it is cut off, or not in its format. The exception's text is the reason."""


class Block(NamedTuple):
    """Some bytes of a file's decompressed content."""

    data: bytes
    offset: int
    """Where they begin in the content."""
    consumed: int
    """Bytes of the file, compressed if it is, that this block accounts for."""


class Stream(Protocol):
    """Decompressed bytes of one file."""

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end; raises Damaged."""
        ...

    def position(self) -> int:
        """Bytes of the file, compressed where it is, that were consumed so far."""
        ...


class PlainStream:
    """A file as it is."""

    def __init__(self, file: io.FileIO, start: int) -> None:
        """Begin at byte `start`."""
        self._file = file
        self._file.seek(start)

    def read(self, size: int, /) -> bytes:
        """See Stream."""
        data = self._file.read(size)
        if len(data) == size or not data:
            return data
        parts = [data]
        while (missing := size - sum(map(len, parts))) and (data := self._file.read(missing)):
            parts.append(data)
        return b"".join(parts)

    def position(self) -> int:
        """See Stream."""
        return self._file.tell()


class ArrowStream:
    """gzip and zstd by pyarrow: several members or frames in a row are one stream, damage is an error."""

    def __init__(self, file: io.FileIO, codec: str) -> None:
        """Read `file` from its start."""
        import pyarrow as pa

        self._damage = (OSError, pa.ArrowException)
        self._file = file
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
        self._buffer = bytearray()

    def read(self, size: int, /) -> bytes:
        """See Stream."""
        # Not by `read`: on damage it never frees the bytes that it was about to return.
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        try:
            return bytes(memoryview(self._buffer)[: self._stream.readinto(self._buffer)])
        except self._damage as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if "too much memory" in str(error):
                raise SourceError(
                    f"{self._file.name} was made with zstd --long and needs a window of more than 128 MiB;\n"
                    "decompress it first, with zstd -d --long=31"
                ) from error
            if isinstance(error, MemoryError):
                raise SourceError(f"{self._file.name} needs more memory than there is ({error})") from error
            raise Damaged(f"its compressed bytes are damaged: {error}") from error

    def position(self) -> int:
        """See Stream."""
        return self._file.tell()


class MemberStream:
    """xz and bz2 by the standard library's decoders, member after member.

    `lzma.open` and `bz2.open` ignore garbage after a member, and pyarrow fails on an empty member of bz2.
    """

    def __init__(self, file: io.FileIO, codec: str) -> None:
        """Read `file` from its start."""
        import bz2
        import lzma

        self._new = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ) if codec == "xz" else bz2.BZ2Decompressor
        self._damage = (lzma.LZMAError, OSError, ValueError)
        self._padding = b"\0" if codec == "xz" else b""
        self._file = file
        self._decoder = self._new()
        self._waiting = b""

    def read(self, size: int, /) -> bytes:
        """See Stream."""
        parts: list[bytes] = []
        while size and (data := self._some(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        """Between 1 and `size` bytes, or none at the end."""
        while not self._decoder.eof or self._next_member():
            data = self._waiting
            if self._decoder.needs_input and not data and not (data := self._file.read(1 << 16)):
                raise Damaged("its compressed bytes are damaged: they end too early")
            self._waiting = b""
            try:
                decoded = self._decoder.decompress(data, size)
            except self._damage as error:
                raise Damaged(f"its compressed bytes are damaged: {error}") from error
            if decoded:
                return decoded
        return b""

    def _next_member(self) -> bool:
        """Begin the next member if there is one; xz may have zeros in between."""
        rest = self._decoder.unused_data.lstrip(self._padding)
        while not rest:
            if not (data := self._file.read(1 << 16)):
                return False
            rest = data.lstrip(self._padding)
        self._decoder = self._new()
        self._waiting = rest
        return True

    def position(self) -> int:
        """See Stream."""
        return self._file.tell()


def split_suffix(name: str) -> tuple[str, str | None]:
    """The suffix of a file name without its compression, in lower case, and the compression if any."""
    # Not by pathlib, which takes ten times as long: a corpus may be a million files.
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122
    codec = CODECS.get(suffix)
    return (os.path.splitext(stem)[1] if codec else suffix), codec  # noqa: PTH122


def compression(file: InputFile, path: Path | None) -> str | None:
    """How `file` is compressed: told by its name, or for standard input by the first bytes at `path`."""
    if file.path != "-" or path is None:
        return split_suffix(file.path)[1]
    with explained("read", path), path.open("rb") as spool:
        head = spool.read(8)
    return next((codec for magic, codec in MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def opened(file: InputFile, path: Path) -> Iterator[io.FileIO]:
    """The raw file at `path`; raises StorageError, or SourceError if it is no longer what was planned.

    That is checked before and after it is read: a file that changes in between may be read half old, half new.
    """
    with explained("read", path), io.FileIO(path) as raw:
        check_unchanged(file, path)
        yield raw
        check_unchanged(file, path)


def check_unchanged(file: InputFile, path: Path) -> None:
    """Raise SourceError if size or modification time differ from what they were when the run was planned."""
    if file.path == "-":
        return
    with explained("read", path):
        status = path.stat()
    if status.st_size != file.bytes or (file.modified_ns and status.st_mtime_ns != file.modified_ns):
        raise SourceError(
            f"{path} has changed since the run was planned ({file.bytes} bytes then, {status.st_size} now);\n"
            "start again when nothing writes to it any more"
        )


class Span:
    """Some bytes of a plain file that are too long to be held: `bytes(span)` reads them again."""

    def __init__(self, file: InputFile, path: Path, start: int, size: int) -> None:
        """The `size` bytes from `start` on."""
        self._file, self._path = file, path
        self._start, self._size = start, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Span:
        start, stop, _ = part.indices(self._size)
        return Span(self._file, self._path, self._start + start, max(stop - start, 0))

    def __bytes__(self) -> bytes:
        """Raises StorageError, or SourceError if the file has changed."""
        with decompressed(self._file, self._path, self._start) as stream:
            return stream.read(self._size)


@contextmanager
def decompressed(file: InputFile, path: Path, start: int = 0) -> Iterator[Stream]:
    """The bytes of `file` from `start`, which must be 0 if it is compressed."""
    codec = compression(file, path)
    with opened(file, path) as raw:
        if codec is None:
            yield PlainStream(raw, start)
        elif path.stat().st_size == 0:
            raise Damaged(f"its compressed bytes are damaged: a {codec} file is never empty")
        else:
            yield (MemberStream if codec in ("xz", "bz2") else ArrowStream)(raw, codec)


def whole_blocks(file: InputFile, path: Path, *, size: int) -> Iterator[Block]:
    """The content of `file` in blocks of `size` bytes; the last is empty. Raises Damaged."""
    seen = offset = 0
    with decompressed(file, path) as stream:
        while True:
            data = stream.read(size)
            position = stream.position()
            yield Block(data, offset, position - seen)
            seen = position
            offset += len(data)
            if not data:
                return


def line_blocks(file: InputFile, path: Path, start: int, stop: int, *, size: int) -> Iterator[Block]:
    """The lines that begin in `start <= offset < stop` of a plain file, in blocks of at most `size` bytes.

    The blocks begin with the first byte of the first such line and end with the last byte of the last one. The last
    block is empty; the bytes consumed add up to `stop - start`.
    """
    seen = start
    position = max(start - 1, 0)
    with decompressed(file, path, position) as stream:
        skipping = start > 0
        finished = False
        while not finished and (data := stream.read(size)):
            offset, after = position, position + len(data)
            if after >= stop and (last := data.find(b"\n", max(stop - 1 - position, 0))) >= 0:
                data, finished = data[: last + 1], True
            if skipping:
                cut = data.find(b"\n") + 1 or len(data)
                skipping = data[cut - 1 : cut] != b"\n"
                data, offset = data[cut:], offset + cut
                finished = finished or (skipping and after >= stop - 1)  # no line begins here
            before, seen, position = seen, min(after, stop), after
            yield Block(data, offset, seen - before)
    yield Block(b"", position, stop - seen)


def newlines(data: bytes) -> int:
    """Newlines in `data`; bytes.count takes three times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def count_newlines(file: InputFile, path: Path, stop: int) -> int:
    """Newlines in the first `stop` bytes of a plain file: this turns an offset into a line number."""
    count = 0
    with decompressed(file, path) as stream:
        while stop > 0 and (data := stream.read(min(BLOCK, stop))):
            count += newlines(data)
            stop -= len(data)
    return count
