"""Rows of ids with EOS inside: they may be several documents, and are never packed as one silently."""

from __future__ import annotations

import json

import numpy as np
import pytest
from runs import exact_prep, read_documents, read_json

import exact_prep as library
from exact_prep.batches import MASKED, TextBatch
from exact_prep.errors import SourceError
from exact_prep.records.manifest import TokenizerRecord
from exact_prep.tokenization.given_ids import IdChecker

EOS = 3
GOOD = [[5, 6, 7, EOS], [5], [EOS], [8, 9], [7, 7, EOS]]
BASE = ("--ids-field", "ids", "--seq-len", 16, "--eos-token", f"id:{EOS}")


def write(path, rows):
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return path


def test_eos_at_the_end_of_a_row_is_what_it_is_for(tmp_path):
    exact_prep("pack", write(tmp_path / "in.jsonl", GOOD), *BASE, "-o", tmp_path / "out")
    assert list(read_documents(tmp_path / "out").values()) == GOOD


def test_a_row_with_eos_inside_is_refused_and_each_remedy_works(tmp_path):
    rows = [*GOOD, [5, EOS, 6, EOS, 7], [8]]
    corpus = write(tmp_path / "in.jsonl", rows)
    error = exact_prep("pack", corpus, *BASE, "-o", tmp_path / "a", check=1).stderr
    assert f"{corpus}, line 6: EOS (id {EOS}) at token 1, inside the document" in error
    assert "split it at EOS first" in error
    assert not (tmp_path / "a/manifest.json").exists()

    exact_prep("pack", corpus, *BASE, "--documents", "rows", "-o", tmp_path / "b")
    assert list(read_documents(tmp_path / "b").values()) == rows
    assert read_json(tmp_path / "b/manifest.json")["options"]["source"]["documents"] == "rows"

    exact_prep("pack", corpus, *BASE, "--on-error", "reject", "-o", tmp_path / "c")
    assert list(read_documents(tmp_path / "c").values()) == [*GOOD, [8]]
    (rejected,) = [json.loads(line) for line in (tmp_path / "c/rejected.jsonl").read_text().splitlines()]
    assert rejected["place"] == "line 6"
    assert "inside the document" in rejected["reason"]

    split = [*GOOD, [5, EOS], [6, EOS], [7], [8]]
    exact_prep("pack", write(tmp_path / "split.jsonl", split), *BASE, "-o", tmp_path / "d")
    assert list(read_documents(tmp_path / "d").values()) == split


def test_the_eos_of_a_tokenizer_counts_too(tmp_path, tokenizer_file):
    from tokenizers import Tokenizer

    eos = Tokenizer.from_file(str(tokenizer_file)).token_to_id("<|endoftext|>")
    corpus = write(tmp_path / "in.jsonl", [[1, eos, 2]])
    words = ("--ids-field", "ids", "--seq-len", 8, "--tokenizer", tokenizer_file)
    assert "inside the document" in exact_prep("pack", corpus, *words, "-o", tmp_path / "a", check=1).stderr
    library.pack(
        corpus,
        tmp_path / "b",
        seq_len=8,
        ids_field="ids",
        tokenizer=tokenizer_file,
        documents="rows",
        progress=False,
    )
    assert list(read_documents(tmp_path / "b").values()) == [[1, eos, 2]]


def test_the_end_of_a_turn_belongs_inside(tmp_path, tokenizer_file):
    """A chat tokenizer names the end of a turn as EOS: it is inside of every conversation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens(["<|im_end|>"])
    turn, end = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    home = tmp_path / "tokenizer"
    home.mkdir()
    tokenizer.save(str(home / "tokenizer.json"))
    (home / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    words = ("--ids-field", "ids", "--seq-len", 8, "--tokenizer", home)
    chat = [[1, turn, 2, turn]]
    exact_prep("pack", write(tmp_path / "chat.jsonl", chat), *words, "-o", tmp_path / "a")
    assert list(read_documents(tmp_path / "a").values()) == chat
    packed = write(tmp_path / "packed.jsonl", [[1, end, 2, turn]])
    assert f"EOS (id {end})" in exact_prep("pack", packed, *words, "-o", tmp_path / "b", check=1).stderr
    asked = ("--eos-token", "<|im_end|>")
    error = exact_prep("pack", tmp_path / "chat.jsonl", *words, *asked, "-o", tmp_path / "c", check=1).stderr
    assert f"EOS (id {turn})" in error


def test_without_a_known_eos_ids_are_taken_as_they_are(tmp_path):
    corpus = write(tmp_path / "in.jsonl", [[1, EOS, 2]])
    exact_prep("pack", corpus, "--ids-field", "ids", "--seq-len", 8, "-o", tmp_path / "out")
    assert list(read_documents(tmp_path / "out").values()) == [[1, EOS, 2]]


def test_packed_rows_of_another_tool_are_refused_whole(tmp_path):
    """Every row is bad, so nothing is packed, and the message says why."""
    rows = [[5, 6, EOS, 7, 8, EOS, 9, 9]] * 20
    words = ("--on-error", "reject", "--max-rejected", "100%", "-o", tmp_path / "out")
    error = exact_prep("pack", write(tmp_path / "in.jsonl", rows), *BASE, *words, check=1).stderr
    assert "nothing was packed: 20 of 20 records were rejected" in error
    assert f"EOS (id {EOS}) at token 2, inside the document" in error


def test_it_is_for_ids(tmp_path, tokenizer_file):
    words = ("--tokenizer", tokenizer_file, "--seq-len", 8, "--documents", "rows", "-o", tmp_path / "out")
    assert "--documents is for --ids-field" in exact_prep("pack", tmp_path, *words, check=2).stderr


def make_record() -> TokenizerRecord:
    return TokenizerRecord(
        name="",
        sha256="",
        vocab_size=0,
        eos_id=None,
        bos_id=None,
        pad_id=0,
        special_tokens=(),
        document_ends=(EOS,),
        special_tokens_in_text="text",
        backend="none",
        backend_version="",
        reference_version="",
        parity_texts=0,
        parity_bytes=0,
        parity_differences=0,
    )


@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("masked", [False, True])
def test_a_document_in_pieces_is_seen_whole(reject, place, masked):
    """EOS anywhere in a document of 9 ids that comes in three batches: only at its end it is right."""
    ids = np.full(9, 7, np.int32)
    ids[place] = EOS | MASKED if masked else EOS
    checker = IdChecker(make_record(), reject=reject, name="record {}".format, masked=masked, eos_inside=False)
    rejected, tokens = [], []

    def run():
        for part in range(3):
            batch = TextBatch(
                ids=ids[3 * part : 3 * part + 3],
                id_offsets=np.array([0, 3]),
                records=np.array([4]),
                continues=part < 2,
                read=part == 0,
            )
            for made in checker.encode(batch):
                rejected.extend(made.rejected)
                tokens.extend(made.ids.tolist())

    if place == 8:
        run()
        assert tokens == ids.tolist()
        assert not rejected
    elif reject:
        run()
        assert [one.record for one in rejected] == [4]
        assert not tokens
    else:
        with pytest.raises(SourceError, match=r"record 4: EOS \(id 3\) at token"):
            run()
