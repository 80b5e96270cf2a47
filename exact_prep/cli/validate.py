"""`exact-prep validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exact_prep.cli.arguments import Config, FromElsewhere, Quiet, Verbose, WeightsTable, Workers, check_path
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from exact_prep.validation.results import Results

MEASURE_WIDTH = 28
"""Columns that the measure and uniform's mean take."""
CELL_WIDTH = 18
"""And each arm."""


HELP = """Train pairs of models that differ only in the weights, with controls, and show what the weights did.

Interrupted, the same command continues. Needs the extra: pip install 'exact-prep[validate]'.

Examples:
    exact-prep validate -o validation
    exact-prep validate --data packed --tier example --seeds 0,1,2
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def validate(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", callback=check_path, help="Where runs, results.json and plots go."),
    ] = Path("validation"),
    data: Annotated[
        Path | None, typer.Option(help="A dataset that was packed and weighed; without it synthetic recall.")
    ] = None,
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Synthetic key-value recall (the default).")] = False,
    model: Annotated[
        str, typer.Option(help="`small`, or the directory of a Hugging Face causal language model.")
    ] = "small",
    arms: Annotated[
        str | None,
        typer.Option(
            help="Which runs: uniform, exact, flat, mirror, permuted, lr, steps, null; exact@1 is alpha 1.",
            show_default="the tier's",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2.", show_default="the tier's")] = None,
    tier: Annotated[
        Literal["smoke", "example", "gpu"],
        typer.Option(help="How large: two minutes, half an hour on two cores, half an hour on one card."),
    ] = "smoke",
    nolima: Annotated[
        Path | None,
        typer.Option(help="A copy of NoLiMa (needle_set.json, haystacks below), mind its licence."),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness to add, as in lambada_openai,piqa.", show_default="none"),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    workers: Workers = None,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep validate`; see HELP."""
    from rich.console import Console

    from exact_prep.engines import count_cores
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:  # while imports take their time
        try:
            from exact_prep.validation.experiment import choose_device, run_experiment
            from exact_prep.validation.jobs import Experiment
        except ModuleNotFoundError as error:
            raise UsageError(f"validate needs {error.name}: pip install 'exact-prep[validate]'") from None
    from exact_prep.validation.plots import plot
    from exact_prep.validation.tiers import TIERS

    if data is not None and synthetic:
        raise UsageError("--data and --synthetic exclude each other")
    if weights is not None and data is None:
        raise UsageError("--weights needs --data: it is a table for a packed dataset")
    chosen = TIERS[tier]
    on = choose_device(device)
    experiment = Experiment(
        tier_name=tier,
        tier=chosen,
        arms=tuple(arms.split(",")) if arms else chosen.arms,
        seeds=parse_seeds(seeds) if seeds else chosen.seeds,
        out=out,
        data=data,
        weights=weights,
        weights_from_elsewhere=weights_from_elsewhere,
        model=None if model == "small" else Path(model),
        device=on,
        nolima=nolima,
        harness=tuple(harness.split(",")) if harness else (),
    )
    with display:
        results = run_experiment(experiment, workers=1 if on == "cuda" else workers or count_cores(), emit=display)
    console = Console()
    for part in tables(results, console.width):
        console.print(part)
    for line in verdict(results):
        typer.echo(line)
    for suffix in ("png", "svg"):
        plot(results, out / f"differences.{suffix}")
    typer.echo(f"{out / 'results.json'} and {out / 'differences.png'} hold the rest")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0,1,2`; raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text}: numbers with commas between, such as 0,1,2")
    return tuple(dict.fromkeys(map(int, words)))


def tables(results: Results, width: int) -> Iterator[Table]:
    """As many tables side by side as fit: uniform's mean, and each arm's paired difference with its 95 % interval."""
    others = [arm for arm in results.arms if arm != "uniform"]
    per_table = max((width - MEASURE_WIDTH) // CELL_WIDTH, 1)
    for first in range(0, len(others), per_table):
        yield table(results, others[first : first + per_table])


def table(results: Results, arms: list[str]) -> Table:
    """Some arms against uniform: mean of the paired differences, plus or minus half of the interval."""
    from rich.table import Table

    from exact_prep.validation.differences import sort_measures

    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    grid.add_column("measure", no_wrap=True)
    for name in ("uniform", *arms):
        grid.add_column(name, justify="right", no_wrap=True)
    uniform = [run for run in results.runs if run.arm == "uniform"]
    found = {(d.arm, d.measure): d for d in results.differences if d.against == "uniform"}
    colours = {"better": "green", "worse": "red", "shows nothing": "dim", "one seed": "default"}
    for measure in sort_measures(uniform[0].measures):
        cells = [f"{sum(run.measures[measure] for run in uniform) / len(uniform):.4f}"]
        for arm in arms:
            d = found[arm, measure]
            half = f" ±{(d.high - d.low) / 2:.4f}" if d.seeds > 1 else ""
            cells.append(f"[{colours[d.reading]}]{d.mean:+.4f}{half}[/]")
        grid.add_row(measure, *cells)
    return grid


def verdict(results: Results) -> list[str]:
    """What the experiment is said to show, by the rule set before it."""
    from exact_prep.validation.differences import GUARD, count_readings

    lines = []
    for arm, tally in count_readings(results).items():
        words = [f"{count} {reading}" for reading, count in tally.items() if count]
        guard = next(d for d in results.differences if (d.arm, d.against, d.measure) == (arm, "uniform", GUARD))
        short = f"short contexts: {guard.reading} ({guard.mean:+.4f})"
        lines.append(f"{arm} against uniform, in the tail: {', '.join(words)}; {short}")
    for arm in dict.fromkeys(reading.arm for reading in results.readings):
        mine = [reading for reading in results.readings if reading.arm == arm]
        helped = [reading.measure for reading in mine if reading.helps]
        what = f"helps at {', '.join(helped)}" if helped else "is not shown to help anywhere in the tail"
        lines.append(
            f"{arm}: {what} ({len(helped)} of {len(mine)} measures in the tail are better than both uniform and lr "
            "with an interval that excludes zero)"
        )
    if "lr" not in results.arms or len(results.seeds) < 2:
        lines.append("a reading needs the arm lr and two seeds or more")
    return lines
