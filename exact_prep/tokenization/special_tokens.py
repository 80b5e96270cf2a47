"""Finds the ids of EOS, BOS and padding in options, tokenizer files and vocabularies. Encodes only one probe text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from exact_prep.errors import TokenizerError
from exact_prep.records.options import TokenizerOptions
from exact_prep.tokenization.files import Role, find_named_token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONVENTIONAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>")
"""Names that always mean end of document. `<|im_end|>` is not listed: it ends a turn of a dialogue."""

PROBE = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """The special ids of a run; None if that token is not added."""

    eos: int | None
    bos: int | None
    pad: int


def resolve(options: TokenizerOptions, path: Path, vocabulary: Mapping[str, int], tokenizer: Any) -> SpecialIds:
    """Special ids for text, from options, tokenizer files and the post-processor of `tokenizer` (the reference).

    Raises TokenizerError, which names the option to set, if a needed id cannot be determined.
    """
    known = {role: find_token_id(options, role, path, vocabulary) for role in ("eos", "bos", "pad")}
    eos = known["eos"] if known["eos"] is not None else find_conventional_eos(vocabulary)
    if eos is None and options.eos is not False:
        raise TokenizerError(explain_missing(path, "EOS", "eos", instead="--no-eos"))
    bos = choose_bos_id(options, path, known["bos"], tokenizer)
    pad = known["pad"] if known["pad"] is not None else eos
    if pad is None:
        raise TokenizerError(explain_missing(path, "padding", "pad"))
    return SpecialIds(eos=eos if options.eos is not False else None, bos=bos, pad=pad)


def explain_missing(path: Path, what: str, role: str, instead: str = "") -> str:
    """The error message for a special token that neither options nor files name."""
    alternative = f", or pass {instead}" if instead else ""
    return f"{path}: no file names the {what} token; pass a token of the vocabulary with --{role}-token{alternative}"


def find_token_id(options: TokenizerOptions, role: Role, path: Path, vocabulary: Mapping[str, int]) -> int | None:
    """The id of the token that an option, or else a file beside the tokenizer, names for `role`."""
    asked = getattr(options, f"{role}_token")
    if asked is not None:
        if asked not in vocabulary:
            raise TokenizerError(f"--{role}-token {asked!r} is not in the vocabulary of {path}")
        return vocabulary[asked]
    named = find_named_token(path, role)
    if named is None:
        return None
    token, companion = named
    if token not in vocabulary:
        raise TokenizerError(
            f"{path.with_name(companion)} names {role}_token {token!r}, which is not in the vocabulary; "
            f"pass a token of the vocabulary with --{role}-token"
        )
    return vocabulary[token]


def find_conventional_eos(vocabulary: Mapping[str, int]) -> int | None:
    """The id of the only conventional EOS in the vocabulary; None if there is none or more than one."""
    ids = {vocabulary[name] for name in CONVENTIONAL_EOS if name in vocabulary}
    return ids.pop() if len(ids) == 1 else None


def choose_bos_id(options: TokenizerOptions, path: Path, known: int | None, tokenizer: Any) -> int | None:
    """The id to put before each document: the one asked for, else the one that the tokenizer's post-processor adds."""
    if options.bos is False:
        return None
    if options.bos_token is not None:
        return known
    prefix = find_prefix(tokenizer)
    if options.bos is None and not prefix:
        return None
    if options.bos and known is not None:
        return known
    if len(prefix) == 1:
        return prefix[0]
    if prefix:
        raise TokenizerError(
            f"{path}: the post-processor puts {len(prefix)} tokens before a text; "
            "choose one with --bos-token, or pass --no-bos"
        )
    raise TokenizerError(explain_missing(path, "BOS", "bos", instead="--no-bos"))


def find_prefix(tokenizer: Any) -> list[int]:
    """The ids that the post-processor of a `tokenizers.Tokenizer` puts before a text."""
    plain = tokenizer.encode(PROBE, add_special_tokens=False).ids
    processed = tokenizer.encode(PROBE, add_special_tokens=True).ids
    added = len(processed) - len(plain)
    starts = [start for start in range(added + 1) if processed[start : start + len(plain)] == plain]
    return processed[: starts[0]] if starts else []


def resolve_for_ids(
    options: TokenizerOptions, vocabulary: Mapping[str, int] | None, path: Path | None = None
) -> SpecialIds:
    """Special ids for a corpus of ids: nothing is added unless asked for; padding defaults to the EOS id if known.

    Options are integers, or tokens if a vocabulary is given; raises TokenizerError otherwise. Files beside the
    tokenizer at `path` name the tokens that options do not.
    """
    eos, bos, pad = (parse_id(getattr(options, f"{role}_token"), role, vocabulary) for role in get_args(Role))
    if path is not None and vocabulary is not None:
        eos, bos, pad = (
            known if known is not None else find_token_id(TokenizerOptions(), role, path, vocabulary)
            for known, role in zip((eos, bos, pad), get_args(Role), strict=True)
        )
        eos = eos if eos is not None else find_conventional_eos(vocabulary)
    for name, wanted, known in (("eos", options.eos, eos), ("bos", options.bos, bos)):
        if wanted and known is None:
            raise TokenizerError(f"--{name}: the corpus is token ids, so give the id with --{name}-token")
    pad = pad if pad is not None else eos
    if pad is None:
        raise TokenizerError("the corpus is token ids, so give the id that pads rows with --pad-token")
    return SpecialIds(eos=eos if options.eos else None, bos=bos if options.bos else None, pad=pad)


def parse_id(asked: str | None, role: str, vocabulary: Mapping[str, int] | None) -> int | None:
    """The id that an option means if the corpus is token ids; raises TokenizerError."""
    if asked is None:
        return None
    if asked.isascii() and asked.isdecimal() and int(asked) < 2**31:
        number = int(asked)
        if vocabulary is not None and number > max(vocabulary.values(), default=-1):
            raise TokenizerError(f"--{role}-token {asked}: the id is not in the vocabulary")
        return number
    if vocabulary is None:
        raise TokenizerError(f"--{role}-token {asked!r}: the corpus is token ids, so give an id, or pass --tokenizer")
    if asked not in vocabulary:
        raise TokenizerError(f"--{role}-token {asked!r} is not in the vocabulary")
    return vocabulary[asked]
