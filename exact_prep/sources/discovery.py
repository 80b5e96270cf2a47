"""From what the user named to files in order. Looks at names and sizes; opens no file but a saved dataset's state.

The same set of files gives the same result however it is named: files are sorted by absolute path, and objects in
stores, which come after them, by address. A file that two inputs reach is an error: training on it twice would go
unnoticed. Inside one directory or glob, a symbolic link to a file that is read anyway is left out and counted.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from collections import Counter
from contextlib import suppress
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exact_prep.errors import UsageError
from exact_prep.records.work import InputFile
from exact_prep.sources.formats import BY_SUFFIX, FORMATS
from exact_prep.sources.labels import MAX_SOURCES, TOO_MANY, label_field
from exact_prep.sources.streams import CODECS, split_suffix
from exact_prep.stores import check_local, is_object_url, redact
from exact_prep.stores.local import explained

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from exact_prep.records.options import SourceOptions
    from exact_prep.sources.formats import Format
    from exact_prep.stores import Entry

HIDDEN = "hidden"
UNDERSCORE = "name begins with _"
METADATA = "metadata of an Iceberg table"
BESIDE = "beside a saved dataset"
LINK = "link to a file that is read"
"""Reasons to leave a file out, other than its suffix."""

REMEDY = f"formats go by suffix ({' '.join(BY_SUFFIX)}, also with {' '.join(CODECS)}); name another with --input-format"


TABLE_PARTS = {"_delta_log": "Delta Lake", "metadata": "Iceberg", ".hoodie": "Hudi"}
"""Directories that make a table of the directory around them."""

READERS = {
    "Delta Lake": "deltalake (`DeltaTable(DIR).to_pyarrow_table()`) or Spark",
    "Iceberg": "pyiceberg or Spark",
    "Hudi": "Spark",
}


class Hit(NamedTuple):
    """A file that was found."""

    path: str
    named: str
    """The input through which it was found."""
    skip: str = ""
    """Why it is not read; empty if it is."""
    order: str = ""
    """What it is sorted by, if not by its own path."""
    entry: Entry | None = None
    """Of an object in a store: what its listing says."""

    @property
    def explicit(self) -> bool:
        """Whether the user named the file itself."""
        return self.path in (self.named, os.path.normpath(self.named))


class Found(NamedTuple):
    """What the user's inputs stand for."""

    files: tuple[InputFile, ...]
    """In reading order."""
    left_out: dict[str, int]
    """Files that are not read, by reason."""
    warnings: tuple[str, ...]
    """What the user should know about directories that were read."""


def find_files(
    named: Sequence[str], options: SourceOptions, exclude: Path | None, store_options: Mapping[str, str]
) -> Found:
    """The files that the user's inputs stand for; see `exact_prep.sources.find_inputs`."""
    inputs = [expand_home(one) for one in named]
    if options.separator == "":
        raise UsageError("the separator is empty; leave it out to have one document per file")
    hits: list[Hit] = []
    others: list[InputFile] = []
    if repeated := [named for named, count in Counter(map(os.path.normpath, inputs)).items() if count > 1]:
        raise UsageError(f"{redact(repeated[0])} is given twice;\nname it once")
    sources = Sources(inputs, options)
    for named in inputs:
        if named == "-":
            row = FORMATS["jsonl" if options.input_format == "auto" else options.input_format]
            check_format("stdin", row, options)
            others.append(InputFile(path="-", bytes=0, format=row.name, source=sources.name_other(named)))
        elif named.startswith("hf://"):
            from exact_prep.sources.hub import find_dataset

            others.append(find_dataset(named).model_copy(update={"source": sources.name_other(named)}))
        elif is_object_url(named):
            hits += expand_objects(named, store_options)
        else:
            check_local(named)
            hits += expand(named, options)
    warnings = find_tables(hits)
    if exclude is not None:
        hits = drop_below(exclude, hits)
    hits.sort(key=order_of)
    files, left_out = describe(hits, options, sources)
    others.sort(key=lambda file: file.path)
    for one, another in pairwise(others):
        if one.path == another.path:
            raise UsageError(f"{one.path} is given twice; name it once")
    if not files and not others:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items())) or "nothing"
        where = ", ".join(inputs) or "no input at all"
        raise UsageError(f"no input files in {where} (left out: {seen});\n{REMEDY}")
    names = {file.source for file in (*files, *others)}
    for name in names:
        check_utf8(name)
    if len(names) > MAX_SOURCES:
        raise UsageError(TOO_MANY.format(where=f"by --source-from {options.source_from}"))
    return Found((*files, *others), dict(sorted(left_out.items())), warnings)


def expand_home(named: str) -> str:
    """`~/corpus` with the home directory in place of `~`, as a shell does; a file of that very name wins."""
    return named if not named.startswith("~") or Path(named).exists() else os.path.expanduser(named)  # noqa: PTH111


def find_tables(hits: Iterable[Hit]) -> tuple[str, ...]:
    """Warnings about tables whose files are not all part of their present version."""
    tables: dict[str, str] = {}
    for hit in hits:
        if hit.skip in (HIDDEN, UNDERSCORE, METADATA):
            for part, kind in TABLE_PARTS.items():
                above, found, _ = hit.path.partition(f"{os.sep}{part}{os.sep}")
                if found and (kind != "Iceberg" or hit.skip == METADATA):
                    tables[above] = kind
    return tuple(
        f"{directory} is a table of {kind}: its files may hold rows that were deleted or replaced since, and older "
        f"versions of rows; to read its present version alone, export it with {READERS[kind]}, and name the export"
        for directory, kind in sorted(tables.items())
    )


def order_of(hit: Hit) -> tuple[bool, str]:
    """What files are sorted by."""
    if hit.entry is not None:
        return True, hit.path
    return False, os.path.abspath(hit.order or hit.path)  # noqa: PTH100 - no links resolved


class Sources:
    """Source labels of files: the argument through which a file was found, or its directory below that argument."""

    def __init__(self, inputs: Sequence[str], options: SourceOptions) -> None:
        """`inputs` are the arguments as the user typed them."""
        self._from_field = label_field(options) is not None
        self._by_directory = options.source_from == "dir"
        self._one = len(inputs) > MAX_SOURCES
        self._bases: dict[str, str] = {}
        # By argument and directory: a corpus may be a million files.
        self._directories: dict[tuple[str, str], str] = {}

    def name_other(self, named: str) -> str:
        """The label of standard input, or of a dataset."""
        if self._from_field:
            return ""
        return named if self._by_directory or not self._one else "all"

    def name_file(self, hit: Hit) -> str:
        """The label of a file's documents; empty where labels come from the records."""
        if not self._by_directory:
            return self.name_other(hit.named)
        key = (hit.named, os.path.dirname(hit.path))  # noqa: PTH120 - pathlib takes ten times as long
        if (label := self._directories.get(key)) is None:
            label = self._directories[key] = "." if hit.explicit else os.path.relpath(key[1] or ".", self._base(hit))
        return label

    def _base(self, hit: Hit) -> str:
        """The directory that an argument names; of a glob, what comes before its first wildcard."""
        if (base := self._bases.get(hit.named)) is None:
            base = os.path.normpath(hit.named)
            if not os.path.isdir(base):  # noqa: PTH112 - as above
                fixed = takewhile(lambda part: not glob.has_magic(part), Path(base).parts)
                base = str(Path(*fixed))
            self._bases[hit.named] = base
        return base


def drop_below(directory: Path, hits: list[Hit]) -> list[Hit]:
    """The files that are not below `directory`; raises UsageError for one that the user named."""
    below = tuple(path + os.sep for path in {os.path.abspath(directory), os.path.realpath(directory)})  # noqa: PTH100
    kept = []
    for hit in hits:
        if hit.entry is not None or not os.path.abspath(hit.path).startswith(below):  # noqa: PTH100 - likewise
            kept.append(hit)
        elif (os.path.abspath(hit.named) + os.sep).startswith(below):  # noqa: PTH100 - no links resolved
            raise UsageError(f"{hit.path} is in --out {directory}, whose files are replaced;\nchoose another --out")
    return kept


def expand_objects(named: str, store_options: Mapping[str, str]) -> list[Hit]:
    """The objects that one input stands for; raises UsageError if nothing has that name."""
    from exact_prep.sources.buckets import find_iceberg, list_objects

    found = list(list_objects(named, store_options))
    metadata = find_iceberg([url for url, _, _ in found])
    may_hide = "/." in named.partition("://")[2]
    may_underscore = "/_" in named.partition("://")[2]
    hits = []
    for url, entry, asked in found:
        parts = entry.name.split("/")
        above, below = parts[:asked], parts[asked:]
        if glob.has_magic(named) and url != named:
            below += [part for part in above if part[0] == "." and not may_hide]
            below += [part for part in above if part[0] == "_" and not may_underscore]
        skip = HIDDEN if any(part.startswith(".") for part in below) else ""
        skip = skip or (UNDERSCORE if any(part.startswith("_") for part in below) else "")
        skip = skip or (METADATA if metadata and url.startswith(metadata) else "")
        hits.append(Hit(url, named, skip, entry=entry))
    return hits


def expand(named: str, options: SourceOptions) -> list[Hit]:
    """The files that one input stands for; raises UsageError if nothing has that name."""
    with explained("find", named):
        exists, is_directory = Path(named).exists(), Path(named).is_dir()
    if is_directory:
        return list(walk(os.path.normpath(named), named, options, ()))
    if exists:
        return [Hit(os.path.normpath(named), named)]
    if not glob.has_magic(named):
        raise UsageError(f"there is no file or directory {named};\ncheck its spelling and the working directory")
    # pathlib's glob does not tell which files are hidden, and follows no links in `**`; a shell does.
    visible = set(glob.iglob(named, recursive=True))  # noqa: PTH207
    hits: dict[str, Hit] = {}
    asked = f"{os.sep}_" in named or named.startswith("_")
    base = len(str(Path(*takewhile(lambda part: not glob.has_magic(part), Path(named).parts))))
    for path in glob.iglob(named, recursive=True, include_hidden=True):  # noqa: PTH207
        aside = not asked and (f"{os.sep}_" in path[base:] or path.startswith("_"))
        hit = Hit(os.path.normpath(path), named, HIDDEN if path not in visible else UNDERSCORE if aside else "")
        for one in walk(hit.path, named, options, (), hit.skip) if Path(path).is_dir() else [hit]:
            if one.path not in hits or not one.skip:
                hits[one.path] = one
    return list(hits.values())


def walk(
    directory: str, named: str, options: SourceOptions, above: tuple[tuple[int, int], ...], skip: str = ""
) -> Iterator[Hit]:
    """All files below a directory. Symbolic links are followed; a circle of links is an error."""
    with explained("list", directory), os.scandir(directory) as listing:
        entries = list(listing)
        status = Path(directory).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UsageError(f"{directory} leads back to a directory that contains it; remove that symbolic link")
    shards: dict[str, str] = {}
    if options.input_format in ("auto", "arrow") and not skip:
        shards = saved_shards(Path(directory), {entry.name for entry in entries})
    iceberg = is_iceberg(directory, {entry.name for entry in entries})
    for entry in entries:
        path = os.path.normpath(entry.path)
        unread = skip or (HIDDEN if entry.name.startswith(".") else "")
        unread = unread or (UNDERSCORE if entry.name.startswith("_") else "")
        unread = unread or (METADATA if iceberg and entry.name == "metadata" else "")
        if entry.is_dir():
            yield from walk(path, named, options, (*above, here), unread)
        elif shards and entry.name not in shards:
            yield Hit(path, named, unread or BESIDE)
        else:
            yield Hit(path, named, unread, str(Path(directory, shards.get(entry.name, entry.name))))


def is_iceberg(directory: str, names: set[str]) -> bool:
    """Whether a directory, by the names in it, is an Iceberg table."""
    if not {"metadata", "data"} <= names:
        return False
    metadata = Path(directory, "metadata")
    return metadata.is_dir() and any(name.name.endswith(".metadata.json") for name in metadata.iterdir())


def saved_shards(directory: Path, names: set[str]) -> dict[str, str]:
    """The shards of a Hugging Face dataset saved to disk, each with the name it sorts by; empty if it is not one."""
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
            "save it again with dataset.flatten_indices().save_to_disk(...)"
        )
    files = [str(file["filename"]) for file in state.get("_data_files") or []]
    if missing := set(files) - names:
        raise UsageError(f"{directory} is a saved dataset without its file {min(missing)}; save it again")
    return dict(zip(files, sorted(files), strict=True))


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; raises UsageError if it is not one."""
    with explained("read", path):
        data = path.read_bytes()
    with suppress(ValueError):
        if isinstance(state := json.loads(data), dict):
            return state
    raise UsageError(f"{path} should describe a saved dataset and does not;\nsave the dataset again")


def describe(hits: Iterable[Hit], options: SourceOptions, sources: Sources) -> tuple[list[InputFile], Counter[str]]:
    """Files that are read, with size, time, format and source, and how many are not, by reason; raises UsageError."""
    files: dict[str, InputFile] = {}
    seen: dict[tuple[int, int], Hit] = {}
    left_out: dict[str, str] = {}
    for hit in hits:
        row = find_format(hit.path, options)
        if hit.skip or row is None:
            left_out[hit.path] = hit.skip or refuse_if_named(hit, name_suffix(hit.path), REMEDY)
            continue
        if hit.entry is not None:
            files[hit.path] = describe_object(hit, hit.entry, row, options, files, sources)
            continue
        with explained("read", hit.path):
            status = os.stat(hit.path)  # noqa: PTH116 - a corpus may be a million files
        if not stat.S_ISREG(status.st_mode):
            left_out[hit.path] = refuse_if_named(hit, "not a regular file", "write it to a file, or pipe it to stdin")
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
        check_format(hit.path, row, options)
        source = sources.name_file(hit)
        files[hit.path] = InputFile(
            path=hit.path, bytes=status.st_size, format=row.name, modified_ns=status.st_mtime_ns, source=source
        )
    return list(files.values()), Counter(reason for path, reason in left_out.items() if path not in files)


def describe_object(
    hit: Hit, entry: Entry, row: Format, options: SourceOptions, files: Mapping[str, InputFile], sources: Sources
) -> InputFile:
    """An object that is read; raises UsageError, also if it is among `files` already."""
    if hit.path in files:
        raise UsageError(f"{hit.path} is given twice, the second time by {hit.named};\nname it once")
    if row.name == "arrow":
        raise UsageError(
            f"{hit.path} is an Arrow file, which is read from a local disk alone;\ncopy it to this machine, "
            "leave it out, or write it as Parquet"
        )
    check_format(hit.path, row, options)
    return InputFile(path=hit.path, bytes=entry.bytes, format=row.name, etag=entry.etag, source=sources.name_file(hit))


def check_format(path: str, row: Format, options: SourceOptions) -> None:
    """Raise UsageError for a file that cannot be read with these options, and for a name that is not UTF-8."""
    check_utf8(path)
    if row.name == "warc":
        from exact_prep.sources.warc import check_installed

        check_installed(path)
    if options.ids_field is not None and not row.has_ids:
        raise UsageError(f"{path} is {row.name}, which holds no token ids;\nleave it out, or leave out --ids-field")
    if not row.has_fields and options.id_field is not None:
        raise UsageError(f"{path} is {row.name}, which has no fields;\nleave it out, or leave out --id-field")
    if not row.has_fields and label_field(options) is not None:
        raise UsageError(
            f"{path} is {row.name}, which has no fields;\n"
            f"leave it out, or choose --source-from input or dir in place of {options.source_from}"
        )


def check_utf8(name: str) -> None:
    """Raise UsageError for a name that is not UTF-8, which no manifest can hold."""
    if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
        raise UsageError(f"the name of {name!a} is not UTF-8;\nrename it")


def same_file(one: Hit, another: Hit) -> bool:
    """Whether two names lead to one file."""
    return os.path.realpath(one.path) == os.path.realpath(another.path)


def refuse_if_named(hit: Hit, reason: str, remedy: str) -> str:
    """The reason why a file is not read; raises UsageError if the user named the file itself."""
    if hit.explicit:
        raise UsageError(f"{hit.path} cannot be read ({reason});\n{remedy}")
    return reason


def name_suffix(path: str) -> str:
    """The suffix of a file under which it is counted, its compression included."""
    suffix, codec = split_suffix(path)
    return (suffix + (Path(path).suffix.lower() if codec else "")) or "no suffix"


def find_format(path: str, options: SourceOptions) -> Format | None:
    """How a file is read; None if it cannot be read."""
    suffix, codec = split_suffix(path)
    row = BY_SUFFIX.get(suffix) if options.input_format == "auto" else FORMATS[options.input_format]
    return None if codec and row and not row.compressible else row
