"""Chooses the backend and the special ids of a run: once, in the parent process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from exact_prep.errors import TokenizerError
from exact_prep.records import canonical_json
from exact_prep.records.manifest import TokenizerRecord
from exact_prep.tokenization.backends import BackendName, Tokenizers, load, start_loading
from exact_prep.tokenization.files import CONFIG, FILE, digest, read
from exact_prep.tokenization.parity import Parity, gate
from exact_prep.tokenization.special_tokens import ResolvedTokens, check_ids, resolve
from exact_prep.tokenization.token_table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exact_prep.records.options import TokenizerOptions

LARGEST_ID = 2**31 - 1
"""Ids are kept as int32."""

NOTHING = Parity(texts=0, bytes=0, differences=0)


def choose(
    options: TokenizerOptions, sample: Sequence[str], *, path: Path | None, ids: bool = False
) -> TokenizerRecord:
    """The tokenizer of a run: its special ids, and its backend after the parity check on the stress set and `sample`.

    `sample` is about 1 MB of the corpus. `path` is the tokenizer.json (see `locate`); it may be None only if the corpus
    comes as `ids`. Raises TokenizerError if the tokenizer cannot be loaded, a special id cannot be determined, or the
    backend that the user asked for gives other ids than the reference. Costs 0.3 to 1.7 CPU-s.
    """
    if path is None:
        if not ids:
            raise TokenizerError("text needs a tokenizer; name one with --tokenizer")
        return make_record(options, resolve(options, None, ids=True))
    data = read(path)
    table = TokenTable(data, path)
    # Before anything is loaded: an error about a special token takes milliseconds, not seconds.
    special = resolve(options, table, ids=ids)
    sha256 = digest(data)
    split_special = options.special_tokens_in_text != "special"
    if not ids and options.backend != "tokenizers":
        # Early and in the background: it takes longer to load than the reference.
        start_loading("fastokens", path, sha256, split_special)
    reference = load("tokenizers", path, sha256, split_special=split_special)
    assert isinstance(reference, Tokenizers)
    check_ids(special, options, reference.tokenizer, path)
    largest = find_largest_id(table, reference.tokenizer)
    if largest > LARGEST_ID:
        raise TokenizerError(f"{path}: id {largest} does not fit in 32 bits")
    if ids:
        return make_record(options, special, sha256=sha256, vocab_size=largest + 1)
    spellings = [token.content for token in table.file.added_tokens]
    backend, parity, fallback = choose_backend(options, path, sha256, spellings, sample)
    return make_record(
        options,
        special,
        sha256=sha256,
        vocab_size=largest + 1,
        backend=backend,
        parity=parity,
        fallback=fallback,
    )


def find_largest_id(table: TokenTable, tokenizer: Any) -> int:
    """The largest id of a `tokenizers.Tokenizer` loaded from the table's file; -1 if it has no tokens.

    `get_vocab` says the same and takes three times as long.
    """
    added = [tokenizer.token_to_id(text) for text in table.added]
    return max((*(number for number in added if number is not None), *table.vocabulary.values()), default=-1)


def choose_backend(
    options: TokenizerOptions, path: Path, sha256: str, spellings: Sequence[str], sample: Sequence[str]
) -> tuple[BackendName, Parity, str | None]:
    """The backend, the result of the parity check, and why it fell back to the reference (None if it did not)."""
    if options.backend == "tokenizers":
        return "tokenizers", NOTHING, None
    split_special = options.special_tokens_in_text != "special"
    try:
        fast = load("fastokens", path, sha256, split_special=split_special)
    except TokenizerError as error:
        if options.backend == "fastokens":
            raise
        return "tokenizers", NOTHING, str(error)
    reference = load("tokenizers", path, sha256, split_special=split_special)
    try:
        parity = gate(fast, reference, spellings=spellings, sample=sample)
    except ValueError as error:
        parity, reason = NOTHING, f"fastokens failed before the run: {error}"
    else:
        if not parity.differences:
            return "fastokens", parity, None
        reason = f"fastokens differs from tokenizers in {parity.differences} of {parity.texts} texts: {parity.first}"
    if options.backend == "fastokens":
        raise TokenizerError(f"{path}: {reason}; use --tokenizer-backend auto")
    return "tokenizers", parity, reason


def make_record(
    options: TokenizerOptions,
    special: ResolvedTokens,
    *,
    sha256: str = "",
    vocab_size: int = 0,
    backend: BackendName | None = None,
    parity: Parity = NOTHING,
    fallback: str | None = None,
) -> TokenizerRecord:
    """Make the record of a choice; without a backend, nothing is encoded."""
    return TokenizerRecord(
        name=options.tokenizer or "",
        sha256=sha256,
        vocab_size=vocab_size,
        eos_id=special.eos.id,
        bos_id=special.bos.id,
        pad_id=special.pad_id,
        special_tokens=special.records,
        document_ends=special.document_ends,
        special_tokens_in_text=options.special_tokens_in_text,
        backend=backend or "none",
        backend_version=version(backend) if backend else "",
        reference_version=version("tokenizers") if backend else "",
        parity_texts=parity.texts,
        parity_bytes=parity.bytes,
        parity_differences=parity.differences,
        fallback=fallback,
    )


def make_tokenizer_files(path: Path, record: TokenizerRecord) -> dict[str, bytes]:
    """What a dataset keeps of the tokenizer at `path`, by file name, so that `AutoTokenizer` loads it.

    The tokenizer.json as it was used, and a tokenizer_config.json with EOS, BOS and padding as they were used. Raises
    TokenizerError if the file is no longer the one in `record`.
    """
    data = read(path)
    split_special = record.special_tokens_in_text != "special"
    reference = load("tokenizers", path, record.sha256, split_special=split_special)
    assert isinstance(reference, Tokenizers)
    ids = {"eos_token": record.eos_id, "bos_token": record.bos_id, "pad_token": record.pad_id}
    names = {role: None if own is None else reference.tokenizer.id_to_token(own) for role, own in ids.items()}
    config = {**names, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {FILE: data, CONFIG: canonical_json(config)}
