"""Buckets keep the laws of every store, faults that pass are survived, and failures are one line without secrets."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import re
import traceback
import urllib.request

import pytest
from fault_proxy import FAULTS

from exact_prep.errors import StorageError, UsageError
from exact_prep.stores import open_store
from exact_prep.stores.objects import FIRST_READ, LARGEST_READ, ObjectPath, ObjectStore
from tests.store_laws import StoreLaws, list_names


class TestMemory(StoreLaws):
    @pytest.fixture
    def store(self, cloud):
        from obstore.store import MemoryStore

        return ObjectStore("s3://memory", MemoryStore())


class TestBucket(StoreLaws):
    @pytest.fixture
    def store(self, bucket):
        return open_store(bucket.url, bucket.options)


class TestFolderOfABucket(StoreLaws):
    @pytest.fixture
    def store(self, bucket):
        whole = open_store(bucket.url, bucket.options)
        whole.write("folder-2/a", b"")
        whole.write("folder", b"")
        return open_store(f"{bucket.url}/folder/", bucket.options)


class TestBucketBehindFaults(StoreLaws):
    """Every law also holds where the service fails every third time."""

    @pytest.fixture
    def store(self, shaky, proxy):
        proxy.faults.extend(["", "", "503", "", "", "500"] * 200)
        return open_store(shaky.url, shaky.options)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_survived_by_reads_and_writes(shaky, proxy, fault):
    store = open_store(shaky.url, shaky.options)
    data = os.urandom(1 << 20)
    proxy.faults.append(fault)
    store.write("a", data)
    for read in (
        lambda: store.read("a") == data,
        lambda: store.read_range("a", 1000, 500_000) == data[1000:500_000],
        lambda: store.size("a") == len(data),
        lambda: list_names(store) == ["a"],
    ):
        proxy.faults.append(fault)
        assert read()
    assert proxy.made[fault] == 5


def test_a_service_that_stays_away_is_an_error_after_some_tries(shaky, proxy):
    store = open_store(shaky.url, shaky.options)
    proxy.faults.extend(["503"] * 50)
    with pytest.raises(StorageError, match=r"cannot read s3://bucket-.*/a: the service failed \(503\) after 4 more"):
        store.read("a")
    assert proxy.made["503"] == 5


def test_a_whole_object_where_a_range_was_asked_for_is_an_error(shaky, proxy):
    store = open_store(shaky.url, shaky.options)
    store.write("a", bytes(1000))
    proxy.faults.extend(["whole"] * 20)
    with pytest.raises(StorageError, match="200 in place of 206"):
        store.read_range("a", 10, 20)


def test_a_large_file_is_uploaded_in_parts_and_a_failed_upload_leaves_none(shaky, proxy, tmp_path, monkeypatch):
    store = open_store(shaky.url, {**shaky.options, "timeout": "30s"})
    monkeypatch.setattr("exact_prep.stores.objects.PART_BYTES", 5 << 20)
    data = os.urandom(12 << 20)
    path = tmp_path / "data"
    path.write_bytes(data)
    store.upload(path, "data.arrow")
    assert store.read("data.arrow") == data
    assert sum("partNumber=" in seen[1] for seen in proxy.seen) == 3

    path.write_bytes(data)
    proxy.wants = lambda method, address: "partNumber=2" in address
    proxy.faults.extend(["500"] * 50)
    with pytest.raises(StorageError, match="cannot write"):
        store.upload(path, "second.arrow")
    assert path.exists()
    assert list_names(store) == ["data.arrow"]
    answer = urllib.request.urlopen(f"{shaky.endpoint}/{shaky.url[5:]}?uploads", timeout=20).read()
    assert b"ListMultipartUploadsResult" in answer
    assert b"<UploadId>" not in answer


def failure(action) -> str:
    """The message of a StorageError; what travels along with it has no text of its own."""
    with pytest.raises(StorageError) as caught:
        action()
    error = caught.value
    assert error.__cause__ is None
    assert re.fullmatch(r"\w+", str(error.__context__))
    assert "\n" not in str(error)
    return str(error)


def test_what_is_not_there_or_not_allowed_is_one_line_with_a_remedy(shaky, proxy):
    store = open_store(shaky.url, shaky.options)
    elsewhere = open_store("s3://no-such-bucket/x", shaky.options)
    for action in (
        lambda: elsewhere.read("a"),
        lambda: list(elsewhere.list()),
        lambda: elsewhere.write("a", b"1"),
        lambda: elsewhere.create("a", b"1"),
    ):
        assert re.search(r"s3://no-such-bucket/x.*: there is no bucket no-such-bucket; check its name", failure(action))
    for action in (lambda: store.read("a"), lambda: store.write("a", b"1"), lambda: list(store.list())):
        proxy.faults.append("403")
        assert re.search(r"cannot (read|write|list) s3://.*: access is denied \(403\); ask", failure(action))
        proxy.faults.append("401")
        assert "the credentials are wrong or have expired (401); renew them" in failure(action)
        proxy.faults.append("301")
        assert "--store-option region=REGION" in failure(action)


def test_no_service_and_no_credentials_are_explained(bucket, monkeypatch):
    quick = {"max_retries": "1", "retry_timeout": "1", "connect_timeout": "1s", "timeout": "1s"}
    closed = open_store(bucket.url, {**bucket.options, **quick, "endpoint": "http://127.0.0.1:9"})
    assert "no connection after 1 more tries; check the network" in failure(lambda: closed.read("a"))
    # The address of a cloud's service for credentials, which answers nothing here.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    alone = {**quick, "endpoint": bucket.endpoint, "region": "us-east-1"}
    message = failure(lambda: open_store(bucket.url, alone).read("a"))
    assert "no connection" in message or "no credentials" in message


def test_options_that_obstore_does_not_know_are_refused_without_their_values(bucket):
    with pytest.raises(UsageError, match="acess_key_id is not an option of s3://") as caught:
        open_store(bucket.url, {"acess_key_id": "SECRET"})
    assert "SECRET" not in str(caught.value)
    with pytest.raises(UsageError, match="are numbers"):
        open_store(bucket.url, {"max_retries": "many"})


def test_no_message_holds_a_secret(shaky, proxy):
    endpoint = proxy.url.replace("http://", "http://user:hIdDeN@") + "/?X-Amz-Signature=sIgNeD"
    store = open_store(shaky.url, {**shaky.options, "endpoint": endpoint, "max_retries": "0", "timeout": "1s"})
    shown = []
    for fault in ("503", "403", "404", "reset", "timeout", "cut"):
        for action in (lambda: store.read("a"), lambda: store.write("a", b"1"), lambda: list(store.list())):
            proxy.faults.clear()
            proxy.faults.append(fault)
            try:
                action()
            except StorageError as error:
                shown.append(f"{error} {error!r} {''.join(traceback.format_exception(error))} {error.__context__}")
    assert len(shown) > 10
    assert not [one for one in shown if re.search("sEcReT|AKID|hIdDeN|sIgNeD|user:", one)]
    assert not re.search("sEcReT|AKID|hIdDeN|sIgNeD", f"{store!r} {store.url}")


@pytest.mark.parametrize("place", ["environment", "files"])
def test_credentials_are_found_where_the_clouds_own_tools_find_them(bucket, place, monkeypatch, tmp_path):
    from exact_prep.stores import objects

    objects.connect.cache_clear()
    if place == "environment":
        for name in ("endpoint", "region", "access_key_id", "secret_access_key"):
            variable = {"endpoint": "AWS_ENDPOINT_URL"}.get(name, f"AWS_{name.upper()}")
            monkeypatch.setenv(variable, bucket.options[name])
    else:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_PROFILE", "work")
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "credentials").write_text(
            "[default]\naws_access_key_id = x\n[work]\naws_access_key_id = AKID\naws_secret_access_key = sEcReT\n"
        )
        (tmp_path / ".aws" / "config").write_text(
            f"[profile work]\nregion = us-east-1\nendpoint_url = {bucket.endpoint}\n"
        )
    store = open_store(bucket.url)
    store.write("a", b"1")
    assert store.read("a") == b"1"
    objects.connect.cache_clear()


@pytest.mark.parametrize("name", ["a b+ä.txt", "x%20y", "c#d", "[1]*.jsonl", "日本/語", "~t", "a&b=c;d,'e'"])
def test_names_of_objects_are_taken_as_they_are(bucket, name):
    store = open_store(bucket.url, bucket.options)
    store.write(name, b"1")
    assert store.read(name) == b"1"
    assert list_names(store) == [name]


def test_a_store_can_be_sent_to_another_process(bucket):
    store = open_store(f"{bucket.url}/folder", bucket.options)
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again.read("a") == b"1"
    assert again.url == store.url


def read_size(store, queue) -> None:
    try:
        queue.put(store.size("a"))
    except StorageError as error:
        queue.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_forked_process_is_told_to_be_started_otherwise(bucket, method):
    """It would wait for ever: the sockets' event queue is the parent's."""
    store = open_store(bucket.url, bucket.options)
    store.write("a", b"123")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=read_size, args=(store, queue))
    process.start()
    answer = queue.get()
    process.join()
    assert answer == 3 if method != "fork" else "multiprocessing_context='forkserver'" in answer
    assert store.read("a") == b"123"


def open_file(bucket, data: bytes, *, ahead: bool, stop: int | None = None):
    store = open_store(bucket.url, bucket.options)
    store.write("file", data)
    entry = store.head("file")
    return ObjectPath(store, "file", entry.bytes, entry.etag).open(ahead=ahead, stop=stop)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_file_of_a_bucket_reads_as_a_local_one(bucket, ahead):
    data = os.urandom(3_000_001)
    local = io.BytesIO(data)
    with open_file(bucket, data, ahead=ahead) as file:
        for seek, whence, size in ((0, 0, 10), (0, 1, 700_000), (5, 1, 700_000), (-7, 2, 100), (0, 2, 1), (17, 0, 3)):
            assert file.seek(seek, whence) == local.seek(seek, whence)
            wanted = local.read(size)
            got = b""
            while len(got) < len(wanted):
                got += file.read(len(wanted) - len(got))
            assert got == wanted
            assert file.tell() == local.tell()
        file.seek(100)
        assert io.BufferedReader(file).read() == data[100:]


def test_a_file_that_is_read_in_order_takes_few_requests_and_one_that_is_not_takes_what_was_asked_for(shaky, proxy):
    data = os.urandom(40 << 20)
    shaky.options["timeout"] = "60s"
    with open_file(shaky, data, ahead=True) as file:
        del proxy.seen[:]
        pieces = list(iter(lambda: file.read(1 << 20), b""))
    assert b"".join(pieces) == data
    # 1, 1, 2, 4 and 8 MiB: every byte is asked for once.
    ranges = [tuple(map(int, re.findall(r"\d+", seen[2]))) for seen in proxy.seen]
    assert len(ranges) < 12
    assert sum(stop - start + 1 for start, stop in ranges) == len(data)
    assert max(stop - start + 1 for start, stop in ranges) == LARGEST_READ

    with open_file(shaky, data, ahead=True, stop=20 << 20) as file:
        del proxy.seen[:]
        before = b"".join(file.read(1 << 18) for _ in range(80))
        assert before == data[: 20 << 20]
        assert max(int(seen[2].rpartition("-")[2]) for seen in proxy.seen) == (20 << 20) - 1
        assert file.read(100) == data[20 << 20 :][:100]
        assert int(proxy.seen[-1][2].rpartition("-")[2]) == (20 << 20) + FIRST_READ - 1

    with open_file(shaky, data, ahead=False) as file:
        del proxy.seen[:]
        file.seek(12345)
        file.read(1000)
    assert [seen[2] for seen in proxy.seen] == ["bytes=12345-13344"]


def test_an_object_that_changes_while_it_is_read_is_named(bucket):
    with open_file(bucket, os.urandom(2 << 20), ahead=True) as file:
        file.read(1000)
        open_store(bucket.url, bucket.options).write("file", os.urandom(2 << 20))
        message = failure(lambda: file.readall())
    assert re.search(r"cannot read s3://bucket-.*/file: it has changed since it was found; run the same", message)
