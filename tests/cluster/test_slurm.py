"""`examples/cluster/slurm.sh` on a real Slurm of one node: members requeued, killed and submitted again.

Needs root, and Debian's slurmctld, slurmd, slurm-client and munge; `.ci/run` installs them, and a skip fails there.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.runs import exact_prep, make_texts, read_files, write_jsonl

SCRIPT = Path(__file__).parents[2] / "examples" / "cluster" / "slurm.sh"
REQUIRED = os.environ.get("EXACT_PREP_REQUIRE_SLURM") == "1"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

CONFIG = """ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/sock,cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(reached, what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.1)


@pytest.fixture
def slurm(tmp_path):
    """A function that runs a command of a Slurm of our own; it ends with the test."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing or os.geteuid() != 0:
        reason = f"Slurm is not installed ({', '.join(missing)})" if missing else "Slurm's daemons need root here"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    home = tmp_path / "slurm"
    for name in ("state", "spool", "munge"):
        (home / name).mkdir(parents=True)
    (home / "munge").chmod(0o711)
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (home / "slurm.conf").write_text(CONFIG.format(home=home, host=socket.gethostname().partition(".")[0]))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    env = os.environ | {"SLURM_CONF": str(home / "slurm.conf"), "PATH": path}

    def run(*words: object, check: bool = True, **more: str) -> str:
        command = list(map(str, words))
        return subprocess.run(
            command, env=env | more, check=check, capture_output=True, text=True, timeout=60, cwd=tmp_path
        ).stdout.strip()

    munge = [f"--{name}-file={home}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    run("munged", "--force", f"--socket={home}/munge/sock", *munge)
    run("slurmctld", "-c")
    run("slurmd")
    try:
        wait_until(lambda: run("sinfo", "-h", "-o", "%T", check=False) == "idle", "an idle node")
        yield run
    finally:
        run("scancel", "-u", "root", check=False)
        for pid_file in (home / "slurmd.pid", home / "slurmctld.pid", home / "munge" / "pid"):
            if pid_file.exists():
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
                wait_until(lambda pid_file=pid_file: not pid_file.exists(), f"the end of {pid_file.stem}")


def test_an_array_with_a_member_requeued_and_one_killed(slurm, tokenizer_file, tmp_path):
    texts = make_texts(2500, longest=20_000)
    inputs = [write_jsonl(tmp_path / f"{number}.jsonl", texts[number::4]) for number in range(4)]
    (tmp_path / "bin").mkdir()
    # As installed: with the options that make the run slow enough to be disturbed.
    program = tmp_path / "bin" / "exact-prep"
    common = '"$@" --tokenizer-backend tokenizers --task-size 200000'
    program.write_text(f"#!/bin/bash\nexec {sys.executable} -m exact_prep {common}\n")
    program.chmod(0o755)
    out = tmp_path / "packed"
    settings = {
        "INPUTS": " ".join(map(str, inputs)),
        "TOKENIZER": str(tokenizer_file),
        "SEQ_LEN": "256",
        "OUT": str(out),
        "MEMBERS": "3",
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }

    def submit(*options: str, mode: str = "member") -> str:
        small = ("--mem=0", "--cpus-per-task=1", "--parsable")
        return slurm("sbatch", *small, *options, SCRIPT, mode, **settings)

    def states(job: str) -> dict[str, str]:
        """State by member, of those that have not ended."""
        lines = slurm("squeue", "-h", "-r", "-j", job, "-o", "%K %T").splitlines()
        return dict(line.split() for line in lines)

    planned = slurm("bash", SCRIPT, "plan", **settings)
    assert "tasks are planned" in planned
    job = submit("--array=0-2")
    wait_until(lambda: states(job).get("0") == "RUNNING" and count_records(out) >= 1, "a first task")
    slurm("scontrol", "requeue", f"{job}_0")
    wait_until(lambda: states(job).get("1") == "RUNNING", "member 1 at work")
    kill_member(1)

    def ended() -> bool:
        # A requeued member starts when its first credential has expired, some ten seconds later. For a moment it is in
        # no list, so what members say counts too.
        return not states(job) and all(f"member {number} of 3 did" in log(tmp_path, number) for number in (0, 2))

    wait_until(ended, "the end of the array")
    assert log(tmp_path, 0).count("stopped; finished tasks are kept") == 1
    assert "did" not in log(tmp_path, 1)
    missing = submit("--array=0", mode="finish")
    wait_until(lambda: not states(missing), "the first finish")
    assert not (out / "manifest.json").exists()
    assert "tasks are not finished" in log(tmp_path, 0)
    again = submit("--array=1")
    wait_until(lambda: not states(again), "member 1, submitted again")
    last = submit("--array=0", mode="finish")
    wait_until(lambda: not states(last), "the last finish")
    assert "tree hash" in log(tmp_path, 0)

    single = ("--tokenizer", tokenizer_file, "--seq-len", 256, "--tokenizer-backend", "tokenizers")
    exact_prep("pack", *inputs, *single, "--task-size", 200_000, "-o", tmp_path / "single")
    ours, theirs = read_files(out), read_files(tmp_path / "single")
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []


def kill_member(number: int) -> None:
    """SIGKILL the processes of a member, but for its shell."""
    killed = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            own = process.environ().get("SLURM_ARRAY_TASK_ID") == str(number)
            if own and "exact_prep" in process.cmdline():
                process.kill()
                killed += 1
    assert killed


def count_records(out: Path) -> int:
    return len(list((out / ".work").glob("task-*.json")))


def log(folder: Path, member: int) -> str:
    """What a member printed, in all its attempts."""
    path = folder / f"exact-prep-{member}.log"
    return path.read_text() if path.exists() else ""
