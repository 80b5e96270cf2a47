"""`verify` holds every byte of a dataset against what was written: one flipped bit anywhere is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import (
    flip_bit,
    list_shards,
    pack_here,
    read_files,
    read_json,
    read_table,
    reseal,
    weigh_here,
    write_corpus,
)

import exact_prep
from exact_prep.dataset import make_state, open_dataset, table_name, tree_hash
from exact_prep.errors import DatasetError, ExactPrepError
from exact_prep.pipeline.consistency import load_records
from exact_prep.pipeline.verify import verify
from exact_prep.records.manifest import Manifest
from exact_prep.records.tables import SCHEMAS, encode_batches, encode_shards, encode_table, encode_weights
from exact_prep.records.weights import WeightsFile
from exact_prep.reports import load_facts
from exact_prep.shards import ShardWriter, open_shard
from exact_prep.stores.local import digest
from exact_prep.weighing.exposure import Exposure, measure_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def dataset(tokenizer_file, tmp_path_factory):
    """Weighed, of several shards, with rejected documents; every test puts back what it changes."""
    folder = tmp_path_factory.mktemp("integrity")
    pack_here(write_corpus(folder / "in", documents=6), folder / "out", tokenizer_file)
    weigh_here(folder / "out")
    assert verify(folder / "out") == []
    return folder / "out"


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def found(directory: Path) -> list[str]:
    try:
        return verify(directory)
    except DatasetError as error:
        return [str(error)]


@pytest.mark.parametrize("loss_weights", ["column", "table"])
def test_a_flipped_bit_is_found_in_every_file(loss_weights, tokenizer_file, tmp_path):
    """At its start, at its end and evenly in between."""
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in", documents=4), out, tokenizer_file, loss_weights=loss_weights)
    weigh_here(out)
    assert (out / "rejected.jsonl").is_file()
    names = read_files(out).keys() - {"README.md"}
    assert len(names) > 12
    for name in sorted(names):
        size = (out / name).stat().st_size
        for byte in {*range(0, size, max(size // 16, 1)), size - 1}:
            flip_bit(out / name, byte, byte % 8)
            assert any(name in finding for finding in found(out)), (name, byte)
            flip_bit(out / name, byte, byte % 8)
    assert verify(out) == []


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_its_file_is_named(dataset, data):
    path = dataset / data.draw(st.sampled_from(sorted(read_files(dataset).keys() - {"README.md"})))
    whole = path.read_bytes()
    where, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:where] + bytes([whole[where] ^ 1 << bit]) + whole[where + 1 :])
    try:
        findings = found(dataset)
        assert findings
        assert any(path.name in finding for finding in findings), findings
    finally:
        path.write_bytes(whole)


def test_every_bit_of_a_shard_is_found(copy):
    """Bytes from all over the smallest shard, headers, splits and padding included, another bit each time."""
    path = min(list_shards(copy), key=lambda shard: shard.stat().st_size)
    for byte in range(0, path.stat().st_size, 13):
        flip_bit(path, byte, byte % 8)
        assert any(path.name in finding for finding in found(copy)), byte
        flip_bit(path, byte, byte % 8)
    assert verify(copy) == []


def test_every_byte_of_the_records_counts(dataset):
    for name in ("manifest.json", "weights.json", "state.json"):
        path = dataset / name
        whole = path.read_bytes()
        try:
            for where in range(0, len(whole), 5):
                path.write_bytes(whole[:where] + b"7" + whole[where + 1 :])
                assert whole[where] == ord("7") or found(dataset), where
        finally:
            path.write_bytes(whole)


@pytest.mark.parametrize("quick", [False, True])
def test_a_shard_cut_anywhere_is_found(quick, copy):
    path = min(copy.glob("*.arrow"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 211):
        path.write_bytes(whole[:size])
        assert any(path.name in finding for finding in verify(copy, quick=quick))


def test_two_shards_in_each_others_place_are_found(copy):
    one, another, *_ = sorted(copy.glob("*.arrow"))
    data = one.read_bytes()
    one.write_bytes(another.read_bytes())
    another.write_bytes(data)
    findings = verify(copy)
    assert any(one.name in finding for finding in findings)
    assert any(another.name in finding for finding in findings)


def test_shards_of_equal_size_swapped_are_found(tokenizer_file, tmp_path):
    """Sizes and counts alone would not tell."""
    texts = ["the long context", "the wrong context"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text[:16] * 200}) + "\n" for text in texts))
    pack_here([tmp_path / "in.jsonl"], tmp_path / "two", tokenizer_file)
    one, another = sorted((tmp_path / "two").glob("*.arrow"))
    assert one.read_bytes() != another.read_bytes()
    data = one.read_bytes()
    one.write_bytes(another.read_bytes())
    another.write_bytes(data)
    assert len(verify(tmp_path / "two")) >= 2


def test_a_missing_and_an_unlisted_shard_are_found_quickly_too(copy):
    first, *_, last = sorted(copy.glob("*.arrow"))
    shutil.copy2(first, copy / "data-9999999-000.arrow")
    last.unlink()
    for quick in (False, True):
        findings = verify(copy, quick=quick)
        assert any("data-9999999-000.arrow is not a shard" in finding for finding in findings)
        assert any(last.name in finding for finding in findings)


@pytest.mark.parametrize("quick", [False, True])
def test_a_file_that_is_missing_is_found_and_named(quick, dataset, tmp_path):
    """Any file but the card. A missing manifest leaves nothing that could be called a dataset."""
    for number, name in enumerate(sorted(read_files(dataset))):
        copy = shutil.copytree(dataset, tmp_path / str(number))
        (copy / name).unlink()
        if name == "README.md":
            assert verify(copy, quick=quick) == []
        elif name == "manifest.json":
            with pytest.raises(DatasetError, match="has no manifest"):
                verify(copy, quick=quick)
        else:
            assert any(name in finding for finding in verify(copy, quick=quick)), name
        shutil.rmtree(copy)


def test_files_that_others_put_beside_ours_are_not_findings(copy):
    """Caches of Hugging Face and of a desktop; and the card, which is there to be edited."""
    for name in ("cache-0123456789abcdef.arrow", ".DS_Store", ".cache/huggingface/download/x.metadata", "notes.txt"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"theirs")
    (copy / "README.md").write_text("# Ours\n")
    assert verify(copy) == []
    weigh_here(copy, alpha=0.3)
    assert verify(copy) == []
    assert (copy / ".DS_Store").read_bytes() == b"theirs"


def forge_table(directory: Path, name: str, change: Callable[[list[dict]], object]) -> None:
    """Change the rows of a table, and make its checksum and that of the manifest right again."""
    rows = read_table(directory, name)
    change(rows)
    data = encode_table(SCHEMAS[name], {column: [row[column] for row in rows] for column in SCHEMAS[name]})
    replace_files(directory, {table_name(name): data})


def replace_files(directory: Path, files: dict[str, bytes], **changes: Any) -> None:
    """Write files beside the shards, and a manifest that knows them; `changes` are other fields of it."""
    for name, data in files.items():
        (directory / name).write_bytes(data)

    def change(values: dict) -> None:
        values["digests"] |= {name: digest([data]) for name, data in files.items()}
        values.update(changes)

    reseal(directory / "manifest.json", Manifest, change)


def forge_manifest(**changes: Any) -> Callable[[Path], None]:
    """Change fields of the manifest, or of records in it."""

    def change(values: dict) -> None:
        for name, value in changes.items():
            values[name] = {**values[name], **value} if isinstance(value, dict) else value

    return lambda directory: reseal(directory / "manifest.json", Manifest, change)


def forge_weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda directory: reseal(directory / "weights.json", WeightsFile, change)


def forge(name: str, change: Callable[[list[dict]], object]) -> Callable[[Path], None]:
    return lambda directory: forge_table(directory, name, change)


def remove_shards_of_last_task(directory: Path) -> None:
    """A dataset from which the shards of the last task are gone, and everything that sums over shards made right."""
    shards = load_records(open_dataset(directory)).shards
    kept = [shard for shard in shards if shard.task < shards[-1].task]
    tables = {table_name("shards"): encode_shards(kept), table_name("batches"): encode_batches(kept)}
    replace_files(
        directory, tables, rows=sum(shard.rows for shard in kept), shards=len(kept), tree_hash=tree_hash(kept)
    )


def count_an_empty_document_more(directory: Path) -> None:
    forge_table(directory, "tasks", lambda rows: rows[0].update(empty=rows[0]["empty"] + 1))
    forge_manifest(documents={"empty": read_json(directory / "manifest.json")["documents"]["empty"] + 1})(directory)


def call_eos_text(directory: Path) -> None:
    ledger = read_json(directory / "manifest.json")["ledger"]
    both = ledger["text_tokens"] + ledger["eos_tokens"]
    forge_manifest(ledger={"eos_tokens": 0, "text_tokens": both})(directory)


def claim_a_bos(directory: Path) -> None:
    values = read_json(directory / "manifest.json")
    packed, text = values["documents"]["packed"], values["ledger"]["text_tokens"]
    change = forge_manifest(tokenizer={"bos_id": 399}, ledger={"bos_tokens": packed, "text_tokens": text - packed})
    change(directory)


def claim_other_rows(directory: Path) -> None:
    reseal(directory / "manifest.json", Manifest, lambda v: v["options"]["packing"].update(seq_lens=[32]))


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "fewer rows": (forge_manifest(rows=1), "rows and tokens do not sum"),
    "a token more": (forge_manifest(ledger={"text_tokens": 1}), "does not add up"),
    "another exposure": (forge_manifest(exposure={"segments": 300, "firsts": 3}), "exposure"),
    "a shard left out": (forge("shards", lambda rows: rows.pop()), "a record batch of shard"),
    "a task of the last shard left out": (remove_shards_of_last_task, "is not a shard of this dataset"),
    "a task without its shards": (remove_shards_of_last_task, "and has no shard"),
    "a shard of no task": (forge("shards", lambda rows: rows[-1].update(task=99)), "of task 99, there are"),
    "shards in another order": (forge("shards", lambda rows: rows.reverse()), "tree hash"),
    "a record batch elsewhere": (
        forge("batches", lambda rows: rows[0].update(doc_ids=rows[0]["doc_ids"] + 8)),
        "do not lie where the table of batches says",
    ),
    "a record batch fewer": (forge("batches", lambda rows: rows.pop()), "do not lie where the table of batches says"),
    "fewer documents": (forge("tasks", lambda rows: rows[0].update(packed=2)), "the table of tasks says 2"),
    "another row length": (forge_manifest(seq_len=32), "rows of 64 tokens"),
    "another padding id": (forge_manifest(tokenizer={"pad_id": 5}), "padding is not"),
    "a smaller vocabulary": (forge_manifest(tokenizer={"vocab_size": 9}), "vocabulary of 9"),
    "more documents": (forge_manifest(documents={"packed": 9}), "do not sum to"),
    "an empty document more": (count_an_empty_document_more, "task 0: not all of its 7 records"),
    "records counted from elsewhere": (
        forge("tasks", lambda rows: rows[1].update(first_record=3)),
        "task 1: its first record is 3, the tasks before it read",
    ),
    "documents that were cut": (forge_manifest(documents_cut=1), "are cut, the manifest says 1"),
    "a longer context": (forge_manifest(longest_context=64), "the longest context is 63, the manifest says 64"),
    "more padding": (forge_manifest(ledger={"padding": 0}), "0 padding tokens"),
    "EOS that are text": (call_eos_text, "0 EOS tokens"),
    "another EOS": (forge_manifest(tokenizer={"eos_id": 5}), "does not end with EOS (5)"),
    "a BOS": (claim_a_bos, "does not begin with BOS (399)"),
    "options of other rows": (claim_other_rows, "its options are not those"),
    "a task more": (forge_manifest(tasks=99), "another number of shards, tasks or sources"),
    "documents of another source": (
        forge("sources", lambda rows: rows[0].update(documents=rows[0]["documents"] + 1)),
        "has other counts than the table of sources says",
    ),
    "tokens of another source": (
        forge("sources", lambda rows: rows[1].update(tokens=0)),
        "has other counts than the table of sources says",
    ),
    "an exposure of another source": (
        forge("sources", lambda rows: rows[2].update(segments=1)),
        "has other counts than the table of sources says",
    ),
    "a source of no table": (forge("tasks", lambda rows: rows[0].update(sources=[77])), "a source that is not in"),
    "a source missing": (forge("tasks", lambda rows: rows[0].update(sources=[])), "a source"),
    "a document of another length": (
        forge("document_lengths", lambda rows: rows[0].update(length=rows[0]["length"] + 1)),
        "the document lengths counted from the shards are not those of the table",
    ),
    "a length that is not listed": (
        forge("document_lengths", lambda rows: rows.pop()),
        "the document lengths counted from the shards are not those of the table",
    ),
    "a negative count": (forge("tasks", lambda rows: rows[0].update(packed=-1)), "tasks.parquet"),
    "another alpha": (forge_weights(lambda v: v["options"].update(alpha=0.3)), "does not follow"),
    "another share": (forge_weights(lambda v: v["table"].update(tail_share=0.3)), "does not follow"),
    "other weights": (forge_weights(lambda v: v["table"]["weights"].__setitem__(-1, 3.0)), "does not follow"),
    "another rounding": (forge_weights(lambda v: v["rounding"].update(zeros=1)), "does not follow"),
    "an exposure of its own": (
        forge_weights(lambda v: v["datasets"][0]["exposure"].update(segments=400)),
        "its exposure is not that of the dataset",
    ),
    "no checksums": (forge_weights(lambda v: v.update(weights_xxh3=None)), "lists checksums of a column, or does not"),
    "other checksums": (forge_weights(lambda v: v.update(weights_xxh3="0" * 32)), "is not the table that weights.json"),
    "another dataset's": (forge_weights(lambda v: v["datasets"][0].update(id="0" * 32)), "belongs to another dataset"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_records_are_found_though_their_checksum_is_right(forgery, copy):
    change, says = FORGERIES[forgery]
    change(copy)
    findings = found(copy)
    assert any(says in finding for finding in findings), findings


def test_an_impossible_option_is_refused_though_its_checksum_is_right(copy):
    values = read_json(copy / "weights.json")
    values["options"]["eps"] = 0.0
    (copy / "weights.json").write_text(json.dumps(values))
    assert any("eps must be > 0" in finding for finding in found(copy))


def test_checksums_of_other_shards_are_found(copy):
    """tables/weights.parquet with a name changed, and weights.json that vouches for it."""
    checksums = {row["file"]: row["weights_xxh3"] for row in read_table(copy, "weights")}
    last = max(checksums)
    checksums["data-9999999-000.arrow"] = checksums.pop(last)
    data = encode_weights(checksums)
    (copy / table_name("weights")).write_bytes(data)
    reseal(copy / "weights.json", WeightsFile, lambda values: values.update(weights_xxh3=digest([data])))
    assert any("does not list the shards" in finding for finding in found(copy))


def test_a_document_without_its_end_is_found_though_all_checksums_and_sums_are_right(tokenizer_file, tmp_path):
    """What a packer that loses the last token of a task would leave."""
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in", documents=6), out, tokenizer_file)
    values = read_json(out / "manifest.json")
    *others, shard = load_records(open_dataset(out)).shards
    (rows,) = open_shard(out / shard.file).batches
    ids, lengths = rows.input_ids.copy(), rows.seq_lengths.copy()
    ids[-1, lengths[rows.row_splits[-2] :].sum() - 1] = values["tokenizer"]["pad_id"]
    lengths[-1] -= 1
    writer = ShardWriter(out / "shard.tmp", 64)
    writer.write(replace(rows, input_ids=ids, seq_lengths=lengths, loss_weights=None))
    shards = [*others, writer.close(file=shard.file, task=shard.task)]
    (out / "shard.tmp").replace(out / shard.file)
    checksums = {row["file"]: row["weights_xxh3"] for row in read_table(out, "weights")}
    checksums[shard.file] = shards[-1].weights_xxh3 or ""
    weights = encode_weights(checksums)
    (out / table_name("weights")).write_bytes(weights)

    last = read_table(out, "tasks")[shard.task]["sources"][int(rows.sources[-1])]
    final = int(rows.doc_offsets[-1]) + int(rows.seq_lengths[-1])

    def count(path: Path, source: int) -> Exposure:
        sums = (measure_rows(batch, 1)[0] for batch in open_shard(path).batches)
        return sum(sums, Exposure()) if source == last else Exposure()

    tasks = read_table(out, "tasks")
    counted = sum((count(out / one.file, tasks[one.task]["sources"][0]) for one in shards), Exposure()).to_record()

    def shorten(table: list[dict]) -> None:
        table[last].update(tokens=table[last]["tokens"] - 1, counts=list(counted.counts), segments=counted.segments)

    def move(table: list[dict]) -> None:
        for row in table:
            row["count"] -= (row["source"], row["length"]) == (last, final)
        if shorter := [row for row in table if (row["source"], row["length"]) == (last, final - 1)]:
            shorter[0]["count"] += 1
        else:
            table.append({"source": last, "length": final - 1, "count": 1})
        table[:] = sorted((row for row in table if row["count"]), key=lambda row: (row["source"], row["length"]))

    forge_table(out, "sources", shorten)
    forge_table(out, "document_lengths", move)
    whole = sum((measure_rows(b, 1)[0] for one in shards for b in open_shard(out / one.file).batches), Exposure())
    ledger = dict(values["ledger"])
    for name, change in {"text_tokens": -1, "row_tokens": -1, "padding": 1}.items():
        ledger[name] += change
    files = {table_name("shards"): encode_shards(shards), table_name("batches"): encode_batches(shards)}
    exposure = whole.to_record().model_dump(mode="json")
    replace_files(out, files, ledger=ledger, exposure=exposure, tree_hash=tree_hash(shards))

    def follow(weights_file: dict) -> None:
        weights_file["datasets"][0].update(id=tree_hash(shards), exposure=exposure)
        weights_file.update(weights_xxh3=digest([weights]))

    reseal(out / "weights.json", WeightsFile, follow)
    (out / "state.json").write_bytes(make_state([one.file for one in shards], tree_hash(shards)))
    findings = verify(out)
    assert len(findings) == 1, findings
    assert "does not end with EOS" in findings[0]


def test_a_list_of_rejected_documents_that_nobody_wrote_is_found(tokenizer_file, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "the long context"}\n')
    pack_here([tmp_path / "in.jsonl"], tmp_path / "out", tokenizer_file)
    (tmp_path / "out" / "rejected.jsonl").write_text("{}\n")
    assert any("rejected.jsonl" in finding for finding in verify(tmp_path / "out"))


OUTSIDE = ["../x.arrow", "/etc/passwd", "a/b.arrow", "..", ".", "", ".hidden", "a\n", "a\0b", "a\\b", "~"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_record_leads_out_of_its_directory(name, copy):
    precious = copy.parent / "x.arrow"
    precious.write_bytes(b"precious")
    whole = read_files(copy)
    forge_table(copy, "shards", lambda rows: rows[0].update(file=name))
    assert any("shards.parquet" in finding and "file" in finding for finding in found(copy))
    for call in (weigh_here, lambda directory: exact_prep.open(directory, plain=True)):
        with pytest.raises(ExactPrepError):
            call(copy)
    for file in ("manifest.json", "tables/shards.parquet"):
        (copy / file).write_bytes(whole[file])
    state = read_json(copy / "state.json")
    state["_data_files"][0]["filename"] = name
    (copy / "state.json").write_bytes(json.dumps(state).encode())
    assert any("state.json: _data_files" in finding for finding in found(copy))
    assert precious.read_bytes() == b"precious"


def test_a_compressed_shard_is_refused_before_anything_is_written_to_it(copy):
    """Its weights lie nowhere in the file as they are; their address leads into other memory."""
    path = min(copy.glob("*.arrow"))
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data = path.read_bytes()
    with pytest.raises(DatasetError, match="not in the file as they are"):
        open_shard(path)
    with pytest.raises(DatasetError):
        weigh_here(copy)
    assert path.read_bytes() == data


def test_verify_reports_all_damaged_datasets_of_a_directory(tokenizer_file, tmp_path):
    pack_here(write_corpus(tmp_path / "in", documents=6), tmp_path / "out", tokenizer_file, seq_lens=(32, 64))
    weigh_here(tmp_path / "out")
    (tmp_path / "out" / "32" / "manifest.json").write_bytes(b"{}")
    (tmp_path / "out" / "64" / "weights.json").write_bytes(b"[]")
    findings = verify(tmp_path / "out")
    assert any("32/manifest.json" in finding for finding in findings)
    assert any("64/weights.json" in finding for finding in findings)


def test_a_table_of_unequal_columns_is_refused_by_every_command(copy):
    """Found by fuzzing: with its checksum made right it stopped `report` with an internal error."""
    whole = read_json(copy / "weights.json")
    for column in ("weights", "counts", "bucket_edges", "in_tail"):
        values = json.loads(json.dumps(whole))
        values["table"][column].pop()
        (copy / "weights.json").write_text(json.dumps(values))
        assert any("do not describe the same buckets" in finding for finding in found(copy))
        with pytest.raises(DatasetError, match="do not describe the same buckets"):
            load_facts(copy)


def test_a_file_is_not_a_directory_of_datasets(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match="is a file; name the directory"):
        verify(tmp_path / "manifest.json")
