"""Turns text into token ids: `locate` a tokenizer, `choose` a backend once per run, then one `Tokenizer` per task.

    files            finds and parses tokenizer.json and the files beside it
    wrong_files      says what a file is that is no tokenizer.json
    token_table      which token has which id, without a backend
    special_tokens   finds EOS, BOS and padding, and says where each came from
    backends         fastokens (fast) and tokenizers (the reference) behind one Protocol
    stress, parity   checks that the fast library gives the reference's ids, before the run and during it
    choice           options and a sample -> TokenizerRecord
    boundaries       where a long text may be cut without changing an id
    pieces           cuts it there
    texts            encodes documents that come as text: one TextEncoder per task
    given_ids        checks documents that come as token ids
    bos_eos          adds BOS and EOS, and counts every token for the ledger
    decoding         ids back to text, for people to look at

Slow libraries are imported only where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.errors import TokenizerError
from exact_prep.tokenization.choice import choose, make_tokenizer_files
from exact_prep.tokenization.files import locate
from exact_prep.tokenization.given_ids import IdChecker
from exact_prep.tokenization.special_tokens import resolve_special_tokens
from exact_prep.tokenization.texts import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.manifest import TokenizerRecord
    from exact_prep.records.options import TokenizerOptions

__all__ = ["Tokenizer", "choose", "locate", "make_tokenizer_files", "resolve_special_tokens"]


class Tokenizer:
    """Turns the text batches of one task into token batches, in a worker."""

    def __init__(
        self,
        path: Path | None,
        record: TokenizerRecord,
        options: TokenizerOptions,
        *,
        task: int = 0,
        reject: bool = False,
        name: Callable[[int], str] = "record {}".format,
        masked: bool = False,
        eos_inside: bool = True,
    ) -> None:
        """Use the backend and special ids of `record`, which `choose` returned.

        With `reject`, unusable documents are skipped and reported instead of raising. `name` turns a record number into
        the document's name in messages. `masked` says whether ids come with a mask,
        `eos_inside` whether they may hold EOS before the end of a document.

        Backends are loaded once per process. Raises TokenizerError if the file at `path` or an installed library is
        not the one that `choose` used.
        """
        self._texts: TextEncoder | None = None
        if record.backend == "none":
            self._encode = IdChecker(record, reject=reject, name=name, masked=masked, eos_inside=eos_inside).encode
        elif path is None:
            raise TokenizerError("text needs a tokenizer; name one with --tokenizer")
        else:
            self._texts = TextEncoder(path, record, options, task=task, reject=reject, name=name)
            self._encode = self._texts.encode

    def encode(self, batch: TextBatch) -> Iterator[TokenBatch]:
        """Yield token batches in document order, with BOS and EOS added; no batch that would report nothing.

        Text whose ids depend on the next batch is held back until that batch arrives. Raises SourceError, which names
        the record, for an unusable document unless such documents are rejected; TokenizerError if the backend fails or
        gives other ids than the reference.
        """
        return self._encode(batch)

    @property
    def parity_texts(self) -> int:
        """Texts compared with the reference so far."""
        return self._texts.inspector.texts if self._texts and self._texts.inspector else 0

    @property
    def parity_bytes(self) -> int:
        """UTF-8 bytes of those texts."""
        return self._texts.inspector.bytes if self._texts and self._texts.inspector else 0
