"""`report` of several datasets, side by side and as tables for documents."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console
from runs import exact_prep, make_texts, pack_here, read_table, weigh_here, write_jsonl

from exact_prep.reports import load_facts
from exact_prep.reports.facts import BucketFacts
from exact_prep.reports.tables import format_facts
from exact_prep.reports.terminal import compare, render, shorten


@pytest.fixture(scope="module")
def homes(tmp_path_factory, tokenizer_file):
    """A weighed dataset of two sources, and one that is not weighed."""
    base = tmp_path_factory.mktemp("report")
    files = [write_jsonl(base / f"{name}.jsonl", make_texts(60, seed=seed)) for seed, name in enumerate(("a_b", "c|d"))]
    pack_here(files, base / "weighed", tokenizer_file)
    weigh_here(base / "weighed")
    pack_here(files[:1], base / "plain", tokenizer_file)
    return base / "weighed", base / "plain"


def test_several_datasets_are_shown_side_by_side(homes):
    shown = exact_prep("report", *homes).stdout
    facts = [load_facts(home) for home in homes]
    tails = [sum(bucket.share for bucket in one.buckets if bucket.in_tail) for one in facts]
    for home in homes:
        assert f"{home}  " in shown
    table = shown[shown.index("side by side") :]
    assert f"{facts[0].weights.weighted_tail_share:.2%}" in table
    assert f"{tails[1]:.2%} ({100 * (tails[1] - tails[0]):+.2f})" in table
    other = exact_prep("report", *homes, "--compare-to", homes[1]).stdout
    assert f"{tails[0]:.2%} ({100 * (tails[0] - tails[1]):+.2f})" in other
    assert "none of the datasets" in exact_prep("report", *homes, "--compare-to", "x", check=2).stderr
    assert [one["directory"] for one in json.loads(exact_prep("report", *homes, "--json").stdout)] == list(
        map(str, homes)
    )
    assert exact_prep("report", *homes, "--format", "json").stdout == exact_prep("report", *homes, "--json").stdout


def test_the_tail_is_marked_by_a_word_before_weighing_too(homes):
    for home in homes:
        shown = exact_prep("report", home).stdout
        lines = [line for line in shown.splitlines() if line.rstrip().endswith("tail")]
        assert [line.split()[0] for line in lines] == ["16", "32"], shown
    # It is the tail that `weigh` takes by itself.
    assert [bucket.low for bucket in load_facts(homes[1]).buckets if bucket.in_tail] == [16, 32]


def printed(renderable, width):
    """What a terminal of `width` columns shows; rich cuts longer lines, and marks that by an ellipsis."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def grown(facts):
    """The same dataset with trillions of tokens in rows of 128K."""
    low = [0, *(2**power for power in range(3, 17))]
    buckets = tuple(
        BucketFacts(
            low=start,
            high=max(2 * start, 8) - 1,
            targets=71_234_567_890 * (number + 1),
            share=(number + 1) / 120,
            in_tail=start >= 32768,
            weight=1.1234,
            weighted_share=0.1,
        )
        for number, start in enumerate(low)
    )
    sources = tuple(
        source.model_copy(update={"tokens": 4_123_456_789_012, "documents": 98_765_432_109}) for source in facts.sources
    )
    return facts.model_copy(update={"buckets": buckets, "sources": sources, "rows": 31_234_567})


def test_sixty_columns_are_enough_for_trillions_of_tokens(homes):
    facts = grown(load_facts(homes[0]))
    shown = printed(render(facts, by_source=True, width=60), 60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "…" not in shown
    lines = [line.split() for line in shown.splitlines() if " - " in line]
    assert [(f"{one.low:,}", f"{one.high:,}") for one in facts.buckets] == [(line[0], line[2]) for line in lines]
    for line, bucket in zip(lines, facts.buckets, strict=True):
        words = [word for word in line[3:] if word[0] in "0123456789"]
        assert words == [shorten(bucket.targets), f"{bucket.share:.2%}", "1.1234", "10.00%"]
        assert (line[-1] == "tail") == bucket.in_tail
    source = facts.sources[0]
    assert f"98.77B 4.123T {source.share:.2%} {source.tail_share:.2%} {source.weighted_share:.2%}" in " ".join(
        shown.split()
    )
    assert "71,234,567,890" in printed(render(facts, width=100), 100)


def test_sixty_columns_are_enough_side_by_side(homes):
    facts = [grown(load_facts(homes[0])), load_facts(homes[1])]
    shown = printed(compare(facts, 0, width=60), 60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "…" not in shown
    assert shown.splitlines()[0].split() == ["side", "by", "side", "rows", "padding", "tail", "after"]
    before = sum(bucket.share for bucket in facts[0].buckets if bucket.in_tail)
    after = sum(bucket.share for bucket in facts[1].buckets if bucket.in_tail)
    words = shown.split()
    assert {"31.23M", f"{before:.2%}", f"{after:.2%}", f"{100 * (after - before):+.2f}"} <= set(words)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1M"),
        (41_207_654, "41.21M"),
        (999_949_999, "999.9M"),
        (999_950_001, "1B"),
        (1_234_567_890_123, "1.235T"),
        (5 * 10**15, "5Q"),
    ],
)
def test_a_count_is_shortened_to_four_digits(count, said):
    assert shorten(count) == said


def test_tables_hold_the_facts(homes):
    facts = [load_facts(home) for home in homes]
    rows = list(csv.DictReader(io.StringIO(exact_prep("report", *homes, "--format", "csv").stdout)))
    buckets = [(one.directory, bucket) for one in facts for bucket in one.buckets]
    assert len(rows) == len(buckets)
    for row, (directory, bucket) in zip(rows, buckets, strict=True):
        assert (row["dataset"], row["context"]) == (directory, f"{bucket.low}-{bucket.high}")
        assert (int(row["targets"]), row["tail"]) == (bucket.targets, "tail" if bucket.in_tail else "")
        assert float(row["share"]) == pytest.approx(bucket.share, abs=1e-6)
        assert row["weight"] == ("" if bucket.weight is None else f"{bucket.weight:.6f}")
    sources = list(csv.DictReader(io.StringIO(exact_prep("report", *homes, "--format", "csv", "--by-source").stdout)))
    assert [row["source"] for row in sources] == [source.label for one in facts for source in one.sources]
    assert float(sources[0]["share after"]) == pytest.approx(facts[0].sources[0].weighted_share, abs=1e-6)


def test_lengths_of_the_documents_of_each_source(tokenizer_file, tmp_path):
    """Median and 95 %, against sorted lists."""
    for name, count in (("a", 41), ("b", 20), ("c", 1)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "in.jsonl", make_texts(count, seed=count, longest=200))
    pack_here([tmp_path / name for name in "abc"], tmp_path / "out", tokenizer_file)
    told = json.loads(exact_prep("report", tmp_path / "out", "--json").stdout)[0]["sources"]
    labels = [row["label"] for row in read_table(tmp_path / "out", "sources")]
    assert len(told) == 3
    for source in told:
        rows = [
            row for row in read_table(tmp_path / "out", "document_lengths") if labels[row["source"]] == source["label"]
        ]
        lengths = sorted(row["length"] for row in rows for _ in range(row["count"]))
        assert source["median_length"] == lengths[-(-len(lengths) * 50 // 100) - 1]
        assert source["length_95"] == lengths[-(-len(lengths) * 95 // 100) - 1]


def test_a_page_is_one_file_and_the_same_bytes_again(homes, tmp_path):
    for name in ("a.html", "b.html"):
        assert exact_prep("report", *homes, "--html", tmp_path / name).stdout == f"{tmp_path / name}\n"
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").stat().st_size < 1_000_000
    both = ("--html", tmp_path / "c.html", "--figure", tmp_path / "c.pdf")
    assert "exclude each other" in exact_prep("report", homes[0], *both, check=2).stderr
    for other in (("--json",), ("--format", "csv")):
        error = exact_prep("report", homes[0], "--html", tmp_path / "c.html", *other, check=2).stderr
        assert f"--html and {other[0]} exclude each other" in error
    for option in ("--html", "--figure"):
        assert "s3://" in exact_prep("report", homes[0], option, "s3://bucket/c.html", check=2).stderr
    assert "cannot write" in exact_prep("report", homes[0], "--html", tmp_path / "none/c.html", check=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_labels_are_text_in_markdown_and_latex(homes):
    facts = [load_facts(homes[0])]
    markdown = format_facts(facts, "md", by_source=True).splitlines()
    assert markdown[1] == "|---|---|---:|---:|---:|---:|---:|"
    assert len(markdown) == 4
    assert r"c\|d.jsonl" in markdown[3]
    latex = format_facts(facts, "latex", by_source=True)
    assert r"a\_b.jsonl" in latex
    assert latex.count(r"\\") == 3
    assert latex.startswith("\\begin{tabular}{llrrrrr}\n")
    assert latex.endswith("\\end{tabular}\n")


def test_by_source_shows_all_of_them(tokenizer_file, tmp_path):
    lines = [json.dumps({"text": "a b c", "source": f"source-{number:02d}"}) for number in range(25)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    base = ("--tokenizer", tokenizer_file, "--seq-len", 16, "--source-from", "field:source")
    exact_prep("pack", tmp_path / "in.jsonl", *base, "-o", tmp_path / "out")
    assert "and 5 more, see --by-source" in exact_prep("report", tmp_path / "out").stdout
    shown = exact_prep("report", tmp_path / "out", "--by-source").stdout
    assert all(f"source-{number:02d}" in shown for number in range(25))
