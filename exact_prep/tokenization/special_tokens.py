"""Which ids EOS, BOS and padding have. Looks into vocabularies and companions; encodes nothing but a probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from exact_prep.errors import TokenizerError
from exact_prep.records.options import TokenizerOptions
from exact_prep.tokenization.files import Role, named_token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONVENTIONAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>")
"""Names that mean end of document wherever they occur. `<|im_end|>` ends a turn, so it is not among them."""

PROBE = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """The ids a run uses; None where nothing is added."""

    eos: int | None
    bos: int | None
    pad: int


def resolve(options: TokenizerOptions, path: Path, vocabulary: Mapping[str, int], tokenizer: Any) -> SpecialIds:
    """Special ids for text, as options, the files and the post-processor of `tokenizer` (the reference) say.

    Raises TokenizerError, naming the option, where an id is needed and none can be told.
    """
    known = {role: token_id(options, role, path, vocabulary) for role in ("eos", "bos", "pad")}
    eos = known["eos"] if known["eos"] is not None else conventional_eos(vocabulary)
    if eos is None and options.eos is not False:
        raise TokenizerError(missing(path, "EOS", "eos", instead="--no-eos"))
    bos = bos_id(options, path, known["bos"], tokenizer)
    pad = known["pad"] if known["pad"] is not None else eos
    if pad is None:
        raise TokenizerError(missing(path, "padding", "pad"))
    return SpecialIds(eos=eos if options.eos is not False else None, bos=bos, pad=pad)


def missing(path: Path, what: str, role: str, instead: str = "") -> str:
    """The message for a token that nothing names."""
    alternative = f", or pass {instead}" if instead else ""
    return f"{path}: nothing names the {what} token; name one of the vocabulary with --{role}-token{alternative}"


def token_id(options: TokenizerOptions, role: Role, path: Path, vocabulary: Mapping[str, int]) -> int | None:
    """The id of the token that an option, or else a companion of the tokenizer, names for `role`."""
    asked = getattr(options, f"{role}_token")
    if asked is not None:
        if asked not in vocabulary:
            raise TokenizerError(f"--{role}-token {asked!r} is not in the vocabulary of {path}")
        return vocabulary[asked]
    named = named_token(path, role)
    if named is None:
        return None
    token, companion = named
    if token not in vocabulary:
        raise TokenizerError(
            f"{path.with_name(companion)} names {role}_token {token!r}, which is not in the vocabulary; "
            f"name one that is with --{role}-token"
        )
    return vocabulary[token]


def conventional_eos(vocabulary: Mapping[str, int]) -> int | None:
    """The id of the only conventional EOS in the vocabulary; None if there is none or more than one."""
    ids = {vocabulary[name] for name in CONVENTIONAL_EOS if name in vocabulary}
    return ids.pop() if len(ids) == 1 else None


def bos_id(options: TokenizerOptions, path: Path, known: int | None, tokenizer: Any) -> int | None:
    """The id put in front of documents: as asked, else as the tokenizer's own post-processor does."""
    if options.bos is False:
        return None
    if options.bos_token is not None:
        return known
    prefix = prepended(tokenizer)
    if options.bos is None and not prefix:
        return None
    if options.bos and known is not None:
        return known
    if len(prefix) == 1:
        return prefix[0]
    if prefix:
        raise TokenizerError(
            f"{path}: the post-processor puts {len(prefix)} tokens before a text; "
            "name the one to use with --bos-token, or pass --no-bos"
        )
    raise TokenizerError(missing(path, "BOS", "bos", instead="--no-bos"))


def prepended(tokenizer: Any) -> list[int]:
    """The ids that the post-processor of a `tokenizers.Tokenizer` puts before a text."""
    plain = tokenizer.encode(PROBE, add_special_tokens=False).ids
    dressed = tokenizer.encode(PROBE, add_special_tokens=True).ids
    added = len(dressed) - len(plain)
    starts = [start for start in range(added + 1) if dressed[start : start + len(plain)] == plain]
    return dressed[: starts[0]] if starts else []


def resolve_for_ids(
    options: TokenizerOptions, vocabulary: Mapping[str, int] | None, path: Path | None = None
) -> SpecialIds:
    """Special ids for a corpus that came as ids: nothing is added unless asked, padding is the EOS id if one is known.

    Options are integers, or tokens where a vocabulary is given; raises TokenizerError otherwise. A tokenizer at `path`
    names what options do not.
    """
    eos, bos, pad = (as_id(getattr(options, f"{role}_token"), role, vocabulary) for role in get_args(Role))
    if path is not None and vocabulary is not None:
        eos, bos, pad = (
            known if known is not None else token_id(TokenizerOptions(), role, path, vocabulary)
            for known, role in zip((eos, bos, pad), get_args(Role), strict=True)
        )
        eos = eos if eos is not None else conventional_eos(vocabulary)
    for name, wanted, known in (("eos", options.eos, eos), ("bos", options.bos, bos)):
        if wanted and known is None:
            raise TokenizerError(f"--{name}: the corpus came as ids, so name the id with --{name}-token")
    pad = pad if pad is not None else eos
    if pad is None:
        raise TokenizerError("the corpus came as ids, so name the id that fills the end of a row with --pad-token")
    return SpecialIds(eos=eos if options.eos else None, bos=bos if options.bos else None, pad=pad)


def as_id(asked: str | None, role: str, vocabulary: Mapping[str, int] | None) -> int | None:
    """The id that an option means where the corpus came as ids."""
    if asked is None:
        return None
    if asked.isascii() and asked.isdecimal() and int(asked) < 2**31:
        number = int(asked)
        if vocabulary is not None and number > max(vocabulary.values(), default=-1):
            raise TokenizerError(f"--{role}-token {asked} is not an id of the vocabulary")
        return number
    if vocabulary is None:
        raise TokenizerError(f"--{role}-token {asked!r}: the corpus came as ids, so give an id, or a tokenizer")
    if asked not in vocabulary:
        raise TokenizerError(f"--{role}-token {asked!r} is not in the vocabulary")
    return vocabulary[asked]
