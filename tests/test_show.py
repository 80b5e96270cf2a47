"""`show`: what is shown of a row is what the source and the shards hold, and documents are data."""

from __future__ import annotations

import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from rich.console import Console
from runs import exact_prep, make_texts, pack_here, read_rows, read_table, weigh_here, write_jsonl
from tokenizers import Tokenizer
from written_dataset import documents, write_dataset

import exact_prep as package
from exact_prep.errors import TokenizerError
from exact_prep.reports.hostile import escape_controls, escape_json
from exact_prep.reports.row import RowReader, load_row
from exact_prep.reports.row_html import render_page
from exact_prep.reports.row_parts import MOST
from exact_prep.reports.row_terminal import render_row
from exact_prep.tokenization.decoding import Decoder
from exact_prep.tokenization.files import digest

HOSTILE = (
    "<script>alert(1)</script></div></script><!-- ]]> &amp; [bold red]markup[/bold red] [/] \x1b[31mred\x1b[0m "
    "\x9b2J \x07 \x7f \u202eabc\u202c \u2066x\u2069 \u061c\u200e\u200f \u2028\u2029 "
    "zero\u200bwidth\ufeff \U000e0041 \r\n\ttab\n"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer_file):
    """Texts by file, with ids, and the dataset of them, weighed: several files and several slices in a task."""
    base = tmp_path_factory.mktemp("show")
    texts = {f"{name}.jsonl": make_texts(25, seed=seed, longest=600) for seed, name in enumerate("abc")}
    texts["b.jsonl"][3] = HOSTILE * 4
    for name, own in texts.items():
        lines = [json.dumps({"text": text, "id": f"{name[0]}{number}"}) for number, text in enumerate(own)]
        (base / name).write_text("\n".join(lines) + "\n")
    source = {"id_field": "id", "task_bytes": 20_000}
    pack_here([base / name for name in texts], base / "out", tokenizer_file, source=source)
    weigh_here(base / "out")
    return base, texts


@pytest.fixture(scope="module")
def facts(corpus):
    reader = RowReader(package.open(corpus[0] / "out"))
    return [reader.load(number) for number in range(len(reader.dataset))]


def printed(renderable, width):
    """What a terminal of `width` columns without colour shows."""
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(renderable)
    return file.getvalue()


def test_the_text_of_a_segment_is_the_slice_of_its_document(corpus, facts, tokenizer_file):
    base, texts = corpus
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    places = set()
    for row in facts:
        for segment in row.segments:
            origin = segment.origin
            name, line = origin.file.rpartition("/")[2], int(origin.place.removeprefix("line "))
            assert (origin.file, origin.note) == (str(base / name), "")
            assert origin.id == f"{name[0]}{line - 1}"
            places.add((name, line))
            ids = [*tokenizer.encode(texts[name][line - 1], add_special_tokens=False).ids, 0]
            own = ids[segment.document_start : segment.document_start + segment.tokens]
            assert "".join(piece.text or "" for piece in segment.pieces) == tokenizer.decode(
                own, skip_special_tokens=False
            )
            assert sum(piece.tokens for piece in segment.pieces) == segment.tokens == len(own)
            last = segment.pieces[-1]
            ends = segment.document_start + segment.tokens == len(ids)
            assert (last.special == "<|endoftext|>") == ends
    assert len(places) == sum(map(len, texts.values()))


def test_weights_and_contexts_are_those_of_the_stored_column(corpus, facts):
    for row, stored in zip(facts, read_rows(corpus[0] / "out"), strict=True):
        weights, contexts = [], []
        for segment in row.segments:
            assert segment.start == len(weights)
            for piece in segment.pieces:
                assert piece.start == len(weights) - segment.start
                weights += [piece.weight] * piece.tokens
                contexts += range(piece.low, piece.high + 1)
                # One bucket: [0, 7], [8, 15], [16, 31], ...
                assert max(piece.low.bit_length(), 3) == max(piece.high.bit_length(), 3)
        expected = [left for length in stored["seq_lengths"] for left in range(length)]
        assert contexts == expected
        assert weights + [0.0] * row.padding == np.array(stored["loss_weights"], np.float64).tolist()
        assert row.padding == 64 - sum(stored["seq_lengths"])
        assert row.supervised == sum(weight > 0 for weight in weights)


def test_a_document_is_data_in_the_terminal(facts):
    shown = "".join(printed(render_row(one, whole=True, width=width), width) for one in facts for width in (60, 80))
    assert set(re.findall(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff]", shown)) <= {"\n"}
    for word in ("[bold red]", "\\x1b", "\\x9b", "\\u202e", "<script>"):
        assert word in shown.replace("\n", ""), word


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_and_segments_are_told_apart_without_colour(facts, width):
    for row in facts:
        shown = printed(render_row(row, width=width), width).splitlines()
        assert max(map(len, shown)) <= width
        rules = [line for line in shown if line.startswith("── ")]
        assert len(rules) == len(row.segments) + bool(row.padding)


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.names, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_a_document_is_data_in_a_page(facts):
    pages = [Page(render_page(one)) for one in facts]
    tags = {tag for page in pages for tag in page.tags}
    assert not tags & {"script", "b", "a", "img", "link"}
    assert not [name for page in pages for name in page.names if name.startswith("on")]
    joined = "".join(page.text for page in pages)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", joined)
    assert "<script>" in joined or "script>alert" in joined


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_piped_holds_no_command_to_a_terminal(corpus, options):
    for row in range(0, len(read_rows(corpus[0] / "out")), 9):
        shown = exact_prep("show", corpus[0] / "out", "--row", row, *options).stdout
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", shown)


def test_json_means_the_same_after_hostile_characters_are_spelled_out():
    text = HOSTILE + "straße 東京 🙂 \U000e0041"
    said = escape_json(json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads(said) == {"text": text}
    assert "東京 🙂" in said
    assert escape_controls("a\tb\n\x1b\x9b\u202e\ud800\ufeff é🙂") == "a\tb\n\\x1b\\x9b\\u202e\\ud800\\ufeff é🙂"


def test_json_holds_the_facts(corpus, facts):
    assert json.loads(exact_prep("show", corpus[0] / "out", "--row", 2, "--json").stdout) == facts[2].model_dump(
        mode="json"
    )


def test_find_counts_the_rows_and_shows_the_first(corpus, facts):
    needle = "straße 東京"
    texts = [["".join(piece.text or "" for piece in segment.pieces) for segment in row.segments] for row in facts]
    rows = [number for number, own in enumerate(texts) if any(needle in text for text in own)]
    shown = exact_prep("show", corpus[0] / "out", "--find", needle).stdout
    assert f"row {rows[0]} of " in shown
    assert f"the first of {len(rows)} rows" in shown
    assert "no segment of the" in exact_prep("show", corpus[0] / "out", "--find", "nowhere", check=2).stderr


def test_doc_takes_own_ids_and_numbers_and_names_what_several_have(corpus, facts, tokenizer_file, tmp_path):
    out = corpus[0] / "out"
    for name in ("b7", "c24"):
        rows = [row.row for row in facts if any(segment.origin.id == name for segment in row.segments)]
        shown = json.loads(exact_prep("show", out, "--doc", name, "--json").stdout)
        assert shown["row"] == rows[0]
        origin = next(one["origin"] for one in shown["segments"] if one["origin"]["id"] == name)
        again = exact_prep("show", out, "--doc", f"{origin['task']}:{origin['record']}", "--json").stdout
        assert json.loads(again) == shown
    assert "no row" in exact_prep("show", out, "--doc", "z", check=2).stderr
    lines = [json.dumps({"text": text, "id": "same"}) for text in ("one", "two")]
    (tmp_path / "twice.jsonl").write_text("\n".join(lines))
    pack_here([tmp_path / "twice.jsonl"], tmp_path / "out", tokenizer_file, source={"id_field": "id"})
    told = exact_prep("show", tmp_path / "out", "--doc", "same", check=2).stderr
    assert "0:0 " in told
    assert "0:1 " in told
    assert "line 2" in told


def test_rows_are_chosen_one_way_and_a_seed_gives_one_row(corpus):
    out = corpus[0] / "out"
    assert exact_prep("show", out).stdout == exact_prep("show", out, "--random", 0).stdout
    assert "each choose a row" in exact_prep("show", out, "--row", 1, "--random", 0, check=2).stderr
    rows = len(read_rows(out))
    for row in (rows, -1):
        assert f"rows 0 to {rows - 1}" in exact_prep("show", out, "--row", row, check=2).stderr


def test_a_page_is_written_and_its_name_printed(corpus, tmp_path):
    page = tmp_path / "row.html"
    assert exact_prep("show", corpus[0] / "out", "--row", 0, "--html", page).stdout == f"{page}\n"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_colour_goes_to_terminals_that_want_it(corpus):
    for name, wanted in (("FORCE_COLOR", True), ("NO_COLOR", False)):
        shown = exact_prep("show", corpus[0] / "out", "--row", 0, env={**os.environ, name: "1"}).stdout
        assert ("\x1b[" in shown) == wanted


def test_a_dataset_of_ids_shows_ids_and_says_that_it_is_not_weighed(tmp_path):
    docs = documents(12, 60)
    write_dataset(tmp_path / "ids", docs, seq_len=64)
    row = load_row(package.open(tmp_path / "ids", plain=True), 0)
    for segment in row.segments:
        ids = [number for piece in segment.pieces for number in piece.ids or ()]
        assert ids in [doc[segment.document_start : segment.document_start + segment.tokens] for doc in docs]
    assert "not weighed" in exact_prep("show", tmp_path / "ids").stdout
    assert "no text to find" in exact_prep("show", tmp_path / "ids", "--find", "x", check=2).stderr


def test_an_origin_that_cannot_be_known_says_which_files_it_may_be(tokenizer_file, tmp_path):
    files = [write_jsonl(tmp_path / f"{name}.jsonl", make_texts(4, seed=1, longest=40)) for name in "ab"]
    pack_here(files, tmp_path / "out", tokenizer_file, source={"task_bytes": 10**6})
    assert len(read_table(tmp_path / "out", "tasks")) == 1
    files[0].unlink()
    notes = [segment.origin.note for segment in load_row(package.open(tmp_path / "out", plain=True), 0).segments]
    assert all(note.startswith(f"one of 2 files, {files[0]} to {files[1]}") for note in notes)


def test_validation_rows_know_where_they_came_from(tokenizer_file, tmp_path):
    texts = [f"{number} {text}" for number, text in enumerate(make_texts(200, seed=4, longest=60))]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    pack_here([path], tmp_path / "out", tokenizer_file, validation=0.2)
    reader = RowReader(package.open(tmp_path / "out", split="validation", plain=True))
    for number in range(len(reader.dataset)):
        for segment in reader.load(number).segments:
            if segment.document_start == 0 and segment.tokens > 5:
                line = int(segment.origin.place.removeprefix("line "))
                assert "".join(piece.text or "" for piece in segment.pieces).startswith(f"{line - 1} ")


def test_a_character_in_several_tokens_is_whole(tokenizer_file):
    decoder = Decoder(tokenizer_file, digest(tokenizer_file.read_bytes()))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    text = "a🙂b東京\ufffdc"
    ids = tokenizer.encode(text).ids
    for stop in range(1, len(ids)):
        pieces = decoder.split(ids, [0, stop, len(ids)])
        assert "".join(pieces) == text
        assert pieces[0] == tokenizer.decode(ids[:stop]).rstrip("\ufffd") or "\ufffd" in pieces[0]
    pieces = decoder.split(ids, [*range(len(ids) + 1)])
    assert "".join(pieces) == text
    cuts = [len("".join(pieces[:stop])) for stop in range(1, len(ids))]
    assert cuts == [len(decoder.split(ids, [0, stop, len(ids)])[0]) for stop in range(1, len(ids))]
    with pytest.raises(TokenizerError, match="changed"):
        Decoder(tokenizer_file, "0" * 64)


def test_long_text_is_cut_in_its_middle_and_what_is_looked_for_stays(tokenizer_file, tmp_path):
    text = "word " * 2000 + "the needle is here" + " word" * 2000
    path = write_jsonl(tmp_path / "a.jsonl", [text])
    pack_here([path], tmp_path / "out", tokenizer_file, seq_lens=(65536,))
    row = load_row(package.open(tmp_path / "out", plain=True), 0)
    cut = printed(render_row(row, needle="needle", width=80), 80)
    assert "needle" in cut
    assert len(cut) < 20 * MOST
    assert " characters …" in cut
    lines = [line.partition(" │ ")[2] for line in printed(render_row(row, whole=True, width=80), 80).splitlines()]
    assert "".join(lines).replace(" ", "").count("word") == 4000
