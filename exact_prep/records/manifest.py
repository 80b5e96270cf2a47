"""manifest.json: what a packed dataset is made of, how, and what is in it. Small, however large the corpus.

What grows with the corpus (inputs, tasks, shards, batches, sources, document lengths) is in Parquet tables, whose
checksums the manifest holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from exact_prep.choices import MAX_COUNT, LossWeights, Packing, SpecialTokens, Split
from exact_prep.records import ALIGNMENT, FORMAT_VERSION, Count, Digest, FormatVersion, Record, RowLength, Seal
from exact_prep.records.options import PackOptions

if TYPE_CHECKING:
    from collections.abc import Iterable


Role = Literal["eos", "bos", "pad"]

LABELS: dict[Role, str] = {"eos": "EOS", "bos": "BOS", "pad": "padding"}
"""What messages call the roles."""


class SpecialTokenRecord(Record):
    """The token of one role, and where it came from."""

    role: Role
    text: str | None
    """Null if there is no token, or if its text is not known: an id without a tokenizer."""
    id: int | None
    """Null if there is no token."""
    source: str
    """The option or file that named it, or why there is none."""


def describe_special_tokens(tokens: Iterable[SpecialTokenRecord]) -> str:
    """One line: each role's token, its id and where it came from."""
    described = []
    for token in tokens:
        if token.id is None:
            described.append(f"{LABELS[token.role]} none ({token.source})")
        elif token.text is None:
            described.append(f"{LABELS[token.role]} id {token.id} ({token.source})")
        else:
            described.append(f"{LABELS[token.role]} {token.text!r} (id {token.id}, {token.source})")
    return ", ".join(described)


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
    special_tokens: tuple[SpecialTokenRecord, ...]
    """EOS, BOS and padding: text, id and where each came from."""
    document_ends: tuple[Count, ...] = ()
    """Ids that end a document, as far as they are known, whether they are appended or not."""
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
    """Tokens in rows, without padding."""
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
    held_out: Count = 0
    """Documents that `--validation` put into the dataset beside this one."""


class ExposureRecord(Record):
    """Supervised targets per bucket of effective left context: [0, 7], [8, 15], [16, 31], ..."""

    counts: Annotated[tuple[Count, ...], Field(max_length=60)]
    """Targets with left context >= 1 that carry loss."""
    segments: Count
    """Segments, that is targets with left context 0."""
    firsts: Count
    """Segments whose first token may carry loss: all of them where nothing is masked."""

    @model_validator(mode="after")
    def fits(self) -> ExposureRecord:
        """Refuse counts whose sum an int64 does not hold: they would wrap around."""
        if sum(self.counts) + self.segments > MAX_COUNT:
            raise ValueError("more targets than 2**63 - 1")
        if self.firsts > self.segments:
            raise ValueError("more first tokens than segments")
        return self


class Manifest(Record):
    """A packed dataset. Same inputs and options, same bytes."""

    format_version: FormatVersion = FORMAT_VERSION
    tool_version: str
    seq_len: RowLength
    packing: Packing
    alignment: Literal["target"] = ALIGNMENT
    loss_weights: LossWeights
    """`column`: shards hold the weights. `table`: they do not, readers compute them from weights.json."""
    masked: bool = False
    """Whether some targets carry no loss (column `masked_runs`)."""
    split: Split | None = None
    """Which side of `--validation` this is. Documents of a validation dataset are numbered through the whole corpus."""
    train_hash: Digest | None = None
    """Of a validation dataset: the tree hash of the training rows beside it, whose tables it takes."""
    continued: bool = False
    """Whether inputs changed while the run was incomplete, so that a fresh run would make other tasks or shards: the
    bytes are then not those of a fresh run."""
    options: PackOptions
    tokenizer: TokenizerRecord
    left_out: dict[str, Count] = {}
    """Files found in input directories but not read, by reason."""
    records_left_out: dict[str, Count] = {}
    """Records and members of archives (WARC, tar) that hold no text, by kind; the records count as empty."""
    input_files: Count
    tasks: Count
    shards: Count
    sources: Count
    """Labels of sources; see tables/sources.parquet."""
    documents: DocumentCounts
    text_bytes: Count
    documents_cut: Count
    """Documents that lie in more than one segment."""
    longest_context: Count
    """Largest effective left context."""
    ledger: TokenLedger
    exposure: ExposureRecord
    rows: Count
    padding_rows: Count = 0
    """Rows among them that hold padding alone (`rows_multiple_of`); they are the last ones."""
    digests: dict[str, Digest]
    """xxh3-128 of the files beside the shards, by name: tables (but tables/weights.parquet, which weights.json holds),
    tokenizer files, dataset_info.json, rejected.jsonl."""
    tree_hash: Digest
    """xxh3-128 over the shards' `content_xxh3` in order: equal for equal data, with or without weights."""
    checksum: Seal = ""
    """sha256 of this file with an empty checksum: a change by hand is found."""
