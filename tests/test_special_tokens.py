"""Laws of EOS, BOS and padding: where each comes from, what is refused, and messages that come before loading."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from exact_prep.batches import TextBatch
from exact_prep.dataset import open_dataset
from exact_prep.errors import TokenizerError
from exact_prep.pipeline.events import Note
from exact_prep.pipeline.pack import pack
from exact_prep.records.manifest import describe_special_tokens
from exact_prep.records.options import PackingOptions, PackOptions, SourceOptions, TokenizerOptions
from exact_prep.reports import load_facts
from exact_prep.reports.terminal import render
from exact_prep.tokenization import Tokenizer as Encoder
from exact_prep.tokenization import choice, choose, locate, resolve_special_tokens
from exact_prep.tokenization.special_tokens import DOCUMENT_ENDS, TURN_ENDS
from exact_prep.tokenization.token_table import find_prefix

if TYPE_CHECKING:
    from pathlib import Path

ALPHABET = [chr(code) for code in range(33, 127)]
"""The ordinary tokens: "!" is 0, "0" is 15, "a" is 64."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(
    folder: Path,
    *,
    special: tuple[str, ...] = SPECIAL,
    ordinary: tuple[str, ...] = (),
    vocabulary: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
    tokens_map: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A byte-level BPE of single characters, then `vocabulary`, then `special` and `ordinary` added tokens.

    `config` and `tokens_map` go into the files beside it; `fields` replace those of the tokenizer.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [*ALPHABET, *vocabulary]
    added = [
        {
            "id": len(texts) + place,
            "content": text,
            "special": text in special,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for place, text in enumerate((*special, *ordinary))
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {text: number for number, text in enumerate(texts)}, "merges": []},
        **fields,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if tokens_map is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens_map))
    return folder / "tokenizer.json"


def template(*tokens: tuple[str, int], after: tuple[tuple[str, int], ...] = ()) -> dict[str, Any]:
    """A post-processor that puts tokens before, and perhaps after, a text."""

    def pieces(some: tuple[tuple[str, int], ...]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in some]

    single = [*pieces(tokens), {"Sequence": {"id": "A", "type_id": 0}}, *pieces(after)]
    known = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in (*tokens, *after)}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


END, START, TURN = 94, 95, 96
"""Ids of SPECIAL."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
BEGIN = template(("<|im_start|>", START))

FROM_CONFIG, FROM_MAP = "tokenizer_config.json", "special_tokens_map.json"
FROM_ADDED, FROM_PROCESSOR = "added_tokens of tokenizer.json", "post_processor of tokenizer.json"

CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[tuple[int | None, str], ...]]] = {
    "by convention": ({}, {}, ((END, FROM_ADDED), (None, "tokenizer.json adds none"), (END, "same as EOS"))),
    "by the config": (
        {"config": {"eos_token": "<|im_start|>", "bos_token": "<|im_end|>", "pad_token": {"content": "<|im_end|>"}}},
        {},
        ((START, FROM_CONFIG), (None, "tokenizer.json adds none"), (TURN, FROM_CONFIG)),
    ),
    "the config before the map": (
        {"config": {"eos_token": "<|im_start|>"}, "tokens_map": {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}},
        {},
        ((START, FROM_CONFIG), (None, "tokenizer.json adds none"), (TURN, FROM_MAP)),
    ),
    "by options": (
        {"config": {"eos_token": "<|im_start|>"}, "post_processor": BEGIN},
        {"eos_token": "<|im_end|>", "bos_token": f"id:{END}", "pad_token": "id:3"},
        ((TURN, "--eos-token"), (END, "--bos-token"), (3, "--pad-token")),
    ),
    "nothing appended": (
        {"post_processor": BEGIN},
        {"eos": False, "bos": False},
        ((None, "--no-eos"), (None, "--no-bos"), (END, f"the EOS of {FROM_ADDED}")),
    ),
    "BOS by the post-processor": (
        {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, BEGIN]}},
        {},
        ((END, FROM_ADDED), (START, FROM_PROCESSOR), (END, "same as EOS")),
    ),
    "BOS by add_bos_token": (
        {"config": {"add_bos_token": True, "bos_token": "<|im_start|>"}},
        {},
        ((END, FROM_ADDED), (START, "add_bos_token of tokenizer_config.json"), (END, "same as EOS")),
    ),
    "no BOS by add_bos_token": (
        {"config": {"add_bos_token": False, "bos_token": "<|im_start|>"}, "post_processor": BEGIN},
        {},
        ((END, FROM_ADDED), (None, "add_bos_token is false in tokenizer_config.json"), (END, "same as EOS")),
    ),
    "BOS asked for": (
        {"config": {"add_bos_token": False, "bos_token": "<|im_start|>"}},
        {"bos": True},
        ((END, FROM_ADDED), (START, FROM_CONFIG), (END, "same as EOS")),
    ),
    "an ordinary </s> is no candidate": (
        {"vocabulary": ("</s>",), "ordinary": ("<eos>",)},
        {},
        ((END + 1, FROM_ADDED), (None, "tokenizer.json adds none"), (END + 1, "same as EOS")),
    ),
    "a config may name a token of the vocabulary alone": (
        {"vocabulary": ("</s>",), "special": (), "config": {"eos_token": "</s>"}},
        {},
        ((94, FROM_CONFIG), (None, "tokenizer.json adds none"), (94, "same as EOS")),
    ),
    "a name that a config gives and nothing needs is not looked up": (
        {"config": {"bos_token": "<nowhere>", "eos_token": "<nowhere>", "pad_token": "<|im_end|>"}},
        {"eos": False},
        ((None, "--no-eos"), (None, "tokenizer.json adds none"), (TURN, FROM_CONFIG)),
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_each_token_is_chosen_with_its_source_and_recorded(case, tmp_path):
    files, options, expected = CHOICES[case]
    path = write_tokenizer(tmp_path, **files)
    options = TokenizerOptions(backend="tokenizers", **options)
    resolved = resolve_special_tokens(options, path)
    assert tuple((token.id, token.source) for token in resolved.records) == expected
    record = choose(options, [], path=path)
    assert record.special_tokens == resolved.records
    assert (record.eos_id, record.bos_id, record.pad_id) == tuple(number for number, _ in expected)
    library = Tokenizer.from_file(str(path))
    for token in resolved.records:
        assert token.id is None or library.id_to_token(token.id) == token.text
        assert token.id is not None or token.text is None


def test_what_is_said_names_each_token_its_id_and_its_source(tmp_path):
    path = write_tokenizer(tmp_path, config={"eos_token": "<|endoftext|>"})
    assert resolve_special_tokens(TokenizerOptions(), path).notes == (
        "EOS '<|endoftext|>' (id 94, tokenizer_config.json), BOS none (tokenizer.json adds none), "
        "padding '<|endoftext|>' (id 94, same as EOS)",
    )
    ids = resolve_special_tokens(TokenizerOptions(eos=True, eos_token="id:7"), None, ids=True)
    assert ids.notes == (
        "EOS id 7 (--eos-token), BOS none (a corpus of ids gets it only with --bos), padding id 7 (same as EOS)",
    )


@pytest.mark.parametrize("turn", TURN_ENDS)
def test_the_end_of_a_turn_as_eos_is_warned_of_where_there_is_an_end_of_document(turn, tmp_path):
    def warnings(special: tuple[str, ...], **options: Any) -> tuple[str, ...]:
        config = {"eos_token": turn, "pad_token": special[0]}
        path = write_tokenizer(tmp_path, special=special, config=config)
        return resolve_special_tokens(TokenizerOptions(**options), path).warnings

    for end in DOCUMENT_ENDS:
        [warning] = warnings((end, turn))
        assert warning.startswith("warning: tokenizer_config.json names ")
        assert repr(turn) in warning
        assert f"--eos-token {end!r}" in warning
    assert not warnings((turn,))
    assert not warnings(("<eos>", turn), eos=False)
    assert not warnings(("<eos>", turn), eos_token=turn)
    assert not warnings(("<eos>", turn), eos_token="<eos>")


def test_no_name_ends_both_documents_and_turns():
    assert not set(DOCUMENT_ENDS) & set(TURN_ENDS)


def test_a_switch_that_is_not_followed_is_named(tmp_path):
    def warnings(config: dict[str, Any], **options: Any) -> tuple[str, ...]:
        ids = options.pop("ids", False)
        path = write_tokenizer(tmp_path, config=config)
        return resolve_special_tokens(TokenizerOptions(**options), path, ids=ids).warnings

    [ignored] = warnings({"add_eos_token": False})
    assert "add_eos_token (false) of tokenizer_config.json is ignored" in ignored
    assert "--no-eos" in ignored
    assert not warnings({"add_eos_token": True})
    for typed in (True, False):
        assert not warnings({"add_eos_token": False}, eos=typed)
    switches = {"add_bos_token": True, "add_eos_token": True, "bos_token": "<|im_start|>"}
    assert [warning.split()[0] for warning in warnings(switches, ids=True)] == ["add_bos_token", "add_eos_token"]
    assert not warnings(switches, ids=True, eos=False, bos=True)


OPTIONS = {
    "a special token": ("<|im_end|>", TURN, None),
    "an added token that is not special": ("<tool>", 98, None),
    "an id": (f"id:{TURN}", TURN, None),
    "the id of an ordinary token": ("id:15", 15, None),
    "an id as a bare number": (str(TURN), TURN, None),
    "a number that is a token's text too": ("0", None, r"0 is ambiguous: .* token with id 15; write id:0 or id:15"),
    "a number that is a special token's text": ("77", None, r"77 is ambiguous: .* token with id 97; .*id:77 or id:97"),
    "the bare id of an ordinary token": ("64", None, r"'a' \(id 64\) is not a special token .*write id:64"),
    "the text of an ordinary token": ("a", None, r"'a' \(id 64\) is not a special token of .*'<\|im_end\|>'.*id:64"),
    "a text that is no token": ("zzz", None, r"'zzz' is not in the vocabulary of .*; its special tokens are '<\|end"),
    "nothing": ("", None, "'' is not in the vocabulary"),
    "an id beyond the vocabulary": ("id:99", None, "id:99: the id is not in the vocabulary of .* 0 to 98"),
    "a bare number beyond the vocabulary": ("99", None, "99: the id is not in the vocabulary"),
    "an id that is no number": ("id:x", None, "is not an id; write id:N"),
    "an id below zero": ("id:-1", None, "is not an id; write id:N"),
    "an id that does not fit": ("id:2147483648", None, "is not an id"),
    "a digit that is not ASCII": ("id:\u0663", None, "is not an id"),
}


@pytest.mark.parametrize("ids", [False, True], ids=["text", "ids"])
@pytest.mark.parametrize("role", ["eos", "bos", "pad"])
@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_means_the_same_for_text_and_for_ids(case, role, ids, tmp_path):
    asked, expected, refusal = OPTIONS[case]
    path = write_tokenizer(tmp_path, special=(*SPECIAL, "77"), ordinary=("<tool>",))
    options = TokenizerOptions(eos=True, bos=role == "bos", **{f"{role}_token": asked})
    if refusal:
        with pytest.raises(TokenizerError, match=f"^--{role}-token .*{refusal}"):
            resolve_special_tokens(options, path, ids=ids)
        return
    resolved = resolve_special_tokens(options, path, ids=ids)
    token = getattr(resolved, role)
    assert (token.id, token.source) == (expected, f"--{role}-token")
    assert token.text == Tokenizer.from_file(str(path)).id_to_token(token.id)


def test_ids_without_a_tokenizer_take_ids_alone():
    for asked in ("7", "id:7"):
        options = TokenizerOptions(eos=True, eos_token=asked, pad_token="0")
        record = choose(options, [], path=None, ids=True)
        assert (record.eos_id, record.bos_id, record.pad_id) == (7, None, 0)
        assert [token.text for token in record.special_tokens] == [None] * 3
    with pytest.raises(TokenizerError, match=r"give an id .*--tokenizer"):
        choose(TokenizerOptions(pad_token="<pad>"), [], path=None, ids=True)
    # Rows tell padding by their lengths, so any id serves.
    assert choose(TokenizerOptions(), [], path=None, ids=True).pad_id == 0
    for missing in (TokenizerOptions(eos=True), TokenizerOptions(bos=True, pad_token="0")):
        with pytest.raises(TokenizerError, match="no tokenizer, so give the id"):
            choose(missing, [], path=None, ids=True)


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing names EOS": (
        {"special": ("<x>", "<y>")},
        {},
        r"no file names the EOS token; pass one with --eos-token, or .* \(its special tokens are '<x>', '<y>'\)$",
    ),
    "two ends of documents": (
        {"special": ("<x>", "</s>", "<eos>")},
        {},
        r"no file names the EOS token; .*\(its special tokens are '</s>', '<eos>', '<x>'\)",
    ),
    "no special tokens": (
        {"special": (), "vocabulary": ("</s>",)},
        {},
        r"no file names the EOS token; .*it has no special tokens, '</s>' is id:94",
    ),
    "nothing names padding": ({"special": ("<x>",)}, {"eos": False}, "the padding token; pass one with --pad-token"),
    "nothing names BOS": ({}, {"bos": True}, "the BOS token; .*--bos-token, or pass --no-bos"),
    "add_bos_token without a BOS": ({"config": {"add_bos_token": True, "bos_token": None}}, {}, "the BOS token"),
    "two tokens before a text": (
        {"post_processor": template(("<|im_start|>", START), ("<|im_end|>", TURN))},
        {},
        "puts 2 tokens before a text; choose one with --bos-token, or pass --no-bos",
    ),
    "a config that names a token of another tokenizer": (
        {"config": {"eos_token": "<|nowhere|>"}},
        {},
        r"tokenizer_config.json names eos_token '<\|nowhere\|>', which is not in the vocabulary .*--eos-token",
    ),
    "a config that is not an object": ({"config": [1]}, {}, "tokenizer_config.json is not a JSON object"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_reported_before_a_backend_loads(case, tmp_path, monkeypatch):
    files, options, says = FAULTS[case]
    path = write_tokenizer(tmp_path, **files)

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a backend is loaded")

    for name in ("load", "start_loading"):
        monkeypatch.setattr(choice, name, refuse)
    with pytest.raises(TokenizerError, match=says) as caught:
        choose(TokenizerOptions(**options), [], path=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(AssertionError, match="a backend is loaded"):
        choose(TokenizerOptions(), [], path=write_tokenizer(tmp_path / "without a fault"))


def test_the_run_states_the_tokens_before_it_looks_for_inputs(tmp_path):
    path = write_tokenizer(tmp_path / "t", config={"eos_token": "<|im_end|>"})
    notes: list[str] = []
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(path)),
        packing=PackingOptions(seq_lens=(16,)),
    )
    with pytest.raises(ValueError, match="absent"):
        pack(
            [str(tmp_path / "absent.txt")],
            options,
            tmp_path / "out",
            emit=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
        )
    resolved = resolve_special_tokens(options.tokenizer, path)
    assert notes == list(resolved.notes)
    assert len(notes) == 2


def test_looking_for_special_tokens_imports_no_backend(tmp_path):
    path = write_tokenizer(tmp_path, config={"eos_token": "<|im_end|>"})
    script = """if True:
        import sys
        from pathlib import Path
        from exact_prep.records.options import TokenizerOptions
        from exact_prep.tokenization.special_tokens import resolve_special_tokens
        resolve_special_tokens(TokenizerOptions(), Path(sys.argv[1]))
        sys.exit(" ".join({"tokenizers", "fastokens", "transformers"} & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pack_manifest_and_report_state_the_tokens(tmp_path):
    path = write_tokenizer(tmp_path / "t", config={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    (tmp_path / "one.txt").write_text("abc")
    options = PackOptions(
        source=SourceOptions(),
        tokenizer=TokenizerOptions(tokenizer=str(path), backend="tokenizers"),
        packing=PackingOptions(seq_lens=(16,)),
    )
    [manifest] = pack([str(tmp_path / "one.txt")], options, tmp_path / "out")
    said = (
        "EOS '<|im_end|>' (id 96, tokenizer_config.json), BOS none (tokenizer.json adds none), "
        "padding '<|endoftext|>' (id 94, tokenizer_config.json)"
    )
    assert describe_special_tokens(manifest.tokenizer.special_tokens) == said
    assert open_dataset(tmp_path / "out").manifest.tokenizer == manifest.tokenizer
    facts = load_facts(tmp_path / "out")
    assert facts.tokenizer.special_tokens == manifest.tokenizer.special_tokens
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(render(facts))
    assert said in console.export_text()


PROCESSORS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ByteLevel": BYTE_LEVEL,
    "template": template(("<|im_start|>", START)),
    "template with an end": template(("<|im_start|>", START), after=(("<|endoftext|>", END),)),
    "template with an end alone": template(after=(("<|endoftext|>", END),)),
    "template with two before": template(("<|im_start|>", START), ("<|im_end|>", TURN)),
    "template with an id of its own": template(("<|im_start|>", 7)),
    "template with several ids for one token": {
        **template(("<|im_start|>", START)),
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [START, 3], "tokens": ["<|im_start|>", "$"]},
        },
    },
    "BERT": {"type": "BertProcessing", "sep": ["<|endoftext|>", END], "cls": ["<|im_start|>", START]},
    "RoBERTa": {
        "type": "RobertaProcessing",
        "sep": ["<|endoftext|>", END],
        "cls": ["<|im_start|>", START],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
    "sequence": {"type": "Sequence", "processors": [BYTE_LEVEL, template(("<|im_start|>", START))]},
    "sequence, the other order": {"type": "Sequence", "processors": [template(("<|im_start|>", START)), BYTE_LEVEL]},
    "empty sequence": {"type": "Sequence", "processors": []},
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_what_precedes_a_text_is_what_tokenizers_puts_there(case, tmp_path):
    path = write_tokenizer(tmp_path, post_processor=PROCESSORS[case])
    tokenizer = Tokenizer.from_file(str(path))
    plain, processed = tokenizer.encode("ab", add_special_tokens=False), tokenizer.encode("ab")
    start = processed.ids.index(plain.ids[0])
    assert processed.ids[start : start + len(plain.ids)] == plain.ids
    expected = list(zip(processed.tokens[:start], processed.ids[:start], strict=True))
    assert find_prefix(PROCESSORS[case]) == expected


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"type": "Unheard"},
        {"type": "TemplateProcessing", "single": "x", "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "y"}}], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{}], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [3], "special_tokens": {}},
        {"type": "BertProcessing", "cls": 3},
    ],
)
def test_a_post_processor_of_no_known_form_is_left_to_the_library(processor):
    assert find_prefix(processor) == []


def test_unigram_ids_are_places_in_its_list(tmp_path):
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.0]]}
    path = write_tokenizer(tmp_path, special=(), model=model, pre_tokenizer=None, config={"eos_token": "</s>"})
    record = choose(TokenizerOptions(backend="tokenizers"), [], path=path)
    assert (record.eos_id, record.vocab_size) == (1, 3)


def test_ids_that_tokenizers_reads_differently_are_refused(tmp_path):
    path = write_tokenizer(tmp_path)
    content = json.loads(path.read_text())
    content["added_tokens"][0]["id"] = 200
    path.write_text(json.dumps(content))
    options = TokenizerOptions(backend="tokenizers")
    with pytest.raises(TokenizerError, match=r"gives '<\|endoftext\|>' the id 200, .* as 9\d: .*--eos-token id:9\d"):
        choose(options, [], path=path)
    assert choose(TokenizerOptions(backend="tokenizers", eos_token="id:94"), [], path=path).eos_id == 94


def test_tokens_that_only_the_config_adds_are_named(tmp_path):
    config = {
        "added_tokens_decoder": {"94": {"content": "<|endoftext|>"}, "64": {"content": "a"}, "97": {"content": "<new>"}}
    }
    path = write_tokenizer(tmp_path, config=config)
    [warning] = resolve_special_tokens(TokenizerOptions(), path).warnings
    assert "ignored: '<new>'; " in warning
    with pytest.raises(TokenizerError, match="'<new>', which is not in the vocabulary"):
        resolve_special_tokens(TokenizerOptions(), write_tokenizer(tmp_path, config={**config, "eos_token": "<new>"}))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7031645\n"
WRONG_FILES = {
    "tokenizer.json": (POINTER, r"tokenizer.json: it is a Git LFS pointer, .*`git lfs pull`"),
    "t.json.gz": (gzip.compress(b"{}"), "it is compressed with gzip; decompress it"),
    "empty.json": (b"", "it is empty"),
    "wide.json": ("{}".encode("utf-16"), "it is text in UTF-16, .*iconv"),
    "tokenizer_config.json": (b'{"tokenizer_class": "X"}', "it is a tokenizer_config.json, .*save_pretrained"),
    "special_tokens_map.json": (b'{"eos_token": "X"}', "it is a special_tokens_map.json"),
    "tokenizer.model": (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", "it is a SentencePiece model; .*save_pretrained"),
    "renamed.bin": (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", "it is a SentencePiece model"),
    "tekken.json": (b'{"config": {}, "vocab": []}', "it is a tokenizer of mistral-common"),
    "v3.json": (b'{"config": {}, "vocab": []}', "it is a tokenizer of mistral-common"),
    "vocab.json": (b'{"a": 0, "b": 1}', "it is a vocabulary without its rules"),
    "merges.txt": (b"#version: 0.2\na b\n", "it is the merges of a BPE without its rules"),
    "o200k.tiktoken": (b"IQ== 0\n", "it is a vocabulary of tiktoken"),
    "config.json": (b'{"model_type": "llama"}', "it is the config.json of a model"),
    "other.json": (b'{"model": 3}', "other.json is not a tokenizer.json: Expected"),
    "list.json": (b"[]", "list.json is not a tokenizer.json: Expected"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_is_not_a_tokenizer_is_recognized(name, tmp_path):
    data, says = WRONG_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=says) as caught:
        choose(TokenizerOptions(), [], path=locate(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_a_config_beside_its_tokenizer_leads_to_it(tmp_path):
    path = write_tokenizer(tmp_path, config={"tokenizer_class": "X"})
    with pytest.raises(TokenizerError, match=f"it is a tokenizer_config.json, .*; pass {path}$"):
        choose(TokenizerOptions(), [], path=locate(str(tmp_path / "tokenizer_config.json")))
    (tmp_path / "tokenizer_config.json").write_bytes(POINTER)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json is not a JSON object: it is a Git LFS pointer"):
        choose(TokenizerOptions(), [], path=path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["tokenizer.model"], "only tokenizer.model, a SentencePiece model; .*save_pretrained"),
        (["vocab.json", "merges.txt"], "only vocab.json, a vocabulary without its rules; .*save_pretrained"),
        (["tekken.json"], "only tekken.json, a tokenizer of mistral-common; .*save_pretrained"),
        (["cl100k_base.tiktoken"], "only cl100k_base.tiktoken, a vocabulary of tiktoken"),
        (["tokenizer.json.gz"], "only tokenizer.json.gz; decompress it"),
        (["tokenizer/tokenizer.json"], "; pass .*/tokenizer, which does"),
        (["readme.md"], "contains no tokenizer.json; pass a directory that does, or the file itself"),
        ([], "contains no tokenizer.json; pass a directory that does, or the file itself"),
    ],
)
def test_a_directory_without_a_tokenizer_says_what_it_holds(names, says, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(TokenizerError, match=says):
        locate(str(tmp_path))


def test_a_home_that_the_shell_did_not_expand_is_found(tmp_path, monkeypatch):
    path = write_tokenizer(tmp_path / "t")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/t") == locate("~/t/tokenizer.json") == path
    with pytest.raises(TokenizerError, match="no such user"):
        locate("~nobody-of-this-name/t")


def test_a_remedy_that_is_in_force_is_not_given(tmp_path):
    model = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "<nowhere>"}
    path = write_tokenizer(tmp_path, special=("</s>",), model=model, pre_tokenizer={"type": "Whitespace"})
    content = json.loads(path.read_text())
    content["added_tokens"][0]["id"] = 0
    path.write_text(json.dumps(content))
    options = TokenizerOptions(backend="tokenizers")
    encoder = Encoder(path, choose(options, [], path=path), options)
    with pytest.raises(TokenizerError, match=r"tokenizers failed: .*\n.*check its unk_token") as caught:
        list(encoder.encode(TextBatch(texts=["b"], records=[0], read=1)))
    assert "--tokenizer-backend" not in str(caught.value)
