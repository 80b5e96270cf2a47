"""What a run shows while it lasts: at a terminal, in a log, verbose and quiet."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from runs import exact_prep, make_texts, write_jsonl

from exact_prep.errors import UsageError
from exact_prep.pipeline.events import Finished, Note, Phase, Progress, Started, TaskDone
from exact_prep.pipeline.pack import pack
from exact_prep.progress import Display, escape_controls, shorten, show_time
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


class Watch:
    """A log, and a clock that moves when it is told to."""

    def __init__(self, **options: bool) -> None:
        self.now = 1000.0
        self.file = io.StringIO()
        self.display = Display(
            console=Console(file=self.file, width=40),
            interval=60,
            clock=lambda: self.now,
            today=lambda: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.now),
            **options,
        )

    def lines_after(self, seconds: float) -> list[str]:
        """What was written after so much more time."""
        self.file.truncate(0)
        self.file.seek(0)
        self.now += seconds
        self.display.tick()
        return self.file.getvalue().splitlines()


def started(**changed: int) -> Started:
    return Started(what="pack", **({"tasks": 8, "done": 2, "total_bytes": 800, "done_bytes": 200} | changed))


def test_a_log_gets_a_line_a_minute_with_all_facts():
    watch = Watch()
    with watch.display as display:
        display(Phase(text="finding the inputs"))
        assert watch.lines_after(59) == []
        (line,) = watch.lines_after(1)
        assert re.fullmatch(f"{STAMP} exact-prep: finding the inputs: 0:01:00 elapsed", line)
        assert watch.lines_after(59.9) == []
        display(started())
        (line,) = watch.lines_after(0.1)
        assert line.endswith("exact-prep: pack: 25%, 0:00:00 elapsed, 2/8 tasks")
        display(Progress(bytes=300, tokens=1_500_000))
        display(TaskDone(done=4, tasks=8, name="a"))
        (line,) = watch.lines_after(100)
        want = "exact-prep: pack: 62%, 1.50M tokens, 15.0K tokens/s, 0:01:40 elapsed, 0:01:40 left, 4/8 tasks"
        assert line.endswith(want)
        display(Finished())
        assert watch.lines_after(600) == []


def test_stages_follow_each_other_and_each_has_a_clock_of_its_own():
    watch = Watch()
    with watch.display as display:
        display(started(done=0, done_bytes=0))
        display(Progress(bytes=800, tokens=9))
        assert "100%" in watch.lines_after(60)[0]
        display(started(done=0, done_bytes=0))
        (line,) = watch.lines_after(60)
        assert ": 0%, 0:01:00 elapsed, 0/8 tasks" in line


def test_events_alone_keep_the_minute_where_no_thread_can_start(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    watch = Watch()
    with watch.display as display:
        display(started())
        watch.now += 61
        display(Progress(bytes=1, tokens=1))
        assert "exact-prep: pack: 25%" in watch.file.getvalue()


def test_a_log_that_cannot_be_written_ends_no_run():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    watch = Watch()
    with watch.display as display:
        display(started())
        display._console.file = Full()
        watch.now += 61
        display(Progress(bytes=300, tokens=1))
        display._console.file = watch.file
        assert ": 62%, " in watch.lines_after(60)[0]


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_without_widgets_gets_the_lines_of_a_log(widgets, monkeypatch):
    """Rich draws nothing there without ipywidgets."""
    monkeypatch.setattr("exact_prep.progress.find_spec", lambda name: object() if widgets else None)
    display = Display(console=Console(file=io.StringIO(), force_jupyter=True))
    assert (display._bar is not None) == widgets


def test_verbose_adds_a_line_for_each_task_and_quiet_leaves_nothing():
    events = [Note(text="a note"), started(), TaskDone(done=3, tasks=8, name="task 2 (a.jsonl)"), Finished()]
    for options, want in (
        ({}, ["exact-prep: a note", "exact-prep: pack: 2 of 8 tasks were finished already"]),
        ({"quiet": True}, []),
        (
            {"verbose": True},
            [
                "exact-prep: a note",
                "exact-prep: pack: 2 of 8 tasks were finished already",
                "exact-prep: task 2 (a.jsonl): done (3/8 tasks)",
            ],
        ),
    ):
        watch = Watch(**options)
        with watch.display as display:
            for event in events:
                display(event)
        assert watch.file.getvalue().splitlines() == want
        if options.get("quiet"):
            assert watch.lines_after(1e6) == []
    with pytest.raises(UsageError, match="exclude each other"):
        Display(verbose=True, quiet=True)


def test_numbers_are_short_and_names_hold_no_commands_to_a_terminal():
    assert [shorten(n) for n in (0, 7, 999, 1000, 12_345, 999_500, 1.2e9, 3e12, 3e16)] == [
        *("0", "7", "999", "1.00K", "12.3K", "1.00M", "1.20G", "3.00T", "30000T")
    ]
    assert show_time(3_661.9) == "1:01:01"
    assert show_time(-1) == "0:00:00"
    assert show_time(90_000) == "1 day, 1:00:00"
    assert escape_controls("a\x1b]0;x\x07b\ud800é中") == "a\\x1b]0;x\\x07b\\ud800é中"


def test_pack_says_what_it_does_before_each_slow_step(tokenizer_file, tmp_path):
    events = []
    options = PackOptions(
        source=SourceOptions(task_bytes=2_000),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file)),
        packing=PackingOptions(seq_lens=(64,)),
    )
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(40))
    pack([str(source)], options, tmp_path / "out", emit=events.append)
    assert [event.text for event in events if isinstance(event, Phase)] == [
        "finding the tokenizer",
        "finding the inputs",
        "loading the vocabulary and proving ids",
        "publishing",
    ]
    names = [event.name for event in events if isinstance(event, TaskDone)]
    assert len(set(names)) == len(names) > 2
    assert all("in.jsonl" in name for name in names)


def test_a_real_run_writes_such_lines_by_itself(tokenizer_file, tmp_path):
    """The interval alone is shorter."""
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(200))
    script = (
        "import sys, exact_prep.progress as progress\n"
        "progress.Display.__init__.__kwdefaults__['interval'] = 0.01\n"
        "from exact_prep.cli import main\nmain()"
    )
    arguments = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", script, *map(str, arguments), "--task-size", "5000", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = [line for line in done.stderr.splitlines() if re.match(STAMP, line)]
    assert any(" exact-prep: loading the vocabulary and proving ids: 0:00:0" in line for line in lines)
    whole = (
        rf"{STAMP} exact-prep: pack: \d+%, [\d.]+K? tokens, [\d.]+[KM]? tokens/s, 0:00:\d\d elapsed, .*\d+/\d+ tasks"
    )
    assert any(re.fullmatch(whole, line) for line in lines), done.stderr
    assert done.stdout.count("\n") == 1


def test_a_terminal_shows_the_phase_at_once_and_survives_resizing(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(2_000))
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = ["pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", tmp_path / "out", "-v"]
    command = [sys.executable, "-m", "exact_prep", *map(str, arguments), "--task-size", "50000", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    imports = time_imports()  # here and at the end: how busy the machine is changes
    begun = time.monotonic()
    with subprocess.Popen(
        command, stderr=end, stdout=subprocess.PIPE, text=True, env=environment | {"TERM": "xterm"}
    ) as process:
        os.close(end)
        shown, first = b"", 0.0
        while True:
            try:
                read = os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed
                break
            shown += read
            if b"starting" in shown and not first:
                first = time.monotonic() - begun
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        assert process.stdout is not None
        result = process.stdout.read()
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown.decode())
    for phase in ("starting", "finding the", "loading the voc", "pack"):
        assert phase in text
    assert "done (2/" in text
    assert shown.rstrip().endswith(b"\x1b[?25h"), "the cursor is back"
    bars = [line for line in re.split(r"[\r\n]+", text) if "━" in line or "…" in line]
    assert bars
    assert all(len(line) <= 40 for line in bars[5:]), bars
    # Quicker than the imports, whatever the machine; half a second where it is not busy.
    assert 0 < first < max(0.5, 1.2 * imports, 1.2 * time_imports())
    assert result.startswith(f"{tmp_path / 'out'}: ")
    assert result.count("\n") == 1, "a result is one line, however narrow the terminal is"


def time_imports() -> float:
    """Seconds in which Python imports the pipeline."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import exact_prep.cli, exact_prep.pipeline"], check=True)
    return time.monotonic() - begun


def test_quiet_and_verbose_on_every_command_that_runs_tasks(tokenizer_file, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", make_texts(60))
    out, table = tmp_path / "out", tmp_path / "export"
    commands = {
        "pack": ("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--out", out, "--overwrite"),
        "weigh": ("weigh", out),
        "verify": ("verify", out),
        "export": ("export", out, "--to", "numpy", "--out", table, "--overwrite"),
        "demo": ("demo", "--out", tmp_path / "demo", "--overwrite"),
    }
    for name, command in commands.items():
        loud = exact_prep(*command, "-v")
        assert "done (1/1 tasks)" in loud.stderr, name
        if name == "weigh":
            command = (*command, "--alpha", 0.3)
        quiet = exact_prep(*command, "-q")
        assert quiet.stderr == "", name
        assert quiet.stdout
    assert exact_prep("verify", tmp_path / "nothing", "-q", check=None).stderr.startswith("exact-prep: ")
    assert "exclude each other" in exact_prep("verify", out, "-q", "-v", check=2).stderr
