"""What a run of `pack` will take, from a sample: tokens, rows, disk, time. Writes nothing.

The sample (`sources.extracts`) gives tokens and documents per byte of input, by format and compression. The sizes of
the files do the rest.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import is_incomplete, list_homes
from exact_prep.engines import count_cores
from exact_prep.errors import ExactPrepError, StorageError, TokenizerError
from exact_prep.packing import WINDOW_TOKENS, pack_best_fit
from exact_prep.records.work import Slice
from exact_prep.shards import BATCH_TOKENS, PER_SEGMENT
from exact_prep.sources.extracts import Extract, find_fields, group_name, read_extracts
from exact_prep.stores.local import explained
from exact_prep.tokenization.backends import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from exact_prep.pipeline.plan import PackPlan
    from exact_prep.sources.batching import Part

SAMPLE_S = 5.0
"""Seconds that a sample for --dry-run takes, at most about."""

CHECK_S = 1.0
"""Seconds that it takes before a run that may not fit."""

ENCODED_AT_ONCE = 32
"""Extracts that are encoded together."""

FEWEST = 64
"""Extracts that are read however long it takes."""

PER_TOKEN = {True: 6, False: 4}
"""Bytes of a shard per token with and without weights."""

PER_ROW = 4 * len(PER_SEGMENT)
"""Bytes of a shard per row: one split for each column with a value per segment."""

PER_DOCUMENT = sum(kind.bit_width // 8 for kind in PER_SEGMENT.values())
"""Bytes of a shard per segment."""

PER_BATCH = 1_300
"""Bytes around a record batch: its header and padding, about."""

PER_DATASET = 48 << 10
"""Bytes of a dataset's tables and side files, about."""

PER_TASK = 16 << 10
"""Bytes of a task's records while the run lasts, and of what it leaves empty in the last block of its files."""

EXPANSION = 10
"""Bytes of text in a byte of a compressed or columnar file, at most about."""

ROOMY = 3
"""A disk with room for as many times the most that a corpus can need is not worth a sample."""

STARTUP_S = 1.5
"""Seconds until a worker encodes, about."""

WRITTEN_PER_S = 300e6
"""Bytes of shards that one core packs, checks and hands to the system per second, as measured on 1 GB of JSON lines."""

FIRST_DOCUMENTS = 3
"""Documents that are shown."""

FIRST_CHARACTERS = 80
"""Of each of them."""


@dataclass(frozen=True, kw_only=True)
class FileGroup:
    """The files of one format, compression and source."""

    format: str
    compression: str
    """Empty: none."""
    source: str
    """Empty where a field of the documents tells it."""
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RowEstimate:
    """What one row length takes."""

    seq_len: int
    rows: int
    padding: int
    """Tokens."""
    bytes_with_weights: int
    bytes_without_weights: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes. Everything but files and free space is extrapolated from a sample."""

    groups: tuple[FileGroup, ...]
    fields: dict[str, tuple[str, ...]]
    """Fields or columns of the first file of each format."""
    first_documents: tuple[str, ...]
    """Beginnings of the first documents as they are read; of ids, the ids."""
    unknown: tuple[str, ...]
    """Inputs whose size nobody knows, which the figures leave out."""
    sampled_bytes: int
    """Bytes of input that the sample stands for by itself."""
    documents: int
    text_bytes: int
    """Bytes of text (UTF-8)."""
    text_tokens: int
    tokens: int
    """With BOS and EOS."""
    tasks: int
    lengths: tuple[RowEstimate, ...]
    loss_weights: bool
    """Whether this run stores weights."""
    needed_bytes: int
    """Of disk: all row lengths, and the run's own records."""
    free_bytes: int | None
    """Where the datasets go; with what an earlier run left there and this one keeps or replaces. None: not known."""
    free_at: Path
    """A directory on that disk."""
    text_bytes_per_second: float
    """Of one worker that encodes; 0 where nothing is encoded."""
    workers: int
    seconds: float
    """With all workers, where the disk keeps up."""


@dataclass(kw_only=True)
class Sample:
    """What the extracts of one group of files give per byte, summed over their places."""

    places: float = 0.0
    documents: float = 0.0
    text_bytes: float = 0.0
    tokens: float = 0.0

    def add(self, extract: Extract, text_bytes: float, tokens: float) -> None:
        """Count an extract. Each place counts the same, whatever the window around it could hold."""
        weight = extract.places / extract.bytes
        self.places += extract.places
        self.documents += extract.documents * weight
        self.text_bytes += text_bytes * weight
        self.tokens += tokens * weight


class Sampler:
    """Encodes extracts and sums what they give."""

    def __init__(self, planned: PackPlan) -> None:
        """Encode as the run will."""
        record = planned.plan.tokenizer
        self.groups: dict[tuple[str, str], Sample] = {}
        self.lengths: list[np.ndarray] = []
        """Tokens of the documents that were met, float64; each about `shares` times."""
        self.shares: list[np.ndarray] = []
        self.bytes = 0.0
        self.seconds = 0.0
        self.text_bytes = 0
        """Encoded in `seconds`."""
        self._backend = None
        if record.backend != "none" and planned.tokenizer_path is not None:
            split_special = record.special_tokens_in_text != "special"
            name = "fastokens" if record.backend == "fastokens" else "tokenizers"
            self._backend = load(name, planned.tokenizer_path, record.sha256, split_special=split_special)

    def add(self, extracts: Sequence[Extract]) -> None:
        """Encode extracts and count them."""
        texts = [text for extract in extracts for text in extract.texts]
        tokens = np.empty(0)
        if self._backend is not None and texts:
            began = time.perf_counter()
            try:
                _, offsets = self._backend.encode(texts)
            except Exception as error:
                raise TokenizerError(f"{self._backend.name} cannot encode a sample of the corpus: {error}") from error
            self.seconds += time.perf_counter() - began
            tokens = np.diff(offsets).astype(np.float64)
        done = 0
        for extract in extracts:
            own = np.array(extract.lengths, np.float64)
            sizes = [len(text.encode()) for text in extract.texts]
            if extract.texts:
                own = tokens[done : done + len(extract.texts)]
                done += len(extract.texts)
            if not extract.bytes:
                continue
            shares, held = np.array(extract.shares), sum(sizes)
            text_bytes = held if extract.text_bytes is None else extract.text_bytes
            scale = text_bytes / held if held else 1.0
            self.groups.setdefault(group_name(extract.file), Sample()).add(extract, text_bytes, scale * own.sum())
            self.lengths.append(own / shares)
            self.shares.append(shares * (extract.places / extract.bytes))
            self.bytes += extract.bytes
            self.text_bytes += held

    def draw_lengths(self, tokens: float, most: int) -> np.ndarray:
        """Lengths of documents as the corpus has them, int64[D], about `most` tokens or all `tokens` of them."""
        lengths, weights = np.concatenate(self.lengths), np.concatenate(self.shares)
        mean = float((lengths * weights).sum() / weights.sum())
        count = max(int(min(tokens, most) / max(mean, 1.0)), 1)
        drawn = np.random.default_rng(0).choice(lengths, count, p=weights / weights.sum())
        return np.maximum(drawn.round(), 1).astype(np.int64)


def estimate_run(planned: PackPlan, workers: int, *, seconds: float = SAMPLE_S) -> Estimate:
    """Sample the corpus of a planned run for about `seconds`; what the run takes. Writes nothing.

    Raises TokenizerError if a text of the sample cannot be encoded.
    """
    options, inputs = planned.plan.options, planned.inputs
    sampler = sample(planned, seconds)
    totals = Sample()
    sizes = Counter[tuple[str, str]]()
    for file in inputs.files:
        sizes[group_name(file)] += file.bytes
    for group, found in sampler.groups.items():
        scale = sizes[group] / found.places
        totals.documents += found.documents * scale
        totals.text_bytes += found.text_bytes * scale
        totals.tokens += found.tokens * scale
    tokenizer = planned.plan.tokenizer
    special = (tokenizer.eos_id is not None) + (tokenizer.bos_id is not None)
    tokens = totals.tokens + special * totals.documents
    part = limit_part(options.source.limit_docs, options.source.limit_tokens, totals.documents, tokens)
    rows = [
        estimate_rows(planned, seq_len, tokens * part, totals.documents * part, sampler, part)
        for seq_len in options.packing.seq_lens
    ]
    rate = sampler.text_bytes / sampler.seconds if sampler.seconds else 0.0
    workers = max(min(workers, count_cores(), len(planned.tasks)), 1)
    with_weights = options.loss_weights == "column"
    place, free = measure_room(planned.out)
    needed = sum(one.bytes_with_weights if with_weights else one.bytes_without_weights for one in rows)
    needed += sum(map(len, planned.tokenizer_files.values())) + PER_TASK * len(planned.tasks)
    work = needed / WRITTEN_PER_S + (totals.text_bytes * part / rate if rate else 0.0)
    return Estimate(
        groups=group_files(planned),
        fields=find_all_fields(planned),
        first_documents=read_first(planned),
        unknown=tuple(sorted({file.path for file in inputs.files if file.format == "hub"})),
        sampled_bytes=round(min(sampler.bytes, sum(sizes.values()))),
        documents=round(totals.documents * part),
        text_bytes=round(totals.text_bytes * part),
        text_tokens=round(totals.tokens * part),
        tokens=round(tokens * part),
        tasks=len(planned.tasks),
        lengths=tuple(rows),
        loss_weights=with_weights,
        needed_bytes=needed,
        free_bytes=free,
        free_at=place,
        text_bytes_per_second=rate,
        workers=workers,
        seconds=STARTUP_S + work / workers,
    )


def sample(planned: PackPlan, seconds: float) -> Sampler:
    """Read and encode extracts for about `seconds`, FEWEST at least."""
    began = time.monotonic()
    sampler, waiting = Sampler(planned), []
    for count, extract in enumerate(read_extracts(list_parts(planned)), 1):
        waiting.append(extract)
        if len(waiting) == ENCODED_AT_ONCE:
            sampler.add(waiting)
            waiting = []
        if count >= FEWEST and time.monotonic() - began > seconds:
            break
    if waiting:
        sampler.add(waiting)
    return sampler


def list_parts(planned: PackPlan) -> list[Part]:
    """The files of the corpus, whole."""
    return [planned.inputs.part(Slice(file=index)) for index in range(len(planned.inputs.files))]


def limit_part(limit_docs: int | None, limit_tokens: int | None, documents: float, tokens: float) -> float:
    """How much of the corpus the limits of a run leave, in [0, 1]."""
    parts = [1.0]
    if limit_docs is not None and documents:
        parts.append(limit_docs / documents)
    if limit_tokens is not None and tokens:
        parts.append(limit_tokens / tokens)
    return min(parts)


def estimate_rows(
    planned: PackPlan, seq_len: int, tokens: float, documents: float, sampler: Sampler, part: float
) -> RowEstimate:
    """Rows and bytes of one row length."""
    tasks, packing = max(math.ceil(len(planned.tasks) * part), 1), planned.plan.options.packing
    if packing.packing == "concat" or not sampler.lengths or not tokens:
        # On average half of the last row of a task is padding.
        rows = math.ceil(tokens / seq_len + (tasks - 1) / 2) if tokens else 0
        if packing.max_segments is not None:
            rows = max(rows, math.ceil((documents + rows) / packing.max_segments))
        cuts = max(rows - tasks, 0) * (1 - documents / tokens) if tokens else 0
        segments = documents + cuts
    else:
        most = packing.window_tokens or max(WINDOW_TOKENS, 64 * seq_len)
        window = max(tokens / max(tasks, math.ceil(tokens / most)), 1.0)
        lengths = sampler.draw_lengths(window, most)
        full = np.maximum(-(-lengths // seq_len) - 1, 0)
        bins = pack_best_fit((lengths - full * seq_len).astype(np.int32), seq_len, packing.max_segments)
        scale = tokens / lengths.sum()
        rows = math.ceil((int(full.sum()) + int(bins.max()) + 1) * scale)
        segments = documents + full.sum() * scale
    rows += -rows % (packing.rows_multiple_of or 1)
    batches = math.ceil(rows / max(BATCH_TOKENS // seq_len, 1)) + tasks
    base = PER_ROW * rows + PER_DOCUMENT * segments + PER_BATCH * batches + PER_DATASET
    base += sum(map(len, planned.tokenizer_files.values()))
    return RowEstimate(
        seq_len=seq_len,
        rows=rows,
        padding=max(round(rows * seq_len - tokens), 0),
        bytes_with_weights=round(base + PER_TOKEN[True] * rows * seq_len),
        bytes_without_weights=round(base + PER_TOKEN[False] * rows * seq_len),
    )


def group_files(planned: PackPlan) -> tuple[FileGroup, ...]:
    """The files by format, compression and source, the largest first."""
    files, sizes = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for file in planned.inputs.files:
        key = (*group_name(file), file.source)
        files[key] += 1
        sizes[key] += file.bytes
    return tuple(
        FileGroup(format=key[0], compression=key[1], source=key[2], files=files[key], bytes=sizes[key])
        for key in sorted(files, key=lambda key: (-sizes[key], key))
    )


def find_all_fields(planned: PackPlan) -> dict[str, tuple[str, ...]]:
    """The fields of the first file of each format that has some."""
    fields: dict[str, tuple[str, ...]] = {}
    for index, file in enumerate(planned.inputs.files):
        if file.format not in fields:
            fields[file.format] = find_fields(planned.inputs.part(Slice(file=index)))
    return {name: found for name, found in fields.items() if found}


def read_first(planned: PackPlan) -> tuple[str, ...]:
    """How the first documents begin, as the run will read them."""
    found: list[str] = []
    try:
        for slices in planned.tasks:
            for batch in planned.inputs.read(slices):
                if batch.id_offsets is not None and batch.ids is not None:
                    for low, high in zip(batch.id_offsets[:-1], batch.id_offsets[1:], strict=True):
                        found.append(" ".join(map(str, batch.ids[low : min(high, low + FIRST_CHARACTERS)].tolist())))
                        if len(found) == FIRST_DOCUMENTS:
                            break
                found += batch.texts[:FIRST_DOCUMENTS]
                if len(found) >= FIRST_DOCUMENTS:
                    return tuple(text[:FIRST_CHARACTERS] for text in found[:FIRST_DOCUMENTS])
    except ExactPrepError as error:
        found.append(f"(the run will stop here: {error})")
        return tuple(found)
    return tuple(text[:FIRST_CHARACTERS] for text in found)


def measure_room(out: Path) -> tuple[Path, int | None]:
    """A directory on the disk where `out` is or will be; bytes that a run into `out` may use, None if nobody knows.

    The free ones, and those of shards that are there: a run keeps or replaces them. Raises StorageError.
    """
    place = out.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    with explained("measure", place):
        disk = shutil.disk_usage(place)
    if not disk.total:  # as some network file systems answer
        return place, None
    ours: Iterable[Path] = ()
    if out.is_dir():
        ours = [path for home in (out, *list_homes(out)) for path in home.glob("data-*.arrow")]
    return place, disk.free + sum(path.stat().st_size for path in ours)


def find_most(planned: PackPlan) -> int:
    """Bytes that a run can need, at most about: a byte of text gives a token, and a document has some."""
    text = sum(
        file.bytes * (EXPANSION if group_name(file)[1] or file.format in ("parquet", "arrow") else 1)
        for file in planned.inputs.files
    )
    with_weights = planned.plan.options.loss_weights == "column"
    files = sum(map(len, planned.tokenizer_files.values())) + PER_TASK * len(planned.tasks)
    seq_lens = planned.plan.options.packing.seq_lens
    return sum(
        PER_TOKEN[with_weights] * (text + len(planned.tasks) * seq_len) + files + PER_DATASET for seq_len in seq_lens
    )


def check_space(planned: PackPlan) -> None:
    """Raise StorageError if the disk has no room for what a run will write; writes nothing.

    Where there is room for more than the corpus can need nothing is sampled, so that small runs start at once. Datasets
    from a hub are not counted.
    """
    place, free = measure_room(planned.out)
    if free is None or free >= ROOMY * find_most(planned):
        return
    estimate = estimate_run(planned, 1, seconds=CHECK_S)
    if estimate.needed_bytes <= free:
        return
    saving = sum(one.bytes_with_weights - one.bytes_without_weights for one in estimate.lengths)
    table = f"store no weights (--loss-weights table: {format_bytes(saving)} less), " if estimate.loss_weights else ""
    again = "make room and start the same command again" if is_incomplete(planned.out) else "make room"
    raise StorageError(
        f"{planned.out} needs about {format_bytes(estimate.needed_bytes)} for {estimate.tokens:,} tokens, "
        f"and {place} has {format_bytes(free)} free;\n"
        f"{again}, {table}choose another --out, or start anyway with --no-space-check"
    )


def format_bytes(size: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.2f} {unit}"
        size /= 1000
    raise ValueError(f"{size!r} is no size")
