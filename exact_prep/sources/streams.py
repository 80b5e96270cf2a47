"""Bytes from plain and compressed files, in blocks of bounded size. Knows nothing of documents.

How a file is compressed is told by its first bytes, whatever its name says. What was decoded before a damage is given
before the damage is raised.
"""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from exact_prep.errors import SourceError, StorageError
from exact_prep.signatures import HEAD, looks_binary, recognise
from exact_prep.signatures import find_codec as find_codec_in
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exact_prep.records.work import InputFile
    from exact_prep.stores.objects import ObjectPath

Place: TypeAlias = "Path | ObjectPath"
"""Where the bytes of a file are: on this machine, or in a store."""

BLOCK = 1 << 20
"""Bytes per read: large enough to make reads cheap, small enough for the cache (4 MiB: 10% slower)."""

CODECS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression by suffix. It says which files are found, and what their sizes mean; the first bytes say how to read."""

AHEAD = 3 << 16
"""Bytes of a compressed file that a decoder may have read and not yet given, at most about."""

BOMB = 64 << 20
"""Bytes of a record that are held, at most, where a file expands more than BOMB_RATIO times."""

BOMB_RATIO = 200
"""No text expands as much: prose expands 3 to 5 times, logs up to 50, a run of one character 1,000 times and more."""

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte-order mark: a signature at the start of a file, not part of its text."""


class Damaged(Exception):
    """The rest of a file cannot be read: it is cut off, or not in its format. The exception's text is the reason."""

    unfinished = 0
    """Bytes of content that were read of a record, and are lost because its end cannot be read."""


class Block(NamedTuple):
    """Some bytes of a file's decompressed content."""

    data: bytes
    offset: int
    """Where they begin in the content."""
    consumed: int
    """Bytes of the file, compressed if it is, that this block accounts for."""


class Expansion:
    """How much a file expands, so that a record in a decompression bomb is not held."""

    def __init__(self) -> None:
        """Before the first block."""
        self.is_bomb = False
        self._consumed = 0

    def add(self, block: Block) -> None:
        """Count a block."""
        self._consumed += block.consumed
        self.is_bomb = self.is_bomb or block.offset + len(block.data) > max(BOMB, BOMB_RATIO * self._consumed)


class Stream(Protocol):
    """Decompressed bytes of one file."""

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end; raises Damaged."""
        ...

    def position(self) -> int:
        """Bytes of the file, compressed where it is, that were consumed so far."""
        ...


class RawFile(Protocol):
    """What decoders read from."""

    name: Any

    def read(self, size: int = -1, /) -> bytes | None:
        """At most `size` bytes; none at the end."""
        ...


class NamedFile(RawFile, Protocol):
    """The same with a place, that can be changed."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte."""
        ...

    def tell(self) -> int:
        """The next byte."""
        ...


class PlainStream:
    """A file as it is."""

    def __init__(self, file: io.RawIOBase, start: int) -> None:
        """Begin at byte `start`."""
        self._file = file
        self._file.seek(start)

    def read(self, size: int, /) -> bytes:
        """See Stream."""
        data = self._file.read(size) or b""
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
    """zstd by pyarrow: several frames in a row are one stream, damage is an error."""

    def __init__(self, file: RawFile, codec: str) -> None:
        """Read `file` from where it is."""
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
            if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            if "too much memory" in str(error):
                raise SourceError(
                    f"{self._file.name} was made with zstd --long and needs a window of more than 128 MiB;\n"
                    "decompress it first, with zstd -d --long=31"
                ) from error
            if isinstance(error, MemoryError):
                raise SourceError(f"{self._file.name} needs more memory than there is ({error})") from error
            if "ictionary" in str(error):
                reason = "it was made with a zstd dictionary: decompress it first, with zstd -d -D DICTIONARY"
                raise Damaged(reason) from error
            raise Damaged(f"its compressed bytes are damaged: {error}") from error


class GzipDecoder:
    """zlib with the interface of the decoders for bz2 and xz. As fast as pyarrow's, and exact about a member's end."""

    def __init__(self) -> None:
        """Before the first byte of a member."""
        import zlib

        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        """Whether the member ended."""
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        """Whether there is nothing to decode."""
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What came after the member."""
        return self._decoder.unused_data

    def decompress(self, data: bytes, size: int) -> bytes:
        """At most `size` bytes."""
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, size)


class MemberStream:
    """gzip, xz and bz2 by the standard library's decoders, member after member; zeros may follow a member.

    `lzma.open` and `bz2.open` ignore garbage after a member, and pyarrow fails on an empty member of bz2.
    """

    def __init__(self, file: RawFile, codec: str) -> None:
        """Read `file` from where it is."""
        import bz2
        import lzma
        import zlib

        decoders = {"gzip": GzipDecoder, "bz2": bz2.BZ2Decompressor}
        self._new = decoders.get(codec) or partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)
        self._damage = (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError)
        self._file = file
        self._decoder: Any = self._new()
        self._waiting = b""

    def read(self, size: int, /) -> bytes:
        """See Stream."""
        parts: list[bytes] = []
        while size and (data := self._some(size)):
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _some(self, size: int) -> bytes:
        """Between 1 and `size` bytes, or none at the end."""
        while not self._decoder.eof or self._next_member():
            data = self._waiting
            ended = self._decoder.needs_input and not data and not (data := self._file.read(1 << 16))
            self._waiting = b""
            try:
                decoded = self._decoder.decompress(data, size)
            except self._damage as error:
                raise Damaged(f"its compressed bytes are damaged: {error}") from error
            if decoded:
                return decoded
            if ended:
                raise Damaged("its compressed bytes are damaged: they end too early")
        return b""

    def _next_member(self) -> bool:
        """Begin the next member if there is one; there may be zeros in between, and at the end: tapes are padded."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            if not (data := self._file.read(1 << 16)):
                return False
            rest = data.lstrip(b"\0")
        self._decoder = self._new()
        self._waiting = rest
        return True


class SlowFile:
    """A raw file that gives single bytes from some place on: a decoder then gives all that comes before a damage."""

    def __init__(self, raw: NamedFile, slow_from: int) -> None:
        """Read `raw` from its start."""
        self.name, self.closed = raw.name, False
        self._raw, self._slow_from, self._at = raw, slow_from, 0
        raw.seek(0)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""
        fast = self._slow_from - self._at
        data = self._raw.read(min(size, fast) if fast > 0 else 1) or b""
        self._at += len(data)
        return data

    def close(self) -> None:
        """For pyarrow; the raw file is closed by who opened it."""
        self.closed = True


class CompressedStream:
    """The decompressed bytes of a file, all of them up to a damage, if there is one."""

    def __init__(self, raw: NamedFile, codec: str) -> None:
        """Read `raw` from its start."""
        self._raw, self._codec = raw, codec
        self._make = ArrowStream if codec == "zstd" else MemberStream
        self._stream: ArrowStream | MemberStream = self._make(raw, codec)
        self._given = self._position = 0
        self._careful = False
        self._fault = ""
        self._spent: ArrowStream | MemberStream | None = None

    def read(self, size: int, /) -> bytes:
        """See Stream. A read that meets a damage gives what comes before it; the next one raises."""
        if not self._careful:
            try:
                data = self._stream.read(size)
            except Damaged:
                # Decoders lose what they decoded in the call that fails. So everything is decoded a second time, the
                # last bytes one by one.
                at = self._raw.tell()
                self._spent = self._stream  # pyarrow closes the file with its stream
                self._stream = self._make(SlowFile(self._raw, at - AHEAD), self._codec)
                self._careful = True
                missing = self._given
                while missing and (again := self._stream.read(min(BLOCK, missing))):
                    missing -= len(again)
            else:
                self._given += len(data)
                return data
        if self._fault:
            raise Damaged(self._fault)
        data = bytearray()
        try:
            while len(data) < size and (byte := self._stream.read(1)):
                data += byte
        except Damaged as fault:
            # As text: an exception would keep this stream alive. pyarrow never returns from a read after a failed one.
            self._fault = str(fault)
            if not data:
                raise
        return bytes(data)

    def position(self) -> int:
        """See Stream."""
        self._position = max(self._position, self._raw.tell())
        return self._position


def split_suffix(name: str) -> tuple[str, str | None]:
    """The suffix of a file name without its compression, in lower case, and the compression if any."""
    # Not by pathlib, which takes ten times as long: a corpus may be a million files.
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122
    codec = CODECS.get(suffix)
    return (os.path.splitext(stem)[1] if codec else suffix), codec  # noqa: PTH122


def open_raw(path: Place, *, ahead: bool = True, stop: int | None = None) -> Any:
    """The file at `path`, unbuffered; raises OSError. `ahead` and `stop` as in `ObjectPath.open`, for objects."""
    return io.FileIO(path) if isinstance(path, Path) else path.open(ahead=ahead, stop=stop)


def find_codec(file: InputFile, path: Place) -> str | None:
    """How `file` is compressed, by its first bytes; None if it is not. Raises StorageError, Damaged."""
    with explained("read", path), open_raw(path) as raw:
        return tell_codec(file, raw.read(HEAD))


def tell_codec(file: InputFile, head: bytes) -> str | None:
    """How a file that begins with `head` is compressed; raises Damaged if only its name says so, and it is no text."""
    codec, named = find_codec_in(head), split_suffix(file.path)[1]
    if codec is None and named is not None:
        if not head:
            raise Damaged(f"its compressed bytes are damaged: a {named} file is never empty")
        if looks_binary(head) and recognise(head) is None:
            raise Damaged(f"its compressed bytes are damaged: it does not begin as {named} does")
    return codec


def check_content(file: InputFile, head: bytes) -> None:
    """Raise Damaged if content that begins with `head` is certainly not in the format of `file`."""
    found = recognise(head)
    if found is None or (found.name == "HTML" and file.format == "text") or found.name.lower() == file.format:
        return
    raise Damaged(found.explain())


@contextmanager
def opened(file: InputFile, path: Place, stop: int | None = None) -> Iterator[Any]:
    """The raw file at `path`; raises StorageError, or SourceError if it is no longer what was planned.

    That is checked before and after it is read: a file that changes in between may be read half old, half new. Little
    will be read from byte `stop` on.
    """
    with explained("read", path), open_raw(path, stop=stop) as raw:
        check_unchanged(file, path)
        yield raw
        check_unchanged(file, path)


def check_unchanged(file: InputFile, path: Place) -> None:
    """Raise SourceError if size or modification time differ from what they were when the run was planned.

    Every read of an object checks its ETag.
    """
    if file.path == "-" or not isinstance(path, Path):
        return
    with explained("read", path):
        status = path.stat()
    if status.st_size != file.bytes or (file.modified_ns and status.st_mtime_ns != file.modified_ns):
        raise SourceError(
            f"{path} has changed since the run was planned ({file.bytes} bytes then, {status.st_size} now);\n"
            "run the same command again when nothing writes to it any more"
        )


class Span:
    """Some bytes of a plain file that are too long to be held: `bytes(span)` reads them again."""

    def __init__(self, file: InputFile, path: Place, start: int, size: int) -> None:
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
def decompressed(file: InputFile, path: Place, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
    """The bytes of `file` from `start`, which must be 0 if it is compressed; few are read from `stop` on."""
    with opened(file, path, stop) as raw:
        codec = None if start else tell_codec(file, raw.read(HEAD))
        raw.seek(start)
        yield PlainStream(raw, start) if codec is None else CompressedStream(raw, codec)


def whole_blocks(file: InputFile, path: Place, *, size: int) -> Iterator[Block]:
    """The content of `file` in blocks of `size` bytes, fewer before a damage; the last is empty. Raises Damaged."""
    seen = offset = 0
    with decompressed(file, path) as stream:
        while True:
            data = stream.read(size)
            if not offset:
                check_content(file, data[:HEAD])
            position = stream.position()
            yield Block(data, offset, position - seen)
            seen = position
            offset += len(data)
            if not data:
                return


def line_blocks(file: InputFile, path: Place, start: int, stop: int, *, size: int) -> Iterator[Block]:
    """The lines that begin in `start <= offset < stop` of a plain file, in blocks of at most `size` bytes.

    The blocks begin with the first byte of the first such line and end with the last byte of the last one. The last
    block is empty; the bytes consumed add up to `stop - start`. Raises Damaged.
    """
    seen = start
    position = max(start - 1, 0)
    with decompressed(file, path, position, stop) as stream:
        skipping = start > 0
        finished = False
        while not finished and (data := stream.read(size)):
            if not position:
                check_content(file, data[:HEAD])
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


def count_newlines(file: InputFile, path: Place, stop: int) -> int:
    """Newlines in the first `stop` bytes of a plain file: this turns an offset into a line number."""
    count = 0
    with decompressed(file, path) as stream:
        while stop > 0 and (data := stream.read(min(BLOCK, stop))):
            count += newlines(data)
            stop -= len(data)
    return count
