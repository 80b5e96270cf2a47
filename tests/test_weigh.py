"""`weigh` on real small packs: what it writes, what it leaves alone, and what it refuses before it writes anything."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from runs import (
    exact_prep,
    flip_bit,
    list_shards,
    pack_here,
    read_files,
    read_json,
    read_rows,
    read_table,
    reseal,
    weigh_here,
    write_corpus,
    write_jsonl,
)

import exact_prep as package
from exact_prep.errors import DatasetError, UsageError, WeightsError
from exact_prep.pipeline.events import Note, TaskDone
from exact_prep.pipeline.export import export
from exact_prep.pipeline.verify import verify
from exact_prep.records.manifest import Manifest
from exact_prep.records.weights import WeightsFile
from exact_prep.reports import load_facts
from exact_prep.stores.local import locked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def packed(corpus, tokenizer_file, tmp_path_factory):
    """The corpus in rows of 64, not weighed; not to be changed."""
    out = tmp_path_factory.mktemp("packed") / "packed"
    pack_here(corpus, out, tokenizer_file)
    return out


@pytest.fixture(scope="module")
def several(corpus, tokenizer_file, tmp_path_factory):
    """The corpus in rows of 32 and of 64, not weighed; not to be changed."""
    out = tmp_path_factory.mktemp("several") / "packed"
    pack_here(corpus, out, tokenizer_file, seq_lens=(32, 64))
    return out


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


@pytest.fixture
def copies(several, tmp_path):
    return shutil.copytree(several, tmp_path / "copies")


def find_changes(directory: Path, before: dict[str, bytes]) -> set[str]:
    """Names of files that were changed, made or removed since."""
    now = read_files(directory)
    return {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}


def read_loaded_weights(directory: Path, **options: object) -> list[list[float]]:
    """The weights of every row as a trainer reads them."""
    return [row.loss_weights.tolist() for row in package.open(directory, **options)]


# ---- the column and the table


def test_pack_leaves_plain_weights_and_says_so(packed):
    """1 for every supervised target, 0 for the first token of a segment and for padding."""
    weights, manifest = read_json(packed / "weights.json"), read_json(packed / "manifest.json")
    assert (weights["kind"], weights["state"], weights["seq_len"]) == ("plain", "complete", 64)
    assert [weights[name] for name in ("options", "table", "rounding", "applied_from")] == [None] * 4
    (dataset,) = weights["datasets"]
    assert dataset == {
        "id": manifest["tree_hash"],
        "rate": 1.0,
        "rows": manifest["rows"],
        "tokenizer": manifest["tokenizer"]["sha256"],
        "exposure": manifest["exposure"],
        "divisor": 1.0,
    }
    for row in read_rows(packed):
        expected = [weight for length in row["seq_lengths"] for weight in [0.0, *[1.0] * (length - 1)]]
        assert row["loss_weights"] == expected + [0.0] * (64 - len(expected))
    with pytest.raises(DatasetError, match="not weighed; run `exact-prep weigh"):
        package.open(packed)
    assert "plain weights" in repr(package.open(packed, plain=True))


def check_digests(directory: Path) -> None:
    """weights.json holds the digest of tables/weights.parquet, and that the digests of the columns."""
    data = (directory / "tables" / "weights.parquet").read_bytes()
    assert read_json(directory / "weights.json")["weights_xxh3"] == xxhash.xxh3_128_hexdigest(data)
    said = {row["file"]: row["weights_xxh3"] for row in read_table(directory, "weights")}
    for path in list_shards(directory):
        values = xxhash.xxh3_128()
        for batch in pa.ipc.open_stream(path.read_bytes()):
            values.update(batch.column("loss_weights").values.to_numpy())
        assert said.pop(path.name) == values.hexdigest()
    assert not said


def test_weigh_changes_weights_alone(copy):
    before = read_files(copy)
    check_digests(copy)
    weigh_here(copy)
    check_digests(copy)
    shards = {path.name for path in list_shards(copy)}
    assert find_changes(copy, before) == {"weights.json", "tables/weights.parquet", "state.json"} | shards
    assert all(len(before[name]) == (copy / name).stat().st_size for name in shards)
    for row in read_rows(copy):
        assert set(row["loss_weights"]) - {0.0, 1.0} or max(row["seq_lengths"]) <= 16
    assert verify(copy) == []


def test_without_a_column_the_rows_are_the_same_and_only_weights_json_is_written(
    corpus, copy, tokenizer_file, tmp_path
):
    table = tmp_path / "table"
    pack_here(corpus, table, tokenizer_file, loss_weights="table")
    packed, manifest = read_files(table), read_json(table / "manifest.json")
    assert manifest["tree_hash"] == read_json(copy / "manifest.json")["tree_hash"]
    assert manifest["loss_weights"] == "table"
    assert not (table / "tables" / "weights.parquet").exists()
    rows = read_rows(copy)
    assert read_rows(table) == [{name: row[name] for name in row if name != "loss_weights"} for row in rows]
    assert read_loaded_weights(table, plain=True) == [row["loss_weights"] for row in rows]
    assert verify(table) == []
    for options in ({"alpha": 0.15}, {"alpha": 0.6, "tail_from": 8}):
        weigh_here(table, **options)
        weigh_here(copy, **options)
        # state.json is the fingerprint by which Hugging Face knows results that it keeps.
        assert find_changes(table, packed) == {"weights.json", "state.json"}
        assert verify(table) == []
        stored = [row["loss_weights"] for row in read_rows(copy)]
        assert read_loaded_weights(table) == read_loaded_weights(copy) == stored
        ours, theirs = (load_facts(one).model_dump(exclude={"directory", "loss_weights"}) for one in (table, copy))
        assert ours == theirs
        one, another = read_json(table / "weights.json"), read_json(copy / "weights.json")
        assert one.pop("weights_xxh3") is None
        assert another.pop("weights_xxh3") is not None
        assert one.pop("checksum") != another.pop("checksum")
        assert one == another
    (table / "weights.json").write_bytes(packed["weights.json"])
    assert any("state.json" in finding for finding in verify(table))


def test_a_weigh_that_was_stopped_is_half_weighed_and_finished_by_the_same_command(copy, tmp_path):
    whole = shutil.copytree(copy, tmp_path / "whole")
    weigh_here(whole)

    class Death(BaseException):
        pass

    def die(event: object) -> None:
        if isinstance(event, TaskDone) and event.done == 2:
            raise Death

    with pytest.raises(Death):
        weigh_here(copy, emit=die)
    weights = read_json(copy / "weights.json")
    assert (weights["kind"], weights["state"], weights["weights_xxh3"]) == ("exact", "incomplete", None)
    (finding,) = verify(copy)
    assert "half-weighed" in finding
    for call in (package.open, lambda path: package.load_weights(path)):
        with pytest.raises(DatasetError, match="weigh has not finished; run `exact-prep weigh"):
            call(copy)
    assert load_facts(copy).weights.state == "incomplete"
    done = []
    weigh_here(copy, emit=done.append)
    assert next(event.done for event in done if hasattr(event, "what")) == 2
    assert read_files(copy) == read_files(whole)


def test_a_damaged_shard_is_found_while_half_weighed(copy):
    """Tokens and segments are checked whatever the weights are."""

    class Death(BaseException):
        pass

    def die(event: object) -> None:
        if isinstance(event, TaskDone):
            raise Death

    with pytest.raises(Death):
        weigh_here(copy, emit=die)
    place = read_table(copy, "batches")[-1]
    flip_bit(list_shards(copy)[place["shard"]], place["input_ids"])
    assert any("tokens or segments are not those" in finding for finding in verify(copy))


# ---- a table beside the dataset


def test_a_table_beside_the_dataset_gives_the_weights_of_weighing_in_place(copy, tmp_path):
    before, table = read_files(copy), tmp_path / "tables" / "w.json"
    done = exact_prep("weigh", copy, "--alpha", 0.4, "--out", table)
    assert str(table) in done.stdout
    assert read_files(copy) == before
    assert [path.name for path in table.parent.iterdir()] == ["w.json"]
    exact_prep("verify", copy, "--weights", table)
    shown = json.loads(exact_prep("report", copy, "--weights", table, "--json").stdout)
    exact_prep("export", copy, "--to", "numpy", "--weights", table, "--out", tmp_path / "by-table")
    by_table = read_loaded_weights(copy, weights=table)
    exact_prep("weigh", copy, "--alpha", 0.4)
    assert json.loads(exact_prep("report", copy, "--json").stdout) == shown
    assert shown[0]["weights"]["options"]["alpha"] == 0.4
    assert read_loaded_weights(copy) == by_table
    exact_prep("export", copy, "--to", "numpy", "--out", tmp_path / "in-place")
    one, another = read_files(tmp_path / "by-table"), read_files(tmp_path / "in-place")
    assert one.pop("export.json") != another.pop("export.json")
    assert one == another
    written, own = read_json(table), read_json(copy / "weights.json")
    for file in (written, own):
        del file["checksum"], file["weights_xxh3"]
    assert written == own
    # It takes the place of the dataset's own weights, whatever these are.
    exact_prep("weigh", copy, "--alpha", 0.1)
    assert read_loaded_weights(copy, weights=table) == by_table


def test_a_table_is_replaced_and_nothing_else_is(copy, tmp_path):
    table = tmp_path / "w.json"
    weigh_here(copy, out=table)
    first = table.read_bytes()
    weigh_here(copy, alpha=0.3, out=table)
    assert table.read_bytes() != first
    weigh_here(copy, out=table)
    assert table.read_bytes() == first
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(first.replace(b'"rows": ', b'"rows": 1'))
    mine = tmp_path / "thesis.tex"
    mine.write_text("mine")
    before = read_files(tmp_path)
    for out, says in (
        (mine, "is not a table of weights; choose another --out"),
        (damaged, "is not a table of weights; choose another --out"),
        (copy / "manifest.json", "lies inside the dataset"),
        (copy / "weights.json", "lies inside the dataset"),
        (copy / "tables" / "new" / "w.json", "lies inside the dataset"),
        (copy, "is a directory; --out names the file"),
        (tmp_path, "is a directory; --out names the file"),
    ):
        with pytest.raises(UsageError, match=says):
            weigh_here(copy, out=out)
        done = exact_prep("weigh", copy, "--out", out, check=2) if out == mine else None
        assert done is None or len(done.stderr.splitlines()) == 1
    assert read_files(tmp_path) == before


def test_a_table_is_not_written_into_any_dataset_nor_an_incomplete_run(copy, several, corpus, tokenizer_file, tmp_path):
    other, incomplete = shutil.copytree(several, tmp_path / "other"), tmp_path / "incomplete"

    def stop(event: object) -> None:
        if isinstance(event, TaskDone):
            raise KeyboardInterrupt

    with pytest.raises(BaseException, match="stopped"):
        pack_here(corpus, incomplete, tokenizer_file, emit=stop)
    (tmp_path / "link").symlink_to(other / "64")
    (tmp_path / "deep").symlink_to(other / "64" / "tables")
    before = read_files(tmp_path)
    for out in (other / "64", incomplete, tmp_path / "link", tmp_path / "deep", tmp_path / "deep" / "new"):
        out = out / "w.json"
        with pytest.raises(UsageError, match="lies inside the dataset"):
            weigh_here(copy, out=out)
    assert read_files(tmp_path) == before


def test_a_table_that_was_copied_over_the_one_of_the_shards_is_refused_until_weighed_again(copy, tmp_path):
    exact_prep("weigh", copy, "--alpha", 0.6)
    exact_prep("weigh", copy, "--alpha", 1.2, "--out", tmp_path / "other.json")
    before = read_loaded_weights(copy)
    shutil.copy(tmp_path / "other.json", copy / "weights.json")
    for use in (package.open, package.load_weights, load_facts):
        with pytest.raises(DatasetError, match="do not belong together: one was replaced"):
            use(copy)
    exact_prep("weigh", copy, "--alpha", 0.6)
    assert read_loaded_weights(copy) == before
    assert read_loaded_weights(copy, weights=tmp_path / "other.json") != before


def test_nothing_is_exported_into_a_dataset(copy, several):
    for out in (copy / "more", copy / "tables" / ".." / "more"):
        done = exact_prep("export", several / "64", "--to", "parquet", "--out", out, check=2)
        assert "lies inside the dataset" in done.stderr
    assert not (copy / "more").exists()


def test_each_dataset_is_named_with_its_tail(copies):
    done = exact_prep("weigh", copies, "--alpha", 0.3, "--allow-empty-tail")
    names = [line.split(": ")[0] for line in done.stdout.splitlines()]
    assert names == [str(copies / name) for name in ("32", "32", "64", "64")]


def test_one_table_for_several_row_lengths_is_refused_by_their_names(copies, tmp_path):
    before = read_files(copies)
    done = exact_prep("weigh", copies, "--out", tmp_path / "w.json", check=2)
    assert "several row lengths (32, 64)" in done.stderr
    assert read_files(copies) == before
    assert not (tmp_path / "w.json").exists()
    weigh_here(copies / "32", out=tmp_path / "w.json")
    assert read_json(tmp_path / "w.json")["seq_len"] == 32


@pytest.fixture(scope="module")
def strangers(corpus, packed, several, tokenizer_file, tmp_path_factory):
    """Tables that were made for others than `packed`, by what differs."""
    folder = tmp_path_factory.mktemp("strangers")
    weigh_here(several / "32", out=folder / "seq_len.json")
    (folder / "other").mkdir()
    retrained = folder / "other" / "tokenizer.json"
    retrained.write_text(json.dumps(read_json(tokenizer_file), indent=7))
    pack_here(corpus, folder / "by-another-tokenizer", retrained)
    weigh_here(folder / "by-another-tokenizer", out=folder / "tokenizer.json")
    pack_here(corpus[:1], folder / "a-part", tokenizer_file)
    weigh_here(folder / "a-part", out=folder / "dataset.json")
    return folder


@pytest.mark.parametrize(
    ("stranger", "says"),
    [
        ("seq_len", "was made for rows of 32 tokens"),
        ("tokenizer", "was made for another tokenizer"),
        ("dataset", "was made for other datasets"),
    ],
)
def test_a_table_of_others_is_refused_unless_they_differ_in_documents_alone(
    stranger, says, packed, strangers, tmp_path
):
    table, allowed = strangers / f"{stranger}.json", stranger == "dataset"
    if stranger == "tokenizer":
        # The rows are the same and so is the tree hash: only the tokenizer tells.
        forged = tmp_path / "forged.json"
        shutil.copy2(table, forged)
        reseal(forged, WeightsFile, lambda v: v["datasets"][0].update(id="0" * 32))
        table = forged
    commands = {
        "report": ("report", packed),
        "export": ("export", packed, "--to", "lut", "--out", tmp_path / "exported"),
    }
    for arguments in commands.values():
        done = exact_prep(*arguments, "--weights", table, check=1)
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
        done = exact_prep(*arguments, "--weights", table, "--weights-from-elsewhere", check=0 if allowed else 1)
        assert allowed or says in done.stderr
    assert (tmp_path / "exported").exists() == allowed
    found = exact_prep("verify", packed, "--weights", table, check=1).stdout
    assert f"its table was not made for {packed}" in found
    with pytest.raises(DatasetError, match=says):
        package.open(packed, weights=table)
    if allowed:
        rows = package.open(packed, weights=table, weights_from_elsewhere=True)
        lut = package.load_weights(table).lut
        assert all((row.loss_weights[: row.seq_lengths[0]] == lut[: row.seq_lengths[0]]).all() for row in rows)


def test_verify_checks_a_table(copy, tmp_path):
    table = tmp_path / "w.json"
    weigh_here(copy, out=table)
    assert verify(copy, weights=table) == []
    whole = table.read_bytes()
    for where in range(0, len(whole), 11):
        flip_bit(table, where, where % 8)
        assert verify(copy, weights=table), where
        table.write_bytes(whole)
    reseal(table, WeightsFile, lambda values: values["table"]["weights"].__setitem__(-1, 3.0))
    assert any("does not follow" in finding for finding in verify(copy, weights=table))
    assert any("missing" in finding for finding in verify(copy, weights=tmp_path / "absent.json"))


# ---- checks before anything is written


@pytest.fixture
def short(tokenizer_file, tmp_path):
    """Documents of at most 40 tokens, in rows of 64 and of 4,096: the tail of the longer rows is empty."""
    source = write_jsonl(tmp_path / "in.jsonl", ["the long context of a row " * 4] * 200)
    out = tmp_path / "short"
    exact_prep("pack", source, "--tokenizer", tokenizer_file, "--seq-len", 64, "--seq-len", 4096, "--out", out)
    longest = max(length for row in read_rows(out / "4096") for length in row["seq_lengths"])
    assert 16 < longest < 1024
    return out


def test_all_datasets_of_a_call_are_checked_before_one_is_written(short):
    before = read_files(short)
    done = exact_prep("weigh", short, check=2)
    assert f"{short / '4096'}: no target has an effective context of 1,024 or more" in done.stderr
    for remedy in ("--tail-from", "--allow-empty-tail"):
        assert remedy in done.stderr
    assert read_files(short) == before
    exact_prep("weigh", short / "64")
    exact_prep("weigh", short, "--tail-from", 16)
    assert exact_prep("verify", short).returncode == 0


def test_the_exposure_of_all_datasets_is_recounted_before_one_is_written(copies):
    weigh_here(copies, recount=True)
    reseal(copies / "64" / "manifest.json", Manifest, lambda values: values["exposure"].update(segments=400))
    before = read_files(copies)
    with pytest.raises(DatasetError, match=r"64: the shards' exposure is not the manifest's"):
        weigh_here(copies, alpha=0.3, recount=True)
    assert read_files(copies) == before


def test_an_empty_tail_may_be_allowed(short):
    done = exact_prep("weigh", short, "--allow-empty-tail")
    assert f"{short / '4096'}: no target is in the tail" in done.stderr
    for row in read_rows(short / "4096"):
        assert set(row["loss_weights"]) <= {0.0, 1.0}
    assert read_json(short / "4096" / "weights.json")["kind"] == "exact"
    assert exact_prep("verify", short).returncode == 0
    assert len(package.open(short / "4096")) == len(read_rows(short / "4096"))


@pytest.mark.parametrize(("tail_from", "below", "above"), [(100, 64, 128), (5, 0, 8), (65, 64, 128), (127, 64, 128)])
def test_a_tail_that_does_not_begin_at_an_edge_is_refused_with_the_two_nearest(tail_from, below, above, copy, tmp_path):
    before = read_files(copy)
    for out in (None, tmp_path / "w.json"):
        with pytest.raises(WeightsError, match=f"use --tail-from {below} or --tail-from {above}"):
            weigh_here(copy, tail_from=tail_from, out=out)
    assert read_files(copy) == before
    assert not (tmp_path / "w.json").exists()
    if tail_from == 100:
        done = exact_prep("weigh", copy, "--tail-from", tail_from, check=2)
        assert len(done.stderr.splitlines()) == 1


def test_the_tail_begins_at_an_edge_by_itself(corpus, tokenizer_file, tmp_path):
    """A quarter of 100 tokens is 25; nobody typed that, so it becomes 32."""
    pack_here(corpus, tmp_path / "out", tokenizer_file, seq_lens=(100,))
    weigh_here(tmp_path / "out")
    assert read_json(tmp_path / "out" / "weights.json")["options"]["tail_from"] == 32


def test_under_a_window_contexts_saturate(copy):
    """Counted again target by target: a query that sees W tokens gives its target a context of at most W."""
    ran = exact_prep("weigh", copy, "--window", 24, "--tail-from", 16, "--alpha", 0.5)
    assert "a window of 24, effective context of 16 or more" in ran.stdout
    lengths = [length for row in read_rows(copy) for length in row["seq_lengths"]]
    contexts = [min(position, 24) for length in lengths for position in range(1, length)]
    counts = [sum(low <= context < high for context in contexts) for low, high in ((0, 8), (8, 16), (16, 32))]
    assert counts[2] > sum(16 <= position < 32 for length in lengths for position in range(1, length)), "nothing moved"
    weights = read_json(copy / "weights.json")
    assert (weights["options"]["window"], weights["table"]["counts"]) == (24, counts)
    tail = 1.5  # one bucket in the tail: all of the extra supervision is its own
    for row in read_rows(copy):
        wanted = [0.0, *[1.0] * 15, *[tail] * 48]
        expected = [weight for length in row["seq_lengths"] for weight in wanted[:length]]
        assert row["loss_weights"] == expected + [0.0] * (64 - len(expected))
    assert verify(copy) == []
    assert load_facts(copy).weights.options.window == 24
    refused = exact_prep("weigh", copy, "--window", 24, "--tail-from", 32, check=2)
    assert "context of 32 or more (the longest has 24 within the window of 24)" in refused.stderr


def test_what_float16_makes_of_the_extra_supervision_is_said(copy):
    fine = exact_prep("weigh", copy, "--alpha", 0.15)
    assert "extra supervision 0.15, " in fine.stdout
    assert "as stored in float16" in fine.stdout
    assert fine.stderr == ""
    coarse = exact_prep("weigh", copy, "--alpha", 0.0005)
    assert "extra supervision 0.0005, " in coarse.stdout
    assert "as float16 the extra supervision is" in coarse.stderr
    rounding, weights = (read_json(copy / "weights.json")[name] for name in ("rounding", "table"))
    assert abs(rounding["extra_relative_error"]) > 0.01
    # Counted anew, from the rows.
    stored, tail = 0.0, 0
    for row in read_rows(copy):
        position = 0
        for length in row["seq_lengths"]:
            own = row["loss_weights"][position : position + length]
            stored += sum(weight - 1 for weight in own[16:])
            tail += len(own[16:])
            position += length
    assert math.isclose(rounding["extra_float16"], stored / tail, rel_tol=1e-9)
    assert [float(np.float16(weight)) for weight in weights["weights"]] != weights["weights"]


def test_from_python_the_warning_is_a_note(copy):
    """`weigh` prints nothing itself, whether it writes weights or the table alone."""
    for out in (None, copy.parent / "w.json"):
        for alpha, notes in ((0.0005, 1), (0.15, 0)):
            events: list[object] = []
            weigh_here(copy, alpha=alpha, out=out, emit=events.append)
            assert len([event for event in events if isinstance(event, Note)]) == notes


# ---- without a lock


def test_no_lock_goes_past_a_lock(corpus, copy, tokenizer_file, tmp_path):
    """Where the file system has no locks; here the lock is merely taken."""
    out, exported = tmp_path / "out", tmp_path / "exported"
    options = ("--tokenizer", tokenizer_file, "--seq-len", 32, "--seq-len", 64, "--on-error", "reject")
    commands = {
        out: ("pack", *corpus, *options, "--out", out, "--workers", 1),
        copy: ("weigh", copy, "--workers", 1),
        tmp_path / ".exported.export": ("export", copy, "--to", "lut", "--out", exported),
    }
    for place, command in commands.items():
        with locked(place):
            assert "is in use by" in exact_prep(*command, check=1).stderr
            exact_prep(*command, "--no-lock")
    with locked(out), locked(out / "32"):
        assert "is in use by" in exact_prep(*commands[out], "--overwrite", check=1).stderr
        exact_prep(*commands[out], "--overwrite", "--no-lock")
    assert verify(out) == []
    assert verify(copy) == []
    assert (exported / "export.json").is_file()


def test_a_file_system_without_locks_is_named_with_the_way_out(copy, corpus, tokenizer_file, tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    calls = (
        lambda **options: pack_here(corpus, tmp_path / "out", tokenizer_file, seq_lens=(32, 64), **options),
        lambda **options: pack_here(
            corpus, tmp_path / "out", tokenizer_file, seq_lens=(32, 64), overwrite=True, **options
        ),
        lambda **options: weigh_here(copy, **options),
        lambda **options: export(copy, "lut", tmp_path / "exported", **options),
    )
    for call in calls:
        with pytest.raises(Exception, match=r"has no locks; .*or pass --no-lock"):
            call()
        call(lock=False)
    assert verify(tmp_path / "out") == []
    assert verify(copy) == []
