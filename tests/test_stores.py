"""Laws of stores and of what lies beneath them: atomic files, temporary names, durable writes, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
from store_laws import StoreLaws, list_names

from exact_prep.errors import StorageError, UsageError
from exact_prep.stores import open_store, parse_options, redact
from exact_prep.stores.local import (
    LocalStore,
    digest_file,
    explained,
    locked,
    map_file,
    read_blocks,
    remove,
    remove_leftovers,
    sync_directory,
    temporary_path,
    write_atomically,
)


class TestLocalStore(StoreLaws):
    """A directory keeps the laws of every store, and some of its own."""

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "store")

    def test_a_directory_is_opened_by_text_or_path_and_made_by_the_first_write(self, tmp_path):
        for place in (str(tmp_path / "a"), tmp_path / "b"):
            store = open_store(place)
            assert isinstance(store, LocalStore)
            assert store.url == str(place)
            assert not Path(place).exists()
            store.write("x", b"")
            assert Path(place, "x").is_file()

    def test_a_failed_write_leaves_what_was_there_and_no_temporary_file(self, store, monkeypatch):
        store.write("a", b"old")
        before = list(store.path.rglob("*"))

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for write in (store.write, store.create):
            with pytest.raises(StorageError, match=r"cannot (write|sync) .*: No space left on device"):
                write("a", b"new")
        assert list(store.path.rglob("*")) == before
        assert store.read("a") == b"old"

    def test_only_unfinished_writes_are_hidden(self, store):
        """A name that merely ends in .tmp is somebody's file."""
        store.write("notes.tmp", b"")
        temporary_path(store.path / "data.arrow").write_bytes(b"")
        assert list_names(store) == ["notes.tmp"]

    def test_remove_does_not_take_a_directory_for_a_file(self, store):
        store.write("tables/a", b"")
        with pytest.raises(StorageError, match="tables"):
            store.remove("tables")
        assert list_names(store) == ["tables/a"]

    def test_what_stands_in_the_way_is_named(self, store):
        store.write("a", b"")
        for write in (store.write, store.create):
            with pytest.raises(StorageError, match=re.escape(str(store.path / "a"))):
                write("a/b", b"")


@pytest.mark.parametrize("url", ["hdfs://host/a", "hf://datasets/a/b", Path("s3://bucket/corpus"), Path("gs://x")])
def test_a_url_is_refused_by_its_scheme(url):
    with pytest.raises(
        UsageError, match=r"(s3|gs|hf|hdfs)://.* exact-prep cannot open( here)? yet;\n.* name the local path"
    ):
        open_store(url)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:pass@host/a", "https://...@host/a"),
        ("https://b.s3.amazonaws.com/a.jsonl?X-Amz-Signature=abc", "https://b.s3.amazonaws.com/a.jsonl?..."),
        ("https://host?sig=abc", "https://host?..."),
        ("s3://key:secret@bucket/a", "s3://...@bucket/a"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("corpus/a?b", "corpus/a?b"),
    ],
)
def test_addresses_are_shown_without_secrets(address, shown):
    assert redact(address) == shown


def test_an_address_with_secrets_is_refused_without_repeating_them():
    for address in ("https://user:SECRET@host/a", "https://host/a?sig=SECRET", "s3://key:SECRET@bucket/a"):
        with pytest.raises(UsageError, match=r"(?s)://.*(cannot open|holds credentials)") as caught:
            open_store(address)
        assert "SECRET" not in str(caught.value)


def test_store_options_are_pairs_and_their_values_are_not_repeated():
    assert parse_options(["region=eu-west-1", "secret_access_key=a=b"]) == {
        "region": "eu-west-1",
        "secret_access_key": "a=b",
    }
    for wrong in ("SECRET", "=SECRET"):
        with pytest.raises(UsageError, match="KEY=VALUE") as caught:
            parse_options([wrong])
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["C:/data", "a:b", "with space", "x:y"])
def test_a_directory_with_a_colon_is_a_directory(name):
    assert open_store(name).url == name


def test_a_file_is_published_whole_or_not_at_all(tmp_path):
    target = tmp_path / "record.json"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
    with pytest.raises(StorageError, match="write"):
        write_atomically(tmp_path / "absent" / "record.json", b"three")


def test_temporary_names_carry_host_process_and_nonce_and_never_collide(tmp_path, monkeypatch):
    target = tmp_path / "data-0000001-000.arrow"
    names = [temporary_path(target).name for _ in range(1000)]
    assert len(set(names)) == 1000
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    assert all(re.fullmatch(rf"{target.name}\.{host}\.{os.getpid()}\.[0-9a-f]{{8}}\.tmp", name) for name in names)
    for odd in ("", "node.cluster.example", "ünïcode host", "x" * 300):
        monkeypatch.setattr(socket, "gethostname", lambda odd=odd: odd)
        path = temporary_path(target)
        path.write_bytes(b"")
        remove_leftovers(tmp_path)
        assert not path.exists()


def test_remove_leftovers_takes_temporary_names_alone_and_looks_in_no_folder(tmp_path):
    kept = [
        "data-0000001-000.arrow",
        "notes.tmp",
        "data.arrow.tmp",
        "data.arrow.host.12.0123456.tmp",
        "data.arrow.host.12.0123456g.tmp",
        "data.arrow.host.x.01234567.tmp",
        "data.arrow.host.12.01234567.tmp.bak",
        "cache-0123.arrow",
        "inner",
    ]
    (tmp_path / "inner").mkdir()
    below = tmp_path / "inner" / temporary_path(tmp_path / "deep").name
    below.write_bytes(b"")
    for name in kept[:-1]:
        (tmp_path / name).write_bytes(b"")
    gone = [temporary_path(tmp_path / name) for name in ("manifest.json", "data-0000001-000.arrow", "a.b.c")]
    gone.append(tmp_path / "data.arrow.other-host.7.deadbeef.tmp")
    for path in gone:
        path.write_bytes(b"")
    remove_leftovers(tmp_path, tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert below.exists()


def test_blocks_maps_and_digests_agree_with_the_file(tmp_path):
    path, data = tmp_path / "a", bytes(range(253)) * 9000
    path.write_bytes(data)
    assert bytes(map_file(path)) == data
    assert digest_file(path) == xxhash.xxh3_128_hexdigest(data)
    ranges = [slice(5, 5), slice(0, 7), slice(100, 2_000_000), slice(len(data) - 3, len(data) + 50)]
    got = b"".join(bytes(block) for block in read_blocks(path, ranges))
    assert got == b"".join(data[part] for part in ranges)
    path.write_bytes(b"")
    assert bytes(map_file(path)) == b""
    for read in (map_file, digest_file, lambda path: list(read_blocks(path, [slice(0, 1)]))):
        with pytest.raises(StorageError, match="absent: No such file"):
            read(tmp_path / "absent")


def test_remove_takes_files_folders_and_links_and_nothing_behind_a_link(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "a").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert (tmp_path / "folder" / "inner" / "a").exists()
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_says_what_was_done_to_which_path():
    with pytest.raises(StorageError, match="cannot weigh /x: Input/output error"), explained("weigh", "/x"):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(StorageError, match=r"^inner$"), explained("weigh", "/x"):
        raise StorageError("inner")


def test_where_directories_cannot_be_synced_only_that_is_forgiven(tmp_path, monkeypatch):
    def answer(code):
        def fsync(descriptor):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    answer(errno.EINVAL)
    sync_directory(tmp_path)
    for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTSUP):
        answer(code)
        with pytest.raises(StorageError, match=f"cannot sync .*: {re.escape(os.strerror(code))}"):
            sync_directory(tmp_path)
    with pytest.raises(StorageError, match="absent"):
        sync_directory(tmp_path / "absent")


HOLD = """
import sys, time
from pathlib import Path
from exact_prep.stores.local import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_directory_is_refused_and_freed_by_the_holders_death(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match=rf"in use by pid {holder.pid} on "), locked(tmp_path):
        pytest.fail("two runs hold one directory")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert (tmp_path / ".lock-holder").read_text().startswith(f"pid {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_freed_by_an_error_inside_and_makes_its_directory(tmp_path):
    home, seen = tmp_path / "a" / "b", []

    def fail():
        with locked(home):
            seen.append(sorted(path.name for path in home.iterdir()))
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert list(home.iterdir()) == []
    assert seen == [[".lock", ".lock-holder"]] * 2


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP])
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks_is_refused_and_named_its_remedy(tmp_path, monkeypatch, code):
    """Never a soft lock: a file that a holder killed on another host leaves for ever."""

    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"has no locks; .*--no-lock"), locked(tmp_path):
                pytest.fail("nothing was locked")
            # A soft lock would hold the name of its holder; the empty file of a real one locks nothing.
            assert [path.read_bytes() for path in tmp_path.iterdir()] in ([], [b""])
        entered = False
        with locked(tmp_path, lock=False):
            entered = True
        assert entered
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_lock_is_named(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=r"cannot lock .*\.lock: Input/output error"), locked(tmp_path):
        pytest.fail("nothing was locked")
