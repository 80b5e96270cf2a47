"""Finds EOS, BOS and padding in options and tokenizer files, and says where each came from. Loads no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from exact_prep.errors import TokenizerError
from exact_prep.records.manifest import LABELS, Role, SpecialTokenRecord, describe_special_tokens
from exact_prep.tokenization.files import CONFIG, FILE, read, read_companions
from exact_prep.tokenization.token_table import TokenTable

if TYPE_CHECKING:
    from pathlib import Path

    from exact_prep.records.options import TokenizerOptions

DOCUMENT_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<EOS_TOKEN>",
    "<|end▁of▁sentence|>",
    "<\uff5cend▁of▁sentence\uff5c>",  # DeepSeek's bars are full-width
)
"""Names that always mean end of document."""

TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|EOT|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|end|>",
)
"""Names that end a turn of a dialogue. Chat models name one as EOS; a corpus of documents rarely means it."""

OPTION, ADDED, POST_PROCESSOR = "--{}-token", f"added_tokens of {FILE}", f"post_processor of {FILE}"
SAME = "same as EOS"
"""Where a token came from, if not from a file beside the tokenizer.json."""

SHOWN = 8
"""Candidates that a message lists, at most."""


class Found(NamedTuple):
    """A token and where it was found."""

    text: str | None
    """None if it is not known: an id without a tokenizer."""
    id: int
    source: str


class Absent(NamedTuple):
    """No token, and why."""

    source: str
    text: None = None
    id: None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedTokens:
    """EOS, BOS and padding of a run, and what to say about them."""

    eos: SpecialTokenRecord
    bos: SpecialTokenRecord
    pad: SpecialTokenRecord
    pad_id: int
    document_ends: tuple[int, ...]
    """Ids that end a document, as far as they are known, whether they are appended or not; ascending."""
    warnings: tuple[str, ...]

    @property
    def records(self) -> tuple[SpecialTokenRecord, ...]:
        """All three."""
        return self.eos, self.bos, self.pad

    @property
    def notes(self) -> tuple[str, ...]:
        """One line that states all three, then the warnings."""
        return describe_special_tokens(self.records), *self.warnings


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where tokens are looked for: options and, unless a corpus of ids has no tokenizer, its files."""

    options: TokenizerOptions
    ids: bool
    """Whether the corpus comes as token ids: then nothing is added unless it is asked for."""
    table: TokenTable | None
    companions: dict[str, dict[str, Any]]
    asked: dict[Role, Found]
    """Tokens that options name."""

    @property
    def adds_eos(self) -> bool:
        """Whether EOS is appended to documents."""
        return bool(self.options.eos) if self.ids else self.options.eos is not False

    def read_switch(self, name: str) -> bool | None:
        """`add_bos_token` or `add_eos_token` of tokenizer_config.json; None if it is not there."""
        value = self.companions.get(CONFIG, {}).get(name)
        return value if isinstance(value, bool) else None


def resolve_special_tokens(options: TokenizerOptions, path: Path | None, *, ids: bool = False) -> ResolvedTokens:
    """EOS, BOS and padding from options and from the files of the tokenizer at `path`.

    Takes a few milliseconds: the vocabulary is looked into only for a token that is not an added token. Raises
    TokenizerError, which lists candidates and names the option to set, if a token that the run needs cannot be
    determined.
    """
    return resolve(options, TokenTable(read(path), path) if path else None, ids=ids)


def resolve(options: TokenizerOptions, table: TokenTable | None, *, ids: bool) -> ResolvedTokens:
    """See `resolve_special_tokens`; `table` may be None only if the corpus comes as ids."""
    typed: dict[Role, str | None] = {"eos": options.eos_token, "bos": options.bos_token, "pad": options.pad_token}
    sources = Sources(
        options=options,
        ids=ids,
        table=table,
        companions=read_companions(table.path) if table else {},
        asked={role: read_option(text, role, table) for role, text in typed.items() if text is not None},
    )
    eos, bos, pad = choose_eos(sources), choose_bos(sources), choose_pad(sources)
    return ResolvedTokens(
        eos=SpecialTokenRecord(role="eos", text=eos.text, id=eos.id, source=eos.source),
        bos=SpecialTokenRecord(role="bos", text=bos.text, id=bos.id, source=bos.source),
        pad=SpecialTokenRecord(role="pad", text=pad.text, id=pad.id, source=pad.source),
        pad_id=pad.id,
        document_ends=list_document_ends(sources),
        warnings=(*warn_of_turn_end(eos, sources), *list_ignored_switches(sources), *list_ignored_tokens(sources)),
    )


def choose_eos(sources: Sources) -> Found | Absent:
    """The token that ends each document."""
    if not sources.adds_eos:
        none = "--no-eos" if sources.options.eos is False else "a corpus of ids gets it only with --eos"
        return Absent(none)
    found = find_eos(sources)
    if found is None:
        raise TokenizerError(explain_missing("eos", sources))
    return found


def find_eos(sources: Sources) -> Found | None:
    """EOS by option, by a file, or by convention; None if nothing names it, or more than one token by convention."""
    found = sources.asked.get("eos") or find_named("eos", sources)
    if found is None and sources.table:
        ends = find_document_ends(sources.table)
        if len(ends) == 1:
            return Found(ends[0], sources.table.added[ends[0]].id, ADDED)
    return found


def list_document_ends(sources: Sources) -> tuple[int, ...]:
    """Ids after which another document may begin, in a corpus of ids.

    EOS, unless a file names it and it ends a turn, and what vocabularies call the end of a document.
    """
    if not sources.ids:
        return ()
    ends = {sources.asked["eos"].id} if "eos" in sources.asked else set[int]()
    if sources.table:
        named = {name_token("eos", content) for content in sources.companions.values()}.difference(TURN_ENDS)
        found = [sources.table.find(text) for text in (*find_document_ends(sources.table), *named) if text is not None]
        ends |= {number for number in found if number is not None}
    return tuple(sorted(ends))


def name_token(role: Role, companion: dict[str, Any]) -> str | None:
    """The text of the token that a file beside tokenizer.json names for `role`, if it does."""
    value = companion.get(f"{role}_token")
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def find_document_ends(table: TokenTable) -> list[str]:
    """The special tokens whose names mean end of document, the most common name first."""
    special = set(table.special)
    return [name for name in DOCUMENT_ENDS if name in special]


def find_named(role: Role, sources: Sources) -> Found | None:
    """The token that a file beside tokenizer.json names for `role`; the first file that names one wins."""
    for companion, content in sources.companions.items():
        text = name_token(role, content)
        if text is None or sources.table is None:
            continue
        number = sources.table.find(text)
        if number is None:
            raise TokenizerError(
                f"{sources.table.path.with_name(companion)} names {role}_token {text!r}, which is not in the vocabulary"
                f" of {FILE}; {suggest(role, sources)}"
            )
        return Found(text, number, companion)
    return None


def choose_bos(sources: Sources) -> Found | Absent:
    """The token that begins each document: the one asked for, else the one that the tokenizer itself puts there."""
    options, table = sources.options, sources.table
    if options.bos is False:
        return Absent("--no-bos")
    if sources.ids and not options.bos:
        return Absent("a corpus of ids gets it only with --bos")
    if "bos" in sources.asked:
        return sources.asked["bos"]
    prefix = table.find_prefix() if table else []
    switch = sources.read_switch("add_bos_token")
    if options.bos is None and not prefix and not switch:
        return Absent(f"{FILE} adds none")
    if options.bos is None and switch is False:
        return Absent(f"add_bos_token is false in {CONFIG}")
    named = find_named("bos", sources) if options.bos or not prefix else None
    if named:
        return named if options.bos else named._replace(source=f"add_bos_token of {CONFIG}")
    if len(prefix) > 1:
        raise TokenizerError(
            f"{table.path if table else FILE}: its post_processor puts {len(prefix)} tokens before a text; "
            "choose one with --bos-token, or pass --no-bos"
        )
    if prefix:
        return Found(*prefix[0], POST_PROCESSOR)
    raise TokenizerError(explain_missing("bos", sources))


def choose_pad(sources: Sources) -> Found:
    """The token that fills rows: by option, by a file, else EOS, also where EOS is not appended."""
    found = sources.asked.get("pad") or find_named("pad", sources)
    if found:
        return found
    eos = find_eos(sources)
    if eos is None and sources.table is None:
        return Found(None, 0, "nothing names one; rows tell padding by their lengths, not by an id")
    if eos is None:
        raise TokenizerError(explain_missing("pad", sources))
    return eos._replace(source=SAME if sources.adds_eos else f"the EOS of {eos.source}")


def read_option(asked: str, role: Role, table: TokenTable | None) -> Found:
    """The token that `--ROLE-token` means: a special token's text, or `id:N` for any id; raises TokenizerError.

    N alone is the id of a special token, unless it is also a token's text. The same for text and for ids.
    """
    flag = OPTION.format(role)
    digits = asked.removeprefix("id:")
    number = int(digits) if digits.isascii() and digits.isdecimal() and int(digits) < 2**31 else None
    if number is None and digits != asked:
        raise TokenizerError(f"{flag} {asked!r} is not an id; write id:N with a whole number N below 2**31")
    if table is None:
        if number is None:
            raise TokenizerError(
                f"{flag} {asked!r}: the corpus is token ids, so give an id (id:2), or pass --tokenizer"
            )
        return Found(None, number, flag)
    if digits != asked and number is not None:
        check_range(asked, number, flag, table)
        return Found(table.find_text(number), number, flag)
    own = table.find(asked)
    if number is not None and own not in (None, number):
        raise TokenizerError(
            f"{flag} {asked} is ambiguous: it is an id, and the text of the token with id {own}; "
            f"write id:{number} or id:{own}"
        )
    if number is not None and own is None:
        check_range(asked, number, flag, table)
        own = number
    if own is None:
        raise TokenizerError(f"{flag} {asked!r} is not in the vocabulary of {table.path}; {list_candidates(table)}")
    text = asked if asked in table.added else table.find_added(own)
    if text is None:
        raise TokenizerError(
            f"{flag} {asked!r}: {table.find_text(own)!r} (id {own}) is not a special token of {table.path}; "
            f"{list_candidates(table)}; to take it all the same, write id:{own}"
        )
    return Found(text, own, flag)


def check_range(asked: str, number: int, flag: str, table: TokenTable) -> None:
    """Raise TokenizerError for an id that is not in the vocabulary."""
    if number > table.largest:
        raise TokenizerError(
            f"{flag} {asked}: the id is not in the vocabulary of {table.path}, whose ids are 0 to {table.largest}"
        )


def explain_missing(role: Role, sources: Sources) -> str:
    """The error message for a special token that neither options nor files name."""
    if sources.table is None:
        use = "pads rows" if role == "pad" else f"--{role} adds"
        return f"the corpus is token ids and has no tokenizer, so give the id that {use} with --{role}-token id:N"
    return f"{sources.table.path}: no file names the {LABELS[role]} token; {suggest(role, sources)}"


def suggest(role: Role, sources: Sources) -> str:
    """The remedy for a special token that could not be determined."""
    instead = "" if role == "pad" else f", or pass --no-{role}"
    listed = list_candidates(sources.table) if sources.table else ""
    return f"pass one with --{role}-token{instead} ({listed})"


def list_candidates(table: TokenTable) -> str:
    """The special tokens of a tokenizer for a message, those that end documents first."""
    ends = find_document_ends(table)
    special = [*ends, *(text for text in table.special if text not in ends)]
    if special:
        more = f" and {len(special) - SHOWN:,} more" if len(special) > SHOWN else ""
        return f"its special tokens are {', '.join(map(repr, special[:SHOWN]))}{more}"
    ordinary = [f"{name!r} is id:{table.vocabulary[name]}" for name in DOCUMENT_ENDS if name in table.vocabulary]
    return ", ".join(["it has no special tokens", *ordinary])


def warn_of_turn_end(eos: Found | Absent, sources: Sources) -> list[str]:
    """A warning if a file names the end of a turn as EOS although the vocabulary has an end of document."""
    ends = find_document_ends(sources.table) if sources.table else []
    if not ends or eos.text not in TURN_ENDS or eos.source not in sources.companions:
        return []
    return [
        f"warning: {eos.source} names {eos.text!r}, the end of a turn in a dialogue, as EOS, but the vocabulary has "
        f"{' and '.join(map(repr, ends))}, the end of a document; pass --eos-token {ends[0]!r} to end documents with "
        f"that, or --eos-token {eos.text!r} to keep this one"
    ]


def list_ignored_switches(sources: Sources) -> list[str]:
    """Which of add_bos_token and add_eos_token is not followed, and what to pass instead."""
    ignored = []
    options = sources.options
    if sources.ids:
        for role, typed in (("bos", options.bos), ("eos", options.eos)):
            if typed is None and sources.read_switch(f"add_{role}_token"):
                ignored.append(
                    f"add_{role}_token of {CONFIG} is ignored: the corpus is token ids; pass --{role} to add it"
                )
    elif options.eos is None and sources.read_switch("add_eos_token") is False:
        ignored.append(
            f"add_eos_token (false) of {CONFIG} is ignored: EOS ends each document; pass --no-eos to leave it out"
        )
    return ignored


def list_ignored_tokens(sources: Sources) -> list[str]:
    """Tokens that only tokenizer_config.json adds: they have no id here."""
    decoder = sources.companions.get(CONFIG, {}).get("added_tokens_decoder")
    table = sources.table
    if table is None or not isinstance(decoder, dict):
        return []
    contents = [token.get("content") for token in decoder.values() if isinstance(token, dict)]
    missing = [text for text in contents if isinstance(text, str) and text not in table.added]
    missing = [text for text in missing if text not in table.vocabulary]
    if not missing:
        return []
    more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    return [
        f"warning: added_tokens_decoder of {CONFIG} has tokens that {FILE} does not have, they are ignored: "
        f"{', '.join(map(repr, missing[:SHOWN]))}{more}; to write them into {FILE}, call "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    ]


def check_ids(resolved: ResolvedTokens, options: TokenizerOptions, tokenizer: Any, path: Path) -> None:
    """Raise TokenizerError if a `tokenizers.Tokenizer` gives a special token another id than the file does.

    It counts added tokens from the end of the vocabulary on, so a file with gaps or wrong ids is read differently.
    Ids that were typed, and those of the post-processor, are used as they are.
    """
    for record in resolved.records:
        typed = getattr(options, f"{record.role}_token") or ""
        if record.text is None or record.id is None or record.source == POST_PROCESSOR or typed.startswith("id:"):
            continue
        actual = tokenizer.token_to_id(record.text)
        if actual != record.id:
            raise TokenizerError(
                f"{path} gives {record.text!r} the id {record.id}, but tokenizers reads it as {actual}: the ids of its "
                f"added_tokens have gaps; fix them, or pass --{record.role}-token id:{actual}"
            )
