"""What the user asked, as frozen records. What was measured or made lives in the other records."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from exact_prep.choices import Backend, InputFormat, OnError, Packing, SpecialTokens
from exact_prep.records import Record


class SourceOptions(Record):
    """Which documents, and what happens to bad ones."""

    text_field: str = "text"
    """Field or column that holds a document's text."""
    ids_field: str | None = None
    """List column that holds a document's token ids; the text is then not read and nothing is tokenized."""
    input_format: InputFormat = "auto"
    """How to read files; `auto` goes by their names."""
    separator: str | None = None
    """What separates documents inside a text file; without it one file is one document."""
    on_error: OnError = "stop"
    """What happens to a document that cannot be used."""
    task_bytes: Annotated[int, Field(ge=1)] | None = None
    """Input that one task reads, about; None is 1/512 of the corpus, within 32 MiB and 512 MiB."""
    limit_docs: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many documents."""
    limit_tokens: Annotated[int, Field(ge=1)] | None = None
    """Stop after the document that reaches this many tokens."""


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
    """Whether BOS is prepended; None follows the tokenizer's own post-processor."""
    eos_token: str | None = None
    """The EOS token, where the tokenizer does not name one; without a tokenizer its id."""
    bos_token: str | None = None
    """The BOS token, where the tokenizer does not name one; without a tokenizer its id."""
    pad_token: str | None = None
    """The padding token, or without a tokenizer its id; EOS where neither this nor the tokenizer names one."""


class PackingOptions(Record):
    """How documents become rows."""

    seq_lens: tuple[Annotated[int, Field(ge=2, le=2**27)], ...] = Field(min_length=1)
    """Tokens per row; one dataset per entry."""
    packing: Packing = "concat"
    """`concat` lays documents end to end and cuts at row edges; `best-fit` cuts only documents longer than a row."""
    shuffle: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed that permutes documents before packing and rows before writing, within each task."""


class PackOptions(Record):
    """Everything that decides the bytes of a packed dataset, given the input files."""

    source: SourceOptions
    tokenizer: TokenizerOptions
    packing: PackingOptions
