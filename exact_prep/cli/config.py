"""`exact-prep config`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from exact_prep.cli.arguments import Config, Dataset, escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exact_prep.records.manifest import Manifest
    from exact_prep.records.weights import WeightsFile

HELP = """Print the options that made a dataset, as a file for --config.

`exact-prep pack --config run.toml -o again` makes the same rows again, from the same inputs (same tree hash). Files are
listed one by one: labels of sources that come from how they were named differ. A weighed dataset has its options
of `weigh` too.

Examples:
    exact-prep config packed > run.toml
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""

PACK = {
    "text-field": "source.text_field",
    "ids-field": "source.ids_field",
    "documents": "source.documents",
    "mask-field": "source.mask_field",
    "labels-field": "source.labels_field",
    "join": "source.join",
    "csv-delimiter": "source.csv_delimiter",
    "csv-quote": "source.csv_quote",
    "input-format": "source.input_format",
    "id-field": "source.id_field",
    "source-from": "source.source_from",
    "separator": "source.separator",
    "on-error": "source.on_error",
    "task-size": "source.task_bytes",
    "limit-docs": "source.limit_docs",
    "limit-tokens": "source.limit_tokens",
    "tokenizer": "tokenizer.tokenizer",
    "tokenizer-backend": "tokenizer.backend",
    "special-tokens-in-text": "tokenizer.special_tokens_in_text",
    "eos": "tokenizer.eos",
    "bos": "tokenizer.bos",
    "eos-token": "tokenizer.eos_token",
    "bos-token": "tokenizer.bos_token",
    "pad-token": "tokenizer.pad_token",
    "seq-len": "packing.seq_lens",
    "packing": "packing.packing",
    "shuffle": "packing.shuffle",
    "pack-window": "packing.window_tokens",
    "max-segments": "packing.max_segments",
    "rows-multiple-of": "packing.rows_multiple_of",
    "validation": "validation.fraction",
    "validation-seed": "validation.seed",
    "loss-weights": "loss_weights",
}
"""Options of `pack`, and where a manifest keeps them."""

ESCAPED = {"join", "csv-delimiter", "csv-quote", "separator"}
"""Options that know \\n and \\t."""

WEIGH = {
    "alpha": "alpha",
    "gamma": "gamma",
    "tail-from": "tail_from",
    "window": "window",
    "max-weight": "max_weight",
    "supervise-first": "supervise_first",
    "normalize": "normalize",
    "keep-mixture": "keep_mixture",
    "eps": "eps",
}
"""Options of `weigh`, and where weights.json keeps them."""


def config(directory: Dataset, config: Config = None) -> None:
    """Run `exact-prep config`; see HELP."""
    from exact_prep.dataset import find_datasets, open_dataset

    # All row lengths of a directory were made, and hold the options, of one call.
    dataset = open_dataset(find_datasets(directory)[0])
    inputs = dataset.table("inputs").column("path").to_pylist()
    lines = [*describe_pack(dataset.manifest, inputs), *describe_weigh(dataset.weights())]
    typer.echo("\n".join(lines))


def describe_pack(manifest: Manifest, inputs: Iterable[str]) -> Iterator[str]:
    """The table of `pack`, line by line."""
    yield f"# The options of a dataset that exact-prep {manifest.tool_version} made, with the tree hash"
    yield f"# {manifest.tree_hash} at {manifest.seq_len} tokens."
    yield "[pack]"
    yield "inputs = ["
    yield from (f"    {spell(path)}," for path in inputs)
    yield "]"
    for key, path in PACK.items():
        value: Any = manifest.options
        for name in path.split("."):
            value = getattr(value, name, None)  # `validation` is None where nothing is held out
        if key == "csv-quote" and value is None:
            value = "none"
        elif key in ESCAPED and value is not None:
            value = escape(value)
        if value is not None:
            yield f"{key} = {spell(value)}"


def describe_weigh(weights: WeightsFile) -> Iterator[str]:
    """The table of `weigh`, line by line; nothing for a dataset that is not weighed."""
    if weights.options is None:
        return
    yield ""
    rates = ",".join(f"{dataset.rate:.17g}" for dataset in weights.datasets)
    if len(weights.datasets) > 1:
        yield f"# Weighed in a mixture of {len(weights.datasets)} datasets: name them all, in their order."
    yield "[weigh]"
    if len(weights.datasets) > 1:
        yield f"rates = {spell(rates)}"
    for key, name in WEIGH.items():
        if (value := getattr(weights.options, name)) is not None:
            yield f"{key} = {spell(value)}"


def spell(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(spell, value))}]"
    if isinstance(value, str):
        # JSON's strings are TOML's but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
