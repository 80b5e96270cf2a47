"""Laws of records and tables: seals, versions, validators, Parquet tables there and back."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from exact_prep.errors import DatasetError
from exact_prep.records import FORMAT_VERSION, MAJOR, MINOR, canonical_json, encode, fingerprint, is_sealed, parse, seal
from exact_prep.records.manifest import (
    DocumentCounts,
    ExposureRecord,
    Manifest,
    SpecialTokenRecord,
    TokenizerRecord,
    TokenLedger,
)
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.records.tables import (
    BUFFERS,
    PLANNED_INPUTS,
    SCHEMAS,
    decode_batches,
    decode_inputs,
    decode_plan_tasks,
    decode_shards,
    decode_table,
    decode_weights,
    encode_batches,
    encode_inputs,
    encode_plan_tasks,
    encode_shards,
    encode_table,
    encode_tasks,
    encode_weights,
    join_slices,
    read_numbers,
)
from exact_prep.records.weights import TableRecord, WeighedDataset, WeightsFile
from exact_prep.records.work import BatchRecord, InputFile, ShardRecord, Slice, TaskRecord
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.files import exact_weights, plain_weights
from exact_prep.weighing.weights import weight_table

NAMED = "0123456789abcdef" * 2
DATASET = WeighedDataset(
    id=NAMED, rows=40, tokenizer="", exposure=ExposureRecord(counts=(50, 30, 20), segments=9, firsts=9)
)


def make_weights() -> WeightsFile:
    table = weight_table(Exposure(counts=np.array([50, 30, 20])), WeightOptions(tail_from=8, window=100))
    return seal(exact_weights(table, [DATASET], 64))


def make_manifest() -> Manifest:
    options = PackOptions(source=SourceOptions(), tokenizer=TokenizerOptions(), packing=PackingOptions(seq_lens=(64,)))
    tokenizer = TokenizerRecord(
        name="ünïcode",
        sha256="",
        vocab_size=0,
        eos_id=None,
        bos_id=None,
        pad_id=0,
        special_tokens=(SpecialTokenRecord(role="pad", text=None, id=0, source="--pad-token"),),
        special_tokens_in_text="text",
        backend="",
        backend_version="",
        reference_version="",
        parity_texts=0,
        parity_bytes=0,
        parity_differences=0,
    )
    return seal(
        Manifest(
            tool_version="1",
            seq_len=64,
            packing="concat",
            loss_weights="column",
            options=options,
            tokenizer=tokenizer,
            input_files=1,
            tasks=1,
            shards=1,
            sources=1,
            documents=DocumentCounts(records=3, packed=3),
            text_bytes=10,
            documents_cut=0,
            longest_context=63,
            ledger=TokenLedger(text_tokens=64, row_tokens=64),
            exposure=ExposureRecord(counts=(7, 8), segments=1, firsts=1),
            rows=1,
            digests={"tables/shards.parquet": NAMED},
            tree_hash=NAMED,
        )
    )


SEALED = [make_weights(), make_manifest()]
NAMES = ["weights.json", "manifest.json"]


# Seals.


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
def test_a_sealed_file_is_read_back_and_its_seal_is_the_sha256_of_its_bytes_without_it(record):
    data = encode(record)
    assert is_sealed(data)
    assert parse(type(record), data, "x.json") == record
    assert encode(parse(type(record), data, "x.json")) == data
    blank = re.sub(rb'"checksum": "[0-9a-f]{64}"', b'"checksum": ""', data)
    assert hashlib.sha256(blank).hexdigest() == record.checksum
    assert seal(record) == record
    assert fingerprint(record) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
def test_a_flipped_bit_anywhere_in_a_sealed_file_is_found(record):
    data = encode(record)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            assert not is_sealed(bytes(changed)), f"bit {bit} of byte {position}"


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
def test_bytes_added_removed_or_reordered_are_found(record):
    data = encode(record)
    for changed in (
        data + b"\n",
        data[:-1],
        data[:-3],
        b" " + data,
        data.replace(b"  ", b"\t", 1),
        data.replace(b"\n", b"\r\n"),
        data + data,
        b"",
        data.replace(b'"checksum"', b'"Checksum"'),
        json.dumps(json.loads(data)).encode(),
    ):
        assert changed != data
        assert not is_sealed(changed)
    assert not is_sealed(encode(record.model_copy(update={"checksum": ""})))
    assert not is_sealed(encode(record.model_copy(update={"checksum": "0" * 64})))


def spell_later(record, version: str, *, nested: bool = True, **fields) -> bytes:
    """The file as a later version would write it: its own version, other fields, and a seal over its bytes."""
    values = json.loads(encode(record)) | {"format_version": version}
    checksum = values.pop("checksum") and ""
    values |= fields
    if nested and isinstance(record, WeightsFile):
        values["options"]["later_option"] = [1]
        values["table"]["later_column"] = {"a": None}
        values["datasets"][0]["later_fact"] = "x"
    if nested and isinstance(record, Manifest):
        values["options"]["source"]["later_option"] = True
        values["ledger"]["later_count"] = 7
    values["checksum"] = checksum
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace('"checksum": ""', f'"checksum": "{digest}"').encode()


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
@pytest.mark.parametrize("minor", [MINOR + 1, MINOR + 10])
def test_a_later_minor_version_is_read_without_its_new_fields_and_still_checked(record, minor):
    version = f"{MAJOR}.{minor}"
    data = spell_later(record, version, later_field={"deep": [1, 2, 3]})
    assert is_sealed(data)
    expected = record.model_dump() | {"format_version": version, "checksum": ""}
    assert parse(type(record), data, "x.json").model_dump() | {"checksum": ""} == expected
    assert not is_sealed(data.replace(b'"deep"', b'"Deep"'))


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
def test_a_later_minor_version_must_still_hold_the_known_fields(record):
    data = spell_later(record, f"{MAJOR}.{MINOR + 1}", seq_len="many")
    with pytest.raises(DatasetError, match=r"x\.json .* seq_len"):
        parse(type(record), data, "x.json")


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
@pytest.mark.parametrize("version", ["3.0", "1.9", "1", "20.0", "x", ""])
def test_another_major_version_is_refused_with_both_named(record, version):
    data = spell_later(record, version)
    if not version:
        # Without a version a file counts as one of this version, whose fields it then must hold.
        with pytest.raises(DatasetError, match="later"):
            parse(type(record), data, "x.json")
        return
    with pytest.raises(DatasetError, match=rf"x\.json has format {version}, this exact-prep reads format {MAJOR};"):
        parse(type(record), data, "x.json")


@pytest.mark.parametrize("version", [1, 3])
def test_a_version_that_is_a_number_is_refused_too(version):
    data = encode(make_weights()).replace(f'"{FORMAT_VERSION}"'.encode(), b"%d" % version)
    with pytest.raises(DatasetError, match=f"has format {version}, this exact-prep reads format {MAJOR}"):
        parse(WeightsFile, data, "x.json")


@pytest.mark.parametrize("record", SEALED, ids=NAMES)
def test_an_unknown_field_of_the_same_minor_version_is_refused_by_name(record):
    data = spell_later(record, FORMAT_VERSION, nested=False, later_field=1)
    with pytest.raises(DatasetError, match=r"x\.json is not a .* later_field: Extra inputs"):
        parse(type(record), data, "x.json")
    data = spell_later(record, FORMAT_VERSION, nested=True)
    with pytest.raises(DatasetError, match=r"later_(option|column|fact|count): "):
        parse(type(record), data, "x.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"format_version": [2]}', b"{}"])
def test_what_is_no_record_is_refused_by_name(data):
    for record in (WeightsFile, Manifest, TaskRecord):
        with pytest.raises(DatasetError, match=rf"x\.json is not a {record.__name__}"):
            parse(record, data, "x.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)))
def test_canonical_json_depends_on_the_value_alone(value):
    data = canonical_json(value)
    assert json.loads(data) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(list(value.items())))) == data
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


# Validators.


def change(record: WeightsFile, **fields) -> dict:
    return json.loads(encode(record)) | fields


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "plain"}, "exact weights have options, table and rounding; plain ones have none"),
        ({"table": None}, "exact weights have options, table and rounding"),
        ({"options": None}, "exact weights have options, table and rounding"),
        ({"rounding": None}, "exact weights have options, table and rounding"),
        ({"datasets": []}, "datasets: "),
        ({"state": "half"}, "state: "),
        ({"seq_len": 1}, "seq_len: "),
        ({"alignment": "prediction"}, "alignment: "),
        ({"applied_from": "xyz"}, "applied_from: "),
        ({"weights_xxh3": NAMED[:-1]}, "weights_xxh3: "),
        ({"checksum": "0"}, "checksum: "),
    ],
)
def test_weights_files_that_cannot_be_meant_are_refused_by_field(fields, says):
    with pytest.raises(DatasetError, match=says):
        parse(WeightsFile, json.dumps(change(make_weights(), **fields)).encode(), "weights.json")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("options", "alpha", -1),
        ("options", "gamma", "much"),
        ("options", "tail_from", None),
        ("options", "window", 0),
        ("options", "normalize", "median"),
        ("table", "weights", [1.0, 1.0, 1e6]),
        ("table", "weights", [1.0, -1.0, 1.0]),
        ("table", "counts", [1, -1, 1]),
        ("table", "in_tail", [True]),
        ("table", "bucket_edges", [0, 8, 16]),
        ("rounding", "zeros", -1),
    ],
)
def test_parts_of_weights_files_are_checked_too(part, field, value):
    values = change(make_weights())
    values[part][field] = value
    with pytest.raises(DatasetError, match=rf"weights\.json is not a WeightsFile.*({part}|{field})"):
        parse(WeightsFile, json.dumps(values).encode(), "weights.json")


@pytest.mark.parametrize(
    "fields",
    [{"id": "abc"}, {"rate": 0.0}, {"rate": 1.5}, {"rate": -0.1}, {"divisor": 0.0}, {"divisor": -1.0}, {"rows": -1}],
)
def test_weighed_datasets_that_cannot_be_meant_are_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        WeighedDataset.model_validate(DATASET.model_dump() | fields)


def test_plain_weights_are_a_whole_file_too():
    file = seal(plain_weights(DATASET, 64))
    data = encode(file)
    assert is_sealed(data)
    assert parse(WeightsFile, data, "weights.json") == file
    with pytest.raises(ValidationError, match="exact weights have"):
        WeightsFile.model_validate(file.model_dump() | {"kind": "exact"})


def test_numbers_that_json_does_not_have_are_refused():
    values = make_weights().model_dump()
    values["table"]["scale"] = float("nan")
    with pytest.raises(ValidationError, match="scale"):
        WeightsFile.model_validate(values)
    with pytest.raises(ValidationError, match="do not describe the same buckets"):
        TableRecord.model_validate(make_weights().model_dump()["table"] | {"counts": (1,)})


def test_an_exposure_has_no_more_first_tokens_than_segments():
    with pytest.raises(ValidationError, match="more first tokens than segments"):
        ExposureRecord(counts=(), segments=1, firsts=2)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x\n"])
def test_a_shard_is_named_inside_its_dataset(name):
    with pytest.raises(ValidationError, match="file"):
        make_shard(0).model_validate(make_shard(0).model_dump() | {"file": name})


# Tables.

counts = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
slices = st.builds(Slice, file=counts, start=counts, stop=st.none() | counts)
places = st.builds(
    BatchRecord,
    rows=counts,
    segments=counts,
    **dict.fromkeys(("input_ids", "row_splits", "seq_lengths", "doc_ids", "doc_offsets", "sources"), counts),
    **dict.fromkeys(("mask_splits", "masked_runs", "loss_weights"), st.none() | counts),
)


def decode_both(shards: bytes, batches: bytes, path: str) -> tuple[ShardRecord, ...]:
    """The shards of two tables, with their record batches."""
    found = decode_shards(shards, path)
    places = decode_batches(batches, len(found), path)
    return tuple(shard.model_copy(update={"batches": own}) for shard, own in zip(found, places, strict=True))


def make_shard(number: int, batches: tuple[BatchRecord, ...] = ()) -> ShardRecord:
    return ShardRecord(
        file=f"data-{number:07d}-000.arrow",
        task=number,
        rows=2**40 + number,
        segments=number,
        tokens=3,
        bytes=4,
        content_xxh3=NAMED,
        rest_xxh3=NAMED[::-1],
        weights_xxh3=None,
        batches=batches,
    )


small_places = places.map(lambda place: place.model_copy(update={"rows": place.rows % 2**40}))


@given(st.lists(st.lists(small_places, max_size=3), max_size=4))
def test_shards_and_their_batches_are_read_back(batches):
    records = tuple(make_shard(number, tuple(own)) for number, own in enumerate(batches))
    shards, places_ = encode_shards(records), encode_batches(records)
    assert decode_both(shards, places_, "shards") == records
    table = decode_table(SCHEMAS["batches"], places_, "batches")
    starts = [sum(batch.rows for batch in own[:k]) for own in batches for k in range(len(own))]
    assert read_numbers(table, "first_row").tolist() == starts
    assert encode_shards(records) == shards


formats = st.sampled_from(["text", "jsonl", "json", "csv", "parquet", "arrow", "hub"])
inputs = st.builds(InputFile, path=texts, bytes=counts, format=formats, modified_ns=counts, etag=texts, source=texts)


@given(st.lists(inputs, max_size=5))
def test_inputs_are_read_back_and_times_only_while_a_run_is_incomplete(files):
    assert decode_inputs(encode_inputs(files, planned=True), "inputs", planned=True) == tuple(files)
    kept = decode_inputs(encode_inputs(files), "inputs")
    assert kept == tuple(file.model_copy(update={"modified_ns": 0, "etag": ""}) for file in files)
    if files:
        with pytest.raises(DatasetError, match="inputs"):
            decode_inputs(encode_inputs(files), "inputs", planned=True)


@given(st.lists(st.lists(slices, max_size=4), max_size=5))
def test_planned_tasks_are_read_back(tasks):
    assert decode_plan_tasks(encode_plan_tasks(tasks), "tasks") == tuple(tuple(task) for task in tasks)


@given(
    st.lists(st.tuples(st.lists(slices, max_size=3), st.integers(0, 10**9), st.lists(counts, max_size=3)), max_size=5)
)
def test_finished_tasks_are_read_back_with_their_first_records(tasks):
    documents = [DocumentCounts(records=records, packed=records) for _, records, _ in tasks]
    checksums = ["ab" * 16 if number % 2 else "" for number in range(len(tasks))]
    data = encode_tasks([own for own, _, _ in tasks], documents, [sources for _, _, sources in tasks], checksums)
    rows = decode_table(SCHEMAS["tasks"], data, "tasks").to_pylist()
    assert [join_slices(row) for row in rows] == [tuple(own) for own, _, _ in tasks]
    assert [row["first_record"] for row in rows] == [sum(t[1] for t in tasks[:k]) for k in range(len(tasks))]
    assert [row["sources"] for row in rows] == [sources for _, _, sources in tasks]
    assert [row["documents_xxh3"] for row in rows] == checksums


@given(st.dictionaries(texts, st.just(NAMED), max_size=5))
def test_checksums_of_weights_are_read_back(checksums):
    assert decode_weights(encode_weights(checksums), "weights") == checksums


values_of = {pa.string(): texts, pa.int64(): counts, pa.list_(pa.int64()): st.lists(counts, max_size=3)}


@pytest.mark.parametrize("name", SCHEMAS)
@given(data=st.data(), rows=st.integers(0, 5))
@settings(max_examples=20)
def test_every_table_is_read_back_and_its_bytes_repeat(name, data, rows):
    columns = {
        column: data.draw(st.lists(values_of[dtype], min_size=rows, max_size=rows))
        for column, dtype in SCHEMAS[name].items()
    }
    written = encode_table(SCHEMAS[name], columns)
    assert written == encode_table(SCHEMAS[name], columns)
    table = decode_table(SCHEMAS[name], written, name)
    assert table.to_pydict() == columns
    for column, dtype in SCHEMAS[name].items():
        if dtype == pa.int64():
            assert read_numbers(table, column).tolist() == columns[column]


def write_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def read_table(data: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(data)).read()


def test_columns_that_a_later_version_adds_are_ignored_in_any_order():
    records = (make_shard(0, (BatchRecord.model_validate(dict.fromkeys(("rows", "segments", *BUFFERS), 8)),)),)
    shards, batches = (read_table(data) for data in (encode_shards(records), encode_batches(records)))
    shards = shards.append_column("language", pa.array([["de"]])).select([*reversed(shards.column_names), "language"])
    batches = batches.append_column("later", pa.array([None], pa.string()))
    assert decode_both(write_parquet(shards), write_parquet(batches), "shards") == records


FAULTS = {
    "a column is missing": lambda table: table.drop_columns(["rows"]),
    "a column has another type": lambda table: table.set_column(2, "rows", pa.array(["many", "few"])),
    "a column has nulls": lambda table: table.set_column(2, "rows", pa.array([1, None])),
    "a count is negative": lambda table: table.set_column(2, "rows", pa.array([1, -1])),
    "a name leads elsewhere": lambda table: table.set_column(0, "file", pa.array(["a.arrow", "../b.arrow"])),
    "a checksum is none": lambda table: table.set_column(7, "rest_xxh3", pa.array([NAMED, "x"])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_foreign_table_is_refused_by_name(fault):
    records = (make_shard(0), make_shard(1))
    table = FAULTS[fault](read_table(encode_shards(records)))
    with pytest.raises(DatasetError, match=r"tables/shards\.parquet is not a table of an exact-prep dataset"):
        decode_both(write_parquet(table), encode_batches(records), "tables/shards.parquet")


def test_a_batch_of_no_shard_or_without_its_buffers_is_refused():
    place = BatchRecord.model_validate(dict.fromkeys(("rows", "segments", *BUFFERS), 8))
    two, one = (make_shard(0, (place,)), make_shard(1, (place,))), (make_shard(0, (place,)),)
    with pytest.raises(DatasetError, match="record batch of shard 1, there are 1"):
        decode_both(encode_shards(one), encode_batches(two), "shards")
    table = read_table(encode_batches(one))
    at = table.column_names.index("input_ids")
    table = table.set_column(at, "input_ids", pa.array([-1]))
    with pytest.raises(DatasetError, match="input_ids"):
        decode_both(encode_shards(one), write_parquet(table), "shards")


def test_inputs_of_an_unknown_format_are_refused_by_name():
    table = read_table(encode_inputs([InputFile(path="a", bytes=1, format="text")]))
    table = table.set_column(table.column_names.index("format"), "format", pa.array(["docx"]))
    with pytest.raises(DatasetError, match=r"inputs\.parquet is not a table.*: format: Input should be 'text'"):
        decode_inputs(write_parquet(table), "inputs.parquet")


def test_slices_without_their_ends_are_refused():
    columns = {"files": [[1, 2]], "starts": [[0]], "stops": [[-1, -1]]}
    data = encode_table({name: pa.list_(pa.int64()) for name in columns}, columns)
    with pytest.raises(DatasetError, match="tasks is not a table"):
        decode_plan_tasks(data, "tasks")


@pytest.mark.parametrize("name", ["shards", "inputs"])
def test_damaged_parquet_is_refused_or_read_and_nothing_else_is_raised(name):
    """Flipped bytes may hit values, which digests watch over; what they must not do is escape as another error."""
    records = (make_shard(0), make_shard(1))
    files = [InputFile(path=f"corpus/{n}.jsonl", bytes=10 * n, format="jsonl", source="web") for n in range(5)]
    good = encode_shards(records) if name == "shards" else encode_inputs(files)
    refused = 0
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << (5 * position % 8)
        try:
            if name == "shards":
                decode_both(bytes(data), encode_batches(records), "x.parquet")
            else:
                decode_inputs(bytes(data), "x.parquet")
        except DatasetError:
            refused += 1
    assert refused > len(good) / 10
    for size in range(0, len(good), 11):
        with pytest.raises(DatasetError, match=r"x\.parquet is not a table"):
            decode_table(SCHEMAS[name], good[:size], "x.parquet")


def test_a_plan_of_inputs_keeps_more_columns_than_the_dataset():
    assert set(PLANNED_INPUTS) - set(SCHEMAS["inputs"]) == {"modified_ns", "etag"}
