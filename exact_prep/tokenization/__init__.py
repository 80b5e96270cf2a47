"""Text column to id column: `locate` a tokenizer, `choose` a backend once per run, a `Tokenizer` per task encodes.

    files            tokenizer.json and its companions
    special_tokens   ids of EOS, BOS and padding
    backends         fastokens (fast) and tokenizers (right) behind one Protocol
    stress, parity   the gate before the run and the inspector during it: the fast library must be right
    choice           options and a sample -> TokenizerRecord
    boundaries       where long texts may be cut without changing an id; pieces cuts them
    texts, given_ids documents that come as text, and as ids
    dressing         BOS, EOS and the token ledger

Nothing slow is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exact_prep.errors import TokenizerError
from exact_prep.tokenization.choice import choose
from exact_prep.tokenization.files import locate
from exact_prep.tokenization.given_ids import IdPasser
from exact_prep.tokenization.texts import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exact_prep.batches import TextBatch, TokenBatch
    from exact_prep.records.manifest import TokenizerRecord
    from exact_prep.records.options import TokenizerOptions

__all__ = ["Tokenizer", "choose", "locate"]


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
    ) -> None:
        """Encode as `record`, which `choose` gave, says.

        `reject` leaves unusable documents out instead of raising, `name` tells which document a record is, in messages.

        Backends are loaded once per process. Raises TokenizerError if the file at `path` or an installed library is
        not the one that was chosen.
        """
        self._texts: TextEncoder | None = None
        if record.backend == "none":
            self._encode = IdPasser(record, reject=reject).encode
        elif path is None:
            raise TokenizerError("text needs a tokenizer; name one with --tokenizer")
        else:
            self._texts = TextEncoder(path, record, options, task=task, reject=reject, name=name)
            self._encode = self._texts.encode

    def encode(self, batch: TextBatch) -> Iterator[TokenBatch]:
        """Token batches in the order of the documents, BOS and EOS in place, none of them without something to say.

        What cannot be settled before the next batch comes is held back. Raises SourceError, which names the record,
        for a document that cannot be used, unless such documents are rejected; TokenizerError if the backend fails or
        is found to differ from the reference.
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
