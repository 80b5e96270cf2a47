"""`exact-prep pack`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from exact_prep.api import parse_seq_len, parse_tokens
from exact_prep.choices import (
    MAX_COUNT,
    MAX_ROW_MULTIPLE,
    Backend,
    Documents,
    InputFormat,
    LossWeights,
    OnError,
    Packing,
    SpecialTokens,
)
from exact_prep.cli.arguments import (
    Config,
    NoLock,
    Overwrite,
    Quiet,
    StoreOptions,
    Verbose,
    Workers,
    check_inputs,
    check_path,
    unescape,
)
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exact_prep.progress import Display
    from exact_prep.records.options import PackOptions

INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Where Slurm and Kubernetes say which member of an array this is."""

SOURCE, TOKENS, ROWS, ARRAY, RUN = "Documents", "Tokens", "Rows", "Array", "Run"


HELP = """Tokenize and pack a corpus into Arrow shards with plain loss weights.

The result opens with `datasets.load_from_disk`. Interrupted, the same command continues where it stopped.

Examples:
    exact-prep pack corpus/ --tokenizer tokenizer.json --seq-len 16k -o packed
    exact-prep pack 'data/*.parquet' --text-field content \\
        --tokenizer Qwen/Qwen2.5-0.5B --seq-len 4k --seq-len 16k -o packed
    zcat big.jsonl.gz | exact-prep pack - --input-format jsonl \\
        --tokenizer tokenizer.json --seq-len 8192 -o packed --on-error reject
"""
"""What `--help` says: not the docstring, which `python -OO` removes."""


def pack(
    inputs: Annotated[
        list[str],
        typer.Argument(
            callback=check_inputs,
            metavar="INPUT",
            help="Files, directories, globs, also in stores (s3://, gs://, az://); `-` for standard input; `hf://name` "
            "for a dataset.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            callback=check_path,
            help="Directory of the packed dataset.",
            rich_help_panel=ROWS,
        ),
    ],
    seq_len: Annotated[
        list[str],
        typer.Option(
            metavar="N|4k|16K",
            help="Tokens per row, k is 1,024; repeat it for several datasets.",
            rich_help_panel=ROWS,
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer.json, a directory that holds one, or a hub id.", rich_help_panel=TOKENS),
    ] = None,
    text_field: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer reads it at run time
        typer.Option(
            metavar="NAME",
            help="Field or column that holds the text; `a.b` is field b of a; repeated, the first that is there.",
            show_default="text",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    ids_field: Annotated[
        str | None,
        typer.Option(
            help="List column of token ids, read instead of text: nothing is tokenized.", rich_help_panel=SOURCE
        ),
    ] = None,
    documents: Annotated[
        Documents | None,
        typer.Option(
            help="`rows`: each row of --ids-field is one document, also where it holds EOS inside.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    mask_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="List column beside --ids-field: per token, 1 or true if it carries loss.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    labels_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="List column beside --ids-field: per token a label, -100 if it carries no loss.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    join: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What comes between the strings of a field that is a list of them; knows \\n and \\t.",
            show_default="a newline",
            rich_help_panel=SOURCE,
        ),
    ] = "\\n",
    csv_delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHAR",
            help="What separates the fields of CSV; knows \\t.",
            show_default="comma, tab in .tsv",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    csv_quote: Annotated[
        str,
        typer.Option(
            metavar="CHAR", help="What encloses fields of CSV; `none`: quotes are text.", rich_help_panel=SOURCE
        ),
    ] = '"',
    input_format: Annotated[
        InputFormat, typer.Option(help="Format of the inputs, if not by their names.", rich_help_panel=SOURCE)
    ] = "auto",
    id_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Field or column of a document's own id or URL, kept in tables/documents.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
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
            metavar="TEXT",
            help="What separates documents inside a text file; knows \\n and \\t.",
            show_default="none, a file is one document",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="A bad document stops the run, or is skipped and listed in rejected.jsonl.", rich_help_panel=SOURCE
        ),
    ] = "stop",
    max_rejected: Annotated[
        str | None,
        typer.Option(
            metavar="N|P%",
            help="Publish nothing if more documents are rejected.",
            show_default="100 or 1%, whichever is more",
            rich_help_panel=SOURCE,
        ),
    ] = None,
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
        str | None,
        typer.Option(
            help="EOS: a special token's text, or id:N.", show_default="the tokenizer's", rich_help_panel=TOKENS
        ),
    ] = None,
    bos_token: Annotated[
        str | None, typer.Option(help="BOS, likewise.", show_default="the tokenizer's", rich_help_panel=TOKENS)
    ] = None,
    pad_token: Annotated[
        str | None,
        typer.Option(help="Padding, likewise.", show_default="the tokenizer's, or EOS", rich_help_panel=TOKENS),
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
    pack_window: Annotated[
        str | None,
        typer.Option(
            metavar="N|64M",
            help="Tokens that best-fit and --shuffle look at once: more make fewer rows and take more memory.",
            show_default="16M, or 64 rows",
            rich_help_panel=ROWS,
        ),
    ] = None,
    max_segments: Annotated[
        int | None,
        typer.Option(min=1, help="Documents, or parts of them, in a row, at most.", rich_help_panel=ROWS),
    ] = None,
    rows_multiple_of: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Complete the dataset to a multiple of this by rows of padding, which carry no loss: even shares for "
            "ranks.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="P%|0.005",
            help="Share of the documents to hold out, chosen by a hash of their start: equal ones together. Makes "
            "DIR/train and DIR/validation.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    validation_seed: Annotated[int, typer.Option(min=0, help="Holds out other documents.", rich_help_panel=ROWS)] = 0,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing; show what the run will take, from a sample.", rich_help_panel=RUN
        ),
    ] = False,
    no_space_check: Annotated[
        bool,
        typer.Option(
            "--no-space-check", help="Start even if the disk seems too small for the result.", rich_help_panel=RUN
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="For an array of jobs: write the plan, and pack nothing.", rich_help_panel=ARRAY
        ),
    ] = False,
    task_index: Annotated[
        int | None,
        typer.Option(
            metavar="I",
            help="Do tasks I, I + N, I + 2N, ... of the plan; the other options as they were planned.",
            show_default="SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX",
            rich_help_panel=ARRAY,
        ),
    ] = None,
    task_count: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Members of the array, also for a member that starts again.", rich_help_panel=ARRAY
        ),
    ] = None,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="Publish what the members did; exit code 3, and which tasks, if some are missing.",
            rich_help_panel=ARRAY,
        ),
    ] = False,
    workers: Workers = None,
    overwrite: Overwrite = False,
    no_lock: NoLock = False,
    store_option: StoreOptions = None,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run `exact-prep pack`; see HELP."""
    from exact_prep.progress import Display

    with Display(verbose=verbose, quiet=quiet) as display:  # while imports take their time
        from exact_prep.records.options import (
            PackingOptions,
            PackOptions,
            SourceOptions,
            TokenizerOptions,
            check_character,
            check_source_from,
            make_validation,
        )
        from exact_prep.stores import parse_options

    if shuffle is not None and shuffle > MAX_COUNT:
        raise UsageError(f"--shuffle {shuffle}: a seed is at most 2**63 - 1")
    if max_segments is not None and max_segments > MAX_COUNT:
        raise UsageError(f"--max-segments {max_segments}: leave it out, a row has fewer tokens")
    if rows_multiple_of is not None and rows_multiple_of > MAX_ROW_MULTIPLE:
        raise UsageError(f"--rows-multiple-of {rows_multiple_of}: at most {MAX_ROW_MULTIPLE:,}")
    if (mask_field or labels_field) and ids_field is None:
        raise UsageError("--mask-field and --labels-field are for --ids-field: they hold a value per token")
    if documents and ids_field is None:
        raise UsageError("--documents is for --ids-field: it says what a row of ids is")
    if mask_field and labels_field:
        raise UsageError("--mask-field and --labels-field exclude each other; leave one out")
    if pack_window is not None and packing == "concat" and shuffle is None:
        raise UsageError("--pack-window is for --packing best-fit and --shuffle: concat looks at no window")
    options = PackOptions(
        source=SourceOptions(
            text_field=tuple(text_field or ("text",)),
            ids_field=ids_field,
            documents=documents,
            mask_field=mask_field,
            labels_field=labels_field,
            join=unescape(join),
            csv_delimiter=check_character(None if csv_delimiter is None else unescape(csv_delimiter)),
            csv_quote=None if csv_quote == "none" else check_character(unescape(csv_quote)),
            input_format=input_format,
            id_field=id_field,
            source_from=check_source_from(source_from),
            separator=None if separator is None else unescape(separator),
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
        packing=PackingOptions(
            seq_lens=tuple(map(parse_seq_len, seq_len)),
            packing=packing,
            shuffle=shuffle,
            window_tokens=None if pack_window is None else parse_tokens(pack_window, "--pack-window"),
            max_segments=max_segments,
            rows_multiple_of=rows_multiple_of,
        ),
        validation=make_validation(validation, validation_seed),
        loss_weights=loss_weights,
    )
    store_options = parse_options(store_option or ())
    member = find_member(task_index, task_count)
    check_mode(
        {"--dry-run": dry_run, "--plan-only": plan_only, "--task-count": member is not None, "--finish": finish},
        overwrite=overwrite,
    )
    if member is not None:
        run_member(out, options, *member, workers=workers, store_options=store_options, display=display)
        return
    if dry_run:
        from exact_prep.cli.dry_run import print_estimate
        from exact_prep.pipeline.pack import estimate

        with Display() as display:
            found = estimate(
                inputs, options, out, workers=workers, overwrite=overwrite, store_options=store_options, emit=display
            )
        print_estimate(found)
        return
    if "-" in inputs and sys.stdin is None:
        raise UsageError("standard input is closed; give the documents to it, or name a file in place of `-`")
    stdin = sys.stdin.buffer if "-" in inputs else None
    if plan_only:
        with display:
            from exact_prep.pipeline.array import plan_array

            tasks = plan_array(
                inputs,
                options,
                out,
                overwrite=overwrite,
                lock=not no_lock,
                space_check=not no_space_check,
                stdin=stdin,
                store_options=store_options,
                emit=display,
            )
        typer.echo(
            f"{out}: {tasks:,} tasks are planned; start members with --task-index I --task-count N in place of "
            "--plan-only, then --finish"
        )
        return
    with display:
        from exact_prep.dataset import find_home

        if finish:
            from exact_prep.pipeline.array import check_plan, finish_array

            check_plan(out, options)
            manifests = finish_array(out, max_rejected=max_rejected, lock=not no_lock, emit=display)
        else:
            from exact_prep.pipeline.pack import pack as run

            manifests = run(
                inputs,
                options,
                out,
                workers=workers,
                overwrite=overwrite,
                lock=not no_lock,
                max_rejected=max_rejected,
                space_check=not no_space_check,
                stdin=stdin,
                store_options=store_options,
                emit=display,
            )
    for manifest in manifests:
        where = find_home(out, options.packing.seq_lens, manifest.seq_len, manifest.split)
        counts = manifest.documents
        typer.echo(
            f"{where}: {manifest.rows:,} rows of {manifest.seq_len:,} tokens from {counts.packed:,} documents "
            f"({counts.empty:,} empty, {counts.rejected:,} rejected), tree hash {manifest.tree_hash}"
        )


def find_member(index: int | None, count: int | None) -> tuple[int, int] | None:
    """Which member of how many this is; None outside of an array. Raises UsageError.

    Schedulers say the index. They do not say the count: a member that is submitted again alone is told that it is 1.
    """
    if count is None:
        if index is not None:
            raise UsageError("--task-index needs --task-count: how many members does the array have?")
        return None
    if index is not None:
        return index, count
    for name in INDEX_VARIABLES:
        if value := os.environ.get(name):
            if not value.isdecimal():
                raise UsageError(f"{name} is {value!r} and not the number of a member; give it with --task-index")
            return int(value), count
    raise UsageError(
        f"which member is this? None of {' and '.join(INDEX_VARIABLES)} is set; give its number with --task-index"
    )


def check_mode(modes: Mapping[str, bool], *, overwrite: bool) -> None:
    """Raise UsageError for modes that exclude each other."""
    given = [name for name, wanted in modes.items() if wanted]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; run one after the other")
    if overwrite and given and given[0] in ("--task-count", "--finish"):
        raise UsageError("--overwrite is for --plan-only: members and --finish go on with the plan that there is")


def run_member(
    out: Path,
    options: PackOptions,
    index: int,
    count: int,
    *,
    workers: int | None,
    store_options: Mapping[str, str],
    display: Display,
) -> None:
    """Do the tasks of one member of an array, and say how many."""
    with display:
        from exact_prep.pipeline.array import check_member, check_plan
        from exact_prep.pipeline.array import run_member as run

        check_member(index, count)
        check_plan(out, options)
        own, done = run(out, index, count, workers=workers, store_options=store_options, emit=display)
    earlier = f", {own - done:,} were finished before" if done < own else ""
    typer.echo(f"{out}: member {index} of {count} did {done:,} of its {own:,} tasks{earlier}")
