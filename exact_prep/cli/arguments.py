"""Arguments that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from exact_prep.stores.paths import Home

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
"""What a character after a backslash stands for, as in printf; any other stays as it is."""


def unescape(text: str) -> str:
    """Text as it was meant that was typed in a shell, which has no easy way to type a newline or a tab."""
    return re.sub(r"\\([ntr0\\])", lambda found: ESCAPES[found[1]], text)


def escape(text: str) -> str:
    """Text that `unescape` gives back."""
    names = {char: name for name, char in ESCAPES.items()}
    return "".join(f"\\{names[char]}" if char in names else char for char in text)


def check_path(path: Path | None) -> Path | None:
    """The path as it is; raises UsageError for an address such as s3://, before a directory of that name is made."""
    from exact_prep.stores import check_local

    if path is not None:
        check_local(path)
    return path


def check_paths(paths: list[Path]) -> list[Path]:
    """The paths as they are; raises UsageError like `check_path`."""
    for path in paths:
        check_path(path)
    return paths


def check_inputs(inputs: list[str]) -> list[str]:
    """The inputs as they are; raises UsageError for an address that no store serves, before anything is loaded."""
    from exact_prep.stores import check_local, is_object_url

    for name in inputs:
        if not name.startswith("hf://") and not is_object_url(name):
            check_local(name)
    return inputs


def check_stored(names: list[str]) -> list[str]:
    """The names of datasets as they are; raises UsageError for an address that no store serves."""
    from exact_prep.stores import check_local, is_object_url

    for name in names:
        if not is_object_url(name):
            check_local(name)
    return names


def find_places(names: list[str], store_option: list[str] | None) -> list[Home]:
    """The directories, and the folders in stores, of these names; raises UsageError."""
    from exact_prep.stores import parse_options
    from exact_prep.stores.paths import find_place

    options = parse_options(store_option or ())
    return [find_place(name, options) for name in names]


Dataset = Annotated[
    Path,
    typer.Argument(
        callback=check_path, metavar="DIR", help="A packed dataset, or a directory of several, one per row length."
    ),
]
Datasets = Annotated[
    list[Path],
    typer.Argument(
        callback=check_paths, metavar="DIR", help="Packed datasets, or directories of several, one per row length."
    ),
]
StoredDatasets = Annotated[
    list[str],
    typer.Argument(
        callback=check_stored,
        metavar="DIR",
        help="Packed datasets, or directories of several, one per row length; also in stores (s3://, gs://, az://).",
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045 - Typer reads it at run time
    typer.Option(
        min=1,
        help="Processes that work side by side.",
        show_default="one per core, fewer for little work",
        rich_help_panel="Run",
    ),
]
StoreOptions = Annotated[
    Optional[list[str]],  # noqa: UP045 - Typer reads it at run time
    typer.Option(
        "--store-option",
        metavar="KEY=VALUE",
        help="How stores such as s3:// are reached: endpoint, region, skip_signature, timeout, ...; repeat it.",
        show_default="as the cloud's own tools",
        rich_help_panel="Run",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.", rich_help_panel="Run")]
NoLock = Annotated[
    bool,
    typer.Option(
        "--no-lock",
        help="Take no lock, on a file system that has none; no other run may use the directory.",
        rich_help_panel="Run",
    ),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045 - Typer reads it at run time
    typer.Option(
        "--config",
        metavar="FILE",
        help="Options by their long names from this TOML file; the command line wins. See `exact-prep config`.",
        rich_help_panel="Run",
    ),
]
"""Read before the options are parsed: see `config_file`."""
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Add a line for each task as it ends.", rich_help_panel="Run")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes and no progress; errors stay.", rich_help_panel="Run")
]
WeightsTable = Annotated[
    Optional[Path],  # noqa: UP045 - Typer reads it at run time
    typer.Option(
        "--weights",
        callback=check_path,
        metavar="FILE",
        help="A table that `weigh --out` wrote, in place of the dataset's own weights.",
    ),
]
FromElsewhere = Annotated[
    bool,
    typer.Option("--weights-from-elsewhere", help="Take a --weights table that was made for other datasets."),
]
