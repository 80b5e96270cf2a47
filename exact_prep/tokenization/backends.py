"""The two encoding libraries behind one Protocol. choice.py picks one; parity.py checks that it is right.

Both are built from the bytes of the same tokenizer.json. fastokens' own `from_file` is not used: it also adds tokens
that only tokenizer_config.json names, and `tokenizers` does not know those. Truncation and padding settings stored in
the file are switched off.
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
"""One thread per worker, because workers already run in parallel. The libraries read these when they first encode."""


class Backend(Protocol):
    """Encodes texts without adding special tokens. It does not know about documents or batches."""

    name: BackendName

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, concatenated, int32[T], and the offsets of each text's ids, int64[D + 1]."""
        ...

    def knows(self, token: str) -> bool:
        """Whether the vocabulary has the token."""
        ...


class Fastokens:
    """The fast library: about five to ten times as fast as the reference."""

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
    """The reference library: its ids are correct by definition."""

    name: BackendName = "tokenizers"

    def __init__(self, text: str, *, split_special: bool) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_str(text)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = split_special

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.encode`."""
        # One text at a time, because an encoding takes 100 bytes of memory per character. `.ids` builds a list (25 ns
        # per token, next to 300 ns for encoding); the library offers no buffer.
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
    """Return the backend `name` for the tokenizer.json at `path`.

    With `split_special`, text that spells a special token is encoded as plain text. Raises TokenizerError if the file's
    hash is not `sha256`, the installed version is not `version_wanted`, or the library does not support the file.
    """
    if version_wanted not in (None, version(name)):
        raise TokenizerError(
            f"this run was planned with {name} {version_wanted}, but {version(name)} is installed; "
            f"pip install {name}=={version_wanted}"
        )
    return start_loading(name, path, sha256, split_special).result()


@lru_cache(maxsize=4)
def start_loading(name: BackendName, path: Path, sha256: str, split_special: bool) -> Future[Fastokens | Tokenizers]:
    """Start loading a backend in a thread and return its future. Cached: large vocabularies take 0.3 to 0.8 s to load.

    Why a thread: Python handles no signal while its main thread runs native code, and both libraries can load at the
    same time. The thread is not a daemon, because native code must not return into an interpreter that is shutting
    down.
    """
    backend: Future[Fastokens | Tokenizers] = Future()

    def run() -> None:
        try:
            backend.set_result(build_backend(name, path, sha256, split_special))
        except BaseException as error:  # the caller of `.result()` gets every error
            backend.set_exception(error)

    Thread(target=run).start()
    return backend


def build_backend(name: BackendName, path: Path, sha256: str, split_special: bool) -> Fastokens | Tokenizers:
    """Build a backend in this thread; raises TokenizerError, see `load`."""
    for variable, value in ONE_THREAD.items():
        os.environ.setdefault(variable, value)
    data = read(path)
    if digest(data) != sha256:
        raise TokenizerError(f"{path} changed since this run was planned; restore it, or start a new run")
    try:
        return BACKENDS[name](data.decode(), split_special=split_special)
    except MemoryError:
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        reason = str(error).strip().partition("\n")[0]
        raise TokenizerError(f"{name} {version(name)} cannot load {path}: {reason}") from error
