"""`verify` holds every byte of a dataset against what was written: one flipped bit anywhere is found."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import files_of, pack_here, weigh_here, write_corpus

from exact_prep.batches import PackedBatch
from exact_prep.dataset import tree_hash, write_state
from exact_prep.errors import DatasetError, ExactPrepError
from exact_prep.pipeline import verify
from exact_prep.records import encode, sealed
from exact_prep.records.manifest import Manifest, ShardRecord, WeightsFile
from exact_prep.reports.facts import gather
from exact_prep.shards import ShardWriter, opened
from exact_prep.weighing.exposure import Exposure, measure
from exact_prep.weighing.files import record_of

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


@settings(max_examples=250)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_its_file_is_named(dataset, data):
    path = dataset / data.draw(st.sampled_from(sorted(files_of(dataset))))
    whole = path.read_bytes()
    where, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:where] + bytes([whole[where] ^ 1 << bit]) + whole[where + 1 :])
    try:
        findings = found(dataset)
        assert findings
        assert any(path.name in finding for finding in findings), findings
    finally:
        path.write_bytes(whole)


def test_every_byte_of_the_records_counts(dataset):
    for name in ("weights.json", "state.json"):
        path = dataset / name
        whole = path.read_bytes()
        try:
            for where in range(0, len(whole), 3):
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


def test_a_missing_and_a_foreign_shard_are_found_quickly_too(copy):
    first, *_, last = sorted(copy.glob("*.arrow"))
    shutil.copy2(first, copy / "data-00099-of-00100.arrow")
    last.unlink()
    for quick in (False, True):
        findings = verify(copy, quick=quick)
        assert any("data-00099-of-00100.arrow is no shard" in finding for finding in findings)
        assert any(last.name in finding for finding in findings)


def resealed(path: Path, record: Any, change: Callable[[dict], object]) -> None:
    """Change a record and make its checksum right again, as somebody who knows how would."""
    values = json.loads(path.read_bytes())
    change(values)
    path.write_bytes(encode(sealed(record.model_validate(values))))


def without_a_task(values: dict) -> None:
    """A manifest from which the shards of the last task are gone, everything that sums over shards made right."""
    last = values["shards"].pop()
    while values["shards"][-1]["task"] == last["task"]:
        values["shards"].pop()
    values.update(rows=sum(shard["rows"] for shard in values["shards"]))


FORGERIES: dict[str, tuple[str, Any, Callable[[dict], object], str]] = {
    "fewer rows": ("manifest.json", Manifest, lambda v: v.update(rows=v["rows"] - 1), "rows and tokens do not sum"),
    "a token more": ("manifest.json", Manifest, lambda v: v["ledger"].update(text_tokens=1), "does not add up"),
    "another exposure": ("manifest.json", Manifest, lambda v: v["exposure"].update(segments=3), "exposure"),
    "a shard left out": ("manifest.json", Manifest, lambda v: v["shards"].pop(), "is no shard of this dataset"),
    "a shard of no task": (
        "manifest.json",
        Manifest,
        lambda v: v["shards"][0].update(task=99),
        "of task 99, the manifest has",
    ),
    "shards in another order": ("manifest.json", Manifest, lambda v: v["shards"].reverse(), "tree hash"),
    "fewer documents": (
        "manifest.json",
        Manifest,
        lambda v: v["tasks"][0]["documents"].update(packed=2),
        "the manifest says 2",
    ),
    "another row length": ("manifest.json", Manifest, lambda v: v.update(seq_len=32), "rows of 64 tokens"),
    "another padding id": ("manifest.json", Manifest, lambda v: v["tokenizer"].update(pad_id=5), "padding is not"),
    "a smaller vocabulary": (
        "manifest.json",
        Manifest,
        lambda v: v["tokenizer"].update(vocab_size=9),
        "vocabulary of 9",
    ),
    "more documents": ("manifest.json", Manifest, lambda v: v["documents"].update(packed=9), "do not sum to"),
    "an empty document more": (
        "manifest.json",
        Manifest,
        lambda v: [one.update(empty=one["empty"] + 1) for one in (v["documents"], v["tasks"][0]["documents"])],
        "task 0: 7 records, of which",
    ),
    "records counted from elsewhere": (
        "manifest.json",
        Manifest,
        lambda v: v["tasks"][1].update(first_record=3),
        "task 1: its first record is 3, the tasks before it read",
    ),
    "a task without its shards": ("manifest.json", Manifest, lambda v: without_a_task(v), "and has no shard"),
    "documents that were cut": (
        "manifest.json",
        Manifest,
        lambda v: v.update(documents_cut=1),
        "are cut, the manifest says 1",
    ),
    "a longer context": (
        "manifest.json",
        Manifest,
        lambda v: v.update(longest_context=64),
        "the longest context is 63, the manifest says 64",
    ),
    "more padding": ("manifest.json", Manifest, lambda v: v["ledger"].update(padding=0), "0 padding tokens"),
    "EOS that are text": (
        "manifest.json",
        Manifest,
        lambda v: v["ledger"].update(eos_tokens=0, text_tokens=v["ledger"]["text_tokens"] + v["ledger"]["eos_tokens"]),
        "0 EOS tokens",
    ),
    "another EOS": ("manifest.json", Manifest, lambda v: v["tokenizer"].update(eos_id=5), "does not end with EOS (5)"),
    "a BOS": (
        "manifest.json",
        Manifest,
        lambda v: (
            v["tokenizer"].update(bos_id=399),
            v["ledger"].update(
                bos_tokens=v["documents"]["packed"], text_tokens=v["ledger"]["text_tokens"] - v["documents"]["packed"]
            ),
        ),
        "does not begin with BOS (399)",
    ),
    "options of other rows": (
        "manifest.json",
        Manifest,
        lambda v: v["options"]["packing"].update(seq_lens=[32]),
        "its options are not those",
    ),
    "another alpha": ("weights.json", WeightsFile, lambda v: v.update(alpha=0.3), "does not follow"),
    "another share": ("weights.json", WeightsFile, lambda v: v.update(tail_share=0.3), "does not follow"),
    "other weights": ("weights.json", WeightsFile, lambda v: v["weights"].__setitem__(-1, 3.0), "does not follow"),
    "an impossible option": ("weights.json", WeightsFile, lambda v: v.update(eps=0.0), "eps must be > 0"),
    "no shards": ("weights.json", WeightsFile, lambda v: v.update(shards=[]), "does not list the shards"),
    "another dataset's": (
        "weights.json",
        WeightsFile,
        lambda v: v.update(dataset_tree_hash="0" * 32),
        "belongs to another dataset",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_records_are_found_though_their_checksum_is_right(forgery, copy):
    name, record, change, says = FORGERIES[forgery]
    resealed(copy / name, record, change)
    findings = found(copy)
    assert any(says in finding for finding in findings), findings


def test_a_document_without_its_end_is_found_though_all_checksums_and_sums_are_right(tokenizer_file, tmp_path):
    """What a packer that loses the last token of a task would leave."""
    out = tmp_path / "out"
    pack_here(write_corpus(tmp_path / "in", documents=6), out, tokenizer_file)
    values = json.loads((out / "manifest.json").read_bytes())
    shard = values["shards"][-1]
    (batch,) = opened(out / shard["file"]).batches
    ids, lengths = batch.input_ids.copy(), batch.seq_lengths.copy()
    ids[-1, lengths[batch.row_splits[-2] :].sum() - 1] = values["tokenizer"]["pad_id"]
    lengths[-1] -= 1
    writer = ShardWriter(out / "shard.tmp", 64)
    writer.write(
        PackedBatch(
            input_ids=ids,
            segments_per_row=batch.segments_per_row,
            seq_lengths=lengths,
            doc_ids=batch.doc_ids,
            doc_offsets=batch.doc_offsets,
        )
    )
    shard.update(writer.close(file=shard["file"], task=shard["task"]).model_dump())
    (out / "shard.tmp").replace(out / shard["file"])
    for name, change in {"text_tokens": -1, "row_tokens": -1, "padding": 1}.items():
        values["ledger"][name] += change
    records = [ShardRecord.model_validate(one) for one in values["shards"]]
    counted = sum((measure(b.seq_lengths) for one in records for b in opened(out / one.file).batches), Exposure())
    values["exposure"] = record_of(counted).model_dump()
    values["tree_hash"] = tree_hash(records)
    manifest = sealed(Manifest.model_validate_json(json.dumps(values)))
    (out / "manifest.json").write_bytes(encode(manifest))
    write_state(out, records, manifest.tree_hash)
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
    (copy.parent / "x.arrow").write_bytes(b"precious")
    for file, place in (("manifest.json", "shards"), ("weights.json", "shards")):
        path = copy / file
        whole = path.read_bytes()
        values = json.loads(whole)
        values[place][0]["file"] = name
        path.write_bytes(json.dumps(values).encode())
        assert any(f"{file} is not a" in finding and f"{place}.0.file" in finding for finding in found(copy))
        if file == "manifest.json":
            for call in (weigh_here, gather):
                with pytest.raises(ExactPrepError):
                    call(copy)
        path.write_bytes(whole)
    state = json.loads((copy / "state.json").read_bytes())
    state["_data_files"][0]["filename"] = name
    (copy / "state.json").write_bytes(json.dumps(state).encode())
    assert any("state.json: _data_files" in finding for finding in found(copy))
    assert (copy.parent / "x.arrow").read_bytes() == b"precious"


def test_a_compressed_shard_is_refused_before_anything_is_written_to_it(copy):
    """Its weights lie nowhere in the file as they are; their address leads into other memory."""
    path = min(copy.glob("*.arrow"))
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data = path.read_bytes()
    with pytest.raises(DatasetError, match="not in the file as they are"):
        opened(path)
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
    whole = (copy / "weights.json").read_bytes()
    for change in (lambda v: v["weights"].pop(), lambda v: v["counts"].append(1), lambda v: v["bucket_edges"].pop()):
        values = json.loads(whole)
        change(values)
        unsealed = WeightsFile.model_construct(**values)
        (copy / "weights.json").write_bytes(json.dumps({**values, "checksum": unsealed.checksum}).encode())
        assert any("are not of the same buckets" in finding for finding in found(copy))
        with pytest.raises(DatasetError, match="are not of the same buckets"):
            gather(copy)


def test_a_file_is_no_directory_of_datasets(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match="is a file; name the directory"):
        verify(tmp_path / "manifest.json")
