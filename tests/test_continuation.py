"""An incomplete run goes on after its inputs were fixed, touched, added or removed: what is kept, redone, refused."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from runs import exact_prep, pack_here, read_documents, read_files, read_json, read_table, write_jsonl
from tokenizers import Tokenizer

from exact_prep.errors import Interrupted, SourceError, UsageError
from exact_prep.pipeline.events import Note, Started, TaskDone
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.verify import verify
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from exact_prep.records.work import InputFile, Slice
from exact_prep.sources import Inputs
from exact_prep.sources.continuation import continue_tasks

TASK = 2000
"""Bytes of a task: more than a file of `write_file`, less than two."""


def write_file(path, name: str, documents: int = 10):
    """About 1,500 bytes of documents that differ."""
    return write_jsonl(path, [f"{name} {number} " + "of a long row " * 9 for number in range(documents)])


class Watch:
    """Events of a run; raises KeyboardInterrupt when so many tasks of `pack` are done."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.started: dict[str, Started] = {}
        self.ran: dict[str, int] = Counter()
        self._stop_after, self._what = stop_after, ""

    def __call__(self, event: object) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        elif isinstance(event, Started):
            self._what = event.what
            self.started[event.what] = event
        elif isinstance(event, TaskDone):
            self.ran[self._what] += 1
            if self._what == "pack" and self.ran["pack"] == self._stop_after:
                raise KeyboardInterrupt

    @property
    def continuing(self) -> str:
        (note,) = [note for note in self.notes if note.startswith("continuing")]
        return note


@pytest.fixture
def folder(tmp_path):
    """Six files of one task each."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_file(tmp_path / "in" / f"{number}.jsonl", f"file {number}")
    return tmp_path / "in"


@pytest.fixture
def begin(folder, tokenizer_file, tmp_path):
    """Begin a run over the folder and stop it after some tasks; returns its directory."""

    def stop(tasks: int = 4, name: str = "out", **source: object):
        out = tmp_path / name
        with pytest.raises(Interrupted):
            pack_here([folder], out, tokenizer_file, source={"task_bytes": TASK, **source}, emit=Watch(tasks))
        assert len(list((out / ".work").glob("task-*.json"))) == tasks
        return out

    return stop


@pytest.fixture
def go_on(folder, tokenizer_file, tmp_path):
    """Start the same run again; checks its result against a fresh run and the texts. Returns what was seen."""

    def run(out, *, fresh: bool = True, seq_lens=(64,), **more: object) -> Watch:
        watch = Watch()
        options = {"source": {"task_bytes": TASK, **more.pop("source", {})}, "seq_lens": seq_lens, **more}
        pack_here([folder], out, tokenizer_file, emit=watch, **options)
        assert verify(out) == []
        assert count_documents(out) == count_texts(folder, tokenizer_file)
        assert read_json(out / "manifest.json").get("continued") is (not fresh)
        if fresh:
            other = out.with_name("fresh")
            shutil.rmtree(other, ignore_errors=True)
            pack_here([folder], other, tokenizer_file, **options)
            assert read_files(out) == read_files(other)
        return watch

    return run


def count_documents(directory) -> Counter:
    """The documents of a dataset as tuples of ids."""
    return Counter(map(tuple, read_documents(directory).values()))


def read_texts(folder) -> list[str]:
    texts = []
    for path in sorted(folder.iterdir()):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in data.decode().splitlines():
            try:
                texts.append(json.loads(line)["text"])
            except ValueError:
                continue  # rejected
    return texts


def is_held(text: str, share: float) -> bool:
    """Whether `--validation` holds a document out."""
    return xxhash.xxh3_64_intdigest(text.encode()[:4096], 0) < int(share * 2**64)


def count_texts(folder, tokenizer_file, wanted=lambda text: True) -> Counter:
    """The texts of a folder that are `wanted` as tuples of ids, EOS included."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    eos = tokenizer.token_to_id("<|endoftext|>")
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in read_texts(folder) if wanted(text)]
    return Counter((*own, eos) for own in ids if own)


def age(path, seconds: int = -1000) -> None:
    """Give a file another modification time."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


# ---- what is kept


def test_the_same_inputs_go_on(begin, go_on):
    watch = go_on(begin())
    assert (watch.started["pack"].done, watch.ran["pack"]) == (4, 2)
    assert watch.continuing.startswith("continuing the incomplete run in")


def test_a_file_that_was_fixed_is_all_that_is_done_again(folder, begin, go_on, tokenizer_file, tmp_path):
    """As a user meets it: the run stops at a bad line in file 3, which is repaired."""
    good = (folder / "3.jsonl").read_text()
    (folder / "3.jsonl").write_text(good[: len(good) // 2] + "\n{broken\n")
    out = tmp_path / "out"
    with pytest.raises(SourceError, match=r"3\.jsonl, line"):
        pack_here([folder], out, tokenizer_file, source={"task_bytes": TASK, "on_error": "stop"})
    (folder / "3.jsonl").write_text(good)
    watch = go_on(out, source={"on_error": "stop"})
    assert (watch.started["pack"].done, watch.ran["pack"]) == (3, 3)
    assert "3 of 6 tasks are finished; input files: 1 changed or touched" in watch.continuing


def test_a_file_that_was_touched_is_read_again_and_not_packed_again(folder, begin, go_on):
    out = begin()
    age(folder / "1.jsonl")
    watch = go_on(out)
    assert watch.ran == {"reading changed inputs": 1, "pack": 2}
    assert "4 of 6 tasks are finished; input files: 1 changed or touched (" in watch.continuing


def test_all_files_copied_anew_cost_no_task(folder, begin, go_on):
    out = begin()
    for path in folder.iterdir():
        age(path)
    watch = go_on(out)
    assert watch.ran == {"reading changed inputs": 4, "pack": 2}


def test_a_finished_file_that_changed_is_done_again(folder, begin, go_on):
    out = begin()
    write_file(folder / "1.jsonl", "other")
    watch = go_on(out)
    assert watch.ran == {"reading changed inputs": 1, "pack": 3}
    assert "3 of 6 tasks are finished, 1 finished one is done again; input files: 1 changed" in watch.continuing


def test_a_change_of_the_same_size_and_time_ago_is_found_by_content(folder, begin, go_on):
    out = begin()
    path = folder / "0.jsonl"
    data = path.read_text()
    changed = data.replace("long", "gnol", 1)
    assert changed != data
    path.write_text(changed)
    age(path, 7)
    assert go_on(out).ran == {"reading changed inputs": 1, "pack": 3}


def test_a_file_that_was_added_at_the_end_is_a_task_at_the_end(folder, begin, go_on):
    out = begin()
    write_file(folder / "9.jsonl", "the last")
    watch = go_on(out)
    assert (watch.started["pack"].tasks, watch.ran["pack"]) == (7, 3)
    assert "1 added (" in watch.continuing


def test_a_file_that_was_added_in_between_is_a_task_at_the_end_and_the_manifest_says_so(folder, begin, go_on):
    out = begin()
    write_file(folder / "0b.jsonl", "in between")
    watch = go_on(out, fresh=False)
    assert (watch.started["pack"].tasks, watch.ran["pack"]) == (7, 3)
    tasks, files = read_table(out, "tasks"), read_table(out, "inputs")
    assert [files[row["files"][0]]["path"][-8:] for row in tasks][-1] == "0b.jsonl"
    assert [row["path"] for row in files] == sorted(row["path"] for row in files)


def test_a_file_that_was_removed_leaves_an_empty_task(folder, begin, go_on):
    out = begin()
    (folder / "2.jsonl").unlink()
    watch = go_on(out, fresh=False)
    assert watch.ran == {"pack": 3}, "the empty task is done again, and the two that were missing"
    tasks = read_table(out, "tasks")
    assert [row["files"] for row in tasks] == [[0], [1], [], [2], [3], [4]]
    assert tasks[2]["records"] == 0
    assert "1 removed (" in watch.continuing


def test_several_row_lengths_go_on_together(folder, tokenizer_file, tmp_path):
    out = tmp_path / "out"
    options = {"seq_lens": (32, 64), "source": {"task_bytes": TASK}}
    with pytest.raises(Interrupted):
        pack_here([folder], out, tokenizer_file, emit=Watch(4), **options)
    write_file(folder / "1.jsonl", "fixed")
    watch = Watch()
    pack_here([folder], out, tokenizer_file, emit=watch, workers=2, **options)
    assert watch.ran["pack"] == 3
    pack_here([folder], tmp_path / "fresh", tokenizer_file, **options)
    assert read_files(out) == read_files(tmp_path / "fresh")
    assert verify(out) == []


def test_from_stop_to_reject(folder, begin, go_on):
    """What was finished had nothing to reject; the rest is read in the new way."""
    out = begin(on_error="stop")
    with (folder / "5.jsonl").open("a") as file:
        file.write("broken\n")
    watch = go_on(out, source={"on_error": "reject"})
    assert watch.ran == {"pack": 2}
    assert read_json(out / "manifest.json")["documents"]["rejected"] == 1


def test_ids_from_stop_to_reject_say_that_they_were_continued(tokenizer_file, tmp_path):
    """Best-fit looks at windows of documents, and documents that may be rejected come in other batches."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        ids = pa.array([[1, 2, 3], [4] * 50], pa.list_(pa.int32()))
        pq.write_table(pa.table({"ids": ids}), folder / f"{number}.parquet")

    def run(on_error, watch):
        options = PackOptions(
            source=SourceOptions(ids_field="ids", task_bytes=100, on_error=on_error),
            tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file), eos=True),
            packing=PackingOptions(seq_lens=(16,), packing="best-fit"),
        )
        return pack([str(folder)], options, tmp_path / "out", emit=watch)

    with pytest.raises(Interrupted):
        run("stop", Watch(2))
    watch = Watch()
    (manifest,) = run("reject", watch)
    assert (manifest.continued, watch.ran["pack"]) == (True, 1)
    assert verify(tmp_path / "out") == []


def test_a_file_that_was_compressed_anew_is_kept(folder, begin, go_on):
    data = (folder / "1.jsonl").read_bytes()
    (folder / "1.jsonl").rename(folder / "1.jsonl.gz")
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(data, 1))
    out = begin()
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(data, 9))
    # It is small enough to share a task with its neighbour.
    assert go_on(out).ran == {"reading changed inputs": 1, "pack": 1}


ONE = b'{"text": "one"}\n' * 100
TWO = b'{"text": "two"}\n' * 100


def test_standard_input_that_differs_is_packed_anew(tokenizer_file, tmp_path, folder):
    out = tmp_path / "out"
    options = PackOptions(
        source=SourceOptions(task_bytes=TASK, input_format="jsonl"),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer_file), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(64,)),
    )

    def run(data, emit):
        (tmp_path / "stdin").write_bytes(data)
        with (tmp_path / "stdin").open("rb") as stdin:
            return pack(["-", str(folder)], options, out, stdin=stdin, emit=emit)

    with pytest.raises(Interrupted):
        run(ONE, Watch(7))
    watch = Watch()
    run(TWO, watch)
    assert watch.ran == {"reading changed inputs": 1, "pack": 1}
    eos = Tokenizer.from_file(str(tokenizer_file)).encode("two").ids
    assert any(list(own[:-1]) == eos for own in count_documents(out))


# ---- large files that are cut


@pytest.fixture
def large(tmp_path, tokenizer_file):
    """A file of 40 lines of about 300 bytes, which is cut into six tasks; a run that finished four."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = write_jsonl(folder / "large.jsonl", [f"{number:03d} " + "long context " * 22 for number in range(40)])
    size = path.stat().st_size // 6 + 1
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        pack_here([folder], out, tokenizer_file, source={"task_bytes": size}, emit=Watch(4))
    return path, out, size


def edit(path, line: int, text: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[line : line + 1] = [] if text is None else [json.dumps({"text": text})]
    path.write_text("".join(f"{one}\n" for one in lines))


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda path: edit(path, 38, "003 short"), 0),
        (lambda path: edit(path, 1, "001 " + "long context " * 22 + "!"), 1),
        (lambda path: edit(path, 39, None), 0),
        (lambda path: path.write_text(path.read_text() + '{"text": "more"}\n'), 0),
        (lambda path: path.write_text(path.read_text() * 2), 0),
    ],
    ids=["a late line", "an early line", "cut short", "a line more", "twice as long"],
)
def test_edges_of_a_large_file_stay_where_they_were(large, change, redone, tokenizer_file):
    path, out, size = large
    change(path)
    watch = Watch()
    pack_here([path.parent], out, tokenizer_file, source={"task_bytes": size}, emit=watch)
    assert watch.ran["reading changed inputs"] == 4
    assert watch.started["pack"].done == 4 - redone
    assert count_documents(out) == count_texts(path.parent, tokenizer_file)
    assert verify(out) == []


def test_a_large_file_that_lost_its_end_leaves_empty_tasks(large, tokenizer_file):
    path, out, size = large
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    pack_here([path.parent], out, tokenizer_file, source={"task_bytes": size})
    packed = [row["packed"] for row in read_table(out, "tasks")]
    assert (sum(packed), packed[2:]) == (10, [0, 0, 0, 0])
    assert count_documents(out) == count_texts(path.parent, tokenizer_file)
    assert verify(out) == []


def test_where_nothing_is_kept_the_run_starts_anew(large, tokenizer_file):
    path, out, size = large
    write_jsonl(path, ["only this"])
    watch = Watch()
    pack_here([path.parent], out, tokenizer_file, source={"task_bytes": size}, emit=watch)
    assert any("no finished task would read the same documents; input files: 1 changed" in one for one in watch.notes)
    assert [row["packed"] for row in read_table(out, "tasks")] == [1]
    assert not read_json(out / "manifest.json")["continued"]


def test_rejected_lines_of_pieces_keep_their_places(large, tokenizer_file):
    path, out, size = large
    lines = path.read_text().splitlines()
    lines[2] = lines[20] = lines[39] = "broken"
    path.write_text("".join(f"{line}\n" for line in lines * 2))
    pack_here([path.parent], out, tokenizer_file, source={"task_bytes": size})
    places = [json.loads(line)["place"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert places == [f"line {number}" for number in (3, 21, 40, 43, 61, 80)]


# ---- what is refused


def test_other_options_are_refused_with_what_would_be_lost(folder, begin, tokenizer_file):
    out = begin()
    before = read_files(out)
    for options, words in [
        ({"seq_lens": (32,)}, "seq_lens was 64, is 32"),
        ({"source": {"task_bytes": 2100}}, "task_bytes was 2000, is 2100"),
        ({"source": {"task_bytes": TASK, "text_field": ("body",)}}, "text_field was 'text', is 'body'"),
        ({"source": {"task_bytes": TASK}, "loss_weights": "table"}, "loss_weights was 'column', is 'table'"),
        ({"source": {"task_bytes": TASK, "on_error": "stop"}}, "on_error was 'reject', is 'stop'"),
    ]:
        with pytest.raises(UsageError) as caught:
            pack_here([folder], out, tokenizer_file, **options)
        assert words in str(caught.value)
        assert "--overwrite, which gives up its 4 finished tasks" in str(caught.value)
    assert read_files(out) == before
    watch = Watch()
    pack_here([folder], out, tokenizer_file, seq_lens=(32,), overwrite=True, emit=watch)
    assert watch.started["pack"].done == 0
    assert verify(out) == []


def test_overwrite_continues_the_same_and_starts_anew_with_other_inputs(folder, begin, tokenizer_file):
    options = {"source": {"task_bytes": TASK}, "overwrite": True}
    out, watch = begin(), Watch()
    pack_here([folder], out, tokenizer_file, emit=watch, **options)
    assert watch.started["pack"].done == 4
    out, watch = begin(name="other"), Watch()
    write_file(folder / "5.jsonl", "changed")
    pack_here([folder], out, tokenizer_file, emit=watch, **options)
    assert watch.started["pack"].done == 0
    assert not read_json(out / "manifest.json")["continued"]


def test_a_plan_that_cannot_be_read_is_refused_with_what_would_be_lost(folder, begin, tokenizer_file):
    out = begin()
    (out / ".work" / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"cannot read.*--overwrite, which gives up its 4 finished tasks"):
        pack_here([folder], out, tokenizer_file, source={"task_bytes": TASK})
    pack_here([folder], out, tokenizer_file, source={"task_bytes": TASK}, overwrite=True)
    assert verify(out) == []


def test_the_command_names_what_it_would_give_up(folder, begin, tokenizer_file):
    out = begin(1)
    base = ("pack", folder, "--tokenizer", tokenizer_file, "--seq-len", 64, "--task-size", TASK, "--out", out)
    same = ("--on-error", "reject", "--tokenizer-backend", "tokenizers")
    refused = exact_prep(*base, *same, "--packing", "best-fit", check=2)
    assert "--overwrite, which gives up its 1 finished task\n" in refused.stderr
    assert "continuing the incomplete run" in exact_prep(*base, *same).stderr


# ---- limits


def test_limits_redo_everything_from_the_first_change_on(folder, tokenizer_file, tmp_path):
    """A task reads what earlier tasks left of the limit."""
    out, options = tmp_path / "out", {"source": {"task_bytes": TASK, "limit_docs": 55}}
    with pytest.raises(Interrupted):
        pack_here([folder], out, tokenizer_file, emit=Watch(4), **options)
    write_file(folder / "2.jsonl", "changed", 9)
    watch = Watch()
    pack_here([folder], out, tokenizer_file, emit=watch, **options)
    assert watch.started["pack"].done == 2
    pack_here([folder], tmp_path / "fresh", tokenizer_file, **options)
    assert read_files(out) == read_files(tmp_path / "fresh")


# ---- the law, on random changes


@pytest.mark.parametrize(
    ("seed", "validation"), [*((seed, None) for seed in range(12)), *((seed, 0.4) for seed in range(6))]
)
def test_whatever_happens_to_the_inputs_every_document_is_there_once(seed, validation, tokenizer_file, tmp_path):
    """Several rounds of random changes and stops; then the documents are those of the files as they are."""
    chooser = random.Random(seed)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    numbers = iter(range(10**6))

    def make_lines(count):
        return [f"document {next(numbers)} " + "of a row " * chooser.randrange(12) for _ in range(count)]

    def change():
        paths = sorted(folder.glob("*.jsonl"))
        kind = chooser.choice(["new", "new", "grow", "shrink", "edit", "remove", "touch", "replace"])
        path = chooser.choice(paths) if paths else None
        if kind == "new" or path is None:
            write_jsonl(folder / f"{chooser.randrange(100):02d}.jsonl", make_lines(chooser.choice([1, 5, 60])))
        elif kind == "remove" and len(paths) > 1:
            path.unlink()
        elif kind == "touch":
            age(path)
        elif kind == "replace":
            write_jsonl(path, make_lines(chooser.choice([1, 20])))
        elif kind == "grow":
            path.write_text(path.read_text() + "".join(f'{{"text": "{line}"}}\n' for line in make_lines(30)))
        else:
            lines = path.read_text().splitlines()
            place = chooser.randrange(len(lines))
            lines[place : place + 1] = [] if kind == "shrink" and len(lines) > 1 else ['{"text": "edited"}']
            path.write_text("".join(f"{line}\n" for line in lines))

    options = {"source": {"task_bytes": 900}, "validation": validation}
    for _ in range(4):
        change()
    complete = False
    for _ in range(5):
        if not list(folder.glob("*.jsonl")):
            change()
        try:
            pack_here([folder], out, tokenizer_file, emit=Watch(chooser.randrange(1, 6)), **options)
        except Interrupted:
            for _ in range(chooser.randrange(4)):
                change()
        else:
            complete = True
            break
    if not complete:
        pack_here([folder], out, tokenizer_file, **options)
    expected = count_texts(folder, tokenizer_file)
    if validation is None:
        assert count_documents(out) == expected
    else:
        held = count_texts(folder, tokenizer_file, lambda text: is_held(text, validation))
        assert count_documents(out / "validation") == held
        assert count_documents(out / "train") == expected - held
    assert verify(out) == []
    if not read_json((out if validation is None else out / "train") / "manifest.json")["continued"]:
        pack_here([folder], tmp_path / "fresh", tokenizer_file, **options)
        assert read_files(out) == read_files(tmp_path / "fresh")


@pytest.mark.parametrize("seed", range(20))
def test_every_byte_is_in_exactly_one_slice(seed, tmp_path):
    """The plan alone, for files that come, go, grow and shrink."""
    chooser = random.Random(seed)

    def make_files():
        names = sorted(chooser.sample("abcdefgh", chooser.randrange(1, 8)))
        files = []
        for name in names:
            path = tmp_path / f"{name}.jsonl"
            path.write_bytes(b'{"text": "a"}\n' * chooser.randrange(1, 60))
            files.append(
                InputFile(
                    path=str(path), bytes=path.stat().st_size, format="jsonl", modified_ns=path.stat().st_mtime_ns
                )
            )
        return tuple(files)

    options = SourceOptions(task_bytes=chooser.choice([50, 100, 300]))
    files = make_files()
    tasks, size = Inputs(files=files, options=options).plan_sized_tasks()
    for _ in range(4):
        now = make_files()
        inputs = Inputs(files=now, options=options)
        parts = [inputs.part(Slice(file=index)) for index in range(len(now))]
        again = continue_tasks(files, tasks, parts, size)
        assert len(again) >= len(tasks), "a task keeps its number"
        covered = [bytearray(file.bytes) for file in now]
        for slices in again:
            for one in slices:
                stop = now[one.file].bytes if one.stop is None else one.stop
                for byte in range(one.start, stop):
                    covered[one.file][byte] += 1
        assert all(set(own) == {1} for own in covered)
        assert continue_tasks(now, again, parts, size) == again, "nothing changed"
        files, tasks = now, again
