"""The two libraries that encode, behind one Protocol. Which one is used, and whether it is right, is decided elsewhere.

Both are built from the same bytes of one tokenizer.json: fastokens' own `from_file` would also add tokens that only
tokenizer_config.json names, which `tokenizers` does not know. Stored truncation and padding are switched off.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from functools import lru_cache
from importlib.metadata import version
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from exact_prep.errors import TokenizerError
from exact_prep.tokenization.files import digest, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BackendName = Literal["fastokens", "tokenizers"]

ONE_THREAD = {"FASTOKENS_BPE_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread per worker: parallelism is the number of workers. The libraries read these when they first encode."""


class Backend(Protocol):
    """Encodes texts without adding any special token; knows no document and no batch."""

    name: BackendName

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, int32[T], and where each text's ids start and end, int64[D + 1]."""
        ...

    def knows(self, token: str) -> bool:
        """Whether the vocabulary has the token."""
        ...


class Fastokens:
    """The fast library: about five to ten times the speed of the reference."""

    name: BackendName = "fastokens"

    def __init__(self, text: str, *, split_special: bool) -> None:
        import fastokens

        self._split_special = split_special
        self._tokenizer = fastokens.Tokenizer.from_json_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.encode`."""
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False, self._split_special)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)

    def knows(self, token: str) -> bool:
        """See `Backend.knows`."""
        return self._tokenizer.token_to_id(token) is not None


class Tokenizers:
    """The reference library: what it says is right."""

    name: BackendName = "tokenizers"

    def __init__(self, text: str, *, split_special: bool) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_str(text)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = split_special

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.encode`."""
        # One text at a time: an encoding takes 100 bytes of memory per character. `.ids` builds a list, 25 ns per token
        # beside 300 for the encoding; the library has no buffer to give.
        encoded = [
            np.array(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)
            for text in texts
        ]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([ids.size for ids in encoded], out=offsets[1:])
        return np.concatenate(encoded) if encoded else np.empty(0, np.int32), offsets

    def knows(self, token: str) -> bool:
        """See `Backend.knows`."""
        return self.tokenizer.token_to_id(token) is not None


BACKENDS: dict[BackendName, type[Fastokens | Tokenizers]] = {"fastokens": Fastokens, "tokenizers": Tokenizers}


def load(
    name: BackendName, path: Path, sha256: str, *, split_special: bool, version_wanted: str | None = None
) -> Fastokens | Tokenizers:
    """A backend for the tokenizer.json at `path`.

    With `split_special`, text that spells a special token is plain text. Raises TokenizerError if the file is not the
    one with hash `sha256`, the library not the one wanted, or the file one that it does not support.
    """
    if version_wanted not in (None, version(name)):
        raise TokenizerError(f"this run was planned with {name} {version_wanted}, here is {version(name)}; install it")
    return loading(name, path, sha256, split_special).result()


@lru_cache(maxsize=4)
def loading(name: BackendName, path: Path, sha256: str, split_special: bool) -> Future[Fastokens | Tokenizers]:
    """What `load` gives, as soon as it is there; once per process, for big vocabularies take 0.3 to 0.8 s.

    It comes from a thread: Python heeds no signal while its main thread is in native code, and both libraries may load
    at the same time. No daemon, for native code must not come back to a Python half torn down.
    """
    backend: Future[Fastokens | Tokenizers] = Future()

    def run() -> None:
        try:
            backend.set_result(made(name, path, sha256, split_special))
        except BaseException as error:  # all of it belongs to who asked
            backend.set_exception(error)

    Thread(target=run).start()
    return backend


def made(name: BackendName, path: Path, sha256: str, split_special: bool) -> Fastokens | Tokenizers:
    """As `load`, here and now."""
    for variable, value in ONE_THREAD.items():
        os.environ.setdefault(variable, value)
    data = read(path)
    if digest(data) != sha256:
        raise TokenizerError(f"{path} changed since this run was planned; restore it, or start a new run")
    try:
        return BACKENDS[name](data.decode(), split_special=split_special)
    except MemoryError:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        reason = str(error).strip().partition("\n")[0]
        raise TokenizerError(f"{name} {version(name)} cannot load {path}: {reason}") from error
