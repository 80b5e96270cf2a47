"""An array of jobs over inputs in a bucket: the bytes of one run on the same bucket, and no secret in the plan."""

from __future__ import annotations

from exact_prep.stores import open_store
from tests.runs import exact_prep, make_texts, read_files, write_jsonl


def test_members_read_a_bucket(bucket, tokenizer_file, tmp_path):
    store = open_store(bucket.url, bucket.options)
    for number in range(4):
        path = write_jsonl(tmp_path / f"{number}.jsonl", make_texts(30, seed=number))
        store.write(f"corpus/{number}.jsonl", path.read_bytes())
    common = ("--tokenizer", tokenizer_file, "--tokenizer-backend", "tokenizers", "--task-size", 20_000)

    def pack(out, *more, check=0):
        command = ("pack", f"{bucket.url}/corpus", *common, "--seq-len", 64, "-o", tmp_path / out)
        return exact_prep(*command, *bucket.arguments(), *more, check=check)

    pack("single")
    pack("out", "--plan-only")
    plan = b"".join(read_files(tmp_path / "out" / ".work").values())
    assert b"sEcReT" not in plan
    assert b"AKID" not in plan
    for index in (1, 0):
        pack("out", "--task-index", index, "--task-count", 2)
    pack("out", "--finish")
    ours, theirs = read_files(tmp_path / "out"), read_files(tmp_path / "single")
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []
