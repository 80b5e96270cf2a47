"""Buckets as stores, by obstore: `s3://BUCKET/...`, `gs://BUCKET/...` and `az://CONTAINER/...`.

Nothing is renamed, and a write is whole or not there at all, since that is what these services promise. Failures that
may pass (5xx, timeouts, resets, bodies that are cut) are tried again with growing pauses, by obstore. What obstore says
of a failure holds addresses, which may hold secrets: messages here are made of status, code and kind alone.
"""

from __future__ import annotations

import configparser
import io
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exact_prep.errors import StorageError, UsageError
from exact_prep.stores import Entry, split_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future

PART_BYTES = 64 << 20
"""Bytes of a part of an upload: few requests, and 10,000 parts, which is the most there may be, are 640 GB."""

PARTS_AT_ONCE = 2
"""Parts that are held in memory and sent side by side."""

FIRST_READ, LARGEST_READ = 1 << 16, 8 << 20
"""Bytes of the first request of a file that is read in order, at least, and of later ones: each is twice as long."""

RETRIES, RETRY_S = 10, 180
"""Tries after the first, and seconds in which they must begin."""

USERS: list[int] = []
"""The process that has used a store: this one, or one that it was forked from."""

CLIENT_DEFAULTS = {"connect_timeout": "10s", "timeout": "300s"}
"""A part of 64 MiB must get through a slow line in time."""

CLIENT_OPTIONS = {
    "allow_http", "allow_invalid_certificates", "connect_timeout", "pool_idle_timeout", "pool_max_idle_per_host",
    "proxy_ca_certificate", "proxy_excludes", "proxy_url", "read_timeout", "root_certificate", "timeout", "user_agent",
}  # fmt: skip
"""Options of the connection; all others are of the cloud, in obstore's words."""

ACCOUNT_OPTIONS = {
    "s3": "access_key_id, secret_access_key, session_token",
    "gs": "service_account",
    "az": "account_name, account_key",
}

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials or a role; after `aws sso login`, run "
    '`eval "$(aws configure export-credentials --format env)"`; for a public bucket, --store-option '
    "skip_signature=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`; for a public bucket, "
    "--store-option skip_signature=true",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or a managed identity; for a public container, "
    "--store-option skip_signature=true",
}
"""Where credentials are looked for, as a remedy."""

REFUSED = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "RequestTimeTooSkewed", "AuthenticationFailed", "InvalidAuthenticationInfo",
}  # fmt: skip
"""Codes that say that the credentials, not their rights, are wrong."""

ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
"""Codes of a bucket in another region."""

CUT = {"Body", "Decode", "Interrupted"}
"""Kinds of errors, in obstore's words, of an answer that ended before its time."""

NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}


class ObjectStore:
    """The objects of a bucket whose keys begin with a prefix; see `Store`. It can be pickled, and threads share it."""

    def __init__(self, url: str, client: Any) -> None:
        """`client` is obstore's, for the whole bucket."""
        self.url = url.rstrip("/")
        self._scheme, self._bucket, key = split_url(url)
        self._prefix = key.strip("/") + "/" if key.strip("/") else ""
        self._connection = client

    @property
    def _client(self) -> Any:
        """The client; raises StorageError in a process that was forked from one that has used a store.

        Both would share the sockets' event queue: this process would wait for ever, and the other one may crash.
        """
        if USERS and USERS[0] != os.getpid():
            raise StorageError(
                f"{self.url} cannot be used in a process that was forked from one that has used a store; start workers "
                "with spawn or forkserver, as in DataLoader(..., multiprocessing_context='forkserver')"
            )
        USERS[:] = [os.getpid()]
        return self._connection

    def child(self, name: str) -> ObjectStore:
        """See Store."""
        return ObjectStore(f"{self.url}/{name}", self._connection)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See Store."""
        import obstore

        # obstore lists whole folders: a prefix that ends inside of a name is looked for in its folder.
        folder = self._prefix + prefix.rpartition("/")[0]
        with self._explained("list", prefix):
            try:
                found = [one for page in obstore.list(self._client, folder or None) for one in page]
            except obstore.exceptions.GenericError as error:
                if find(r"kind: (\w+)", str(error)) not in CUT:
                    raise
                # obstore tries requests again, but not a page that was cut on its way.
                found = [one for page in obstore.list(self._client, folder or None) for one in page]
        entries = [Entry(one["path"][len(self._prefix) :], one["size"], one["e_tag"] or "") for one in found]
        yield from sorted(entry for entry in entries if entry.name and entry.name.startswith(prefix))

    def list_folder(self) -> tuple[list[str], list[str]]:
        """Names of the folders and of the objects right here, without what lies in the folders."""
        import obstore

        with self._explained("list", ""):
            found = obstore.list_with_delimiter(self._client, self._prefix or None)
        folders = [name[len(self._prefix) :] for name in found["common_prefixes"]]
        return sorted(folders), sorted(one["path"][len(self._prefix) :] for one in found["objects"])

    def is_empty(self) -> bool:
        """Whether there is no object here, by one request."""
        import obstore

        with self._explained("list", ""):
            return not any(page for page in obstore.list(self._client, self._prefix or None, chunk_size=1))

    def head(self, name: str) -> Entry | None:
        """Size and ETag of an object; None if there is none of that name."""
        found = self._head(name)
        return None if found is None else Entry(name, found["size"], found["e_tag"] or "")

    def size(self, name: str) -> int | None:
        """See Store."""
        found = self._head(name)
        return None if found is None else found["size"]

    def read(self, name: str) -> bytes:
        """See Store."""
        import obstore

        with self._explained("read", name):
            return obstore.get(self._client, self._prefix + name).bytes().to_bytes()

    def read_range(self, name: str, start: int, stop: int, *, etag: str = "") -> bytes:
        """See Store. With `etag`, raises StorageError if the object is no longer the one that has it."""
        import obstore

        if stop <= start:
            return b""
        options: Any = {"range": (start, stop)}
        if etag:
            options["if_match"] = etag
        with self._explained("read", name):
            try:
                answer = obstore.get(self._client, self._prefix + name, options=options)
                data = answer.bytes().to_bytes()
            except obstore.exceptions.GenericError as error:
                if "status: 416" in str(error) or "StartTooLarge" in str(error):
                    return b""
                raise
        if answer.range != (start, min(stop, answer.meta["size"])) or len(data) != answer.range[1] - start:
            raise StorageError(
                f"cannot read {self._name(name)}: bytes {start} to {stop} were asked for, {len(data)} came; check the "
                "service or the proxy before it"
            )
        return data

    def version(self, name: str) -> str | None:
        """See Store."""
        found = self._head(name)
        return None if found is None else self._version_of(found)

    def create(self, name: str, data: bytes) -> bool:
        """See Store."""
        import obstore

        with self._explained("write", name):
            try:
                obstore.put(self._client, self._prefix + name, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, data: bytes, version: str | None) -> bool:
        """See Store."""
        import obstore

        if version is None:
            return self.create(name, data)
        mode: Any = {"version" if self._scheme == "gs" else "e_tag": version}
        with self._explained("write", name):
            try:
                obstore.put(self._client, self._prefix + name, data, mode=mode, use_multipart=False)
            except (obstore.exceptions.PreconditionError, FileNotFoundError):
                return False
        return True

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        self._put(name, data)

    def scratch(self, name: str) -> Path:
        """See Store."""
        from exact_prep.stores.local import temporary_path

        return temporary_path(Path(tempfile.gettempdir(), name.rpartition("/")[2]))

    def upload(self, path: Path, name: str) -> None:
        """See Store. A failed upload is aborted, and its parts removed; those of a killed process are the bucket's."""
        try:
            self._put(name, path)
            path.unlink()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot upload {path} to {self._name(name)}: {error.strerror or error}") from error

    def remove(self, name: str) -> None:
        """See Store."""
        import obstore

        with self._explained("remove", name), suppress(FileNotFoundError):
            obstore.delete(self._client, self._prefix + name)

    def _put(self, name: str, data: bytes | Path) -> None:
        """Write an object from memory or from a file, whole or in parts."""
        import obstore

        with self._explained("write", name):
            obstore.put(
                self._client,
                self._prefix + name,
                data,
                mode="overwrite",
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def _head(self, name: str) -> Any:
        """The record of an object; None if there is none."""
        import obstore

        with self._explained("read", name):
            try:
                return obstore.head(self._client, self._prefix + name)
            except FileNotFoundError:
                return None

    def _version_of(self, found: Any) -> str:
        """What `replace` compares: Google's services by generation, others by ETag."""
        return found["version"] if self._scheme == "gs" and found["version"] else found["e_tag"]

    def _name(self, name: str) -> str:
        """An object as messages call it."""
        return f"{self.url}/{name}" if name else self.url

    @contextmanager
    def _explained(self, what: str, name: str) -> Iterator[None]:
        """Turn what obstore raises into a StorageError of one line, without the text that may hold secrets."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            message = explain(error, self._scheme, self._bucket)
            error.args = (type(error).__name__,)  # it travels along as the context of the one that is raised
            raise StorageError(f"cannot {what} {self._name(name)}: {message}") from None


def explain(error: Exception, scheme: str, bucket: str) -> str:
    """What went wrong and what to do, from obstore's error: its status, code and kind, never its text."""
    text = str(error)
    kind = type(error).__name__
    code = find(r"<Code>(\w{1,60})</Code>", text)
    status = find(r"status code: (\d{3})", text) or find(r"status: (\d{3})", text)
    known = ", ".join(filter(None, [status, code])) or kind
    if isinstance(error, ValueError):
        return "its name holds what obstore cannot spell (an empty folder or a control character); rename it"
    if "169.254." in text or "metadata.google.internal" in text or "MissingAccessKey" in text:
        return f"no credentials were found; looked for: {CREDENTIALS[scheme]}"
    if code in NO_BUCKET:
        return f"there is no bucket {bucket}; check its name, and --store-option endpoint=URL if it is not the cloud's"
    if code in ELSEWHERE or "without LOCATION" in text:  # a redirect that says no place
        return f"the bucket {bucket} is in another region; name it: --store-option region=REGION"
    if code in REFUSED or status == "401" or kind == "UnauthenticatedError":
        return f"the credentials are wrong or have expired ({known}); renew them: {CREDENTIALS[scheme]}"
    if status == "403" or kind == "PermissionDeniedError":
        return f"access is denied ({known}); ask for rights to list, read and write in {bucket}, or log in as another"
    if kind == "PreconditionError":
        return "it has changed since it was found; run the same command again when nothing writes to it any more"
    if isinstance(error, FileNotFoundError):
        return "there is no such object; check its name"
    if "non-partial response" in text:
        return "a range was asked for and the whole object came (200 in place of 206); check the proxy or the service"
    tries = find(r"after (\d+) retries", text)
    after = f" after {tries} more tries" if tries else ""
    if "kind: Connect" in text:
        return f"no connection{after}; check the network, and --store-option endpoint=URL if you gave one"
    if "kind: Timeout" in text:
        return f"no answer in time{after}; run the same command again, with --store-option timeout=600s on a slow line"
    said = "the answer was cut" if find(r"kind: (\w+)", text) in CUT else known
    return f"the service failed ({said}){after}; run the same command again later"


def find(pattern: str, text: str) -> str:
    """The first group of a pattern's first match; empty if there is none."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def open_objects(url: str, options: Mapping[str, str]) -> ObjectStore:
    """The store for the address of a bucket or of a folder in it; raises UsageError.

    `options` are obstore's of the cloud and of the connection, as strings; they win over the environment.
    """
    scheme, bucket, _ = split_url(url)
    return ObjectStore(url, connect(scheme, bucket, tuple(sorted(options.items()))))


@lru_cache(maxsize=64)
def connect(scheme: str, bucket: str, options: tuple[tuple[str, str], ...]) -> Any:
    """The client for a bucket: one per process, with its pool of connections. Raises UsageError."""
    try:
        from obstore import store as stores
        from obstore.exceptions import BaseError
    except ImportError:
        raise UsageError(
            f"{scheme}://{bucket} needs obstore; install it with pip install 'exact-prep[cloud]'"
        ) from None
    given = {name.lower(): value for name, value in options}
    retries, retry_s = RETRIES, float(RETRY_S)
    try:
        retries = int(given.pop("max_retries", retries))
        retry_s = float(given.pop("retry_timeout", retry_s))
    except ValueError:
        raise UsageError("--store-option max_retries and retry_timeout are numbers: tries, and seconds") from None
    connection: Any = CLIENT_DEFAULTS | {name: given.pop(name) for name in CLIENT_OPTIONS & set(given)}
    config: Any = {**(find_aws_profile() if scheme == "s3" else {}), **given}
    endpoint = config.get("endpoint", "") or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint.lower().startswith("http://"):
        connection.setdefault("allow_http", "true")
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=retry_s)}
    kinds: dict[str, Any] = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}
    try:
        return kinds[scheme](bucket, config=config, client_options=connection, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        key = find(r"Configuration key: '([^']{1,60})'", str(error))
        reason = f"{key} is not an option of {scheme}://" if key else "obstore refuses the options"
    raise UsageError(
        f"{scheme}://{bucket} cannot be opened: {reason}; --store-option KEY=VALUE knows endpoint, region, "
        f"skip_signature, {ACCOUNT_OPTIONS[scheme]}, timeout, and obstore's other options"
    )


def find_aws_profile() -> dict[str, str]:
    """Keys and region of AWS_PROFILE, or of the default profile, in ~/.aws; empty where the environment has keys.

    obstore itself reads the environment and asks for roles, but does not read these files.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        with suppress(configparser.Error, OSError, UnicodeDecodeError):
            parser.read(os.environ.get(variable) or home / name, encoding="utf-8")
        if parser.has_section(section):
            found |= dict(parser.items(section))
    words = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
        "endpoint_url": "endpoint",
    }
    kept = {words[name]: value for name, value in found.items() if name in words}
    variables = {"region": ("AWS_REGION", "AWS_DEFAULT_REGION"), "endpoint": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT")}
    for name, known in variables.items():
        if any(os.environ.get(variable) for variable in known):
            kept.pop(name, None)
    return kept


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """One object, in place of a path: what messages call it, and how to open it. It can be pickled."""

    store: ObjectStore
    name: str
    bytes: int
    etag: str

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}"

    def open(self, *, ahead: bool = True, stop: int | None = None) -> ObjectFile:
        """The object as a file. `ahead`: it will be read in order, in few requests; otherwise in those asked for.

        Nothing from byte `stop` on is asked for before it is read.
        """
        return ObjectFile(self, ahead=ahead, stop=stop)


class ObjectFile(io.RawIOBase):
    """An object as a raw file of bytes that is read by ranges, all of one version; any read may raise StorageError.

    Read in order, it asks for more each time, up to LARGEST_READ, and for the next range while this one is used.
    """

    def __init__(self, path: ObjectPath, *, ahead: bool, stop: int | None = None) -> None:
        """At its start. Asks for nothing yet."""
        super().__init__()
        self.name = str(path)
        self._path, self._ahead = path, ahead
        self._stop = path.bytes if stop is None else min(stop, path.bytes)
        self._at = 0
        self._start, self._data = 0, memoryview(b"")
        self._step = FIRST_READ
        self._next: Future[bytes] | None = None
        self._reader: ThreadPoolExecutor | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._path.bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, in one request at most; none at the end."""
        left = max(self._path.bytes - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        if not self._ahead:
            data = self._fetch(self._at, self._at + size)
        else:
            if not self._start <= self._at < self._start + len(self._data):
                self._load(size)
            low = self._at - self._start
            data = bytes(self._data[low : low + size])
        self._at += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as one request goes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """The rest of the object."""
        return b"".join(iter(lambda: self.read(LARGEST_READ), b""))

    def close(self) -> None:
        """Drop what is held; a request under way is waited for."""
        if self._reader is not None:
            self._reader.shutdown()
        self._reader = self._next = None
        self._data = memoryview(b"")
        super().close()

    def _fetch(self, start: int, stop: int) -> bytes:
        """One range."""
        return self._path.store.read_range(self._path.name, start, stop, etag=self._path.etag)

    def _load(self, size: int) -> None:
        """Hold the range that begins where the file is read."""
        follows = len(self._data) > 0 and self._at == self._start + len(self._data)
        if follows and self._next is not None:
            data = self._next.result()
        else:
            self._step = min(max(size, FIRST_READ), LARGEST_READ)
            end = self._stop if self._at < self._stop else self._path.bytes
            data = self._fetch(self._at, min(self._at + self._step, end))
        self._start, self._data, self._next = self._at, memoryview(data), None
        after = self._start + len(data)
        if follows and after < self._stop:
            self._step = min(2 * self._step, LARGEST_READ)
            self._reader = self._reader or ThreadPoolExecutor(1)
            self._next = self._reader.submit(self._fetch, after, min(after + self._step, self._stop))
