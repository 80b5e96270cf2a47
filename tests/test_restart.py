"""A run cut off at any single step on the disk is continued by the same call, and ends with the same bytes.

Every rename, deletion and creation of a directory is a step. Each run is cut at its first step, at its second, and so
on to its last: what random kills may miss is tried here one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import exact_prep, make_texts, pack_here, read_files, weigh_here, write_corpus, write_jsonl

from exact_prep.errors import DatasetError, Interrupted, UsageError
from exact_prep.pipeline.events import Started, TaskDone
from exact_prep.pipeline.verify import verify
from exact_prep.stores.local import temporary_path

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("replace", "link", "unlink", "rmdir", "mkdir")
INCOMPLETE = ("is incomplete", "half-weighed", "is not a packed dataset", "does not exist")


class Cut(BaseException):
    """The power is gone."""


class PowerCuts:
    """Cuts whatever is done at its n-th step on the disk, or counts the steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.last = 0
        for name in STEPS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        # These cuts end a process, not a machine: syncing, the slowest part, changes nothing they could see.
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def counted(self, step: Callable) -> Callable:
        def take(*arguments, **options):
            self.steps += 1
            # The dead take no further step: what tidies up behind an exception must not help.
            if self.last and self.steps >= self.last:
                raise Cut
            return step(*arguments, **options)

        return take

    def at(self, step: int, action: Callable[[], object]) -> bool:
        """Do something, cut off at a step; returns whether it was."""
        self.steps, self.last = 0, step
        try:
            action()
        except Cut:
            return True
        finally:
            cut = self.steps >= step > 0
            self.last = 0
        return cut


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), files=2, documents=8)


@pytest.fixture
def cuts(monkeypatch):
    return PowerCuts(monkeypatch)


def check_incomplete(directory: Path) -> None:
    try:
        findings = verify(directory)
    except DatasetError as error:
        findings = [str(error)]
    assert all(any(words in finding for words in INCOMPLETE) for finding in findings), findings


def shown(directory: Path) -> dict[str, bytes]:
    """The files of a dataset, without what a dead run leaves beside it."""
    files = read_files(directory) if directory.exists() else {}
    return {name: data for name, data in files.items() if not any(word in name for word in (".lock", ".work"))}


def cut_everywhere(cuts: PowerCuts, target: Path, prepare: Callable[[], object], call: Callable[[], object]) -> int:
    """Cut `call` at each of its steps in turn, call it again, compare; returns how many steps there were."""
    prepare()
    call()
    expected = read_files(target)
    for step in range(1, 1000):
        shutil.rmtree(target)
        prepare()
        before = shown(target)
        if not cuts.at(step, call):
            return step - 1
        check_incomplete(target)
        try:
            call()
        except UsageError as error:
            # It is refused only where the cut came after all was done.
            if shown(target) == before or "already" not in str(error):
                raise
            assert shown(target) == expected, step
        else:
            assert read_files(target) == expected, step
        assert verify(target) == []
    raise AssertionError("more than 1000 steps")


def test_pack_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    steps = cut_everywhere(cuts, out, lambda: None, lambda: pack_here(corpus, out, tokenizer_file))
    assert steps > 15


def test_holding_out_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    """Two row lengths, training and validation rows of each."""
    target = tmp_path / "out"

    def call():
        pack_here(corpus, target, tokenizer_file, seq_lens=(64, 128), validation=0.4)

    assert cut_everywhere(cuts, target, lambda: None, call) > 60


def test_holding_out_over_another_dataset_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    target, kept = tmp_path / "out", tmp_path / "kept"
    pack_here(corpus[:1], kept, tokenizer_file, seq_lens=(64, 128), validation=0.4)

    def call():
        untouched = shown(target) == shown(kept)
        pack_here(corpus[1:], target, tokenizer_file, seq_lens=(64,), validation=0.4, overwrite=untouched)

    assert cut_everywhere(cuts, target, lambda: shutil.copytree(kept, target), call) > 60


def test_pack_over_another_dataset_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    pack_here(corpus[:1], other, tokenizer_file, seq_lens=(32, 64))
    weigh_here(other)

    def prepare():
        shutil.copytree(other, out)

    def call():
        # As one does: --overwrite where a dataset is in the way, the bare command where a run is incomplete.
        untouched = shown(out) == shown(other)
        return pack_here(corpus[1:], out, tokenizer_file, seq_lens=(32, 128), overwrite=untouched)

    assert cut_everywhere(cuts, out, prepare, call) > 40


@pytest.mark.parametrize("validation", [None, 0.4])
def test_going_on_with_other_inputs_cut_anywhere(validation, cuts, tokenizer_file, tmp_path):
    """A finished file changed, one was added, one removed: cut at any step, the same call ends with the same bytes."""
    inputs = write_corpus(tmp_path / "in", files=4, documents=6)
    begun, out = tmp_path / "begun", tmp_path / "out"

    def stop(event):
        if isinstance(event, TaskDone) and event.done == 2:
            raise KeyboardInterrupt

    source = {"task_bytes": max(path.stat().st_size for path in inputs)}
    with pytest.raises(Interrupted):
        pack_here([tmp_path / "in"], begun, tokenizer_file, source=source, validation=validation, emit=stop)
    write_jsonl(inputs[0], make_texts(5))
    inputs[2].unlink()
    write_jsonl(tmp_path / "in" / "added.jsonl", make_texts(3, seed=1))
    steps = cut_everywhere(
        cuts,
        out,
        lambda: shutil.copytree(begun, out),
        lambda: pack_here([tmp_path / "in"], out, tokenizer_file, source=source, validation=validation),
    )
    assert steps > 20


def test_weigh_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file, seq_lens=(32, 64))
    steps = cut_everywhere(cuts, out, lambda: shutil.copytree(packed, out), lambda: weigh_here(out))
    assert steps > 15


def test_weigh_of_training_and_validation_rows_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file, validation=0.4)
    steps = cut_everywhere(cuts, out, lambda: shutil.copytree(packed, out), lambda: weigh_here(out))
    assert steps > 15


def test_weigh_without_a_column_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file, loss_weights="table")
    steps = cut_everywhere(cuts, out, lambda: shutil.copytree(packed, out), lambda: weigh_here(out))
    assert steps >= 3


def test_another_table_over_half_of_one_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    """`weigh` stopped in the middle, then with other parameters, stopped again anywhere."""
    packed, half, out = tmp_path / "packed", tmp_path / "half", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file)
    shutil.copytree(packed, half)
    assert cuts.at(5, lambda: weigh_here(half, alpha=0.5))
    assert any("half-weighed" in finding for finding in verify(half))
    cut_everywhere(cuts, out, lambda: shutil.copytree(half, out), lambda: weigh_here(out, alpha=0.25))


def stop_after(tasks: int) -> Callable[[object], None]:
    """An observer that ends a run when so many tasks are done."""

    def watch(event: object) -> None:
        if isinstance(event, TaskDone) and event.done == tasks:
            raise KeyboardInterrupt

    return watch


def test_a_killed_pack_leaves_temporary_files_and_the_next_run_removes_them(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(1500, longest=20000))
    base = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--seq-len", 128, "--workers", 1]
    exact_prep(*base, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "exact_prep", *map(str, base), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(list(out.rglob("*.tmp"))) < 2:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    left = list(out.rglob("*.tmp"))
    assert {path.parent for path in left} == {out / "64", out / "128"}
    assert all(f".{process.pid}." in path.name for path in left)
    exact_prep(*base, "--out", out)
    assert read_files(out) == read_files(tmp_path / "whole")


@pytest.mark.parametrize("seq_lens", [(64,), (32, 64)])
def test_temporary_files_of_dead_attempts_are_removed_wherever_a_run_writes(seq_lens, corpus, tokenizer_file, tmp_path):
    """Those of ours alone: the names of other people's files do not hold host, process and nonce."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    pack_here(corpus, whole, tokenizer_file, seq_lens=seq_lens)
    with pytest.raises(Interrupted):
        pack_here(corpus, out, tokenizer_file, seq_lens=seq_lens, emit=stop_after(1))
    homes = {out, *(path.parent for path in out.rglob("data-*.arrow"))}
    for home in homes:
        for name in ("data-0000009-000.arrow", "tables/shards.parquet", "tokenizer/x.json", "weights.json", ".work/x"):
            (home / name).parent.mkdir(exist_ok=True, parents=True)
            temporary_path(home / name).write_bytes(b"half")
        (home / "mine.tmp").write_bytes(b"mine")
    pack_here(corpus, out, tokenizer_file, seq_lens=seq_lens)
    made = read_files(out)
    for home in homes:
        assert made.pop(str((home / "mine.tmp").relative_to(out))) == b"mine"
    assert made == read_files(whole)
    for home in homes if len(seq_lens) == 1 else (out / "32", out / "64"):
        for name in ("tables/weights.parquet", "weights.json", "state.json"):
            temporary_path(home / name).write_bytes(b"half")
    weigh_here(out)
    weigh_here(whole)
    assert {name: data for name, data in read_files(out).items() if "mine" not in name} == read_files(whole)


def test_a_task_that_is_redone_removes_its_record_before_its_shards(corpus, tokenizer_file, tmp_path, monkeypatch):
    """A record says that the shards are there; so it goes first, and comes last."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    pack_here(corpus, whole, tokenizer_file)
    with pytest.raises(Interrupted):
        pack_here(corpus, out, tokenizer_file, emit=stop_after(3))
    records = sorted(path.name for path in out.glob(".work/task-*.json"))
    assert [name[:12] for name in records] == ["task-0000000", "task-0000001", "task-0000002"]
    os.truncate(out / "data-0000001-000.arrow", 100)
    steps = []

    def log(name: str) -> Callable:
        step = getattr(os, name)

        def logged(*paths: Path, **options: Any) -> object:
            steps.append((name, Path(paths[-1]).name))
            return step(*paths, **options)

        return logged

    for name in ("unlink", "replace"):
        monkeypatch.setattr(os, name, log(name))
    done = []
    pack_here(corpus, out, tokenizer_file, emit=done.append)
    assert next(event.done for event in done if isinstance(event, Started)) == 2
    shard = "data-0000001-000.arrow"
    order = [("unlink", records[1]), ("unlink", shard), ("replace", shard), ("replace", records[1])]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    untouched = {records[0], records[2], "data-0000000-000.arrow", "data-0000002-000.arrow"}
    assert not [name for _, name in steps[: places[-1]] if name in untouched]
    assert read_files(out) == read_files(whole)
