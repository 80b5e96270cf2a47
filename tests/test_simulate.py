"""`simulate`: the same figures as `weigh` and `report` give, and as real packings of real text have."""

from __future__ import annotations

import csv
import io
import json
import sysconfig
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from runs import exact_prep as run
from runs import make_texts, pack_here, read_files, write_jsonl

import exact_prep
from exact_prep.dataset import open_dataset
from exact_prep.packing import plan_concat
from exact_prep.records.options import PackingOptions
from exact_prep.reports.repack import Lengths, expect_concat, join_sources, load_lengths, make_pieces, repack
from exact_prep.weighing.exposure import measure_lengths

DEMO_TOKENIZER = Path(exact_prep.__file__).parent / "demo/tokenizer.json"


def simulate(home, *arguments):
    """The outcomes, as JSON."""
    return json.loads(run("simulate", home, *arguments, "--json").stdout)["outcomes"]


def report(home):
    return json.loads(run("report", home, "--json").stdout)[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer_file):
    base = tmp_path_factory.mktemp("simulate")
    pack_here([write_jsonl(base / "in.jsonl", make_texts(120))], base / "out", tokenizer_file)
    return base / "out"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Python's own sources, as packed by `pack` at three lengths, both ways."""
    base = tmp_path_factory.mktemp("real")
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    corpus = write_jsonl(base / "python.jsonl", texts)
    for packing in ("concat", "best-fit"):
        for length in ("2k", "8k", "32k"):
            out = base / f"{packing}-{length}"
            run("pack", corpus, "--tokenizer", DEMO_TOKENIZER, "--seq-len", length, "--packing", packing, "-o", out)
    return base


def test_present_rows_give_what_weigh_and_report_give(home):
    tried = "--alpha 0.3 --alpha 0 --gamma 0 --gamma 2 --tail-from 8 --tail-from 16 --window 20 --window none"
    outcomes = simulate(home, *tried.split())
    assert len(outcomes) == 1 + 2**4
    assert len({tuple(one[name] for name in ("alpha", "gamma", "tail_from", "window")) for one in outcomes[1:]}) == 2**4
    assert outcomes[0]["kind"] == "present"
    assert outcomes[0]["weighted_tail_share"] == outcomes[0]["tail_share"]
    for one in outcomes[1:]:
        window = [] if one["window"] is None else ["--window", one["window"]]
        run("weigh", home, "--alpha", one["alpha"], "--gamma", one["gamma"], "--tail-from", one["tail_from"], *window)
        told = report(home)
        assert one["kind"] == "counted"
        for name in ("tail_share", "weighted_tail_share", "extra", "extra_float16"):
            assert one[name] == pytest.approx(told["weights"][name], rel=1e-12, abs=1e-15), name
        assert one["padding_share"] == told["padding_share"]
        assert (one["rows"], one["documents_cut"]) == (told["rows"], told["documents_cut"])
        assert one["largest_weight"] == pytest.approx(max(bucket["weight"] for bucket in told["buckets"]), rel=1e-12)
        assert simulate(home, "--alpha", 0.5)[0] == one | {"kind": "present"}


def test_settings_that_are_not_named_are_those_of_the_dataset(home):
    run("weigh", home, "--alpha", 0.4, "--gamma", 1, "--tail-from", 8, "--max-weight", 1.5)
    (present, other) = simulate(home, "--gamma", 0)
    assert (other["alpha"], other["gamma"], other["tail_from"]) == (0.4, 0, 8)
    assert present["largest_weight"] == 1.5
    assert simulate(home, "--seq-len", 32)[1]["tail_from"] == 8
    run("weigh", home)
    assert simulate(home, "--seq-len", 128)[1]["tail_from"] == 32, "a default tail follows the row length"
    assert simulate(home, "--window", 20)[1]["tail_from"] == 8


def test_nothing_is_written(home):
    before = read_files(home)
    simulate(home, "--seq-len", 128, "--packing", "best-fit", "--tail-share", 0.9)
    assert read_files(home) == before


@pytest.mark.parametrize("start", ["concat-8k", "best-fit-32k"])
def test_other_rows_are_like_real_packings_of_real_text(real, start):
    """Shares of every other row length and packing within 0.2 points, padding too."""
    rows = ["--seq-len", "2k", "--seq-len", "8k", "--seq-len", "32k", "--packing", "concat", "--packing", "best-fit"]
    outcomes = simulate(real / start, *rows)
    assert sorted(one["kind"] for one in outcomes) == ["counted", *["estimated"] * 5, "present"]
    for one in outcomes[1:]:
        told = report(real / f"{one['packing']}-{one['seq_len'] // 1024}k")
        tail = sum(bucket["share"] for bucket in told["buckets"] if bucket["in_tail"])
        assert one["tail_share"] == pytest.approx(tail, abs=0.002)
        assert one["padding_share"] == pytest.approx(told["padding_share"], abs=0.002)
        assert one["rows"] == pytest.approx(told["rows"], rel=0.002)
        assert one["documents_cut"] == pytest.approx(told["documents_cut"], rel=0.05)
        assert one["supervised_targets"] == pytest.approx(told["supervised_targets"], rel=1e-3)


def test_the_formula_of_concatenated_rows_is_the_mean_over_all_places():
    """Documents at every place in the row, target by target."""
    lengths, seq_len = [1, 3, 8, 20, 41], 16
    part = Lengths(lengths=np.array(lengths), counts=np.full(5, 1600), task_tokens=np.array([1600 * sum(lengths)]))
    counts, segments, cut = [Fraction(0)] * 2, Fraction(0), Fraction(0)
    for n in lengths:
        for place in range(seq_len):
            starts = {0} | {t for t in range(n) if (place + t) % seq_len == 0}
            cut += Fraction(1600 * (len(starts) > 1), seq_len)
            context = 0
            for t in range(n):
                context = 0 if t in starts else context + 1
                if context:
                    counts[context >= 8] += Fraction(1600, seq_len)
                else:
                    segments += Fraction(1600, seq_len)
    exposure, expected_cut = expect_concat(part, seq_len)
    assert exposure.counts.tolist() == counts
    assert exposure.segments == segments
    assert expected_cut == round(cut)


def test_the_formula_takes_over_where_documents_are_many():
    choose = np.random.default_rng(5)
    documents = np.minimum(choose.lognormal(4, 1.5, 120_000).astype(np.int64) + 1, 50_000)
    lengths, counts = np.unique(documents, return_counts=True)
    part = Lengths(lengths=lengths, counts=counts, task_tokens=np.array([documents.sum()]))
    estimated = repack([part], 1024, "concat", PackingOptions(seq_lens=(512,)))
    plan = plan_concat(make_pieces(choose.permutation(documents)), 1024, last=True)
    real = measure_lengths(plan.segments.lengths.astype(np.int32))
    assert (estimated.rows, estimated.padding) == (plan.segments_per_row.size, -int(documents.sum()) % 1024)
    assert estimated.exposure.counts / real.counts == pytest.approx(np.ones(real.counts.size), abs=0.01)
    assert estimated.cut == pytest.approx(plan.cut, rel=0.01)
    assert np.array_equal(estimated.exposure.counts, expect_concat(part, 1024)[0].counts)


def test_what_the_dataset_was_packed_with_stays(tmp_path, tokenizer_file):
    """Segments per row, and rows of padding alone."""
    corpus = write_jsonl(tmp_path / "in.jsonl", make_texts(200, longest=60))
    most = ["--max-segments", "2", "--rows-multiple-of", "50", "--tokenizer-backend", "tokenizers"]
    for length in (64, 128):
        run("pack", corpus, "--tokenizer", tokenizer_file, "--seq-len", length, *most, "-o", tmp_path / str(length))
    (_, other), told = simulate(tmp_path / "64", "--seq-len", 128), report(tmp_path / "128")
    assert told["padding_share"] > 0.3
    assert other["padding_share"] == pytest.approx(told["padding_share"], abs=0.05)
    assert other["rows"] % 50 == 0
    assert other["supervised_targets"] == pytest.approx(told["supervised_targets"], rel=1e-3)


def test_sources_of_one_task_are_packed_together():
    assert join_sources([[0, 1], [2], [], [3, 1]], 5).tolist() == [0, 0, 2, 0, 4]
    assert join_sources([[1, 2], [0, 2], [3]], 4).tolist() == [0, 0, 0, 3]


def test_lengths_and_tasks_of_each_group(tmp_path, tokenizer_file):
    for name, count in (("a", 7), ("b", 5)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "in.jsonl", make_texts(count, seed=count, longest=200))
    (manifest,) = pack_here([tmp_path / "a", tmp_path / "b"], tmp_path / "out", tokenizer_file)
    parts = load_lengths(open_dataset(tmp_path / "out"))
    assert [part.documents for part in parts] == [7, 5]
    for part in parts:
        assert part.tokens == part.lengths @ part.counts
    assert sum(part.tokens for part in parts) == manifest.ledger.row_tokens


@pytest.mark.parametrize("rows", [(), ("--seq-len", "32k", "--packing", "best-fit")])
def test_a_share_of_the_tail_is_reached_by_alpha_or_by_drawing(real, rows):
    home = real / "concat-8k"
    start = simulate(home, "--alpha", 0, *rows)[1]["tail_share"]
    outcomes = simulate(home, "--tail-share", start / 2, "--tail-share", start + 0.05, *rows)[1:]
    assert [one["wanted_tail_share"] for one in outcomes] == [start / 2, start + 0.05]
    low, high = outcomes
    assert (low["alpha"], low["drawing"]) == (0, None)
    assert high["weighted_tail_share"] == pytest.approx(start + 0.05, rel=1e-9)
    assert high["drawing"]["repeats"] == pytest.approx(1 / high["drawing"]["distinct_share"], rel=1e-12)
    assert high["drawing"]["tail_share"] == pytest.approx(start + 0.05, abs=0.005), "whole rows"
    again = simulate(home, "--alpha", high["alpha"], *rows)[1]
    assert again["weighted_tail_share"] == high["weighted_tail_share"]
    if not rows:
        drawn = exact_prep.open(home, plain=True).resample(tail_share=start + 0.05, seed=0)
        assert high["drawing"]["distinct_share"] == drawn.drawing.distinct_rows / len(drawn)


def test_a_share_that_no_drawing_reaches(real):
    (_, one) = simulate(real / "concat-8k", "--tail-share", 0.97)
    assert one["drawing"] is None
    assert one["weighted_tail_share"] == pytest.approx(0.97, rel=1e-9)


def test_a_dataset_of_a_mixture_is_simulated_with_the_others(tmp_path, tokenizer_file):
    for name, longest in (("short", 100), ("long", 3000)):
        pack_here(
            [write_jsonl(tmp_path / f"{name}.jsonl", make_texts(40, longest=longest))], tmp_path / name, tokenizer_file
        )
    run("weigh", tmp_path / "short", tmp_path / "long", "--rates", "0.7,0.3")
    (_, one) = simulate(tmp_path / "short", "--alpha", 1)
    run("weigh", tmp_path / "short", tmp_path / "long", "--rates", "0.7,0.3", "--alpha", 1)
    told = report(tmp_path / "short")["weights"]
    assert one["weighted_tail_share"] == pytest.approx(told["weighted_tail_share"], rel=1e-12)
    assert one["extra_float16"] == pytest.approx(told["extra_float16"], rel=1e-12)
    assert "weighed together with 1 more" in run("simulate", tmp_path / "short", "--seq-len", 32, check=2).stderr


def test_validation_rows_and_several_row_lengths(tmp_path, tokenizer_file):
    corpus = write_jsonl(tmp_path / "in.jsonl", make_texts(60))
    pack_here([corpus], tmp_path / "split", tokenizer_file, validation=0.3)
    assert simulate(tmp_path / "split", "--alpha", 1) == simulate(tmp_path / "split/train", "--alpha", 1)
    assert "name these instead" in run("simulate", tmp_path / "split/validation", "--alpha", 1, check=2).stderr
    pack_here([corpus], tmp_path / "two", tokenizer_file, seq_lens=(32, 64))
    assert f"name one of them: {tmp_path}/two/32" in run("simulate", tmp_path / "two", "--alpha", 1, check=2).stderr
    assert len(simulate(tmp_path / "two/32", "--alpha", 1)) == 2


def test_masked_rows_keep_their_layout(tmp_path):
    lines = [{"ids": [5] * 30, "mask": [0] * 10 + [1] * 20} for _ in range(9)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ids = ["--ids-field", "ids", "--mask-field", "mask", "--seq-len", "30"]
    run("pack", tmp_path / "in.jsonl", *ids, "-o", tmp_path / "out")
    (_, one) = simulate(tmp_path / "out", "--alpha", 1, "--tail-from", 16)
    assert one["supervised_targets"] == 9 * 20
    assert one["tail_share"] == 14 / 20
    assert "masked targets" in run("simulate", tmp_path / "out", "--packing", "best-fit", check=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "simulate needs a setting to try"),
        ("--alpha 1 --tail-share 0.5", "--alpha and --tail-share exclude each other"),
        ("--tail-share 1", "--tail-share 1: a share of supervision above 0 and below 1"),
        ("--tail-share 0.5 --tail-from 64", "the tail is empty, and no alpha gives it a share; lower --tail-from"),
        ("--tail-from 20", "--tail-from 20 is not a bucket edge"),
        ("--packing tight", "--packing tight: it is one of concat, best-fit"),
        ("--window all", "--window all: a number of tokens of at least 1, or none"),
        ("--seq-len 1", "a row holds at least 2 tokens"),
        ("--alpha inf", "alpha must be a finite number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(home, arguments, said):
    assert said in run("simulate", home, *arguments.split(), check=2).stderr


def test_an_empty_dataset_is_refused(tmp_path, tokenizer_file):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    pack_here([tmp_path / "in.jsonl"], tmp_path / "out", tokenizer_file)
    assert "has no documents" in run("simulate", tmp_path / "out", "--alpha", 1, check=2).stderr


@pytest.mark.parametrize("kind", ["md", "csv", "latex"])
def test_tables_hold_the_outcomes(home, kind):
    arguments = ("--seq-len", 32, "--seq-len", 64, "--tail-share", 0.8)
    outcomes, text = simulate(home, *arguments), run("simulate", home, *arguments, "--format", kind).stdout
    cut = {"md": lambda line: line[2:-2].split(" | "), "latex": lambda line: line[2:-3].split(" & ")}
    rows = list(csv.reader(io.StringIO(text))) if kind == "csv" else [cut[kind](line) for line in text.splitlines()]
    rows = [row for row in rows if len(row) == 19 and row[1] in ("present", "counted", "estimated")]
    assert [row[1] for row in rows] == [one["kind"] for one in outcomes]
    assert [float(row[11]) for row in rows] == pytest.approx([one["tail_share"] for one in outcomes], abs=1e-6)
    assert [float(row[6]) for row in rows] == pytest.approx([one["alpha"] for one in outcomes], rel=1e-5)


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_shows_differences_to_the_present(home, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments = ["--alpha", "0.3", "--seq-len", "32", "--seq-len", "64", "--packing", "best-fit"]
    outcomes = simulate(home, *arguments)
    done = run("simulate", home, *arguments, env=None)
    text = done.stdout
    assert max(map(len, text.splitlines())) <= columns
    for one in outcomes[1:]:
        assert f"{100 * (one['weighted_tail_share'] - outcomes[0]['weighted_tail_share']):+.2f}" in text
    assert "~ 32 tokens" in text
    assert "estimated from the lengths" in " ".join(text.split())
