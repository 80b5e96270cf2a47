"""tar archives in, as WebDataset makes them: members of one name and several extensions are one sample.

`.json` holds the fields of a sample, as a line of JSON lines does; `.txt` its text, unless a field holds that. The
field `__key__` is the sample's name. Other members, such as images, are counted by extension.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from exact_prep.batches import TextBatch
from exact_prep.sources.batching import BATCH_BYTES, MAX_DOCUMENT
from exact_prep.sources.fields import MISSING, find_value
from exact_prep.sources.jsonl import TOO_LONG, Group, decode_groups
from exact_prep.sources.streams import BLOCK, Damaged
from exact_prep.sources.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exact_prep.sources.batching import Part

SAMPLES = 1 << 10
"""Samples in a group, at most."""

END = "end of archive"
"""Stands for the blocks of zeros with which an archive ends."""

KEY = "__key__"
"""The field that holds a sample's name."""


def read_tar(part: Part, block: int | None) -> Iterator[TextBatch]:
    """The documents of a tar archive, read `block` bytes at once; see `Part` and `TextBatch`."""
    left_out: Counter[str] = Counter()
    yield from decode_groups(part, group_samples(part, block, left_out))
    yield TextBatch(records=np.empty(0, np.int64), left_out=dict(left_out))


def group_samples(part: Part, block: int | None, left_out: Counter[str]) -> Iterator[Group]:
    """Samples as JSON objects; raises Damaged. Members that hold no text go into `left_out`."""
    tape = Tape(part, block, keep=False)
    records: list[bytes | bytearray] = []
    size = 0
    try:
        for key, members in list_samples(tape, left_out):
            records.append(make_record(part, key, members))
            size += len(records[-1])
            if size >= BATCH_BYTES or len(records) == SAMPLES:
                yield Group(records, tape.take_consumed())
                records, size = [], 0
    except Damaged:
        # What comes before the damage is whole.
        yield Group(records, tape.take_consumed())
        raise
    yield Group(records, tape.take_consumed())


def list_samples(tape: Tape, left_out: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The name of each sample and its members of text by extension; raises Damaged.

    A sample is whole when a member of another name begins, or the archive ends.
    """
    key, members = None, dict[str, bytes]()
    seen: set[str] = set()
    for name, extension, read in list_members(tape, left_out):
        # A second member of the same name and extension begins another sample: nothing is lost.
        if key is not None and (name != key or extension in seen):
            yield key, members
            members, seen = {}, set()
        key = name
        seen.add(extension)
        if read is not None:
            with damage_named():
                members[extension] = read()
    if key is not None:
        yield key, members
    # tarfile stops at the mark of an archive's end.
    while data := tape.read(BLOCK):
        if data.strip(b"\0"):
            raise Damaged("its archive is damaged, or two archives follow each other: there is more after its end")


def list_members(tape: Tape, left_out: Counter[str]) -> Iterator[tuple[str, str, Callable[[], bytes] | None]]:
    """Name and extension of each file, and what reads its content; None if that is not text. Raises Damaged."""
    ended: list[str] = []

    class Member(tarfile.TarInfo):
        """Remembers why there is no further member: tarfile ends in silence at a damaged header."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                ended.append(END if type(error).__name__ == "EOFHeaderError" else str(error))
                raise

    try:
        archive = tarfile.open(fileobj=cast("Any", tape), mode="r|", tarinfo=Member)  # noqa: SIM115 - nothing to close
    except tarfile.ReadError as error:
        if str(error) == "empty file":
            return
        raise Damaged(f"it is not a tar archive ({error})") from error
    with damage_named():
        for member in archive:
            cast("Any", archive).members = []  # tarfile keeps them all
            name, extension = split_name(member.name)
            if member.isdir():
                continue
            if not member.isfile():
                left_out["tar link or device"] += 1
            elif extension not in ("txt", "json"):
                left_out[f"tar member .{extension}" if extension else "tar member without extension"] += 1
                yield name, extension, None
            else:
                yield name, extension, partial(read_member, archive, member)
    if ended[-1:] != [END]:
        reason = ended[-1] if ended and ended[-1] != "empty header" else "there is no mark of its end"
        raise Damaged(f"its archive is damaged: {reason}")


@contextmanager
def damage_named() -> Iterator[None]:
    """Turn what tarfile raises for bytes it cannot read into Damaged."""
    try:
        yield
    except tarfile.TarError as error:
        raise Damaged(f"its archive is damaged: {error}") from error


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member, TOO_LONG if it could not be held."""
    if member.size > MAX_DOCUMENT:
        return TOO_LONG
    content = archive.extractfile(member)
    return content.read() if content else b""


def split_name(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and its extension: all from the first dot of its file name on."""
    directory, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{directory}{slash}{stem}", extension.lower()


def make_record(part: Part, key: str, members: dict[str, bytes]) -> bytes | bytearray:
    """A sample as a JSON object; blank if it holds no text."""
    if not members:
        return b""
    if any(data is TOO_LONG for data in members.values()):
        return TOO_LONG
    fields: dict[str, Any] = {KEY: key}
    if "json" in members:
        try:
            found = json.loads(members["json"])
        except (ValueError, RecursionError):
            return members["json"]  # it is refused, with the reason
        if not isinstance(found, dict):
            return members["json"]
        fields |= found
    if "txt" in members:
        names = part.options.text_field
        held = (find_value(fields, name) for name in names)
        if part.options.ids_field is None and not any(value is not MISSING and value is not None for value in held):
            fields[names[0]] = members["txt"].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
