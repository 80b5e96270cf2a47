"""What a run keeps while it is incomplete: the plan, and a record per finished task, its only completion marker."""

from __future__ import annotations

from exact_prep.choices import FileFormat
from exact_prep.records import FORMAT_VERSION, Count, Digest, FileName, FormatVersion, Record
from exact_prep.records.manifest import DocumentCounts, ExposureRecord, TokenizerRecord, TokenLedger
from exact_prep.records.options import PackOptions


class InputFile(Record):
    """One file of the corpus, as it was when the run was planned."""

    path: str
    """As the user named it."""
    bytes: Count
    format: FileFormat
    modified_ns: int = 0
    """Modification time, ns; compared while a run is incomplete, not kept in the dataset. 0: not known."""
    etag: str = ""
    """What a store calls the content of an object, likewise; empty for a local file."""
    source: str = ""
    """Label of the source that its documents belong to; empty if a field of the documents tells."""


class Slice(Record):
    """A part of one input file: bytes of a splittable text file, row groups or batches of a columnar one."""

    file: Count
    """Index into the inputs."""
    start: Count = 0
    stop: Count | None = None
    """End of the slice, exclusive; None is the end of the file."""


class BatchRecord(Record):
    """Where one record batch of a shard lies: offsets of its buffers in the file, in bytes."""

    rows: Count
    segments: Count
    input_ids: Count
    row_splits: Count
    seq_lengths: Count
    doc_ids: Count
    doc_offsets: Count
    sources: Count
    mask_splits: Count | None = None
    masked_runs: Count | None = None
    loss_weights: Count | None = None


class ShardRecord(Record):
    """One Arrow file and its checksums."""

    file: FileName
    task: Count
    rows: Count
    segments: Count
    tokens: Count
    """Tokens in segments, without padding."""
    bytes: Count
    content_xxh3: Digest
    """xxh3-128, batch by batch, of splits and values of input_ids, seq_lengths, doc_ids, doc_offsets, masked_runs."""
    rest_xxh3: Digest
    """xxh3-128 of every other byte of the file but the values of `loss_weights`."""
    weights_xxh3: Digest | None
    """xxh3-128 of the values of `loss_weights` as `pack` wrote them; None if there is no such column."""
    batches: tuple[BatchRecord, ...]


class SourceCounts(Record):
    """What one source gave to one task."""

    documents: Count
    """Documents packed."""
    tokens: Count
    """Tokens in segments."""
    exposure: ExposureRecord


class PackedCounts(Record):
    """What one task made for one row length."""

    ledger: TokenLedger
    exposure: ExposureRecord
    sources: tuple[SourceCounts, ...]
    """In the order of the task's labels; they sum to the whole."""
    documents_cut: Count
    """Documents that lie in more than one segment."""
    longest_context: Count
    """Largest effective left context."""
    shards: tuple[ShardRecord, ...]


class HeldRecord(Record):
    """What one task held out for validation; the tokens are in a file beside its record."""

    documents: Count
    text_bytes: Count
    ledger: TokenLedger
    """Tokens that came in."""
    file_xxh3: Digest


class TaskRecord(Record):
    """The completion marker of a task, written last."""

    task: Count
    documents: DocumentCounts
    content_xxh3: Digest
    """xxh3-128 of the documents that the task read: tells whether a file that was touched still holds them."""
    left_out: dict[str, Count] = {}
    """Records and members of archives that hold no text, by kind; the records count as empty."""
    text_bytes: Count
    parity_texts: Count
    parity_bytes: Count
    labels: tuple[str, ...]
    """Sources of its documents in order of first appearance: `sources` of its shards index this list."""
    documents_xxh3: Digest | None = None
    """xxh3-128 of the table of its documents' own ids, which lies in each dataset; None if ids are not kept."""
    own_ids: Count = 0
    """Documents in it whose id is not empty."""
    lengths_xxh3: Digest
    """xxh3-128 of the task's part of the histogram of document lengths, kept beside this record."""
    held: HeldRecord | None = None
    """None without --validation."""
    packed: dict[int, PackedCounts]
    """By row length."""


class Plan(Record):
    """What a run will do. Inputs and tasks are tables beside it."""

    format_version: FormatVersion = FORMAT_VERSION
    tool_version: str
    options: PackOptions
    tokenizer: TokenizerRecord
    shard_bytes: Count
    """A task begins a new shard when the one it writes holds this much."""
    task_bytes: Count
    """Bytes of input of a task, about: a run that goes on keeps it, however its inputs grow."""
    continued: bool = False
    """Whether a fresh run would be planned in other tasks or shards, because inputs changed while this one ran."""
    stdin_xxh3: Digest | None = None
    """Of standard input, if it was read."""
    left_out: dict[str, Count] = {}
    """Files found in input directories but not read, by reason."""
    inputs_xxh3: Digest
    tasks_xxh3: Digest
