r"""Where a long text may be cut so that its parts, encoded one by one, give the ids of the whole text.

A cut is allowed where every pre-tokenizer listed here provably splits, and where the pre-tokenizer treats both parts
as it treated the same characters in the whole text:

* The part after the cut: none of these regexes looks behind, so it is matched in the same way on its own.
* The part before the cut: it is matched in the same way if the match that ends at the cut stops there both when white
  space follows and when nothing follows.

There are three kinds of cut:

BLANK, a visible character before a space. In every alternative, white space comes first (` ?`, `[^\r\n\p{L}\p{N}]?`)
    or alone; after punctuation come only newlines (in o200k also `/`). So no match goes from a visible character to a
    space. Greedy repeats stop at the space as they stop at the end of the text, `'r` of a contraction fails at both,
    and white space before the cut ended at the visible character, which `\s+(?!\S)` has seen.
LINE, a newline before a visible character other than `/`. In the cl100k, o200k and DeepSeek families, `\s*[\r\n]+`
    takes a run of white space up to its last newline, `[\r\n]*` after punctuation takes all newlines (in o200k
    `[\r\n/]*`, which is why `/` is excluded), and no match starts with a newline and continues with a visible
    character. This does not hold for GPT-2's regex: `\s+(?!\S)` leaves the last of two newlines to the next match if a
    visible character follows.
BREAK, a visible character before a newline. In GPT-2's regex, for the same reasons as BLANK.

Digits, and DeepSeek's first two splits, only add splits between classes of visible characters; these do no harm at a
cut. NFC changes neither spaces nor newlines, composes nothing with them, and keeps visible characters visible. Added
tokens are matched before all of this: none may lie across a cut, take white space around it, or look at its
neighbours. Every byte must be in the vocabulary, so that no part of a text is encoded to nothing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from exact_prep.tokenization.files import TokenizerFile, parse, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VISIBLE = r"[^\s\x00-\x1f\x7f-\x9f\u180e\u200b-\u200f\u2060-\u206f\ufeff]"
"""Not white space, nor a character that some Unicode version or library has counted as white space."""
BLANK = rf"{VISIBLE}(?= )"
LINE = rf"\n(?!/)(?={VISIBLE})"
BREAK = rf"{VISIBLE}(?=\n)"
BLANK_OR_LINE = f"{BLANK}|{LINE}"
BLANK_OR_BREAK = f"{BLANK}|{BREAK}"

END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CL100K = SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END
"""cl100k, Llama 3, OLMo 2, Phi-4."""
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
"""Qwen 2, 2.5 and 3."""
QWEN35 = SUFFIX + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + END
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + END
)
"""o200k, gpt-oss, Llama 4."""
TEKKEN = O200K.replace(f"{SUFFIX}?", "").replace(r"\p{N}{1,3}", r"\p{N}")
"""Mistral Nemo and later."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
"""DeepSeek V3 splits three times. Its patterns contain real newline characters, not `\\n` escapes."""

CUTS: dict[tuple[str, ...], str] = {
    **{(regex,): BLANK_OR_LINE for regex in (CL100K, QWEN2, QWEN35, O200K, TEKKEN)},
    DEEPSEEK: BLANK_OR_LINE,
    (GPT2,): BLANK_OR_BREAK,
}

BYTES = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
"""The characters that stand for the 256 bytes in a byte-level vocabulary (Radford et al. 2019, `bytes_to_unicode`)."""


@lru_cache(maxsize=4)
def load_cut_pattern(path: Path, *, split_special: bool, knows: Callable[[str], bool]) -> re.Pattern[str] | None:
    """`find_cut_pattern` for the tokenizer.json at `path`, once per process."""
    return find_cut_pattern(parse(read(path), path), split_special=split_special, knows=knows)


def find_cut_pattern(
    file: TokenizerFile, *, split_special: bool, knows: Callable[[str], bool]
) -> re.Pattern[str] | None:
    """A regex whose matches end where a text may be cut; None if no cut is proven safe for this tokenizer.

    `knows` says whether a token is in the vocabulary.
    """
    pattern = CUTS.get(read_split_regexes(file.pre_tokenizer) or ())
    if pattern is None or file.model.type != "BPE" or not keeps_white_space(file.normalizer):
        return None
    if not all(map(knows, BYTES)):
        return None
    compiled = re.compile(pattern)
    for token in file.added_tokens:
        if token.special and split_special:
            continue
        if token.single_word or token.lstrip or token.rstrip:
            return None
        if any(compiled.search(content) for content in (token.content, unicodedata.normalize("NFC", token.content))):
            return None
    return compiled


def keeps_white_space(normalizer: dict[str, Any] | None) -> bool:
    """Whether the normalizer is NFC or absent: then normalising the parts gives the same as normalising the whole."""
    if normalizer is None or normalizer.get("type") == "NFC":
        return True
    return normalizer.get("type") == "Sequence" and all(map(keeps_white_space, normalizer.get("normalizers", [None])))


def read_split_regexes(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The regexes with which a byte-level pre-tokenizer isolates pieces; None if it does anything else."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if last.get("use_regex", True):
        return (GPT2,) if all(step.get("type") == "Digits" for step in before) else None
    if all(step.get("type") == "Split" and isolates(step) for step in before):
        return tuple(step["pattern"]["Regex"] for step in before)
    return None


def isolates(split: dict[str, Any]) -> bool:
    """Whether a Split turns each match of its regex, and each text between two matches, into one piece."""
    return split.get("behavior") == "Isolated" and not split.get("invert") and "Regex" in split.get("pattern", {})
