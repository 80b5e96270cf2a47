"""`pack` as an array of jobs: members in any order, twice at once and killed anywhere make what a single run makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from exact_prep.engines import Meter
from exact_prep.pipeline.plan import open_plan
from exact_prep.pipeline.tasks import make_task
from exact_prep.stages.pack import pack_task
from tests.runs import exact_prep, make_texts, read_files, write_jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    return [write_jsonl(folder / f"{number}.jsonl", make_texts(40, seed=number)) for number in range(5)]


def arguments(corpus: list[Path], tokenizer: Path, out: Path, *more: object) -> list[object]:
    common = ("--tokenizer", tokenizer, "--tokenizer-backend", "tokenizers", "--task-size", 20_000, "--seq-len", 64)
    return ["pack", *corpus, *common, "-o", out, *more]


@pytest.fixture(scope="module")
def single(corpus, tokenizer_file, tmp_path_factory) -> Path:
    """What one run makes."""
    out = tmp_path_factory.mktemp("single") / "out"
    exact_prep(*arguments(corpus, tokenizer_file, out))
    return out


def assert_equal(out: Path, single: Path) -> None:
    """The same files with the same bytes."""
    ours, theirs = read_files(out), read_files(single)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def member(command: list[object], index: int, count: int) -> list[object]:
    return [*command, "--task-index", index, "--task-count", count]


def test_members_in_any_order_make_what_one_run_makes(corpus, single, tokenizer_file, tmp_path):
    command = arguments(corpus, tokenizer_file, tmp_path / "out")
    planned = exact_prep(*command, "--plan-only").stdout
    tasks = int(planned.split(": ")[1].split()[0])
    assert tasks > 6
    for index in (2, 0, 1):
        done = exact_prep(*member(command, index, 3))
        own = len(range(index, tasks, 3))
        assert done.stdout == f"{tmp_path / 'out'}: member {index} of 3 did {own} of its {own} tasks\n"
    again = exact_prep(*member(command, 1, 3))
    assert "did 0 of its" in again.stdout
    finished = exact_prep(*command, "--finish")
    assert f"all {tasks} tasks are finished" in finished.stderr
    assert_equal(tmp_path / "out", single)
    assert exact_prep("verify", tmp_path / "out").stdout.endswith("everything is correct\n")


@pytest.mark.parametrize(
    "more",
    [
        ("--seq-len", 128, "--packing", "best-fit"),
        ("--validation", "20%"),
        ("--shuffle", 3, "--rows-multiple-of", 16, "--loss-weights", "table"),
    ],
)
def test_whatever_one_run_can_do(more, corpus, tokenizer_file, tmp_path):
    exact_prep(*arguments(corpus, tokenizer_file, tmp_path / "single", *more))
    command = arguments(corpus, tokenizer_file, tmp_path / "out", *more)
    exact_prep(*command, "--plan-only")
    for index in range(2):
        exact_prep(*member(command, index, 2), "--workers", 2)
    exact_prep(*command, "--finish")
    assert_equal(tmp_path / "out", tmp_path / "single")


def test_standard_input_is_read_once(corpus, tokenizer_file, tmp_path):
    text = b"".join(path.read_bytes() for path in corpus)
    command = arguments([Path("-")], tokenizer_file, tmp_path / "out", "--input-format", "jsonl")
    words = [sys.executable, "-m", "exact_prep", *map(str, command)]
    subprocess.run([*words, "--plan-only"], input=text, check=True, capture_output=True, timeout=60)
    for index in range(2):
        exact_prep(*member(command, index, 2))
    exact_prep(*command, "--finish")
    single = [str(tmp_path / "single") if word == str(tmp_path / "out") else word for word in words]
    subprocess.run(single, input=text, check=True, capture_output=True, timeout=60)
    assert_equal(tmp_path / "out", tmp_path / "single")


def test_bad_records_are_judged_at_the_end(corpus, tokenizer_file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"other": 1}\n' * 3 + corpus[0].read_text())
    command = arguments([*corpus, bad], tokenizer_file, tmp_path / "out", "--on-error", "reject")
    exact_prep(*command, "--plan-only")
    exact_prep(*member(command, 0, 1))
    refused = exact_prep(*command, "--finish", "--max-rejected", 2, check=1)
    assert "3 of" in refused.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    exact_prep(*command, "--finish", "--max-rejected", 3)
    exact_prep(*arguments([*corpus, bad], tokenizer_file, tmp_path / "single", "--on-error", "reject"))
    assert_equal(tmp_path / "out", tmp_path / "single")


def test_missing_tasks_are_named_and_can_be_done_by_a_plain_run(corpus, single, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    command = arguments(corpus, tokenizer_file, out)
    exact_prep(*command, "--plan-only")
    exact_prep(*member(command, 0, 2))
    missing = exact_prep(*command, "--finish", check=3).stderr
    assert "tasks are not finished: 1, 3, 5" in missing
    assert not (out / "manifest.json").exists()
    assert "incomplete" in exact_prep("report", out, check=1).stderr
    exact_prep(*command)
    assert_equal(out, single)


def test_a_record_whose_shard_is_gone_counts_for_nothing(corpus, single, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    command = arguments(corpus, tokenizer_file, out)
    exact_prep(*command, "--plan-only")
    exact_prep(*member(command, 0, 1))
    (out / "data-0000003-000.arrow").unlink()
    assert "not finished: 3." in exact_prep(*command, "--finish", check=3).stderr
    assert "did 1 of its" in exact_prep(*member(command, 3, 4)).stdout
    exact_prep(*command, "--finish")
    assert_equal(out, single)


def test_a_shard_of_other_inputs_is_not_taken_for_ones_own(corpus, tokenizer_file, tmp_path):
    """Killed after a shard and before its record, then planned again: the shard has the right name and size."""
    out = tmp_path / "out"
    command = arguments(corpus, tokenizer_file, out)
    exact_prep(*command, "--plan-only")
    exact_prep(*member(command, 0, 2))
    stray = out / "data-0000001-000.arrow"
    exact_prep(*member(command, 1, 2))
    wrong = bytearray(stray.read_bytes())
    wrong[len(wrong) // 2] ^= 1
    for path in (out / ".work").glob("task-0000001-*.json"):
        path.unlink()
    stray.write_bytes(wrong)
    exact_prep(*command, "--plan-only")
    assert not stray.exists()
    exact_prep(*member(command, 1, 2))
    exact_prep(*command, "--finish")
    assert exact_prep("verify", out).stdout.endswith("everything is correct\n")


def test_a_late_member_does_not_undo_weights(corpus, tokenizer_file, tmp_path):
    """It was still at work when the array was finished and weighed: what is there stays."""
    out = tmp_path / "out"
    command = arguments(corpus, tokenizer_file, out)
    exact_prep(*command, "--plan-only")
    exact_prep(*member(command, 0, 1))
    task = make_task(open_plan(out), 2, alone=False)
    keep = (tmp_path / "tokenizer.json", (out / ".work" / "tokenizer" / "tokenizer.json").read_bytes())
    exact_prep(*command, "--finish")
    exact_prep("weigh", out, "--alpha", 1)
    before = read_files(out)
    keep[0].write_bytes(keep[1])
    pack_task(replace(task, tokenizer_path=keep[0]), Meter(lambda counts: None))
    after = {name: data for name, data in read_files(out).items() if not name.startswith(".work/")}
    assert [name for name in after.keys() | before.keys() if after.get(name) != before.get(name)] == []
    assert exact_prep("verify", out).stdout.endswith("everything is correct\n")
    done = exact_prep(*member(command, 0, 1), check=2)
    assert "is finished already" in done.stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_members_that_are_killed_and_started_twice(seed, corpus, single, tokenizer_file, tmp_path):
    """SIGKILL at random moments, duplicates side by side, until `--finish` finds everything."""
    choose = random.Random(seed)
    out, count = tmp_path / "out", 3
    command = arguments(corpus, tokenizer_file, out)
    exact_prep(*command, "--plan-only")
    killed = 0
    for _ in range(12):
        members = [
            subprocess.Popen(
                [sys.executable, "-m", "exact_prep", *map(str, member(command, choose.randrange(count), count))],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
            )
            for _ in range(2)
        ]
        deadline = time.monotonic() + choose.uniform(0.8, 4)
        for one in members:
            try:
                one.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                os.kill(one.pid, signal.SIGKILL)
                killed += 1
            errors = one.communicate(timeout=60)[1]
            assert one.returncode in (0, -signal.SIGKILL), errors
        if exact_prep(*command, "--finish", check=None).returncode == 0:
            break
    else:
        for index in range(count):
            exact_prep(*member(command, index, count))
        exact_prep(*command, "--finish")
    assert_equal(out, single)
    assert killed, "nothing was killed: the test says nothing"


@pytest.mark.parametrize(
    ("more", "environment", "says"),
    [
        (("--task-index", 1), {}, "--task-index needs --task-count"),
        (("--task-count", 4), {}, "which member is this? None of SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX"),
        (("--task-count", 4), {"SLURM_ARRAY_TASK_ID": "four"}, "SLURM_ARRAY_TASK_ID is 'four'"),
        (("--task-count", 4), {"JOB_COMPLETION_INDEX": "4"}, "members of an array of 4 are 0 to 3"),
        (("--task-count", 0, "--task-index", 0), {}, "an array has at least 1 member"),
        (("--finish", "--plan-only"), {}, "--plan-only and --finish exclude each other"),
        (("--finish", "--overwrite"), {}, "--overwrite is for --plan-only"),
        (("--finish",), {}, "holds no plan; `exact-prep pack ... --out"),
        (("--plan-only", "--limit-docs", 3), {}, "do tasks one after the other"),
    ],
)
def test_what_cannot_be_meant(more, environment, says, corpus, tokenizer_file, tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ("SLURM_ARRAY_TASK_ID",)} | environment
    done = exact_prep(*arguments(corpus, tokenizer_file, tmp_path / "out", *more), check=2, env=env)
    assert says in done.stderr
    assert not (tmp_path / "out" / ".work" / "plan.json").exists()


def test_the_scheduler_says_which_member_it_is(corpus, tokenizer_file, tmp_path):
    command = arguments(corpus, tokenizer_file, tmp_path / "out")
    exact_prep(*command, "--plan-only")
    for name, value in (("SLURM_ARRAY_TASK_ID", "1"), ("JOB_COMPLETION_INDEX", "0")):
        env = {key: given for key, given in os.environ.items() if "ARRAY_TASK" not in key} | {name: value}
        done = exact_prep(*command, "--task-count", 2, env=env)
        assert f"member {value} of 2 did" in done.stdout
    exact_prep(*command, "--finish")


def test_options_must_be_those_of_the_plan(corpus, tokenizer_file, tmp_path):
    command = arguments(corpus, tokenizer_file, tmp_path / "out")
    exact_prep(*command, "--plan-only")
    for mode in (("--task-index", 0, "--task-count", 1), ("--finish",)):
        done = exact_prep(*command, "--packing", "best-fit", *mode, check=2)
        assert "packing.packing was 'concat', is 'best-fit'" in done.stderr.replace("\n", " ")
    other = exact_prep(*command, "--packing", "best-fit", "--plan-only")
    assert "tasks are planned" in other.stdout  # nothing was finished that would be lost
    exact_prep(*command, "--packing", "best-fit", "--task-index", 0, "--task-count", 1)
    lost = exact_prep(*command, "--plan-only", check=2)
    assert "incomplete run with other options" in lost.stderr
