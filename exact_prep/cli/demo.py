"""`exact-prep demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exact_prep.cli.arguments import Overwrite

if TYPE_CHECKING:
    from exact_prep.records.options import PackOptions


def demo(
    out: Annotated[Path, typer.Option(help="Where the dataset goes.")] = Path("exact-demo"),
    overwrite: Overwrite = False,
) -> None:
    """Pack and weigh a small real corpus that comes with exact-prep, and show where supervision goes."""
    from rich.console import Console

    from exact_prep.cli.progress import Display
    from exact_prep.demo import corpus_path, tokenizer_path
    from exact_prep.pipeline import WeighOptions, pack, weigh
    from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
    from exact_prep.reports import gather
    from exact_prep.reports.terminal import render

    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_path())),
        packing=PackingOptions(seq_lens=(16384,)),
    )
    with Display() as display:
        if overwrite or not is_packed(out, options):
            pack([str(corpus_path())], options, out, overwrite=overwrite, emit=display)
        weigh(out, WeighOptions(), emit=display)
    Console().print(render(gather(out)))
    typer.echo(
        "\nLoad it with:\n\n"
        "    from datasets import load_from_disk\n"
        f"    rows = load_from_disk({str(out)!r}).with_format('torch')\n"
        "    rows[0]['input_ids'], rows[0]['loss_weights']   # loss = sum(w * ce) / sum(w), w aligned with the target"
    )


def is_packed(out: Path, options: PackOptions) -> bool:
    """Whether an earlier demo was stopped after it had packed: there the same command weighs, and refuses nothing."""
    from exact_prep.dataset import MANIFEST, is_unfinished, load_manifest, load_weights_file

    if not (out / MANIFEST).is_file() or is_unfinished(out) or load_manifest(out).options != options:
        return False
    weights = load_weights_file(out)
    return weights is None or weights.state != "complete"
