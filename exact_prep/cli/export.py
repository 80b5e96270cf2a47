"""`exact-prep export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exact_prep.choices import Align, ExportFormat
from exact_prep.cli.arguments import Overwrite

BYTES_PER_TOKEN = 6
"""Of the shards: an id and a weight."""


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A packed and weighed dataset.")],
    to: Annotated[
        ExportFormat,
        typer.Option(
            help="megatron: .bin, .idx, weights beside them; mds: MosaicML streaming; parquet; levanter: its prebuilt "
            "format; numpy: .npy to be mapped; lut: weight by position; row-weights: how often to draw each row."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new directory.")],
    align: Annotated[
        Align | None,
        typer.Option(
            help="Which token carries a target's weight: itself, or the one before, where it is predicted.",
            show_default="as the format's readers expect",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a weighed dataset as another trainer's files; export.json says what they hold.

    Trainers that import Python need no export: `exact_prep.open(DIR)` reads the dataset as it is.
    """
    from exact_prep.cli.progress import Display
    from exact_prep.pipeline import events
    from exact_prep.pipeline.export import export as run
    from exact_prep.reader.rows import open as open_dataset

    dataset = open_dataset(directory)
    total, done = len(dataset) * dataset.seq_len * BYTES_PER_TOKEN, 0
    with Display() as display:
        display(events.Started(what="export", tasks=1, done=0, total_bytes=total, done_bytes=0))

        def progress(more: int) -> None:
            nonlocal done
            done += more
            display(events.Progress(bytes=BYTES_PER_TOKEN * done, tokens=done))

        made = run(directory, to, out, align=align, overwrite=overwrite, progress=progress)
        display(events.Finished())
    typer.echo(
        f"{out}: {made['rows']:,} rows of {made['seq_len']:,} tokens for {to}, weights aligned with the {made['align']}"
    )
    if shares := made.get("tail_share_of_supervision"):
        typer.echo(
            f"{out}: the tail gets {shares['uniform']:.2%} of supervision when rows are drawn alike, "
            f"{shares['row_weights']:.2%} with these row weights, {shares['token_weights']:.2%} with token weights"
        )
