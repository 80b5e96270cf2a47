"""`exact-prep demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exact_prep.cli.arguments import Config, Overwrite, Quiet, Verbose, check_path

if TYPE_CHECKING:
    from exact_prep.records.options import PackOptions


HELP = """Pack and weigh a small real corpus that comes with exact-prep, and show where supervision goes.

Examples:
    exact-prep demo
    exact-prep demo -o /tmp/demo --overwrite
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", callback=check_path, help="Where the dataset goes.")
    ] = Path("exact-demo"),
    overwrite: Overwrite = False,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep demo`; see HELP."""
    from rich.console import Console

    from exact_prep.demo import corpus_path, tokenizer_path
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:  # while imports take their time
        from exact_prep.records.options import (
            PackingOptions,
            PackOptions,
            SourceOptions,
            TokenizerOptions,
            WeightOptions,
        )

    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_path())),
        packing=PackingOptions(seq_lens=(16384,)),
    )
    with display:
        from exact_prep.pipeline.pack import pack
        from exact_prep.pipeline.weigh import weigh

        if overwrite or not is_packed(out, options):
            pack([str(corpus_path())], options, out, overwrite=overwrite, emit=display)
        weigh(out, WeightOptions(), emit=display)
    from exact_prep.reports import load_facts
    from exact_prep.reports.terminal import render

    console = Console()
    console.print(render(load_facts(out), width=console.width))
    typer.echo(
        "\nLoad it with:\n\n"
        "    from datasets import load_from_disk\n"
        f"    rows = load_from_disk({str(out)!r}).with_format('numpy')\n"
        "    rows[0]['input_ids'], rows[0]['loss_weights']   # loss = sum(w * ce) / sum(w), w aligned with the target"
    )


def is_packed(out: Path, options: PackOptions) -> bool:
    """Whether an earlier demo was stopped after it had packed: then the same command weighs, and refuses nothing."""
    from exact_prep.dataset import MANIFEST, is_incomplete, open_dataset

    if not (out / MANIFEST).is_file() or is_incomplete(out):
        return False
    dataset = open_dataset(out)
    if dataset.manifest.options != options:
        return False
    weights = dataset.weights()
    return weights.kind == "plain" or weights.state != "complete"
