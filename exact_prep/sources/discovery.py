"""From what the user named to files in order. Looks at names and sizes, into no file but a saved dataset's state.

The same set of files gives the same result however it is named: files are sorted by absolute path. A file that two
inputs reach is an error: nobody means it, and training on it twice would go unnoticed. Inside one directory or glob a
symbolic link to a file that is read anyway is left out, and counted.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from exact_prep.errors import UsageError
from exact_prep.records.manifest import InputFile
from exact_prep.sources.streams import CODECS, split_suffix
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exact_prep.records.options import SourceOptions

Format = Literal["text", "jsonl", "json", "csv", "parquet", "arrow", "hub"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""Format by suffix, lower case. No .md: the README beside a corpus is not part of it."""

COLUMNAR = ("parquet", "arrow")
"""Formats that have their own compression."""

HIDDEN = "hidden"
BESIDE = "beside a saved dataset"
LINK = "link to a file that is read"
"""Reasons to leave a file out that are not its suffix."""

REMEDY = f"formats go by suffix ({' '.join(FORMATS)}, also with {' '.join(CODECS)}); say another with --input-format"


class Hit(NamedTuple):
    """A file, found."""

    path: str
    named: str
    """The input through which it was found."""
    skip: str = ""
    """Why it is not read, if it is not."""
    order: str = ""
    """What it is sorted by, if not its own path."""

    @property
    def explicit(self) -> bool:
        """Whether the user named the file itself."""
        return os.path.normpath(self.named) == self.path


def find(
    inputs: Sequence[str], options: SourceOptions, apart_from: Path | None = None
) -> tuple[tuple[InputFile, ...], dict[str, int]]:
    """See `exact_prep.sources.find_inputs`."""
    if options.separator == "":
        raise UsageError("the separator is empty; leave it out to have one document per file")
    hits: list[Hit] = []
    others: list[InputFile] = []
    if repeated := [named for named, count in Counter(map(os.path.normpath, inputs)).items() if count > 1]:
        raise UsageError(f"{repeated[0]} is given twice;\nname it once")
    for named in inputs:
        if named == "-":
            kind = "jsonl" if options.input_format == "auto" else options.input_format
            refuse_unfit("stdin", kind, options)
            others.append(InputFile(path="-", bytes=0, format=kind))
        elif named.startswith("hf://"):
            from exact_prep.sources.hub import find_dataset

            others.append(find_dataset(named))
        else:
            hits += expand(named, options)
    if apart_from is not None:
        hits = outside(apart_from, hits)
    hits.sort(key=lambda hit: os.path.abspath(hit.order or hit.path))  # noqa: PTH100 - no links resolved
    files, left_out = described(hits, options)
    others.sort(key=lambda file: file.path)
    for one, another in pairwise(others):
        if one.path == another.path:
            raise UsageError(f"{one.path} is given twice; name it once")
    if not files and not others:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items())) or "nothing"
        where = ", ".join(inputs) or "no input at all"
        raise UsageError(f"no input files in {where} (left out: {seen});\n{REMEDY}")
    return (*files, *others), dict(sorted(left_out.items()))


def outside(directory: Path, hits: list[Hit]) -> list[Hit]:
    """The files that do not lie below `directory`; raises UsageError for one that the user named."""
    below = tuple(path + os.sep for path in {os.path.abspath(directory), os.path.realpath(directory)})  # noqa: PTH100
    kept = []
    for hit in hits:
        if not os.path.abspath(hit.path).startswith(below):  # noqa: PTH100 - no links resolved
            kept.append(hit)
        elif (os.path.abspath(hit.named) + os.sep).startswith(below):  # noqa: PTH100 - no links resolved
            raise UsageError(f"{hit.path} lies in --out {directory}, whose files are replaced;\nchoose another --out")
    return kept


def expand(named: str, options: SourceOptions) -> list[Hit]:
    """The files that one input stands for; raises UsageError if there is nothing of that name."""
    with explained("find", named):
        there, directory = Path(named).exists(), Path(named).is_dir()
    if directory:
        return list(walk(os.path.normpath(named), named, options, ()))
    if there:
        return [Hit(os.path.normpath(named), named)]
    if not glob.has_magic(named):
        raise UsageError(f"there is no file or directory {named};\ncheck its spelling, and where the command runs")
    # pathlib's glob neither tells hidden files nor follows links in `**` as a shell does.
    visible = set(glob.iglob(named, recursive=True))  # noqa: PTH207
    hits: dict[str, Hit] = {}
    for path in glob.iglob(named, recursive=True, include_hidden=True):  # noqa: PTH207
        hit = Hit(os.path.normpath(path), named, "" if path in visible else HIDDEN)
        for one in walk(hit.path, named, options, (), hit.skip) if Path(path).is_dir() else [hit]:
            if one.path not in hits or not one.skip:
                hits[one.path] = one
    return list(hits.values())


def walk(
    directory: str, named: str, options: SourceOptions, above: tuple[tuple[int, int], ...], skip: str = ""
) -> Iterator[Hit]:
    """All files below a directory; symbolic links are followed, in circles they are an error."""
    with explained("list", directory), os.scandir(directory) as listing:
        entries = list(listing)
        status = Path(directory).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UsageError(f"{directory} leads back to a directory that it lies in; remove that symbolic link")
    shards: dict[str, str] = {}
    if options.input_format in ("auto", "arrow") and not skip:
        shards = saved_shards(Path(directory), {entry.name for entry in entries})
    for entry in entries:
        path = os.path.normpath(entry.path)
        unread = skip or (HIDDEN if entry.name.startswith(".") else "")
        if entry.is_dir():
            yield from walk(path, named, options, (*above, here), unread)
        elif shards and entry.name not in shards:
            yield Hit(path, named, unread or BESIDE)
        else:
            yield Hit(path, named, unread, str(Path(directory, shards.get(entry.name, entry.name))))


def saved_shards(directory: Path, names: set[str]) -> dict[str, str]:
    """The shards of a Hugging Face dataset saved to disk, each with the name it sorts as; none if it is not one."""
    if "dataset_dict.json" in names:
        splits = load_json(directory / "dataset_dict.json").get("splits", [])
        raise UsageError(
            f"{directory} holds a dataset per split: {', '.join(map(str, splits))};\n"
            f"name the one to read, such as {directory / str(next(iter(splits), 'train'))}"
        )
    if not {"state.json", "dataset_info.json"} <= names:
        return {}
    state = load_json(directory / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UsageError(
            f"{directory} is a selection from a larger dataset, kept as row numbers;\n"
            "save it anew with dataset.flatten_indices().save_to_disk(...)"
        )
    files = [str(file["filename"]) for file in state.get("_data_files") or []]
    if missing := set(files) - names:
        raise UsageError(f"{directory} is a saved dataset without its file {min(missing)}; save it anew")
    return dict(zip(files, sorted(files), strict=True))


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; raises UsageError if it is not one."""
    with explained("read", path):
        data = path.read_bytes()
    with suppress(ValueError):
        if isinstance(state := json.loads(data), dict):
            return state
    raise UsageError(f"{path} should describe a saved dataset and does not;\nsave it anew")


def described(hits: Iterable[Hit], options: SourceOptions) -> tuple[list[InputFile], Counter[str]]:
    """Files that are read, with size, time and format, and how many are not, by reason; raises UsageError."""
    files: dict[str, InputFile] = {}
    seen: dict[tuple[int, int], Hit] = {}
    left_out: dict[str, str] = {}
    for hit in hits:
        kind = format_of(hit.path, options)
        if hit.skip or kind is None:
            left_out[hit.path] = hit.skip or refuse_if_named(hit, suffix_of(hit.path), REMEDY)
            continue
        with explained("read", hit.path):
            status = os.stat(hit.path)  # noqa: PTH116 - a corpus may be a million files
        if not stat.S_ISREG(status.st_mode):
            left_out[hit.path] = refuse_if_named(hit, "not a regular file", "write it to a file, or give it to stdin")
            continue
        identity = (status.st_dev, status.st_ino)
        # Two names of one inode may be hard links, which are two files to their owner.
        if (twin := seen.setdefault(identity, hit)) is not hit and same_file(twin, hit):
            if twin.named != hit.named:
                raise UsageError(f"{hit.path} is given twice: by {twin.named} and by {hit.named};\nname it once")
            if os.path.realpath(hit.path) != os.path.abspath(hit.path):  # noqa: PTH100 - no links resolved
                left_out[hit.path] = LINK
                continue
            seen[identity] = hit
            left_out[twin.path] = LINK
            del files[twin.path]
        refuse_unfit(hit.path, kind, options)
        files[hit.path] = InputFile(path=hit.path, bytes=status.st_size, format=kind, modified_ns=status.st_mtime_ns)
    return list(files.values()), Counter(reason for path, reason in left_out.items() if path not in files)


def refuse_unfit(path: str, kind: Format, options: SourceOptions) -> None:
    """Raise UsageError for a name that no manifest can hold, and for text where token ids are asked for."""
    if not path.isascii() and any("\ud800" <= char <= "\udfff" for char in path):
        raise UsageError(f"the name of {path!a} is not UTF-8;\nrename it")
    if options.ids_field is not None and kind in ("text", "csv"):
        raise UsageError(f"{path} is {kind}, which holds no token ids;\nleave it out, or leave out --ids-field")


def same_file(one: Hit, another: Hit) -> bool:
    """Whether two names lead to one file."""
    return os.path.realpath(one.path) == os.path.realpath(another.path)


def refuse_if_named(hit: Hit, reason: str, remedy: str) -> str:
    """The reason why a file is not read; raises UsageError if the user named the file itself."""
    if hit.explicit:
        raise UsageError(f"{hit.path} cannot be read ({reason});\n{remedy}")
    return reason


def suffix_of(path: str) -> str:
    """The suffix of a file as it is counted, its compression included."""
    suffix, codec = split_suffix(path)
    return (suffix + (Path(path).suffix.lower() if codec else "")) or "no suffix"


def format_of(path: str, options: SourceOptions) -> Format | None:
    """How a file is read; None if it cannot be."""
    suffix, codec = split_suffix(path)
    kind = FORMATS.get(suffix) if options.input_format == "auto" else options.input_format
    return None if codec and kind in COLUMNAR else kind
