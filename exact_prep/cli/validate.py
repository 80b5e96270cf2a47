"""`exact-prep validate`."""

from __future__ import annotations

from dataclasses import replace
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
    exact-prep validate --tier example -o validation
    exact-prep validate --tier model --model DIR --data packed --minutes 120
    exact-prep validate --tier model --model FILE.gguf --data packed \\
      --steps 0 --held-out 24 --no-text-suite
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def validate(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", callback=check_path, help="Where runs, results.json and plots go."),
    ] = Path("validation"),
    data: Annotated[
        Path | None,
        typer.Option(
            help="A dataset that was packed and weighed.",
            show_default="Python sources found on this machine; in --tier smoke synthetic recall",
        ),
    ] = None,
    weights: WeightsTable = None,
    weights_from_elsewhere: FromElsewhere = False,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Synthetic key-value recall instead of text.")] = False,
    model: Annotated[
        str, typer.Option(help="`small`, or a Hugging Face causal language model: its directory, or a .gguf file.")
    ] = "small",
    arms: Annotated[
        str | None,
        typer.Option(
            help="Which runs: uniform, exact, flat, mirror, permuted, upsample, lr, steps, null; exact@1 is alpha 1.",
            show_default="the tier's",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2.", show_default="the tier's")] = None,
    tier: Annotated[
        Literal["smoke", "example", "gpu", "model"],
        typer.Option(help="How large: a minute, half an hour on two cores, one card, or your own --model and --data."),
    ] = "smoke",
    lr: Annotated[
        float | None,
        typer.Option(min=0, help="Learning rate of all arms.", show_default="tuned for uniform first"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of an arm; 0 only measures.", show_default="the tier's")
    ] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a step.", show_default="the tier's")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows that everything is measured on; as many others tune --lr.", show_default="the tier's"
        ),
    ] = None,
    no_text_suite: Annotated[
        bool, typer.Option("--no-text-suite", help="Leave out the RULER-style suite, which long rows make slow.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Measure this machine's speed first, and make runs fit.", show_default="no limit"),
    ] = None,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep trained models of --model.")] = False,
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
    from exact_prep.validation.plots import plot, plot_levels, plot_primary
    from exact_prep.validation.tiers import TIERS

    if data is not None and synthetic:
        raise UsageError("--data and --synthetic exclude each other")
    if weights is not None and data is None:
        raise UsageError("--weights needs --data: it is a table for a packed dataset")
    if tier == "model" and (data is None or model == "small"):
        raise UsageError("--tier model needs --model, a checkpoint, and --data, a dataset packed with its tokenizer")
    if steps == 0 and minutes is not None:
        raise UsageError("--minutes fits steps to the time, and --steps 0 has none; choose --held-out instead")
    asked = {
        "lr": lr,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "held_out": held_out,
        "ruler_items": 0 if no_text_suite else None,
        "sweep": () if lr is not None else None,
    }
    chosen = replace(TIERS[tier], **{name: value for name, value in asked.items() if value is not None})
    if synthetic and arms is None:  # rows are drawn from a dataset
        chosen = replace(chosen, arms=tuple(arm for arm in chosen.arms if not arm.startswith("upsample")))
    on = choose_device(device)
    experiment = Experiment(
        tier_name=tier,
        tier=chosen,
        arms=tuple(arms.split(",")) if arms else chosen.arms,
        seeds=parse_seeds(seeds) if seeds else chosen.seeds,
        out=out,
        data=data,
        found_text=data is None and not synthetic and chosen.text_bytes > 0,
        weights=weights,
        weights_from_elsewhere=weights_from_elsewhere,
        model=None if model == "small" else Path(model),
        device=on,
        nolima=nolima,
        save_models=save_models,
        harness=tuple(harness.split(",")) if harness else (),
    )
    with display:
        results = run_experiment(
            experiment, workers=1 if on == "cuda" else workers or count_cores(), minutes=minutes, emit=display
        )
    console = Console()
    measured_only = results.arms == ("uniform",)
    for part in [table_of_levels(results)] if measured_only else tables(results, console.width):
        console.print(part)
    for line in verdict(results):
        typer.echo(line)
    draw, name = (plot_levels, "levels") if measured_only else (plot, "differences")
    for suffix in ("png", "svg"):
        draw(results, out / f"{name}.{suffix}")
    plot_primary(results, out / "primary.pdf")
    typer.echo(f"{out / 'results.json'} and {out / f'{name}.png'} hold the rest")


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


def table_of_levels(results: Results) -> Table:
    """What a model that was only measured reaches, plus or minus half of the 95 % interval over held-out items."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    grid.add_column("measure", no_wrap=True)
    for name in ("mean", "items", "targets"):
        grid.add_column(name, justify="right", no_wrap=True)
    for level in results.levels:
        half = f" ±{(level.high - level.low) / 2:.4f}" if level.items > 1 else ""
        grid.add_row(level.measure, f"{level.mean:.4f}{half}", f"{level.items:,}", f"{level.targets:,}")
    return grid


def table(results: Results, arms: list[str]) -> Table:
    """Some arms against uniform: mean of the paired differences, plus or minus half of the interval."""
    from rich.table import Table

    from exact_prep.validation.differences import sort_measures

    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    grid.add_column("measure", no_wrap=True)
    for name in ("uniform", *arms):
        grid.add_column(name, justify="right", no_wrap=True)
    uniform = [run for run in results.runs if run.arm == "uniform" and not run.diverged]
    found = {(d.arm, d.measure): d for d in results.differences if d.against == "uniform"}
    colours = {"better": "green", "worse": "red", "one seed": "default"}
    for measure in sort_measures(uniform[0].measures if uniform else ()):
        cells = [f"{sum(run.measures[measure] for run in uniform) / len(uniform):.4f}"]
        for arm in arms:
            d = found.get((arm, measure))
            if d is None:
                cells.append("diverged")
                continue
            half = f" ±{(d.high - d.low) / 2:.4f}" if d.seeds > 1 else ""
            cells.append(f"[{colours.get(d.reading, 'dim')}]{d.mean:+.4f}{half}[/]")
        grid.add_row(measure, *cells)
    return grid


def verdict(results: Results) -> list[str]:
    """What the experiment is said to show, by the rule set before it."""
    from exact_prep.validation.differences import GUARD, count_readings

    lost = [f"{run.arm}, seed {run.seed}" for run in results.runs if run.diverged]
    lines = [f"diverged, so without measures: {'; '.join(lost)}"] if lost else []
    if results.arms == ("uniform",):
        return [*lines, "only measured: nothing was compared"]
    short = {d.arm: d for d in results.differences if (d.against, d.measure) == ("uniform", GUARD)}
    missing = [
        *(["one seed"] if len(results.seeds) < 2 else []),
        *([] if any(arm.partition("@")[0] == "lr" for arm in results.arms) else ["no lr"]),
    ]
    if missing:
        return [*lines, f"whether EXACT helps was not tested: {', '.join(missing)}"]
    for arm, tally in count_readings(results).items():
        words = [f"{count} {reading}" for reading, count in tally.items() if count]
        price = f"short contexts: {short[arm].reading} ({short[arm].mean:+.4f})" if arm in short else ""
        lines.append(f"{arm} against uniform, in the tail: {', '.join(words)}; {price}")
    return lines + [read_arm(results, arm) for arm in results.arms if arm.partition("@")[0] == "exact"]


def read_arm(results: Results, arm: str) -> str:
    """What an EXACT arm is said to show: the primary measure first."""
    own = {reading.measure: reading for reading in results.readings if reading.arm == arm}
    first = own.get(results.primary)
    if first is None:
        level = next((d.reading for d in results.differences if d.measure == results.primary), "not measured")
        return f"{arm}: the primary measure, {results.primary}, is {level}: it says nothing"
    controls = " and ".join(first.against)
    what = "helps" if first.helps else "is not shown to help"
    others = [reading for reading in own.values() if not reading.primary]
    also = ", ".join(reading.measure for reading in others if reading.helps) or "none"
    return (
        f"{arm} {what}: on the primary measure, {results.primary}, against {controls} (p {first.p_holm:.2g}, Holm); "
        f"of {len(others)} others, it helps at: {also}"
    )
