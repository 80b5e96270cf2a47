"""The words that options may take. Apart from config.py so that `--help` need not import pydantic (0.14 s)."""

from typing import Literal

Packing = Literal["concat", "best-fit"]
OnError = Literal["stop", "reject"]
SpecialTokens = Literal["text", "special", "error"]
Backend = Literal["auto", "fastokens", "tokenizers"]
InputFormat = Literal["auto", "text", "jsonl", "json", "csv", "parquet", "arrow"]
Normalize = Literal["none", "mean"]
Align = Literal["target", "prediction"]
ExportFormat = Literal["megatron", "mds", "parquet", "levanter", "numpy", "lut", "row-weights"]
