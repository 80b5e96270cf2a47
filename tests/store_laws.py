"""Laws of every store. A test class inherits them and gives a fixture `store`, empty, for each test."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exact_prep.errors import StorageError

if TYPE_CHECKING:
    from exact_prep.stores import Store

NAMES = ["a-b/c", "a/b.json", "a/c/d.bin", "a.txt", "ab", "b/a"]


def list_names(store: Store, prefix: str = "") -> list[str]:
    return [entry.name for entry in store.list(prefix)]


class StoreLaws:
    """What `exact_prep.stores.Store` promises."""

    def test_what_was_written_is_read_back(self, store):
        for data in (b"", b"one", bytes(range(256)) * 5000):
            store.write("tables/shards.parquet", data)
            assert store.read("tables/shards.parquet") == data
            assert store.size("tables/shards.parquet") == len(data)
        assert list_names(store) == ["tables/shards.parquet"]

    def test_a_file_that_is_not_there(self, store):
        store.write("a", b"file")
        for name in ("b", "b/c", "a/b"):
            assert store.size(name) is None
            assert store.version(name) is None
            store.remove(name)
            with pytest.raises(StorageError, match=name):
                store.read(name)
            with pytest.raises(StorageError, match=name):
                store.read_range(name, 0, 1)
        assert store.read("a") == b"file"

    def test_a_file_is_created_once(self, store):
        assert store.create("records/task.json", b"first")
        assert not store.create("records/task.json", b"second")
        assert store.read("records/task.json") == b"first"
        assert list_names(store) == ["records/task.json"]
        store.remove("records/task.json")
        assert store.create("records/task.json", b"third")
        assert store.read("records/task.json") == b"third"

    def test_of_those_that_race_to_create_a_file_exactly_one_wins(self, store):
        for number in range(20):
            name, start, won = f"race/{number}", threading.Barrier(4), []

            def race(me, name=name, start=start, won=won):
                start.wait()
                if store.create(name, b"%d" % me * 1000):
                    won.append(me)

            threads = [threading.Thread(target=race, args=(me,)) for me in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert store.read(name) == b"%d" % won[0] * 1000
        assert len(list_names(store)) == 20

    def test_a_file_is_replaced_only_if_it_is_unchanged(self, store):
        assert store.replace("weights.json", b"one", None)
        first = store.version("weights.json")
        assert first is not None
        assert not store.replace("weights.json", b"two", None)
        assert store.replace("weights.json", b"two", first)
        assert store.version("weights.json") != first
        assert not store.replace("weights.json", b"three", first)
        assert store.read("weights.json") == b"two"
        second = store.version("weights.json")
        store.remove("weights.json")
        assert not store.replace("weights.json", b"four", second)
        assert store.size("weights.json") is None

    def test_a_version_stays_until_the_content_changes(self, store):
        store.write("a", b"one")
        assert store.version("a") == store.version("a")

    def test_ranges_are_the_bytes_of_the_file_and_end_where_it_ends(self, store):
        data = bytes(range(200))
        store.write("a", data)
        for start, stop in ((0, 200), (0, 0), (5, 5), (5, 6), (190, 300), (200, 201), (300, 400), (0, 1000)):
            assert store.read_range("a", start, stop) == data[start:stop]

    def test_ranges_of_a_large_file(self, store):
        data = bytes(range(251)) * 20_000
        store.write("a", data)
        for start, stop in (
            (0, len(data)),
            ((1 << 20) - 3, (1 << 20) + 3),
            (17, (1 << 21) + 17),
            (len(data) - 1, 1 << 30),
        ):
            assert store.read_range("a", start, stop) == data[start:stop]

    def test_names_are_listed_sorted_as_strings_with_their_sizes(self, store):
        for size, name in enumerate(reversed(NAMES)):
            store.write(name, b"x" * size)
        entries = list(store.list())
        assert [entry.name for entry in entries] == sorted(NAMES)
        assert [entry.bytes for entry in entries] == [NAMES[::-1].index(name) for name in sorted(NAMES)]
        for prefix in ("", "a", "a/", "a/c", "a/c/", "a/c/d.bin", "b", "none", "none/x", "ab/", "a.txt/x"):
            assert list_names(store, prefix) == [name for name in sorted(NAMES) if name.startswith(prefix)]

    def test_an_empty_store_lists_nothing(self, store):
        assert list_names(store) == []
        assert list_names(store.child("x")) == []

    def test_a_child_is_the_files_below_a_name(self, store):
        child = store.child("tables")
        child.write("inner/shards.parquet", b"data")
        assert store.read("tables/inner/shards.parquet") == b"data"
        assert list_names(child) == ["inner/shards.parquet"]
        assert list_names(store) == ["tables/inner/shards.parquet"]
        assert child.url.startswith(store.url)
        assert "tables" in child.url
        store.write("tables/b", b"2")
        assert child.size("b") == 1

    def test_a_file_made_in_scratch_is_uploaded_and_hidden_until_then(self, store):
        path = store.scratch("parts/data.arrow")
        assert isinstance(path, Path)
        path.write_bytes(b"half of it")
        assert list_names(store) == []
        assert store.size("parts/data.arrow") is None
        path.write_bytes(b"all of it")
        store.upload(path, "parts/data.arrow")
        assert not path.exists()
        assert store.read("parts/data.arrow") == b"all of it"
        assert list_names(store) == ["parts/data.arrow"]

    def test_an_upload_takes_the_place_of_what_was_there_also_under_a_new_folder(self, store):
        store.write("a/b", b"old")
        for name in ("a/b", "new/folder/b"):
            path = store.scratch("x")
            path.write_bytes(b"new")
            store.upload(path, name)
            assert store.read(name) == b"new"
        with pytest.raises(StorageError, match="a/c"):
            store.upload(store.scratch("never-written"), "a/c")

    def test_no_two_scratch_paths_meet(self, store):
        paths = [store.scratch("data.arrow") for _ in range(200)]
        assert len(set(paths)) == len(paths)
        assert not any(path.exists() for path in paths)

    def test_remove_takes_one_file_and_nothing_beside_it(self, store):
        for name in NAMES:
            store.write(name, b"x")
        store.remove("a/b.json")
        store.remove("a/b.json")
        assert list_names(store) == sorted(set(NAMES) - {"a/b.json"})

    def test_a_file_is_never_seen_half_written(self, store):
        """A reader that looks all the time sees one version or the other."""
        old, new = b"o" * 300_000, b"n" * 300_000
        store.write("a", old)
        stop, seen = threading.Event(), set()

        def watch():
            while not stop.is_set():
                seen.add(store.read("a"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(30):
            store.write("a", old if number % 2 else new)
        stop.set()
        watcher.join()
        assert seen <= {old, new}
        assert list_names(store) == ["a"]
