"""A run cut off at any single step on the disk is continued by the same call, and ends with the same bytes.

Every rename, deletion and creation of a directory is a step. Each run is cut at its first step, at its second, and so
on to its last: what random kills may miss is tried here one by one.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from runs import files_of, pack_here, weigh_here, write_corpus

from exact_prep.errors import DatasetError, UsageError
from exact_prep.pipeline import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = ("replace", "unlink", "rmdir", "mkdir")
UNFINISHED = ("not finished", "half-weighed", "unfinished copy", "is not a packed dataset", "does not exist")


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


def check_unfinished(directory: Path) -> None:
    try:
        findings = verify(directory)
    except DatasetError as error:
        findings = [str(error)]
    assert all(any(words in finding for words in UNFINISHED) for finding in findings), findings


def shown(directory: Path) -> dict[str, bytes]:
    """The files of a dataset, without what a dead run leaves beside it."""
    files = files_of(directory) if directory.exists() else {}
    return {name: data for name, data in files.items() if not any(word in name for word in (".lock", ".work"))}


def cut_everywhere(cuts: PowerCuts, target: Path, prepare: Callable[[], object], call: Callable[[], object]) -> int:
    """Cut `call` at each of its steps in turn, call it again, compare; returns how many steps there were."""
    prepare()
    call()
    expected = files_of(target)
    for step in range(1, 1000):
        shutil.rmtree(target)
        prepare()
        before = shown(target)
        if not cuts.at(step, call):
            return step - 1
        check_unfinished(target)
        try:
            call()
        except UsageError as error:
            # It is refused only where the cut came after all was done.
            if shown(target) == before or "already" not in str(error):
                raise
            assert shown(target) == expected, step
        else:
            assert files_of(target) == expected, step
        assert verify(target) == []
    raise AssertionError("more than 1000 steps")


def test_pack_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    steps = cut_everywhere(cuts, out, lambda: None, lambda: pack_here(corpus, out, tokenizer_file))
    assert steps > 15


def test_pack_over_another_dataset_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    pack_here(corpus[:1], other, tokenizer_file, seq_lens=(32, 64))
    weigh_here(other)

    def prepare():
        shutil.copytree(other, out)

    def call():
        # As one does: --overwrite where a dataset is in the way, the bare command where a run is unfinished.
        untouched = shown(out) == shown(other)
        return pack_here(corpus[1:], out, tokenizer_file, seq_lens=(32, 128), overwrite=untouched)

    assert cut_everywhere(cuts, out, prepare, call) > 40


def test_weigh_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file, seq_lens=(32, 64))
    steps = cut_everywhere(cuts, out, lambda: shutil.copytree(packed, out), lambda: weigh_here(out))
    assert steps > 15


def test_weigh_into_a_copy_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file, seq_lens=(32, 64))
    steps = cut_everywhere(cuts, out, lambda: None, lambda: weigh_here(packed, out=out))
    assert steps > 15


def test_another_table_over_half_of_one_cut_anywhere(cuts, corpus, tokenizer_file, tmp_path):
    """`weigh` stopped in the middle, then with other parameters, stopped again anywhere."""
    packed, half, out = tmp_path / "packed", tmp_path / "half", tmp_path / "out"
    pack_here(corpus, packed, tokenizer_file)
    shutil.copytree(packed, half)
    assert cuts.at(5, lambda: weigh_here(half, alpha=0.5))
    assert any("half-weighed" in finding for finding in verify(half))
    cut_everywhere(cuts, out, lambda: shutil.copytree(half, out), lambda: weigh_here(out, alpha=0.25))
