"""What the first bytes of a file say it is, whatever its name says. Shared by data and tokenizer files; opens nothing.

Bytes are `head`: the first HEAD bytes of a file or of its decompressed content, fewer if there are fewer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEAD = 1024
"""Bytes that are looked at: a tar header is 512, a Git LFS pointer is below 1,024."""

CODECS = (
    (re.compile(rb"\x1f\x8b\x08"), "gzip"),
    # A frame, or a skippable frame, with which pzstd and others begin.
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL), "zstd"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    # A block of bzip2, or the end of an empty file.
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL), "bz2"),
)
"""How compressed files begin."""


class Signature(NamedTuple):
    """What a file is, if it is not plain text."""

    name: str
    """`Parquet`, `HTML`, ...; stable: readers accept files by it."""
    what: str
    """In a sentence that begins with "it is"."""
    remedy: str

    def explain(self) -> str:
        """One line: what the file is, and what to do."""
        return f"it is {self.what}: {self.remedy}"


UNPACK = "unpack it, and name the files in it"
CONVERT = "convert it to JSON lines, text or Parquet first"

LFS = Signature("LFS", "a Git LFS pointer, not the file that it stands for", "fetch the file with `git lfs pull`")
HTML = Signature("HTML", "an HTML page, perhaps the error page of a download", "download the file again")
PARQUET = Signature("Parquet", "a Parquet file", "name it .parquet, or use --input-format parquet")
ARROW = Signature("Arrow", "an Arrow IPC file", "name it .arrow, or use --input-format arrow")
TAR = Signature("tar", "a tar archive", "name it .tar, or use --input-format tar, if it holds .txt or .json members")
WARC = Signature("WARC", "a WARC file", "name it .warc, or use --input-format warc")
ZIP = Signature("zip", "a zip archive", UNPACK)
UTF16, UTF32 = (
    Signature(name, f"text in {name}, not in UTF-8", f"convert it: iconv -f {name} -t UTF-8 FILE")
    for name in ("UTF-16", "UTF-32")
)

BINARY = (
    (b"PAR1", PARQUET),
    (b"PARE", Signature("Parquet", "a Parquet file with an encrypted footer", "decrypt it first")),
    (b"ARROW1\0\0", ARROW),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"7z\xbc\xaf\x27\x1c", Signature("7z", "a 7z archive", UNPACK)),
    (b"Rar!\x1a\x07", Signature("rar", "a rar archive", UNPACK)),
    (b"\x04\x22\x4d\x18", Signature("lz4", "compressed with lz4", "decompress it, or compress it with zstd")),
    (b"\xff\x06\x00\x00sNaPpY", Signature("snappy", "compressed with snappy", "decompress it, or use zstd")),
    (b"SQLite format 3\0", Signature("SQLite", "an SQLite database", CONVERT)),
    (b"Obj\x01", Signature("Avro", "an Avro file", CONVERT)),
    (b"ORC", Signature("ORC", "an ORC file", CONVERT)),
    (b"\x89HDF\r\n\x1a\n", Signature("HDF5", "an HDF5 file", CONVERT)),
    (b"\x93NUMPY", Signature("NumPy", "a NumPy array", CONVERT)),
    (b"SEQ\x06", Signature("SequenceFile", "a Hadoop SequenceFile", CONVERT)),
)
"""Formats that hold bytes which text does not; their magic words alone could begin a text."""

ARCHIVE = re.compile(rb"WARC/\d\.\d\r?\nWARC-")
PDF = re.compile(rb"%PDF-\d\.\d")
POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n")
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Bytes that no text holds."""

BOMS = (
    (b"\xff\xfe\0\0", UTF32),
    (b"\0\0\xfe\xff", UTF32),
    (b"\xff\xfe", UTF16),
    (b"\xfe\xff", UTF16),
)
WIDE = re.compile(rb"(?:[\t\r\n -~]\0){8,}|(?:\0[\t\r\n -~]){8,}")
"""Eight characters of ASCII in UTF-16."""


def find_codec(head: bytes) -> str | None:
    """How a file is compressed: gzip, zstd, bz2, xz, or None."""
    return next((codec for magic, codec in CODECS if magic.match(head)), None)


def recognise(head: bytes) -> Signature | None:
    """What a file is that is not plain text in UTF-8, and not compressed in a way that is read; None if it may be."""
    if POINTER.match(head):
        return LFS
    for bom, wide in BOMS:
        if head.startswith(bom):
            return wide
    if WIDE.match(head):
        return UTF16
    if head[257:262] == b"ustar":
        return TAR
    if ARCHIVE.match(head):
        return WARC
    if PDF.match(head):
        return Signature("PDF", "a PDF document", "extract its text first")
    for magic, signature in BINARY:
        if head.startswith(magic) and (len(magic) > 7 or CONTROL.search(head) or looks_binary(head)):
            return signature
    return HTML if PAGE.match(head) else None


def looks_binary(head: bytes) -> bool:
    """Whether no text in UTF-8 begins with these bytes."""
    if CONTROL.search(head):
        return True
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # A character may be cut at the end.
        return error.start < len(head) - 3
    return False
