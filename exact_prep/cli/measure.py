"""`exact-prep measure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from exact_prep.choices import CUTS, DocumentsBy, MeasuredLayout, RowCut, TokenType, Trainer
from exact_prep.cli.arguments import Config, NoLock, Overwrite, Quiet, Verbose, Workers, check_path, check_paths
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from exact_prep.records.measured import MeasuredExposure
    from exact_prep.records.options import MeasureOptions

HELP = """Measure tokens that others wrote: their effective contexts, as the trainer will cut and mask them.

No token is copied, and where an index tells the documents no token is read. --out then takes the place of a packed
dataset: `weigh` computes a table from it, `report` shows it, `verify` reads everything again, and `export --to lut`
writes weights by position for the trainer's loss.

Examples:
    exact-prep measure megatron data/web_text_document --seq-len 8k -o found
    exact-prep measure huggingface packed-by-trl -o found
    exact-prep measure olmo x.npy --dtype uint16 --eos 50279 --seq-len 4k -o found
    exact-prep measure datatrove tokens/ --for nanotron --seq-len 4k -o found
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def measure(
    layout: Annotated[
        MeasuredLayout,
        typer.Argument(metavar="LAYOUT", help=f"How the tokens lie on disk: {', '.join(get_args(MeasuredLayout))}."),
    ],
    paths: Annotated[
        list[Path],
        typer.Argument(callback=check_paths, metavar="PATH", help="Files, directories, patterns; Megatron's prefixes."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", callback=check_path, help="The new directory, a few kB.")
    ],
    seq_len: Annotated[
        str | None,
        typer.Option(
            "--seq-len", metavar="N|4k|16K", help="Tokens per row.", show_default="the longest row that is stored"
        ),
    ] = None,
    trainer: Annotated[
        Trainer | None,
        typer.Option("--for", help="Take rows, documents and order as this trainer has them by default."),
    ] = None,
    rows: Annotated[
        RowCut | None,
        typer.Option(
            help="How the trainer cuts rows of L: " + "; ".join(f"{name}: {text}" for name, text in CUTS.items()) + ".",
            show_default="as the layout's trainers usually do",
        ),
    ] = None,
    documents: Annotated[
        DocumentsBy | None,
        typer.Option(
            help="By what the trainer tells documents apart: the index beside the tokens, a column of the rows, EOS.",
            show_default="as the layout's trainers usually do",
        ),
    ] = None,
    eos: Annotated[
        int | None, typer.Option("--eos", "--eod", min=0, metavar="ID", help="The token that ends a document.")
    ] = None,
    dtype: Annotated[
        TokenType | None, typer.Option(help="Type of the ids, where files do not say it (olmo, tokens).")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="expected|file|cache:DIR",
            help="How the trainer orders documents: at random; as they lie; as Megatron's document_index.npy in DIR.",
            show_default="as the layout's trainers usually do",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="Megatron's shares of train, validation and test; the first is measured."),
    ] = None,
    not_isolated: Annotated[
        bool,
        typer.Option("--not-isolated", help="The trainer does not keep documents apart: a row counts as one document."),
    ] = False,
    ids_field: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the token ids.", show_default="input_ids, or tokens"),
    ] = None,
    mask_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with 1 or true per token that carries loss.")
    ] = None,
    labels_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with -100 per token that carries no loss.")
    ] = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
    no_lock: NoLock = False,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep measure`; see HELP."""
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:  # while imports take their time
        from exact_prep.api import make_measure_options
        from exact_prep.pipeline.measure import measure as run

        options = make_measure_options(
            layout,
            seq_len=seq_len,
            trainer=trainer,
            rows=rows,
            documents=documents,
            eos=eos,
            dtype=dtype,
            order=order,
            split=None if split is None else parse_shares(split),
            isolated=not not_isolated,
            ids_field=ids_field,
            mask_field=mask_field,
            labels_field=labels_field,
        )
        measured = run(
            [str(path) for path in paths],
            out,
            options,
            overwrite=overwrite,
            workers=workers,
            lock=not no_lock,
            emit=display,
        )
    typer.echo("\n".join(describe(out, measured)))


def parse_shares(text: str) -> list[float]:
    """Shares from "969,30,1"; raises UsageError."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--split {text}: numbers with commas between them, such as 969,30,1") from None


def describe(out: Path, measured: MeasuredExposure) -> list[str]:
    """What was measured and how, a line each."""
    targets = sum(measured.exposure.counts)
    expected = " (expected, for documents in random order)" if measured.estimated else ""
    lines = [
        f"{out}: {measured.rows:,} rows of {measured.seq_len:,} tokens from {measured.documents:,} documents, "
        f"{targets:,} supervised targets{expected}",
        f"{out}: {describe_options(measured.options)}",
    ]
    lines += [
        f"{out}: {tokens:,} tokens are not read by the trainer: {why}" for why, tokens in measured.dropped.items()
    ]
    return lines


def describe_options(options: MeasureOptions) -> str:
    """How rows are cut and documents told apart, in words."""
    from exact_prep.layouts.trainers import TRAINERS

    told = f"documents told apart by {options.documents}" if options.isolated else "documents not kept apart"
    order = {"expected": "in random order", "file": "in file order", "cache": "in Megatron's order"}[options.order]
    order = "" if options.rows in ("stored", "fragment", "truncate", "crops") else f", {order}"
    note = f"; {TRAINERS[options.trainer].note}" if options.trainer else ""
    return f"{CUTS[options.rows]}, {told}{order}{note}"
