"""The words and the limits of options. Apart from the records, so that `--help` need not import pydantic (0.14 s)."""

from typing import Literal

Packing = Literal["concat", "best-fit"]
OnError = Literal["stop", "reject"]
Documents = Literal["rows"]
RowCut = Literal["stored", "disjoint", "shared", "windows", "crops", "fragment", "truncate"]
"""How a trainer cuts documents into rows; see `weighing.cuts`."""
CUTS: dict[RowCut, str] = {
    "stored": "rows as they are stored",
    "disjoint": "rows of L tokens",
    "shared": "windows of L + 1 tokens that share one",
    "windows": "windows of L + 1 tokens",
    "crops": "random windows of L + 1 tokens",
    "fragment": "documents cut at multiples of L, and packed",
    "truncate": "documents cut after L tokens, and packed",
}
"""What reports call them."""
SpecialTokens = Literal["text", "special", "error"]
Backend = Literal["auto", "fastokens", "tokenizers"]
FileFormat = Literal["text", "jsonl", "json", "csv", "parquet", "arrow", "warc", "tar", "hub"]
"""Formats of inputs. The table in `sources.formats` has a row for each."""
InputFormat = Literal["auto", "text", "jsonl", "json", "csv", "parquet", "arrow", "warc", "tar"]
"""What the user may call an input: the same without `hub`, which is named with `hf://`."""
ReportFormat = Literal["terminal", "md", "csv", "latex", "json"]
FigureWidth = Literal["column", "text"]
FigureTheme = Literal["light", "dark"]
Normalize = Literal["none", "mean"]
Split = Literal["train", "validation"]
LossWeights = Literal["column", "table"]
Align = Literal["target", "prediction"]
MeasuredLayout = Literal["megatron", "huggingface", "olmo", "datatrove", "litdata", "mds", "tokens"]
"""Formats of tokens that others wrote. The table in `layouts.foreign` has a row for each."""
DocumentsBy = Literal["index", "seq_lengths", "position_ids", "attention_mask", "eos", "rows"]
"""By what a trainer tells documents apart."""
Order = Literal["expected", "file", "cache"]
"""The order in which a trainer lays documents end to end."""
TokenType = Literal["uint16", "uint32", "int32", "int64"]
Trainer = Literal["megatron", "olmo", "nanotron", "trl", "axolotl", "llama-factory", "llm-foundry", "nanogpt"]
ExportFormat = Literal[
    "megatron", "mds", "parquet", "levanter", "numpy", "olmo", "datatrove", "lut", "row-weights", "sidecar"
]

MAX_COUNT = 2**63 - 1
"""Counts and seeds are kept as int64."""

MAX_SEQ_LEN = 2**27
"""Tokens per row, at most."""

MAX_ROW_MULTIPLE = 1 << 20
"""Rows that a dataset may be completed to a multiple of, at most: no job has more ranks."""

MAX_WEIGHT = 65504.0
"""The largest finite float16: weights are stored as float16."""

MAX_SOURCES = 1000
"""Labels of sources in one corpus, at most. More are almost surely a wrong field, such as an id or a URL."""
