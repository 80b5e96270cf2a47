"""What the user asked, as frozen records. What was measured or made lives in the other records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Annotated, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from exact_prep.choices import (
    MAX_COUNT,
    MAX_ROW_MULTIPLE,
    MAX_WEIGHT,
    Backend,
    Documents,
    DocumentsBy,
    InputFormat,
    LossWeights,
    MeasuredLayout,
    Normalize,
    OnError,
    Order,
    Packing,
    RowCut,
    SpecialTokens,
    TokenType,
    Trainer,
)
from exact_prep.errors import UsageError, WeightsError
from exact_prep.records import Record, RowLength


def check_source_from(value: str) -> str:
    """The value of `source_from` as it is; raises UsageError unless it is `input`, `dir` or `field:NAME`."""
    if value in ("input", "dir") or (value.startswith("field:") and value != "field:"):
        return value
    raise UsageError(
        f"--source-from {value!r} is not known;\n"
        "write input, dir or field:NAME, where NAME is a field or column of the records"
    )


def check_character(value: str | None) -> str | None:
    """The value of `csv_delimiter` or `csv_quote` as it is; raises UsageError unless it is one character."""
    if value is None or (len(value) == 1 and value not in "\r\n"):
        return value
    raise UsageError(f"--csv-delimiter and --csv-quote are one character each, not {value!r}")


class SourceOptions(Record):
    """Which documents, and what happens to bad ones."""

    text_field: tuple[str, ...] = Field(default=("text",), min_length=1)
    """Fields or columns that may hold a document's text: of each record the first that it has. `a.b` is field b of the
    object a, unless a field has that very name."""
    ids_field: str | None = None
    """List column that holds a document's token ids; the text is then not read and nothing is tokenized."""
    documents: Documents | None = None
    """How documents are told apart in `ids_field`. `rows`: each row is one, whatever it holds. None: the same, but a
    row with the EOS token inside is an unusable document, because it may hold several."""
    mask_field: Annotated[str, Field(min_length=1)] | None = None
    """List column beside `ids_field`: per token, 1 or true if it carries loss."""
    labels_field: Annotated[str, Field(min_length=1)] | None = None
    """List column beside `ids_field`: per token a label, -100 if the token carries no loss."""
    join: str = "\n"
    """What comes between the strings of a field that holds a list of them."""
    csv_delimiter: str | None = None
    """What separates the fields of a CSV file; None is a comma, and a tab in .tsv."""
    csv_quote: str | None = '"'
    """What encloses a field of a CSV file; None: quotes are text."""
    input_format: InputFormat = "auto"
    """How to read files; `auto` tells it by their names."""
    id_field: Annotated[str, Field(min_length=1)] | None = None
    """Field or column that holds a document's own id, which is kept in tables/documents; None keeps none."""
    source_from: Annotated[str, Field(json_schema_extra={"pattern": "^(input|dir|field:.+)$"})] = "input"
    """What labels the source of a document: the `input` argument through which its file was found, the file's `dir`
    relative to that argument, or `field:NAME`, a field or column of the record."""
    separator: str | None = None
    """What separates documents inside a text file; without it one file is one document."""
    on_error: OnError = "stop"
    """What happens to a document that cannot be used."""
    task_bytes: Annotated[int, Field(ge=1)] | None = None
    """Input that one task reads, about, in bytes; None is 1/512 of the corpus, at least 32 MiB and at most 512 MiB, or
    1/7,500 of a corpus for which that is more."""
    limit_docs: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many documents."""
    limit_tokens: Annotated[int, Field(ge=1)] | None = None
    """Stop after the document that reaches this many tokens."""

    _source_from = field_validator("source_from")(check_source_from)

    @property
    def masked(self) -> bool:
        """Whether some targets carry no loss."""
        return self.mask_field is not None or self.labels_field is not None

    @model_validator(mode="after")
    def _mask(self) -> SourceOptions:
        """Masks are per token, so they come with ids, and from one place."""
        if self.masked and self.ids_field is None:
            raise ValueError("--mask-field and --labels-field are for --ids-field: they hold a value per token")
        if self.mask_field is not None and self.labels_field is not None:
            raise ValueError("--mask-field and --labels-field exclude each other; leave one out")
        return self

    @model_validator(mode="after")
    def _documents(self) -> SourceOptions:
        """Text is told apart by files, lines and rows already."""
        if self.documents is not None and self.ids_field is None:
            raise ValueError("--documents is for --ids-field: it says what a row of ids is")
        return self

    @field_validator("text_field", mode="before")
    @classmethod
    def _text_field(cls, value: object) -> object:
        """One name may be given as it is."""
        return (value,) if isinstance(value, str) else value

    _csv = field_validator("csv_delimiter", "csv_quote")(check_character)


class TokenizerOptions(Record):
    """How text becomes ids."""

    tokenizer: str | None = None
    """A tokenizer.json, a directory that holds one, or a hub id; may be absent when ids are read."""
    backend: Backend = "auto"
    """Which library encodes; `auto` takes the fast one where it is proven equal."""
    special_tokens_in_text: SpecialTokens = "text"
    """What text that spells a special token becomes: plain text, the special token, or an error."""
    eos: bool | None = None
    """Whether EOS is appended to each document; None appends it to text, and nothing to a corpus that came as ids."""
    bos: bool | None = None
    """Whether BOS is prepended; None follows the tokenizer's post-processor and `add_bos_token`."""
    eos_token: str | None = None
    """The EOS token instead of the one that the tokenizer's files name: a special token's text, or `id:N`."""
    bos_token: str | None = None
    """The BOS token, likewise; it is then prepended."""
    pad_token: str | None = None
    """The padding token, likewise; EOS if neither this nor the tokenizer's files name one."""


class PackingOptions(Record):
    """How documents become rows."""

    seq_lens: tuple[RowLength, ...] = Field(min_length=1)
    """Tokens per row; one dataset per entry."""
    packing: Packing = "concat"
    """`concat` lays documents end to end and cuts at row edges; `best-fit` cuts only documents longer than a row."""
    shuffle: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Seed that permutes documents before packing and rows before writing, within each task."""
    window_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """Tokens that best-fit and shuffling look at once; None: 16M, or 64 rows if that is more."""
    max_segments: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """Segments in a row, at most; None: as many as fit."""
    rows_multiple_of: Annotated[int, Field(ge=1, le=MAX_ROW_MULTIPLE)] | None = None
    """Rows of padding alone complete the dataset to a multiple of this; None adds none."""

    @model_validator(mode="after")
    def _window(self) -> PackingOptions:
        """A window is looked at only where documents or rows are put in another order."""
        if self.window_tokens is not None and self.packing == "concat" and self.shuffle is None:
            raise ValueError("--pack-window is for --packing best-fit and --shuffle: concat looks at no window")
        return self


class ValidationOptions(Record):
    """Which documents are held out."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Held out are documents whose xxh3_64 over the first 4 KiB (UTF-8, or little-endian int32 ids) lies below
    fraction x 2^64."""
    seed: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """Of that hash."""


def make_validation(fraction: float | str | None, seed: int) -> ValidationOptions | None:
    """Options from a share such as 0.005 or "0.5%"; None holds nothing out. Raises UsageError."""
    if fraction is None:
        if seed:
            raise UsageError("--validation-seed is for --validation")
        return None
    text = str(fraction)
    try:
        share = float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
    except InvalidOperation:
        share = math.nan
    if not 0 < share < 1:
        raise UsageError(f"--validation {text}: a share of the documents above 0 and below 1, such as 0.5% or 0.005")
    if not 0 <= seed <= MAX_COUNT:
        raise UsageError(f"--validation-seed {seed}: a seed is at least 0 and at most 2**63 - 1")
    return ValidationOptions(fraction=share, seed=seed)


class PackOptions(Record):
    """Everything that decides the bytes of a packed dataset, given the input files."""

    source: SourceOptions
    tokenizer: TokenizerOptions
    packing: PackingOptions
    validation: ValidationOptions | None = None
    """None holds nothing out."""
    loss_weights: LossWeights = "column"
    """Whether shards hold the weights, or readers compute them from the table in weights.json."""


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """What the user asks of the weights. The defaults are the paper's; `eps` and `supervise_first` are ours.

    The one record of these options: the command fills it, weights.json holds it, the report shows it. Raises
    WeightsError for invalid values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    alpha: float = 0.15
    """Extra supervision of the tail: sum over T of q_b * (w_b - 1)."""
    gamma: float = 0.5
    """Exponent of the inverse bucket frequency; 0 spreads the extra evenly over tail targets."""
    tail_from: int | None = None
    """tau, in tokens: buckets whose lower edge is at least this are the tail. None: the first bucket edge at or above
    a quarter of the row, or of the window if that is shorter."""
    eps: float = 1e-6
    """Added to a bucket's share before it is inverted."""
    max_weight: float | None = None
    """Upper limit of a weight; None means the largest finite float16."""
    supervise_first: bool = False
    """Whether the first token of a segment (left context 0) carries loss."""
    normalize: Normalize = "none"
    """`mean` divides all weights by their corpus mean over supervised targets."""
    window: int | None = None
    """Tokens that each query sees under sliding-window attention, itself included; None: the whole segment."""
    keep_mixture: bool = False
    """Whether each dataset of a mixture keeps its share of supervision."""

    def __post_init__(self) -> None:
        """Refuse invalid values; raises WeightsError."""
        for name in ("tail_from", "window"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise WeightsError(f"{name} must be a whole number of tokens, not {value!r}")
        if self.normalize not in get_args(Normalize):
            raise WeightsError(f"normalize must be one of {', '.join(get_args(Normalize))}, not {self.normalize!r}")
        for name in ("alpha", "gamma", "eps"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise WeightsError(f"{name} must be a finite number >= 0, not {value!r}")
        if self.eps == 0:
            raise WeightsError("eps must be > 0: it keeps the inverse of a bucket's share finite")
        if self.tail_from is not None and not 0 <= self.tail_from < 2**31:
            raise WeightsError(f"tail_from must lie in [0, 2**31) tokens, not {self.tail_from!r}")
        if self.max_weight is not None and not 1 <= self.max_weight <= MAX_WEIGHT:
            raise WeightsError(f"max_weight must lie in [1, {MAX_WEIGHT:.0f}] (float16), not {self.max_weight!r}")
        if self.window is not None and not 1 <= self.window < 2**31:
            raise WeightsError(f"window must lie in [1, 2**31) tokens, not {self.window!r}")
        if self.keep_mixture and self.normalize == "mean":
            raise WeightsError("keep_mixture and normalize mean exclude each other: both set the mean weight")


class MeasureOptions(Record):
    """What `measure` reads, and how the trainer that will read it cuts rows and tells documents apart."""

    layout: MeasuredLayout
    trainer: Trainer | None = None
    """Whose defaults were asked for."""
    seq_len: RowLength | None
    """Tokens per row; None: the longest stored row."""
    rows: RowCut
    """How the trainer cuts; see `weighing.cuts`."""
    documents: DocumentsBy | None
    """By what the trainer tells documents apart; None: by the first column that tells it."""
    order: Order
    """`expected`: the trainer shuffles documents, and the formula for random places is used where it is better than
    one order. `file`: it reads them as they lie. `cache`: in the order that Megatron kept."""
    cache: str | None = None
    """Directory of Megatron's document_index.npy."""
    isolated: bool = True
    """Whether attention stops at document edges; if not, every row is one document."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    dtype: TokenType | None = None
    """Type of the ids, where the files do not say it."""
    split: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Shares of train, validation and test data; the first is measured. None: everything is."""
    ids_field: str | None = None
    """Column of token ids; None: input_ids, or tokens."""
    mask_field: str | None = None
    """Column with 1 or true per token that carries loss."""
    labels_field: str | None = None
    """Column with -100 per token that carries no loss."""
