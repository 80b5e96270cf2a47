"""Tokenizer files: find them and parse them. Nothing is encoded here and no backend is loaded.

A tokenizer is one tokenizer.json. tokenizer_config.json and special_tokens_map.json beside it are read only for the
names of special tokens. Their other fields, and their added tokens, are ignored, so that the hash of tokenizer.json
identifies the tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from exact_prep.errors import TokenizerError
from exact_prep.stores import check_local
from exact_prep.tokenization.wrong_files import explain_directory, explain_file

HUB_TIMEOUT_S = 10

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
COMPANIONS = (CONFIG, "special_tokens_map.json")
"""Files that may name EOS, BOS and padding. The first one that names a token wins."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class AddedToken(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of `added_tokens`: text that becomes one token before any other step."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `model` that decide whether text may be split; only the backends read the vocabulary."""

    type: str = "BPE"
    dropout: float | None = None


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a tokenizer.json that are needed here; msgspec skips the megabytes of vocabulary in 8 ms."""

    model: Model
    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def locate(name: str) -> Path:
    """The path of the tokenizer.json for `name`: a file, a directory that contains one, or a Hugging Face hub id.

    Raises TokenizerError if there is none, or if the hub cannot be reached and its cache has no copy.
    """
    check_local(name)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise TokenizerError(f"{name}: there is no such user; pass the path of a {FILE} or of its directory") from error
    if path.is_file():
        return path
    if path.is_dir():
        if (path / FILE).is_file():
            return path / FILE
        raise TokenizerError(f"{path} contains no {FILE}{explain_directory(path)}")
    if not HUB_ID.fullmatch(name) or name.endswith(".json"):
        raise TokenizerError(f"{name}: no such file or directory; pass a {FILE}, its directory, or a hub id (org/name)")
    return download(name)


def download(name: str) -> Path:
    """The cached copy of a hub tokenizer's tokenizer.json; downloads it, and the files beside it, if not cached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = False
    try:
        try:
            get_hf_file_metadata(hf_hub_url(name, FILE), timeout=HUB_TIMEOUT_S)
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:
            # An error of huggingface_hub's HTTP library, which differs between versions: the hub is out of reach.
            # Tried once: hf_hub_download would retry for half a minute with a warning each time.
            offline = True
        path = Path(hf_hub_download(name, FILE, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = "out of reach, and no copy in the cache" if offline else str(error).strip().partition("\n")[0]
        raise TokenizerError(
            f"{name} is not a local path, and the Hugging Face hub gave no {FILE} for it ({reason}); "
            f"pass a {FILE} or a directory that contains one"
        ) from error
    for companion in COMPANIONS:
        try:
            hf_hub_download(name, companion, local_files_only=offline)
        except LocalEntryNotFoundError:
            continue  # offline and not cached: the repository did not have it when the tokenizer was downloaded
        except EntryNotFoundError:
            continue
    return path


def read(path: Path) -> bytes:
    """The bytes of a tokenizer.json; raises TokenizerError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error


def digest(data: bytes) -> str:
    """sha256 of a tokenizer.json; it identifies the tokenizer."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, path: Path) -> TokenizerFile:
    """Parse a tokenizer.json; raises TokenizerError if `data` is not one, or if it gives random ids (dropout)."""
    try:
        file = msgspec.json.decode(data, type=TokenizerFile)
    except msgspec.MsgspecError as error:
        raise TokenizerError(f"{path} is not a {FILE}: {explain_file(path, data) or error}") from error
    if file.model.dropout:
        raise TokenizerError(
            f"{path}: model.dropout is {file.model.dropout}, so the same text gets other ids each time; set it to null"
        )
    return file


def read_companions(path: Path) -> dict[str, dict[str, Any]]:
    """The content of each companion that lies beside `path`, by its name.

    Raises TokenizerError if one is not a JSON object.
    """
    companions = {}
    for name in COMPANIONS:
        beside = path.with_name(name)
        if not beside.is_file():
            continue
        data = read(beside)
        try:
            companions[name] = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise TokenizerError(f"{beside} is not a JSON object: {explain_file(beside, data) or error}") from error
    return companions
