"""Renders datasets as one self-contained page. Pure: records in, text out; the page's own files are package data.

All data are one JSON block that the page's script reads and puts into the document as text: no markup comes from data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from exact_prep.choices import MAX_WEIGHT
from exact_prep.records.manifest import describe_special_tokens
from exact_prep.records.options import WeightOptions
from exact_prep.reports.glossary import TERMS
from exact_prep.reports.hostile import escape_controls
from exact_prep.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exact_prep.reports.page_data import PageDataset

BIBTEX = """@misc{exact2026,
  title = {Where Does Long-Context Supervision Actually Go? Effective-Context Exposure Balancing},
  year = {2026},
  eprint = {2605.10544},
  archivePrefix = {arXiv}
}"""

IN_SCRIPT = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})
"""What ends a script, or a line of one, early."""


def render_page(datasets: Sequence[PageDataset], reference: int = 0) -> str:
    """The page of some datasets, as HTML; the one at `reference` is what others are compared with."""
    data = {
        "version": __version__,
        "reference": reference,
        "maxWeight": MAX_WEIGHT,
        "defaults": {"alpha": WeightOptions.alpha, "gamma": WeightOptions.gamma, "eps": WeightOptions.eps},
        "glossary": {name: term.text for term in TERMS for name in (term.name, *term.also)},
        "bibtex": BIBTEX,
        "datasets": [one.model_dump(mode="json") | {"provenance": list_provenance(one)} for one in datasets],
    }
    script, style = read_part("page.js"), read_part("page.css")
    parts = {
        "SCRIPT_HASH": hash_source(script),
        "STYLE_HASH": hash_source(style),
        "STYLE": style,
        "DATA": json.dumps(escape_all(data), ensure_ascii=False, separators=(",", ":")).translate(IN_SCRIPT),
        "SCRIPT": script,
    }
    # In one pass: what stands in the data is never taken for a place.
    pieces = read_part("page.html").split("%%")
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def read_part(name: str) -> str:
    """A file of the page."""
    return files("exact_prep.reports").joinpath(name).read_text(encoding="utf-8")


def hash_source(text: str) -> str:
    """The name of an inline script or style in the page's content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def escape_all(value: Any) -> Any:
    """The value with hostile characters of every text spelled out, names of fields included."""
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, dict):
        return {escape_controls(str(key)): escape_all(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escape_all(one) for one in value]
    return value


def list_provenance(one: PageDataset) -> list[tuple[str, str]]:
    """How a dataset came to be: names and values."""
    facts, tokenizer = one.facts, one.facts.tokenizer
    proof = (
        f"{tokenizer.backend} {tokenizer.backend_version}, the same ids as tokenizers {tokenizer.reference_version} on "
        f"{tokenizer.parity_texts:,} texts ({tokenizer.parity_bytes:,} bytes); "
        f"{tokenizer.parity_differences:,} differences"
        if tokenizer.parity_texts
        else f"{tokenizer.backend} {tokenizer.backend_version}".strip() or "none: the corpus came as ids"
    )
    return [
        ("Directory", facts.directory),
        ("Made by", f"exact-prep {facts.tool_version}; this page by exact-prep {__version__}"),
        ("Tree hash", facts.tree_hash),
        ("Rows", f"{facts.rows:,} of {facts.seq_len:,} tokens, {facts.packing} packing, {facts.shards:,} shards"),
        ("Input", f"{facts.input_files:,} files, {facts.text_bytes:,} bytes of text"),
        ("Options of pack", one.command),
        ("Tokenizer", f"{tokenizer.name} (sha256 {tokenizer.sha256})" if tokenizer.sha256 else "none"),
        ("Proof of ids", proof),
        ("Special tokens", describe_special_tokens(tokenizer.special_tokens)),
    ]
