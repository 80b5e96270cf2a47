"""The commands as functions: `exact_prep.pack`, `weigh`, `measure`, `verify`, with the commands' words and defaults.

Imports nothing slow before a function is called.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from exact_prep.choices import MAX_SEQ_LEN
from exact_prep.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from exact_prep.choices import (
        Backend,
        Documents,
        DocumentsBy,
        InputFormat,
        LossWeights,
        MeasuredLayout,
        Normalize,
        OnError,
        Packing,
        RowCut,
        SpecialTokens,
        TokenType,
        Trainer,
    )
    from exact_prep.pipeline.events import Emit, Event
    from exact_prep.reader.lookup import LoadedWeights
    from exact_prep.records.measured import MeasuredExposure
    from exact_prep.records.options import MeasureOptions
    from exact_prep.stores.paths import Home

    Location = str | PathLike[str]
    Progress = bool | Callable[[Event], None]

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
"""Row lengths are powers of two: a thousand is 1,024."""


def parse_tokens(value: int | str, option: str) -> int:
    """A number of tokens from 4096, "4096", "4k", "16K" or "1M"; raises UsageError that names the option."""
    found = re.fullmatch(r"([0-9]{1,18})([kKmM]?)", str(value))
    if found is None:
        raise UsageError(f"{option} {value}: a number of tokens, such as 4096, 4k or 16K (k is 1,024)")
    return int(found[1]) * UNITS[found[2].lower()]


def parse_seq_len(value: int | str) -> int:
    """Tokens per row from 4096, "4096", "4k", "16K" or "1M"; raises UsageError."""
    length = parse_tokens(value, "--seq-len")
    if length > MAX_SEQ_LEN:
        raise UsageError(f"--seq-len {value}: a row holds at most {MAX_SEQ_LEN:,} tokens")
    if length < 2:
        raise UsageError(f"--seq-len {value}: a row holds at least 2 tokens")
    return length


def pack(
    inputs: Location | Sequence[Location],
    out: Location,
    *,
    seq_len: int | str | Sequence[int | str],
    tokenizer: Location | None = None,
    text_field: str | Sequence[str] = "text",
    ids_field: str | None = None,
    documents: Documents | None = None,
    mask_field: str | None = None,
    labels_field: str | None = None,
    join: str = "\n",
    csv_delimiter: str | None = None,
    csv_quote: str | None = '"',
    input_format: InputFormat = "auto",
    id_field: str | None = None,
    source_from: str = "input",
    separator: str | None = None,
    on_error: OnError = "stop",
    max_rejected: int | str | None = None,
    limit_docs: int | None = None,
    limit_tokens: int | None = None,
    tokenizer_backend: Backend = "auto",
    special_tokens_in_text: SpecialTokens = "text",
    eos: bool | None = None,
    bos: bool | None = None,
    eos_token: str | None = None,
    bos_token: str | None = None,
    pad_token: str | None = None,
    packing: Packing = "concat",
    shuffle: int | None = None,
    pack_window: int | str | None = None,
    max_segments: int | None = None,
    rows_multiple_of: int | None = None,
    validation: float | str | None = None,
    validation_seed: int = 0,
    loss_weights: LossWeights = "column",
    task_size: int | None = None,
    workers: int | None = 1,
    overwrite: bool = False,
    lock: bool = True,
    space_check: bool = True,
    store_options: Mapping[str, str] | None = None,
    progress: Progress = True,
) -> list[Path]:
    r"""Tokenize and pack a corpus; returns the directories of the datasets, one per row length.

    With `validation` there are two of each: training rows, then validation rows.

    The options are those of `exact-prep pack` (`exact-prep pack --help` explains each), and so are the bytes. A
    `seq_len` is a number or a text such as "16K"; several make several datasets. `inputs` is a file, a directory, a
    glob, an address in a store or `hf://name`, or a list of them. Text is taken as it is: "\n" is a newline, and
    `csv_quote` None means none.

    `workers` None starts as many processes as the work is worth; with more than one, a script needs
    `if __name__ == "__main__":`. `progress` True draws in a terminal or notebook as the command does, False shows
    nothing, and a function receives the events (`exact_prep.pipeline.events`). `space_check` False starts even a run
    that the disk seems too small for. `store_options` say how stores are reached, as --store-option does.

    Raises UsageError for invalid options, SourceError, TokenizerError, StorageError, WorkerError,
    LedgerError; Interrupted on Ctrl-C, after which the same call continues.
    """
    with showing(progress) as emit:
        from exact_prep.dataset import find_home
        from exact_prep.pipeline.pack import pack as run
        from exact_prep.records.options import (
            PackingOptions,
            PackOptions,
            SourceOptions,
            TokenizerOptions,
            make_validation,
        )

        lengths = [seq_len] if isinstance(seq_len, (int, str)) else seq_len
        with refusals():
            options = PackOptions(
                source=SourceOptions(
                    text_field=(text_field,) if isinstance(text_field, str) else tuple(text_field),
                    ids_field=ids_field,
                    documents=documents,
                    mask_field=mask_field,
                    labels_field=labels_field,
                    join=join,
                    csv_delimiter=csv_delimiter,
                    csv_quote=csv_quote,
                    input_format=input_format,
                    id_field=id_field,
                    source_from=source_from,
                    separator=separator,
                    on_error=on_error,
                    task_bytes=task_size,
                    limit_docs=limit_docs,
                    limit_tokens=limit_tokens,
                ),
                tokenizer=TokenizerOptions(
                    tokenizer=None if tokenizer is None else fspath(tokenizer),
                    backend=tokenizer_backend,
                    special_tokens_in_text=special_tokens_in_text,
                    eos=eos,
                    bos=bos,
                    eos_token=eos_token,
                    bos_token=bos_token,
                    pad_token=pad_token,
                ),
                packing=PackingOptions(
                    seq_lens=tuple(map(parse_seq_len, lengths)),
                    packing=packing,
                    shuffle=shuffle,
                    window_tokens=None if pack_window is None else parse_tokens(pack_window, "--pack-window"),
                    max_segments=max_segments,
                    rows_multiple_of=rows_multiple_of,
                ),
                validation=make_validation(validation, validation_seed),
                loss_weights=loss_weights,
            )
        manifests = run(
            [fspath(name) for name in ([inputs] if isinstance(inputs, (str, PathLike)) else inputs)],
            options,
            Path(out),
            workers=workers,
            overwrite=overwrite,
            lock=lock,
            space_check=space_check,
            store_options=store_options,
            max_rejected=None if max_rejected is None else str(max_rejected),
            emit=emit,
        )
    return [find_home(Path(out), options.packing.seq_lens, one.seq_len, one.split) for one in manifests]


def weigh(
    directories: Location | Sequence[Location],
    *,
    alpha: float = 0.15,
    gamma: float = 0.5,
    tail_from: int | None = None,
    window: int | None = None,
    max_weight: float | None = None,
    supervise_first: bool = False,
    normalize: Normalize = "none",
    rates: Sequence[float] | None = None,
    keep_mixture: bool = False,
    eps: float = 1e-6,
    allow_empty_tail: bool = False,
    recount: bool = False,
    out: Location | None = None,
    workers: int | None = 1,
    lock: bool = True,
    store_options: Mapping[str, str] | None = None,
    progress: Progress = True,
) -> list[LoadedWeights]:
    """Write EXACT weights into a packed dataset, or several; returns the weights of each, by row length.

    Validation rows take the table of the training rows beside them, and come last.

    The options are those of `exact-prep weigh`. A list of directories is one mixture, read at `rates`. With `out`, the
    table alone is written to that file and the datasets stay as they are; `exact_prep.open(directory, weights=out)`
    uses it. `workers`, `store_options` and `progress` as in `pack`; in a store, datasets must be packed with
    `loss_weights="table"`.

    Raises WeightsError for invalid options and for an empty tail, DatasetError, StorageError, UsageError,
    WorkerError; Interrupted on Ctrl-C, after which the same call continues.
    """
    with showing(progress) as emit:
        from exact_prep.pipeline.weigh import find_followers, find_mixtures
        from exact_prep.pipeline.weigh import weigh as run
        from exact_prep.reader.lookup import load_weights
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
        places = list_places(directories, store_options)
        run(
            places,
            options,
            rates=rates,
            out=None if out is None else Path(out),
            recount=recount,
            allow_empty_tail=allow_empty_tail,
            workers=workers,
            lock=lock,
            emit=emit,
        )
        homes = [home for mixture in find_mixtures(places) for home in mixture]
        homes += find_followers(places).values()
        return [load_weights(file) for file in (homes if out is None else [Path(out)])]


def measure(
    layout: MeasuredLayout,
    paths: Location | Sequence[Location],
    out: Location,
    *,
    seq_len: int | str | None = None,
    trainer: Trainer | None = None,
    rows: RowCut | None = None,
    documents: DocumentsBy | None = None,
    eos: int | None = None,
    dtype: TokenType | None = None,
    order: str | None = None,
    split: Sequence[float] | None = None,
    isolated: bool = True,
    ids_field: str | None = None,
    mask_field: str | None = None,
    labels_field: str | None = None,
    overwrite: bool = False,
    workers: int | None = 1,
    lock: bool = True,
    progress: Progress = True,
) -> MeasuredExposure:
    """Measure tokens that others wrote, as a trainer will cut and mask them; returns what exposure.json in `out` says.

    The options are those of `exact-prep measure`; `trainer` is its `--for`. `weigh`, `verify` and `load_weights` take
    `out` as they take a packed dataset. `workers` and `progress` as in `pack`. Raises UsageError, DatasetError (files
    that contradict each other or the options), StorageError, WorkerError; Interrupted on Ctrl-C, after which the same
    call continues.
    """
    with showing(progress) as emit:
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
            split=split,
            isolated=isolated,
            ids_field=ids_field,
            mask_field=mask_field,
            labels_field=labels_field,
        )
        names = [fspath(name) for name in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
        return run(names, Path(out), options, overwrite=overwrite, workers=workers, lock=lock, emit=emit)


def make_measure_options(
    layout: MeasuredLayout,
    *,
    seq_len: int | str | None,
    trainer: Trainer | None,
    rows: RowCut | None,
    documents: DocumentsBy | None,
    eos: int | None,
    dtype: TokenType | None,
    order: str | None,
    split: Sequence[float] | None,
    isolated: bool,
    ids_field: str | None,
    mask_field: str | None,
    labels_field: str | None,
) -> MeasureOptions:
    """The options of `measure`, with a trainer's habits, and the layout's, where they are not given; raises UsageError.

    A trainer that does not keep documents apart is refused unless `isolated` is False.
    """
    from exact_prep.layouts.foreign import FOREIGN
    from exact_prep.layouts.trainers import TRAINERS
    from exact_prep.records.options import MeasureOptions

    if layout not in FOREIGN:
        raise UsageError(f"there is no layout {layout!r}; it is one of: {', '.join(FOREIGN)}")
    known, habits = FOREIGN[layout], TRAINERS[trainer] if trainer else None
    if habits and layout not in habits.layout:
        raise UsageError(f"--for {trainer}: it reads {' and '.join(habits.layout)}, not {layout}; leave --for out")
    if habits and not habits.isolates and isolated:
        raise UsageError(
            f"--for {trainer}: {habits.note}, so every target sees the whole row before it and the row alone says how "
            "much; measure it all the same with --not-isolated"
        )
    rows = rows or (habits and habits.rows) or known.rows[0]
    if rows not in known.rows:
        raise UsageError(f"--rows {rows}: trainers read {layout} as {' or '.join(known.rows)}")
    documents = documents or (habits and habits.documents)
    if documents is None and layout != "huggingface":
        documents = known.documents[0]
    if documents is not None and documents not in known.documents:
        raise UsageError(
            f"--documents {documents}: in {layout} documents are told apart by {' or '.join(known.documents)}"
        )
    order = order or (habits.order if habits else "expected" if layout in ("megatron", "tokens") else "file")
    kind, _, cache = order.partition(":")
    if kind not in ("expected", "file", "cache") or bool(cache) != (kind == "cache"):
        raise UsageError(f"--order {order}: it is expected, file, or cache:DIR")
    return MeasureOptions(
        layout=layout,
        trainer=trainer,
        seq_len=None if seq_len is None else parse_seq_len(seq_len),
        rows=rows,
        documents=documents,
        order=kind,  # type: ignore[arg-type] - checked above
        cache=cache or None,
        isolated=isolated,
        eos_id=eos,
        dtype=dtype,
        split=None if split is None else tuple(split),
        ids_field=ids_field,
        mask_field=mask_field,
        labels_field=labels_field,
    )


def verify(
    directories: Location | Sequence[Location],
    *,
    quick: bool = False,
    weights: Location | None = None,
    workers: int | None = 1,
    store_options: Mapping[str, str] | None = None,
    progress: Progress = True,
) -> list[str]:
    """Check everything that can be checked from the bytes; returns findings, a sentence each, none if all is correct.

    The options are those of `exact-prep verify`. `workers`, `store_options` and `progress` as in `pack`. Raises
    DatasetError if there is no dataset at all, StorageError, WorkerError.
    """
    with showing(progress) as emit:
        from exact_prep.pipeline.verify import verify as run

        table = None if weights is None else Path(weights)
        return run(list_places(directories, store_options), quick=quick, workers=workers, weights=table, emit=emit)


def list_places(locations: Location | Sequence[Location], options: Mapping[str, str] | None) -> list[Home]:
    """One directory or several, also in a store, as a list; raises UsageError."""
    from exact_prep.stores.paths import find_place

    names = [locations] if isinstance(locations, (str, PathLike)) else locations
    return [find_place(name, options) for name in names]


@contextmanager
def showing(progress: Progress) -> Iterator[Emit]:
    """What receives the events of a run."""
    if callable(progress):
        yield progress
        return
    from exact_prep.progress import Display

    with Display(quiet=not progress) as display:
        yield display


@contextmanager
def refusals() -> Iterator[None]:
    """Raise UsageError for options that the records refuse."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        found = [f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors()]
        raise UsageError("; ".join(found)) from None
