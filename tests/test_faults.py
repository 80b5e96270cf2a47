"""What may happen to the ground a run stands on: full disks, lost permission, inputs that vanish or change.

Each ends the run in one or two lines that name what failed; nothing is published, and the same call continues once
the fault is gone. Faults strike between two tasks: the event that a task is done is when the test does its harm.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from runs import error_lines, exact_prep, make_texts, pack_here, read_files, weigh_here, write_corpus, write_jsonl

from exact_prep.dataset import find_datasets
from exact_prep.errors import DatasetError, ExactPrepError, SourceError, StorageError, UsageError
from exact_prep.pipeline.events import TaskDone
from exact_prep.pipeline.verify import verify
from exact_prep.records.options import SourceOptions
from exact_prep.records.work import InputFile, Slice
from exact_prep.sources import Inputs
from exact_prep.sources.formats import read_slice
from exact_prep.stores.local import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

linux_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=40)


@pytest.fixture(scope="module")
def whole(corpus, tokenizer_file, tmp_path_factory):
    """The corpus packed without any trouble."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_here(corpus, out, tokenizer_file)
    return out


@contextmanager
def disk(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A small disk mounted at `place`; gives a function that changes its size."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False).returncode:
        pytest.skip("nothing can be mounted here")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def strike(harm: Callable[[], object], after: int = 1) -> Callable[[object], None]:
    """An observer that does harm when so many tasks are done."""

    def watch(event: object) -> None:
        if isinstance(event, TaskDone) and event.done == after:
            harm()

    return watch


def assert_incomplete(out: Path) -> None:
    assert not list(out.rglob("manifest.json"))
    with pytest.raises(DatasetError, match="is incomplete"):
        verify(out)


@linux_root
def test_a_full_disk_ends_pack_and_room_lets_it_continue(corpus, whole, tokenizer_file, tmp_path):
    with disk(tmp_path / "disk", "96k") as resize:
        out = tmp_path / "disk" / "out"
        with pytest.raises(StorageError, match=r"disk/out/.*No space left"):
            pack_here(corpus, out, tokenizer_file, space_check=False)
        assert_incomplete(out)
        assert list(out.glob(".work/task-*.json"))
        resize("8m")
        pack_here(corpus, out, tokenizer_file)
        assert read_files(out) == read_files(whole)


@linux_root
def test_a_disk_that_fills_while_weights_are_written(whole, tmp_path):
    with disk(tmp_path / "disk", "1m") as resize:
        out, filler = tmp_path / "disk" / "out", tmp_path / "disk" / "filler"
        shutil.copytree(whole, out)

        def fill():
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    continue

        with pytest.raises(StorageError, match=r"disk/out/.*No space left"):
            weigh_here(out, emit=strike(fill))
        (finding,) = verify(out)
        assert "half-weighed" in finding
        filler.unlink()
        resize("8m")
        weigh_here(out)
        assert verify(out) == []
        shutil.copytree(whole, tmp_path / "other")
        weigh_here(tmp_path / "other")
        assert read_files(out) == read_files(tmp_path / "other")


@linux_root
def test_a_full_disk_is_no_hindrance_to_verify(whole, tmp_path):
    with disk(tmp_path / "disk", "1m") as resize:
        shutil.copytree(whole, tmp_path / "disk" / "out")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        assert verify(tmp_path / "disk" / "out") == []
        with pytest.raises(StorageError, match="Read-only"):
            weigh_here(tmp_path / "disk" / "out")
        assert resize


def test_a_limit_on_file_sizes_is_named(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(100))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16,) * 2); "
        "from exact_prep.cli import main; main()"
    )
    command = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 256, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "out/data-0000000-000.arrow" in done.stderr
    assert "File too large" in done.stderr
    assert len(error_lines(done.stderr)) == 1
    assert_incomplete(tmp_path / "out")


@contextmanager
def sealed_off(path: Path) -> Iterator[list[str]]:
    """A path without any permission; gives the prefix of commands that must respect that."""
    mode = path.stat().st_mode
    path.chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
    try:
        yield [] if os.geteuid() else drop
    finally:
        path.chmod(mode)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="permissions do not bind root")
def test_lost_permission_is_named_and_nothing_is_touched(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = read_files(out)
    shard = out / min(name for name in before if name.endswith(".arrow"))
    with sealed_off(shard) as prefix:
        command = [*prefix, sys.executable, "-m", "exact_prep", "weigh", out, "--workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"exact-prep: cannot write {shard}: Permission denied\n"
    assert read_files(out) == before


def test_weigh_looks_at_all_shards_before_it_touches_one(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    last = out / max(path.name for path in out.glob("*.arrow"))
    os.truncate(last, 100)
    before = read_files(out)
    with pytest.raises(DatasetError, match="100 bytes, the table of shards says"):
        weigh_here(out)
    last.unlink()
    with pytest.raises(StorageError, match="No such file"):
        weigh_here(out)
    before.pop(last.name)
    assert read_files(out) == before


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"text": "more"}\n')


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vanished": (lambda path: path.unlink(), "No such file"),
    "grown": (grow, "has changed since the run was planned"),
    "cut short": (lambda path: os.truncate(path, path.stat().st_size // 2), "has changed since the run was planned"),
    "touched": (lambda path: os.utime(path), "has changed since the run was planned"),
    "replaced by a directory": (lambda path: (path.unlink(), path.mkdir()), "2.jsonl"),
}


@pytest.mark.parametrize(("harm", "workers"), [*((harm, 1) for harm in HARMS), ("vanished", 2), ("touched", 2)])
def test_an_input_that_is_no_longer_what_was_planned_ends_the_run(
    harm, workers, corpus, whole, tokenizer_file, tmp_path
):
    inputs = [shutil.copy2(path, tmp_path / path.name) for path in corpus]
    do, says = HARMS[harm]
    out = tmp_path / "out"
    with pytest.raises(ExactPrepError, match=says) as caught:
        pack_here(inputs, out, tokenizer_file, workers=workers, emit=strike(lambda: do(inputs[2])))
    assert str(inputs[2]) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert_incomplete(out)
    shutil.rmtree(inputs[2]) if inputs[2].is_dir() else inputs[2].unlink(missing_ok=True)
    shutil.copy2(corpus[2], inputs[2])
    done = []
    pack_here(inputs, out, tokenizer_file, emit=done.append)
    assert any("continuing" in getattr(event, "text", "") for event in done)
    assert read_files(out).keys() == read_files(whole).keys()
    assert verify(out) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_changes_while_it_is_read_is_refused_at_its_end(name, tmp_path):
    path = tmp_path / name
    path.write_text("text\n" + "some words\n" * 5000 if name == "a.csv" else '{"text": "some words"}\n' * 5000)
    status = path.stat()
    kind = {"a.txt": "text", "a.jsonl": "jsonl", "a.csv": "csv"}[name]
    file = InputFile(path=str(path), bytes=status.st_size, format=kind, modified_ns=status.st_mtime_ns)
    batches = read_slice(Inputs(files=(file,), options=SourceOptions()).part(Slice(file=0)), block=1 << 14)
    next(batches)
    os.utime(path)
    with pytest.raises(SourceError, match="has changed since"):
        list(batches)


def test_what_lies_in_the_output_is_no_input(corpus, tokenizer_file, tmp_path):
    """`pack . --out ./packed` reads the same files, however often it is called, and never its own output."""
    folder = tmp_path / "in"
    shutil.copytree(corpus[0].parent, folder)
    out = folder / "packed"
    first = pack_here([folder], out, tokenizer_file)[0]
    again = pack_here([folder], out, tokenizer_file, overwrite=True)[0]
    assert again == first
    before = read_files(out)
    for inputs in ([out], [next(out.glob("*.arrow"))], [out / "*.arrow"]):
        with pytest.raises(UsageError, match="is in --out"):
            pack_here(inputs, out, tokenizer_file, overwrite=True)
    assert read_files(out) == before


def test_overwriting_leaves_directories_alone_that_are_not_its_own(corpus, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64))
    mine = out / "2024" / "data-0000000-000.arrow"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    pack_here(corpus, out, tokenizer_file, overwrite=True)
    assert mine.read_bytes() == b"precious"


def test_a_second_run_on_the_same_directory_is_refused_by_name(whole, corpus, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    found: list[subprocess.CompletedProcess] = []
    base = ["pack", corpus[0], "--tokenizer", tokenizer_file, "--seq-len", 64, "--overwrite"]

    def meddle():
        found.append(exact_prep(*base, "--out", out, check=1))

    pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64), emit=strike(meddle))
    assert f"{out} is in use by pid {os.getpid()} on " in found[0].stderr
    weigh_here(out, emit=strike(meddle))
    assert f"{out} is in use by pid {os.getpid()} on " in found[-1].stderr
    weigh_here(out / "64", alpha=0.3, emit=strike(meddle))
    assert f"{out / '64'} is in use by pid {os.getpid()} on " in found[-1].stderr
    assert verify(out / "64") == []


def test_the_lock_of_the_dead_is_no_lock(whole, corpus, tokenizer_file, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / ".lock").write_text("")
    (tmp_path / "out" / ".lock-holder").write_text("pid 1 on another-machine")
    weigh_here(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert not list((tmp_path / "out").glob(".lock*"))


def kill_workers(process: subprocess.Popen, out: Path, stop: threading.Event, most: int) -> None:
    """Kill up to `most` workers, each while it writes a shard."""
    while not stop.is_set() and most:
        time.sleep(0.001)
        if not list(out.glob("data-*.tmp")):
            continue
        with suppress(psutil.Error):
            for worker in psutil.Process(process.pid).children():
                if most and any(str(file.path).endswith(".tmp") for file in worker.open_files()):
                    worker.kill()
                    worker.wait(5)
                    most -= 1


@pytest.mark.parametrize("kills", [1, 1000])
def test_a_worker_that_is_killed_is_named_its_task_tried_again_and_then_the_run_ends(kills, tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(800, longest=20000))
    out, stop = tmp_path / "out", threading.Event()
    options = ["--tokenizer", tokenizer_file, "--seq-len", 64, "--task-size", 3000000, "--workers", 2]
    command = [sys.executable, "-m", "exact_prep", "pack", source, *options, "--out", out]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        killer = threading.Thread(target=kill_workers, args=(process, out, stop, kills))
        killer.start()
        _, talk = process.communicate(timeout=60)
        stop.set()
        killer.join()
    said = error_lines(talk)
    assert "a worker died at task " in said[0]
    assert f"({source}): killed by signal 9 (SIGKILL)" in said[0]
    assert said[0].endswith("the task starts again")
    if kills == 1:
        assert process.returncode == 0
        assert len(said) == 1
    else:
        assert process.returncode == 1
        assert "a worker died twice over task " in said[-1]
        assert_incomplete(out)
        assert "continuing" in exact_prep("pack", source, *options, "--out", out).stderr
    assert verify(out) == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_come_twice_end_a_run_as_one_does(first, tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(2000, longest=20000))
    command = [sys.executable, "-m", "exact_prep", "pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64]
    command += ["--out", tmp_path / "out", "--workers", 1]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("data-*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        begun = time.monotonic()
        for number in (first, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.01)
        _, talk = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - begun < 2
    assert len(error_lines(talk)) == 1, talk
    assert "start the same command again to continue" in talk


def test_a_run_that_is_refused_leaves_all_datasets_as_they_were(corpus, tokenizer_file, tmp_path):
    """Half of a directory of datasets is in use: none of it is replaced, none of it counts for less."""
    out = tmp_path / "out"
    pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64))
    before = read_files(out)
    with locked(out / "64"), pytest.raises(StorageError, match="64 is in use"):
        pack_here(corpus, out, tokenizer_file, seq_lens=(128,), overwrite=True)
    assert read_files(out) == before
    assert verify(out) == []
    with pytest.raises(UsageError, match="holds a dataset already"):
        pack_here(corpus, out, tokenizer_file, seq_lens=(128,))


def test_weigh_looks_at_all_datasets_before_it_touches_one(corpus, tokenizer_file, tmp_path):
    packed = tmp_path / "packed"
    pack_here(corpus, packed, tokenizer_file, seq_lens=(32, 64))
    max((packed / "64").glob("*.arrow")).unlink()
    before = read_files(tmp_path)
    with pytest.raises(StorageError, match="No such file"):
        weigh_here(packed, alpha=0.5)
    assert read_files(tmp_path) == before


def test_a_directory_of_datasets_is_whole_or_its_incomplete_one_is_named(corpus, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64))

    class Death(BaseException):
        pass

    def die(event):
        if isinstance(event, TaskDone) and event.done == 1 and (out / "64" / ".work").exists():
            raise Death

    with pytest.raises(Death):
        weigh_here(out, emit=die)
    assert verify(out / "32") == []
    findings = verify(out)
    assert findings
    assert all(f"{out / '64'}: half-weighed" in finding for finding in findings)
    (out / "2024").mkdir()
    weigh_here(out)
    assert verify(out) == []
    assert find_datasets(out) == [out / "32", out / "64"]
    with pytest.raises(Death):
        pack_here(corpus, out / "64", tokenizer_file, overwrite=True, emit=die)
    for call in (verify, weigh_here, find_datasets):
        with pytest.raises(DatasetError, match=r"out/64 is incomplete"):
            call(out)


def test_nothing_is_left_of_a_standard_input_that_was_cut_off(corpus, whole, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".stdin.another-host.1.0123abcd.tmp").write_bytes(b"half of what was co")
    pack_here(corpus, out, tokenizer_file)
    assert read_files(out) == read_files(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handled_while_a_vocabulary_loads(number, corpus, tokenizer_file, tmp_path):
    """The vocabulary takes minutes here, in native code as any does: a real one takes too few seconds to tell."""
    script = """if True:
    import hashlib, fastokens
    from exact_prep.cli import main

    class Tokenizer:
        def from_json_str(text):
            print("loading", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)

    fastokens.Tokenizer = Tokenizer
    main()
    """
    options = ["pack", *corpus, "--tokenizer", tokenizer_file, "--seq-len", "256", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", script, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "loading\n"
        started = time.monotonic()
        process.send_signal(number)
        _, talk = process.communicate(timeout=60)
        took = time.monotonic() - started
    assert process.returncode == 130
    assert took < 2
    assert len(error_lines(talk)) == 1
    assert "start the same command again to continue" in talk
