"""`exact-prep pack`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exact_prep.choices import (
    MAX_COUNT,
    MAX_SEQ_LEN,
    Backend,
    InputFormat,
    LossWeights,
    OnError,
    Packing,
    SpecialTokens,
)
from exact_prep.cli.arguments import NoLock, Overwrite, Workers
from exact_prep.errors import UsageError

SOURCE, TOKENS, ROWS, RUN = "Documents", "Tokens", "Rows", "Run"


HELP = """Tokenize and pack a corpus into Arrow shards with plain loss weights.

The result opens with `datasets.load_from_disk`. Interrupted, the same command continues where it stopped.
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def pack(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Files, directories, globs, `-` for standard input, `hf://name` for a dataset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the packed dataset.", rich_help_panel=ROWS)],
    seq_len: Annotated[
        list[int],
        typer.Option(min=2, help="Tokens per row; repeat it for several datasets.", rich_help_panel=ROWS),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer.json, a directory that holds one, or a hub id.", rich_help_panel=TOKENS),
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Field or column that holds the text.", rich_help_panel=SOURCE)
    ] = "text",
    ids_field: Annotated[
        str | None,
        typer.Option(
            help="List column of token ids, read instead of text: nothing is tokenized.", rich_help_panel=SOURCE
        ),
    ] = None,
    input_format: Annotated[
        InputFormat, typer.Option(help="Format of the inputs, if not by their names.", rich_help_panel=SOURCE)
    ] = "auto",
    source_from: Annotated[
        str,
        typer.Option(
            metavar="input|dir|field:NAME",
            help="What labels a document's source: the INPUT, the file's directory in it, or a field of the record.",
            rich_help_panel=SOURCE,
        ),
    ] = "input",
    separator: Annotated[
        str | None,
        typer.Option(
            help="What separates documents inside a text file (default: a file is one).", rich_help_panel=SOURCE
        ),
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="A bad document stops the run, or is skipped and listed in rejected.jsonl.", rich_help_panel=SOURCE
        ),
    ] = "stop",
    limit_docs: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many documents.", rich_help_panel=SOURCE)
    ] = None,
    limit_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after the document that reaches this many tokens.", rich_help_panel=SOURCE),
    ] = None,
    tokenizer_backend: Annotated[
        Backend,
        typer.Option(help="`auto` takes the fast one after proving it equal to `tokenizers`.", rich_help_panel=TOKENS),
    ] = "auto",
    special_tokens_in_text: Annotated[
        SpecialTokens,
        typer.Option(help="What text that spells a special token becomes.", rich_help_panel=TOKENS),
    ] = "text",
    eos: Annotated[
        bool | None,
        typer.Option(
            "--eos/--no-eos", help="Append EOS to each document.", show_default="on for text", rich_help_panel=TOKENS
        ),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos", help="Prepend BOS.", show_default="as the tokenizer itself does", rich_help_panel=TOKENS
        ),
    ] = None,
    eos_token: Annotated[
        str | None, typer.Option(help="EOS, if the tokenizer does not name it.", rich_help_panel=TOKENS)
    ] = None,
    bos_token: Annotated[
        str | None, typer.Option(help="BOS, if the tokenizer does not name it.", rich_help_panel=TOKENS)
    ] = None,
    pad_token: Annotated[
        str | None,
        typer.Option(help="Padding, if the tokenizer does not name it (default: EOS).", rich_help_panel=TOKENS),
    ] = None,
    packing: Annotated[
        Packing,
        typer.Option(
            help="`concat` cuts documents at row edges; `best-fit` cuts only those longer than a row.",
            rich_help_panel=ROWS,
        ),
    ] = "concat",
    shuffle: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="SEED",
            help="Permute documents and rows within each task.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    loss_weights: Annotated[
        LossWeights,
        typer.Option(
            help="`column`: shards hold the weights, which any trainer reads. `table`: they do not, a third smaller; "
            "exact_prep.open computes them from weights.json.",
            rich_help_panel=ROWS,
        ),
    ] = "column",
    task_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="Input per task.",
            show_default="1/512 of all, 32 to 512 MiB",
            rich_help_panel=RUN,
        ),
    ] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    no_lock: NoLock = False,
) -> None:
    """Run `exact-prep pack`; see HELP."""
    from exact_prep.cli.progress import Display
    from exact_prep.pipeline import pack as run
    from exact_prep.records.options import (
        PackingOptions,
        PackOptions,
        SourceOptions,
        TokenizerOptions,
        check_source_from,
    )

    if (longest := max(seq_len)) > MAX_SEQ_LEN:
        raise UsageError(f"--seq-len {longest}: a row holds at most {MAX_SEQ_LEN:,} tokens")
    if shuffle is not None and shuffle > MAX_COUNT:
        raise UsageError(f"--shuffle {shuffle}: a seed is at most 2**63 - 1")
    options = PackOptions(
        source=SourceOptions(
            text_field=text_field,
            ids_field=ids_field,
            input_format=input_format,
            source_from=check_source_from(source_from),
            separator=separator,
            on_error=on_error,
            task_bytes=task_size,
            limit_docs=limit_docs,
            limit_tokens=limit_tokens,
        ),
        tokenizer=TokenizerOptions(
            tokenizer=tokenizer,
            backend=tokenizer_backend,
            special_tokens_in_text=special_tokens_in_text,
            eos=eos,
            bos=bos,
            eos_token=eos_token,
            bos_token=bos_token,
            pad_token=pad_token,
        ),
        packing=PackingOptions(seq_lens=tuple(seq_len), packing=packing, shuffle=shuffle),
        loss_weights=loss_weights,
    )
    if "-" in inputs and sys.stdin is None:
        raise UsageError("standard input is closed; give the documents to it, or name a file in place of `-`")
    stdin = sys.stdin.buffer if "-" in inputs else None
    with Display() as display:
        manifests = run(
            inputs,
            options,
            out,
            workers=workers,
            overwrite=overwrite,
            lock=not no_lock,
            stdin=stdin,
            emit=display,
        )
    for manifest in manifests:
        where = out if len(manifests) == 1 else out / str(manifest.seq_len)
        documents = manifest.documents
        typer.echo(
            f"{where}: {manifest.rows:,} rows of {manifest.seq_len:,} tokens from {documents.packed:,} documents "
            f"({documents.empty:,} empty, {documents.rejected:,} rejected), tree hash {manifest.tree_hash}"
        )
