"""`exact-prep weigh`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exact_prep.choices import MAX_WEIGHT, Normalize
from exact_prep.cli.arguments import (
    Config,
    NoLock,
    Quiet,
    StoredDatasets,
    StoreOptions,
    Verbose,
    Workers,
    check_path,
    find_places,
)
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exact_prep.records.weights import WeightsFile

HELP = """Write EXACT weights into the shards: targets with a long effective context get a fixed extra supervision.

In place, at the cost of writing the weights; another `weigh` with other parameters replaces them. Several datasets are
one mixture: they get one table, made from what the trainer will read of each.

Examples:
    exact-prep weigh packed
    exact-prep weigh packed --alpha 0.3 --tail-from 4096
    exact-prep weigh packed --window 4096
    exact-prep weigh books code web --rates 0.2,0.3,0.5
    exact-prep weigh packed --alpha 0.3 -o alpha-0.3.json
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def weigh(
    directories: StoredDatasets,
    alpha: Annotated[float, typer.Option(min=0, help="Extra supervision of the tail.")] = 0.15,
    gamma: Annotated[
        float, typer.Option(min=0, help="Exponent of the inverse bucket frequency; 0: a flat tail.")
    ] = 0.5,
    tail_from: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Effective context from which the tail begins: a bucket edge (0, 8, 16, 32, ...).",
            show_default="the first edge from a quarter of the row on",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="TOKENS",
            help="For models whose every layer has sliding-window attention: a query sees this many tokens, itself "
            "included. Leave it out if some layers see the whole document (Gemma, gpt-oss).",
            show_default="none",
        ),
    ] = None,
    max_weight: Annotated[
        float | None,
        typer.Option(min=1, max=MAX_WEIGHT, help="Limit weights; the report states what that took."),
    ] = None,
    supervise_first: Annotated[
        bool, typer.Option("--supervise-first", help="Let the first token of a segment carry loss.")
    ] = False,
    normalize: Annotated[
        Normalize, typer.Option(help="`mean`: divide all weights by their mean over supervised targets.")
    ] = "none",
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,...",
            help="Share of each dataset of a mixture in the tokens that the trainer reads, in their order.",
            show_default="in proportion to the tokens of their rows",
        ),
    ] = None,
    keep_mixture: Annotated[
        bool,
        typer.Option(
            "--keep-mixture",
            help="Divide the weights of each dataset by their mean: each keeps its share of supervision, at the price "
            "of some extra supervision of the tail.",
        ),
    ] = False,
    eps: Annotated[
        float, typer.Option(help="Added to a bucket's share before it is inverted.", show_default="0.000001")
    ] = 1e-6,
    allow_empty_tail: Annotated[
        bool, typer.Option("--allow-empty-tail", help="Write weights of 1 where no target is in the tail.")
    ] = False,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count the exposure again from the shards, and compare.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=check_path,
            metavar="FILE.json",
            help="Write the table alone to this file and leave the dataset as it is; other commands take it with "
            "--weights.",
            rich_help_panel="Run",
        ),
    ] = None,
    workers: Workers = None,
    no_lock: NoLock = False,
    store_option: StoreOptions = None,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep weigh`; see HELP."""
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:  # while imports take their time
        from exact_prep.records.options import WeightOptions

    options = WeightOptions(
        alpha=alpha,
        gamma=gamma,
        tail_from=tail_from,
        window=window,
        eps=eps,
        max_weight=max_weight,
        supervise_first=supervise_first,
        normalize=normalize,
        keep_mixture=keep_mixture,
    )
    shares = None if rates is None else parse_rates(rates)
    with display:
        from exact_prep.pipeline.weigh import weigh as run

        places = find_places(directories, store_option)
        files = run(
            places,
            options,
            rates=shares,
            out=out,
            recount=recount,
            allow_empty_tail=allow_empty_tail,
            workers=workers,
            lock=not no_lock,
            emit=display,
        )
    from exact_prep.pipeline.weigh import find_followers, find_mixtures

    start = 0
    for mixture in find_mixtures(places):
        typer.echo("\n".join(describe_weights(files[start], [out] if out else mixture)))
        start += len(mixture)
    if out is None:
        for validation in find_followers(places).values():
            typer.echo(f"{validation}: the weights of {validation.with_name('train')}")


def parse_rates(text: str) -> list[float]:
    """Rates from "0.5,0.3,0.2"; raises UsageError."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--rates {text}: numbers with commas between them, such as 0.5,0.3,0.2") from None


def describe_weights(file: WeightsFile, places: Sequence[object]) -> Iterator[str]:
    """What was written, a line each: the table, its rounding, and what it makes of a mixture."""
    from exact_prep.weighing.files import load_table, share_datasets
    from exact_prep.weighing.mixture import tail_share_after

    name, table = " + ".join(map(str, places)), load_table(file)
    shares, extra = share_datasets(file)
    # Divisors that keep a mixture come after the table, and take from the tail.
    after = tail_share_after(table.tail_share, extra) if table.options.keep_mixture else table.weighted_tail_share
    window = f"a window of {table.options.window:,}, " if table.options.window else ""
    yield (
        f"{name}: rows of {file.seq_len:,} tokens, {window}effective context of {table.tail_start:,} or more: "
        f"{table.tail_share:.2%} of supervision before, {after:.2%} after"
    )
    if file.rounding and table.extra:
        stored, error = file.rounding.extra_float16, file.rounding.extra_relative_error
        yield (
            f"{name}: extra supervision {table.extra:.6g}, {stored:.6g} as stored in float16 (off by {abs(error):.2%})"
        )
    if len(file.datasets) == 1:
        return
    names = [str(place) for place in places] if len(places) == len(shares) else [one.id for one in file.datasets]
    for place, dataset, share in zip(names, file.datasets, shares, strict=True):
        yield (
            f"  {place}: {dataset.rate:.2%} of the tokens, {share.before:.2%} of supervision before, "
            f"{share.after:.2%} after"
        )
    if table.options.keep_mixture:
        yield f"  each dataset keeps its share; the tail's extra supervision is then {extra:.6g}"
