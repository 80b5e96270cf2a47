"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Dataset = Annotated[
    Path, typer.Argument(metavar="DIR", help="A packed dataset, or a directory of several, one per row length.")
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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.", rich_help_panel="Run")]
NoLock = Annotated[
    bool,
    typer.Option(
        "--no-lock",
        help="Take no lock, on a file system that has none; no other run may use the directory.",
        rich_help_panel="Run",
    ),
]
WeightsTable = Annotated[
    Optional[Path],  # noqa: UP045 - Typer reads it at run time
    typer.Option(
        "--weights",
        metavar="FILE",
        help="A table that `weigh --out` wrote, in place of the dataset's own weights.",
    ),
]
FromElsewhere = Annotated[
    bool,
    typer.Option("--weights-from-elsewhere", help="Take a --weights table that was made for other datasets."),
]
