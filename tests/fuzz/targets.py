"""The fuzzing targets: a function per reader, seeds for mutation, and the properties that must hold for any bytes."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import exact_prep
from exact_prep.errors import ExactPrepError
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.verify import verify
from exact_prep.pipeline.weigh import weigh
from exact_prep.records import encode, seal
from exact_prep.records.manifest import Manifest
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions, WeightOptions
from exact_prep.records.tables import SCHEMAS, encode_table
from exact_prep.records.weights import WeightsFile
from exact_prep.reports import load_facts
from exact_prep.shards import open_shard, overwrite_weights
from exact_prep.stores.local import digest
from exact_prep.tokenization import Tokenizer, choose
from tests import corpora
from tests.tokenizer import train_tokenizer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

TEXTS = ["the long context", "", "of a row\nstraße 東京 🙂", 'with "quotes", \\ and , commas', "0123 " * 40]


@dataclass(frozen=True)
class Target:
    """A reader and valid inputs for it."""

    feed: Callable[[bytes], object]
    """Raises AssertionError, or any other error that is not an ExactPrepError, if a property does not hold."""
    seeds: Callable[[], list[bytes]]
    """Valid, or nearly valid, inputs."""


@functools.cache
def folder() -> Path:
    """The directory for bad files; removed when this process ends."""
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    kept = tempfile.TemporaryDirectory(prefix="exact-prep-fuzz-", dir=place)
    folder.kept = kept  # type: ignore[attr-defined]
    return Path(kept.name)


def check_length(error: ExactPrepError, most: int) -> None:
    """Check that an error message is short enough to read."""
    assert len(str(error)) < most


def read_source(name: str, data: bytes, **options: Any) -> None:
    """Read a file with both values of --on-error; `corpora.read_all` checks that no record goes missing."""
    path = folder() / name
    path.write_bytes(data)
    for on_error in ("reject", "stop"):
        try:
            corpora.read_inputs(path, on_error=on_error, **options)
        except ExactPrepError as error:
            check_length(error, 5000)


def source(name: str, seeds: Callable[[], list[bytes]], **options: Any) -> Target:
    """A target that reads a file called `name`."""
    return Target(functools.partial(read_source, name, **options), seeds)


def jsonl_seeds() -> list[bytes]:
    return [
        corpora.jsonl(TEXTS),
        b'\xef\xbb\xbf{"text": "a", "n": NaN, "text": "b"}\r\n\r\n{"text": "\\ud800"}\n{"text": null}\n[]\n{}',
        b'{"text": "' + b"\\u0041" * 50 + b'"}\n' + b"[" * 2000 + b"\n" + b'{"a":' * 500,
    ]


def shards_seed() -> list[bytes]:
    return [path.read_bytes() for path in sorted(dataset().glob("*.arrow"))[:2]]


@functools.cache
def dataset() -> Path:
    """A small weighed dataset of two shards."""
    tokenizer = train_tokenizer(folder() / "tokenizer.json")
    sources = folder() / "corpus"
    sources.mkdir()
    for number in range(2):
        (sources / f"{number}.jsonl").write_bytes(corpora.jsonl(TEXTS * 2) + b"bad\n")
    options = PackOptions(
        source=SourceOptions(on_error="reject", task_bytes=100),
        tokenizer=TokenizerOptions(tokenizer=str(tokenizer), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(32,)),
    )
    pack([str(sources)], options, folder() / "dataset")
    weigh(folder() / "dataset", WeightOptions(tail_from=8))
    return folder() / "dataset"


def feed_shard(data: bytes) -> None:
    """Open a shard as `verify` and `weigh` do; writing weights must not change the size of the file."""
    home = shutil.copytree(dataset(), folder() / "shard", dirs_exist_ok=True)
    path = min(home.glob("*.arrow"))
    whole = path.read_bytes()
    path.write_bytes(data)
    assert data == whole or verify(home), "a changed shard is not found"
    try:
        shard = open_shard(path)
        shard.content_digest()
        edges, values = (pa.array([0, 1, shard.seq_len], pa.int32()), pa.array([0, 15360], pa.uint16()))
        overwrite_weights(path, edges.to_numpy(), values.to_numpy())
    except ExactPrepError:
        ignore_refused(data)
    assert path.stat().st_size == len(data), "weigh changed the size of a shard"


def ignore_refused(data: bytes) -> None:
    """Bytes that were refused need no further checks."""


def feed_record(name: str, record: Any, data: bytes) -> None:
    """Feed a record to every command that reads it: unchanged, and with a correct checksum if it can be parsed."""
    home = shutil.copytree(dataset(), folder() / "record", dirs_exist_ok=True)
    whole = (home / name).read_bytes()
    forms = [data]
    try:
        forms.append(encode(seal(record.model_validate_json(data))))
    except ValueError:
        ignore_refused(data)
    for form in forms:
        (home / name).write_bytes(form)
        feed_commands(home)
    (home / name).write_bytes(whole)


def feed_commands(home: Path) -> None:
    """Give a dataset with a bad record to all that reads records: a result or an ExactPrepError, nothing changed."""
    before, table = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}, folder() / "table.json"
    commands = (
        verify,
        load_facts,
        lambda directory: exact_prep.open(directory)[0],
        lambda directory: weigh(directory, WeightOptions(), out=table, allow_empty_tail=True),
        lambda directory: verify(dataset(), weights=directory / "weights.json"),
        lambda directory: exact_prep.open(dataset(), weights=directory / "weights.json", weights_from_elsewhere=True)[
            0
        ],
    )
    for command in commands:
        table.unlink(missing_ok=True)
        try:
            command(home)
        except ExactPrepError as error:
            check_length(error, 20000)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def feed_table(name: str, data: bytes) -> None:
    """Feed a table, its rows as JSON, to every command: bad bytes, and rows whose checksums are right."""
    home = shutil.copytree(dataset(), folder() / "table", dirs_exist_ok=True)
    file = f"tables/{name}.parquet"
    try:
        rows = json.loads(data)
        form = encode_table(SCHEMAS[name], {column: [row[column] for row in rows] for column in SCHEMAS[name]})
    except Exception:  # no such table can be written: then the bytes themselves
        form = data
    kept = {path: (home / path).read_bytes() for path in (file, "manifest.json", "weights.json")}
    (home / file).write_bytes(form)
    for record, path in ((Manifest, "manifest.json"), (WeightsFile, "weights.json")):
        values = json.loads(kept[path])
        if path == "weights.json" and name == "weights":
            values["weights_xxh3"] = digest([form])
        elif path == "manifest.json" and name != "weights":
            values["digests"][file] = digest([form])
        (home / path).write_bytes(encode(seal(record.model_validate_json(json.dumps(values)))))
    feed_commands(home)
    for path, whole in kept.items():
        (home / path).write_bytes(whole)


def table_seeds(name: str) -> list[bytes]:
    rows = pq.ParquetFile(dataset() / "tables" / f"{name}.parquet").read().to_pylist()
    return [json.dumps(rows).encode()]


def record_seeds(name: str) -> list[bytes]:
    return [(dataset() / name).read_bytes()]


def feed_tokenizer(data: bytes) -> None:
    """Feed a tokenizer.json to `choose`, and to the Tokenizer of a worker."""
    path = folder() / "bad" / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    options = TokenizerOptions(tokenizer=str(path), eos_token="<|endoftext|>")
    try:
        record = choose(options, TEXTS, path=path)
        batch = next(iter(corpora_batches()))
        list(Tokenizer(path, record, options).encode(batch))
    except ExactPrepError as error:
        check_length(error, 5000)


def corpora_batches() -> Any:
    """The batches of a valid file."""
    from exact_prep.sources import find_inputs

    path = folder() / "good.jsonl"
    path.write_bytes(corpora.jsonl(TEXTS))
    inputs = find_inputs([str(path)], SourceOptions())
    return inputs.read(inputs.plan_tasks()[0])


def tokenizer_seeds() -> list[bytes]:
    return [train_tokenizer(folder() / "seed.json").read_bytes()]


def parquet_seeds() -> list[bytes]:
    ids = io.BytesIO()
    pq.write_table(pa.table({"text": [[1, 2, 3], [], None, [4]]}), ids, compression="none")
    plain = io.BytesIO()
    pq.write_table(corpora.table(TEXTS), plain, compression="none", use_dictionary=False, write_page_checksum=True)
    return [corpora.parquet()(TEXTS), corpora.parquet(pa.large_string())(TEXTS), plain.getvalue(), ids.getvalue()]


def arrow_seeds() -> list[bytes]:
    kinds = (None, pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
    return [corpora.arrow(stream, kind)(TEXTS) for stream in (False, True) for kind in kinds]


def ids_seeds() -> list[bytes]:
    rows = pa.table({"text": pa.array([[1, 2, 3], [], None, [4, 2**31 - 1]], pa.list_(pa.int64()))})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_table(rows)
    return [out.getvalue()]


def compressed(compress: Callable[[bytes], bytes]) -> Callable[[], list[bytes]]:
    return lambda: [compress(corpora.jsonl(TEXTS)), compress(b"") + compress(jsonl_seeds()[1])]


TARGETS: dict[str, Target] = {
    "jsonl": source("bad.jsonl", jsonl_seeds),
    "json": source("bad.json", lambda: [corpora.json_array(TEXTS), corpora.json_objects(TEXTS), jsonl_seeds()[1]]),
    "csv": source("bad.csv", lambda: [corpora.delimited(",")(TEXTS)]),
    "text": source("bad.txt", lambda: [corpora.separated(TEXTS)], separator="<|endofdocument|>\n"),
    "gz": source("bad.jsonl.gz", compressed(functools.partial(gzip.compress, mtime=0))),
    "zst": source("bad.jsonl.zst", compressed(corpora.zstd)),
    "xz": source("bad.jsonl.xz", compressed(lzma.compress)),
    "bz2": source("bad.jsonl.bz2", compressed(bz2.compress)),
    "parquet": source("bad.parquet", parquet_seeds),
    "arrow": source("bad.arrow", arrow_seeds),
    "ids": source("bad.arrow", ids_seeds, ids_field="text"),
    "jsonl-labels": source("bad.jsonl", jsonl_seeds, source_from="field:id"),
    "csv-labels": source("bad.csv", lambda: [corpora.delimited(",")(TEXTS)], source_from="field:more"),
    "parquet-labels": source("bad.parquet", parquet_seeds, source_from="field:id"),
    "arrow-labels": source("bad.arrow", arrow_seeds, source_from="field:text"),
    "shard": Target(feed_shard, shards_seed),
    "manifest": Target(
        functools.partial(feed_record, "manifest.json", Manifest), lambda: record_seeds("manifest.json")
    ),
    "weights": Target(
        functools.partial(feed_record, "weights.json", WeightsFile), lambda: record_seeds("weights.json")
    ),
    "tokenizer": Target(feed_tokenizer, tokenizer_seeds),
    **{
        f"table {name}": Target(functools.partial(feed_table, name), functools.partial(table_seeds, name))
        for name in SCHEMAS
    },
}

JSON = ("manifest", "weights", "tokenizer", *(f"table {name}" for name in SCHEMAS))
"""Targets whose inputs are JSON, and are mutated value by value too."""

NASTY = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b'"',
    b"{",
    b"[",
    b"\n",
    b"-1",
    b"1e999",
    b"null",
    b"9" * 25,
]


def mutate_bytes(data: bytes, choose: random.Random) -> bytes:
    """Change the data in one to five places: flip bits; cut, repeat, insert, overwrite or truncate parts."""
    for _ in range(choose.randint(1, 5)):
        low = choose.randrange(len(data) + 1)
        high = min(low + int(2 ** choose.uniform(0, 10)), len(data))
        what = choose.randrange(7)
        if what == 0 and low < len(data):
            data = data[:low] + bytes([data[low] ^ 1 << choose.randrange(8)]) + data[low + 1 :]
        elif what == 1:
            data = data[:low] + data[high:]
        elif what == 2:
            data = data[:high] + data[low:]
        elif what == 3:
            data = data[:low] + choose.choice(NASTY) + data[low:]
        elif what == 4:
            word = choose.choice(NASTY)
            data = data[:low] + word + data[low + len(word) :]
        elif what == 5:
            data = data[:low] + choose.randbytes(high - low) + data[high:]
        else:
            data = data[: choose.choice([low, len(data)])]
    return data


def mutate_json(data: bytes, choose: random.Random) -> bytes:
    """Replace, remove or rename one to three values of a JSON document."""
    value = json.loads(data)
    for _ in range(choose.randint(1, 3)):
        place: Any = value
        while True:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = choose.choice(keys)
            if not isinstance(place[key], dict | list) or choose.random() < 0.2:
                change(place, key, choose)
                break
            place = place[key]
    return json.dumps(value).encode()


def change(place: Any, key: Any, choose: random.Random) -> None:
    """Remove, repeat, rename or replace one value."""
    odd = [None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**64, 10**30, 0.5, -0.0, 1e308, "", "..", "x" * 300, [], {}, [[]]]
    what = choose.randrange(4)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, list):
        place.extend(place[: choose.randint(1, 200)] * choose.randint(1, 3))
    elif what == 2 and isinstance(place, dict):
        place[str(key) + "_"] = place.pop(key)
    else:
        place[key] = choose.choice(odd)
