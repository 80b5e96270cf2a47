"""What was made, as frozen records, and their schemas. A format is these records and the parsers below; no other I/O.

manifest.json   Manifest     one per dataset, written last: no manifest, no dataset
weights.json    WeightsFile  after `weigh`
(work)          Plan, TaskRecord   while a run is under way
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from exact_prep.choices import Normalize, Packing, SpecialTokens
from exact_prep.records import Record
from exact_prep.records.options import PackOptions

FORMAT_VERSION = 1
ALIGNMENT = "target"
"""`loss_weights[t]` belongs to the target `input_ids[t]`, as Hugging Face labels do."""

LARGEST_COUNT = 2**63 - 1
"""Counters are int64 wherever they are added up."""

LARGEST_WEIGHT = 65504.0
"""What float16 holds."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
RowLength = Annotated[int, Field(ge=2, le=2**27)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name inside the dataset directory: no separator, nothing hidden, so it cannot lead elsewhere."""


class InputRecord(Record):
    """One file of the corpus."""

    path: str
    """As the user named it."""
    bytes: Count
    format: Literal["text", "jsonl", "json", "csv", "parquet", "arrow", "hub"]


class InputFile(InputRecord):
    """One file of the corpus, as it was when the run was planned."""

    modified_ns: int = 0
    """Modification time, ns; compared while a run is under way, not kept in the manifest. 0: not known."""


class Slice(Record):
    """A part of one input file: bytes of a splittable text file, row groups or batches of a columnar one."""

    file: Count
    """Index into the inputs."""
    start: Count = 0
    stop: Count | None = None
    """End of the slice, exclusive; None is the end of the file."""


class TokenizerRecord(Record):
    """Which tokenizer made the ids, and how they were proven."""

    name: str
    """As the user named it; empty if the corpus came as ids."""
    sha256: str
    """Of the tokenizer.json; empty if the corpus came as ids."""
    vocab_size: Count
    """Largest id + 1; 0 if it is not known: the corpus came as ids, and no tokenizer was named."""
    eos_id: int | None
    """Appended to every document; None if nothing is."""
    bos_id: int | None
    """Prepended to every document; None if nothing is."""
    pad_id: int
    """Fills the end of a row. Padding is told by `seq_lengths`, never by this id: EOS may be the same."""
    special_tokens_in_text: SpecialTokens
    backend: str
    """Library that encoded."""
    backend_version: str
    reference_version: str
    """Version of `tokenizers`, which decides what is right."""
    parity_texts: Count
    """Texts encoded by both libraries, before and during the run."""
    parity_bytes: Count
    parity_differences: Count
    fallback: str | None = None
    """Why the fast library was not used, if it was not."""


class TokenLedger(Record):
    """Where every token came from and went. `text + bos + eos = rows + sum(dropped)`, or the run fails."""

    text_tokens: Count = 0
    """Tokens that came from the text, or from the ids of a tokenized corpus."""
    bos_tokens: Count = 0
    eos_tokens: Count = 0
    row_tokens: Count = 0
    """Tokens in rows, padding apart."""
    dropped: dict[str, Count] = {}
    """Tokens left out, by reason. exact-prep drops none."""
    padding: Count = 0
    """Padding tokens in rows."""

    def balance(self) -> int:
        """Tokens unaccounted for; 0 unless there is a bug."""
        return self.text_tokens + self.bos_tokens + self.eos_tokens - self.row_tokens - sum(self.dropped.values())


class DocumentCounts(Record):
    """What became of the records of the corpus."""

    records: Count = 0
    """Lines, rows or files read."""
    packed: Count = 0
    empty: Count = 0
    rejected: Count = 0


class ShardRecord(Record):
    """One Arrow file and its checksums."""

    file: FileName
    task: Count
    rows: Count
    segments: Count
    tokens: Count
    """Tokens in segments; padding is not counted."""
    bytes: Count
    content_xxh3: Digest
    """xxh3-128 of the file without the values of `loss_weights`: it outlives `weigh`."""
    weights_xxh3: Digest
    """xxh3-128 of the values of `loss_weights` as `pack` wrote them: 1 for supervised targets, 0 for the rest."""


class ExposureRecord(Record):
    """Supervised targets per bucket of effective left context: [0, 7], [8, 15], [16, 31], ..."""

    counts: Annotated[tuple[Count, ...], Field(max_length=60)]
    """Targets with left context >= 1."""
    segments: Count
    """Segments, that is targets with left context 0."""

    @model_validator(mode="after")
    def fits(self) -> ExposureRecord:
        """Refuse counts whose sum an int64 does not hold: they would wrap around."""
        if sum(self.counts) + self.segments > LARGEST_COUNT:
            raise ValueError("more targets than 2**63 - 1")
        return self


class PackedCounts(Record):
    """What one task made for one row length."""

    ledger: TokenLedger
    exposure: ExposureRecord
    documents_cut: Count
    """Documents that lie in more than one segment."""
    longest_context: Count
    """Largest effective left context."""
    shards: tuple[ShardRecord, ...]


class TaskRecord(Record):
    """The completion marker of a task, on disk while a run is under way."""

    task: Count
    documents: DocumentCounts
    text_bytes: Count
    parity_texts: Count
    parity_bytes: Count
    packed: dict[int, PackedCounts]
    """By row length."""


class TaskSummary(Record):
    """What a task read: it makes `doc_ids` findable."""

    slices: tuple[Slice, ...]
    first_record: Count
    """Number in the corpus of the task's first record: corpus number = first_record + doc_id."""
    documents: DocumentCounts


class Plan(Record):
    """What a run set out to do; a run that finds another plan in its way refuses."""

    format_version: int = FORMAT_VERSION
    tool_version: str
    options: PackOptions
    tokenizer: TokenizerRecord
    inputs: tuple[InputFile, ...]
    stdin_xxh3: Digest | None = None
    """Of standard input, if it was read: a restart must be given the same."""
    tasks: tuple[tuple[Slice, ...], ...]


class Manifest(Record):
    """A packed dataset: what it was made of, how, and what is in it. Same inputs and options, same bytes."""

    format_version: Literal[1] = FORMAT_VERSION
    tool_version: str
    seq_len: RowLength
    packing: Packing
    alignment: Literal["target"] = ALIGNMENT
    options: PackOptions
    tokenizer: TokenizerRecord
    inputs: tuple[InputRecord, ...]
    left_out: dict[str, Count] = {}
    """Files found in input directories but not read, by suffix."""
    tasks: tuple[TaskSummary, ...]
    documents: DocumentCounts
    text_bytes: Count
    documents_cut: Count
    longest_context: Count
    ledger: TokenLedger
    exposure: ExposureRecord
    rows: Count
    shards: tuple[ShardRecord, ...]
    rejected_xxh3: Digest | None = None
    """xxh3-128 of rejected.jsonl; None if nothing was rejected."""
    tree_hash: Digest
    """xxh3-128 over the shards' checksums in order: equal for equal data, however it was made."""
    checksum: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """sha256 of this record with an empty checksum: an edit by hand is found."""


class ShardWeights(Record):
    """What `weigh` left in one shard."""

    file: FileName
    weights_xxh3: Digest
    """xxh3-128 of the values of `loss_weights`."""


class RoundingRecord(Record):
    """What rounding to float16 did, over the corpus."""

    max_relative_error: float
    mean_weight: float
    mean_weight_float16: float
    zeros: Count


class WeightsFile(Record):
    """weights.json: the table that `loss_weights` holds, and all that it follows from."""

    format_version: Literal[1] = FORMAT_VERSION
    tool_version: str
    state: Literal["under way", "complete"]
    """`under way`: some shards hold these weights, others what they held before; run `weigh` again."""
    dataset_tree_hash: Digest
    """The manifest's tree hash: weights belong to one dataset."""
    seq_len: RowLength
    alignment: Literal["target"] = ALIGNMENT
    alpha: float
    gamma: float
    tail_from: int
    """tau as asked, in tokens."""
    tail_start: int
    """Where the tail begins: the first bucket edge at or above tau."""
    eps: float
    max_weight: float | None
    supervise_first: bool
    normalize: Normalize
    bucket_edges: tuple[int, ...]
    """Bucket b is [bucket_edges[b], bucket_edges[b + 1])."""
    exposure: ExposureRecord
    counts: tuple[Count, ...]
    """Supervised targets per bucket."""
    in_tail: tuple[bool, ...]
    weights: tuple[Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)], ...]
    """Weight of a supervised target per bucket, before rounding to float16."""
    scale: float
    """What all weights were divided by (`normalize`)."""
    extra: float
    """Extra supervision of the tail as it came out; alpha less what clipping took."""
    tail_share: float
    """The tail's share of supervised targets."""
    weighted_tail_share: float
    """The tail's share of supervision."""
    rounding: RoundingRecord
    shards: tuple[ShardWeights, ...] = ()
    """Checksums of the weights, shard by shard; empty while under way."""
    checksum: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """sha256 of this record with an empty checksum: an edit by hand is found."""

    @model_validator(mode="after")
    def fits(self) -> WeightsFile:
        """Refuse a table whose columns differ in length."""
        if {len(self.counts), len(self.in_tail), len(self.weights)} != {len(self.bucket_edges) - 1}:
            raise ValueError("bucket_edges, counts, in_tail and weights are not of the same buckets")
        return self
