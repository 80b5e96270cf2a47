"""Tokenizer files: where they are, what they say. Nothing is encoded here and no backend is loaded.

A tokenizer is one tokenizer.json. tokenizer_config.json and special_tokens_map.json beside it only name special
tokens; their other fields (and their added tokens) are not read, so that a hash of one file tells tokenizers apart.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from exact_prep.errors import TokenizerError

HUB_TIMEOUT_S = 10

Role = Literal["eos", "bos", "pad"]

FILE = "tokenizer.json"
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that may name EOS, BOS and padding, the first that does decides."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class AddedToken(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of `added_tokens`: text that becomes one token before anything else is looked at."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of `model` that decide whether text may be split; the vocabulary is left to the backends."""

    type: str = "BPE"
    dropout: float | None = None


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a tokenizer.json that matter here; msgspec skips the megabytes of vocabulary in 8 ms."""

    model: Model
    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


def locate(name: str) -> Path:
    """The tokenizer.json that `name` means: a file, a directory that holds one, or a Hugging Face hub id.

    Raises TokenizerError if there is none, or if the hub cannot be reached and its cache has no copy.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / FILE).is_file():
            return path / FILE
        raise TokenizerError(f"{path} holds no {FILE}; pass a directory that does, or the file itself")
    if not HUB_ID.fullmatch(name) or name.endswith(".json"):
        raise TokenizerError(f"{name}: no such file or directory; pass a {FILE}, its directory, or a hub id (org/name)")
    return download(name)


def download(name: str) -> Path:
    """The cached copy of a hub tokenizer's files, downloaded where the cache has none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = False
    try:
        try:
            get_hf_file_metadata(hf_hub_url(name, FILE), timeout=HUB_TIMEOUT_S)
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:  # its HTTP library's own, which changes with its versions: the hub is out of reach
            # Asked once, and not as hf_hub_download does for half a minute, a warning each time.
            offline = True
        path = Path(hf_hub_download(name, FILE, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = "out of reach, and no copy in the cache" if offline else str(error).strip().partition("\n")[0]
        raise TokenizerError(
            f"{name} is no local path, and the Hugging Face hub gave no {FILE} for it ({reason}); "
            f"pass a {FILE} or a directory that holds one"
        ) from error
    for companion in COMPANIONS:
        try:
            hf_hub_download(name, companion, local_files_only=offline)
        except LocalEntryNotFoundError:
            continue  # offline, and not in the cache: then it was not there when the tokenizer was downloaded
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
    """sha256 of a tokenizer.json: which tokenizer it is."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, path: Path) -> TokenizerFile:
    """What `data` says; raises TokenizerError if it is no tokenizer.json, or one whose ids are random."""
    try:
        file = msgspec.json.decode(data, type=TokenizerFile)
    except msgspec.MsgspecError as error:
        raise TokenizerError(f"{path} is not a {FILE}: {error}") from error
    if file.model.dropout:
        raise TokenizerError(
            f"{path}: model.dropout is {file.model.dropout}, so a text gives other ids every time; set it to null"
        )
    return file


def named_token(path: Path, role: Role) -> tuple[str, str] | None:
    """The token that a companion of `path` names for `role`, and that companion's name; None if none does."""
    for companion in COMPANIONS:
        beside = path.with_name(companion)
        if not beside.is_file():
            continue
        try:
            value = msgspec.json.decode(beside.read_bytes()).get(f"{role}_token")
        except (OSError, AttributeError, msgspec.MsgspecError) as error:
            raise TokenizerError(f"{beside} cannot be read as a JSON object: {error}") from error
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            return token, companion
    return None
