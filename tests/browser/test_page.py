"""`report --html` in a real browser: numbers, sliders, accessibility, print, and hostile documents."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from runs import exact_prep, make_texts, pack_here, write_jsonl

from exact_prep.records.options import WeightOptions
from exact_prep.weighing.exposure import Exposure
from exact_prep.weighing.weights import audit_rounding, weight_table

VECTORS = json.loads((Path(__file__).parents[1] / "exact-weights-vectors.json").read_text())
HOSTILE = (
    "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 2'> \u202egnp.exe\u202c "
    "\x1b[31mred\x1b]0;title\x07 \u2028%%SCRIPT%%{{x}} &lt;b&gt; <!-- \x00\x9b \u200b end"
)


@pytest.fixture(scope="module")
def homes(tmp_path_factory, tokenizer_file):
    """A weighed dataset of two sources with hostile documents, and one that is not weighed."""
    base = tmp_path_factory.mktemp("page")
    lines = [
        {"text": HOSTILE if number % 2 else text, "kind": "<b>&amp;</b>\u202e" if number % 3 else "plain"}
        for number, text in enumerate(make_texts(90))
    ]
    corpus = base / "texts.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--tokenizer", tokenizer_file, "--source-from", "field:kind", "--tokenizer-backend", "tokenizers")
    exact_prep("pack", corpus, *words, "--seq-len", 256, "-o", base / "weighed")
    exact_prep("weigh", base / "weighed", "--alpha", 0.3)
    pack_here([write_jsonl(base / "other.jsonl", make_texts(40, seed=2))], base / "plain", tokenizer_file)
    return base / "weighed", base / "plain"


@pytest.fixture(scope="module")
def page_file(homes, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert exact_prep("report", *homes, "--html", path).stdout.strip() == str(path)
    return path


def report(home):
    return json.loads(exact_prep("report", home, "--json").stdout)[0]


def read_table(page, name: str) -> list[list[float]]:
    """The values that a table's cells keep, row by row."""
    script = (
        "name => [...document.querySelectorAll(`#${name} tbody tr`)].map(row => "
        "[...row.querySelectorAll('[data-value]')].map(cell => Number(cell.dataset.value)))"
    )
    return page.evaluate(script, name)


def read_figures(page) -> dict[str, float]:
    """The figures below the sliders, by name."""
    script = (
        "Object.fromEntries([...document.querySelectorAll('#figures div')].map(one => "
        "[one.querySelector('dt').textContent, Number(one.querySelector('dd').dataset.value)]))"
    )
    return page.evaluate(script)


def test_the_arithmetic_is_that_of_the_library(page_file, visit):
    """On the shared vectors, and with every option, to 1e-9."""
    choose = np.random.default_rng(0)
    cases = [
        (vector["counts"], WeightOptions(**{name: vector[name] for name in ("alpha", "gamma", "tail_from", "eps")}))
        for vector in VECTORS["exposures"]
    ]
    for _ in range(200):
        counts = choose.integers(0, 10 ** choose.integers(1, 12), choose.integers(1, 18))
        counts[choose.random(counts.size) < 0.2] = 0
        options = WeightOptions(
            alpha=float(choose.choice([0, 0.0004, 0.15, 1, 300])),
            gamma=float(choose.choice([0, 0.5, 1, 60])),
            tail_from=int(choose.choice([0, 8, 64, 1024])),
            max_weight=None if choose.random() < 0.7 else 1.5,
            normalize="mean" if choose.random() < 0.3 else "none",
            window=None if choose.random() < 0.5 else int(choose.integers(1, 5000)),
            supervise_first=bool(choose.random() < 0.3),
        )
        cases.append((counts.tolist(), options))
    with visit(page_file) as page:
        for counts, options in cases:
            exposure = Exposure(counts=np.array(counts, np.int64), segments=17, firsts=17)
            table = weight_table(exposure, options)
            given = [{"counts": counts, "firsts": 17}, asdict(options)]
            made = page.evaluate("([exposure, options]) => exactPrep.weightTable(exposure, options)", given)
            assert made["counts"] == table.counts.tolist()
            assert made["weights"] == pytest.approx(table.weights.tolist(), rel=1e-9)
            assert made["inTail"] == table.in_tail.tolist()
            assert made["extra"] == pytest.approx(table.extra, rel=1e-9, abs=1e-12)
            assert made["extraFloat16"] == pytest.approx(audit_rounding(table).extra_float16, rel=1e-9, abs=1e-9)
    assert len(VECTORS["exposures"]) > 10


def test_float16_rounds_as_numpy_does(page_file, visit):
    choose = np.random.default_rng(1)
    every = np.arange(2**15 - 2**10, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves = (every[1:] + every[:-1]) / 2
    values = np.concatenate(
        [every, halves, halves * (1 + 1e-12), 10 ** choose.uniform(-9, 5.5, 2000), [65519.9, 65520]]
    )
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float64)
    with visit(page_file) as page:
        made = page.evaluate("values => values.map(value => exactPrep.float16(value))", values.tolist())
    assert np.array_equal(np.array([np.inf if value is None else value for value in made]), expected)


def test_the_numbers_are_those_of_the_report(homes, page_file, visit):
    told, plain = report(homes[0]), report(homes[1])
    with visit(page_file) as page:
        rows = read_table(page, "buckets")
        expected = [[one[name] for name in ("targets", "share", "weight", "weighted_share")] for one in told["buckets"]]
        assert [row[0] for row in rows] == [row[0] for row in expected]
        assert np.array(rows) == pytest.approx(np.array(expected), rel=1e-9)
        weights, figures = told["weights"], read_figures(page)
        assert figures["tail before"] == pytest.approx(weights["tail_share"], rel=1e-9)
        assert figures["tail after"] == pytest.approx(weights["weighted_tail_share"], rel=1e-9)
        assert figures["extra supervision"] == pytest.approx(weights["extra"], rel=1e-9)
        assert figures["as float16"] == pytest.approx(weights["extra_float16"], rel=1e-9)
        sentence = page.inner_text("#sentence")
        assert f"{100 * weights['tail_share']:.2f} %" in sentence
        assert f"{100 * weights['weighted_tail_share']:.2f} %" in sentence
        names = ("documents", "tokens", "tail_share", "share", "weighted_share", "median_length", "length_95")
        sources = sorted(told["sources"], key=lambda source: -source["tokens"])
        assert len(sources) == 2
        assert np.array(read_table(page, "sources")) == pytest.approx(
            np.array([[source[name] for name in names] for source in sources]), rel=1e-9
        )
        side = read_table(page, "side")
        assert side[0] == pytest.approx(
            [told["rows"], told["padding_share"], weights["tail_share"], weights["weighted_tail_share"]]
        )
        assert side[1][:2] == pytest.approx([plain["rows"], plain["padding_share"]])
        assert told["tree_hash"] in page.inner_text("#provenance")
        assert "2605.10544" in page.inner_text("#bibtex")
        page.select_option("#dataset", "1")
        assert [row[0] for row in read_table(page, "buckets")] == [one["targets"] for one in plain["buckets"]]
        assert "Not weighed" in page.inner_text("#warnings")
        before = page.inner_text("#side")
        page.select_option("#reference", "1")
        assert page.inner_text("#side") != before


def test_sliders_say_what_weigh_would_do(homes, page_file, visit, tmp_path):
    """Moved by the keyboard; the command that the page prints gives the numbers that it shows."""
    told = report(homes[0])
    with visit(page_file) as page:
        command = page.inner_text("#command")
        bars = page.inner_html("#histogram")
        for slider, key in (
            ("alpha", "ArrowRight"),
            ("gamma", "ArrowRight"),
            ("tail", "ArrowLeft"),
            ("window", "ArrowLeft"),
        ):
            page.focus(f"#{slider}")
            for _ in range(2):
                page.keyboard.press(key)
        assert page.inner_html("#histogram") != bars
        moved, figures, rows = page.inner_text("#command"), read_figures(page), read_table(page, "buckets")
        sources = read_table(page, "sources")
        page.click("text=Reset")
        assert page.inner_text("#command") == command
        assert read_figures(page)["tail after"] == pytest.approx(told["weights"]["weighted_tail_share"], rel=1e-9)
    assert command == f"exact-prep weigh {homes[0]} --alpha 0.3 --gamma 0.5 --tail-from 64"
    assert moved == f"exact-prep weigh {homes[0]} --alpha 0.32 --gamma 0.6 --tail-from 16 --window 64"
    shutil.copytree(homes[0], tmp_path / "copy")
    exact_prep(*moved.replace(str(homes[0]), str(tmp_path / "copy")).split()[1:])
    again = report(tmp_path / "copy")
    assert figures["tail after"] == pytest.approx(again["weights"]["weighted_tail_share"], rel=1e-9)
    assert figures["as float16"] == pytest.approx(again["weights"]["extra_float16"], rel=1e-9)
    expected = [[one[name] for name in ("targets", "share", "weight", "weighted_share")] for one in again["buckets"]]
    assert np.array(rows) == pytest.approx(np.array(expected), rel=1e-9)
    after = sorted(again["sources"], key=lambda source: -source["tokens"])
    assert [row[4] for row in sources] == pytest.approx([source["weighted_share"] for source in after], rel=1e-9)


def test_documents_are_data(page_file, visit):
    """No markup, no control, no direction mark of a document reaches the page; its characters do, spelled out."""
    data = page_file.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", data)
    assert len(re.findall("</script", data, re.IGNORECASE)) == 2
    with visit(page_file) as page:
        for details in page.query_selector_all("#texts details:not([open])"):
            details.evaluate("one => one.open = true")
        assert page.evaluate("window.owned") is None
        assert page.evaluate("document.images.length") == 0
        text = page.inner_text("#texts")
        assert "</script><script>window.owned = 1</script>" in text
        assert "\\x1b[31mred" in text
        assert "\\u202egnp.exe" in text
        assert "%%SCRIPT%%" in text
        assert "<b>&amp;</b>" in page.inner_text("#sources")
        assert "<|endoftext|>" in page.inner_text("#texts .special >> nth=0")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(page_file, visit, axe, dark):
    with visit(page_file, dark=dark) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.evaluate(axe)
        found = page.evaluate("axe.run()")
        assert [
            (one["id"], [node["target"] for node in one["nodes"]])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ] == []
        assert len(found["passes"]) > 15


@pytest.mark.parametrize("width", [400, 800, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_every_width_shows_all_of_it(page_file, visit, width, dark, tmp_path):
    with visit(page_file, width=width, dark=dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(
            "[...document.querySelectorAll('svg text')].every(one => getComputedStyle(one).fontSize === '12px' && "
            "one.ownerSVGElement.viewBox.baseVal.width <= one.ownerSVGElement.clientWidth + 1)"
        ), "letters keep their size"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 300) == dark
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_it_prints_on_two_pages_whatever_the_screen(page_file, visit, tmp_path):
    for dark in (False, True):
        with visit(page_file, dark=dark) as page:
            page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
        assert len(re.findall(rb"/Type /Page\b", (tmp_path / "page.pdf").read_bytes())) == 2


def test_words_are_explained_on_hover_and_focus(page_file, visit):
    with visit(page_file) as page:
        page.hover("[data-term='effective context']")
        assert "its own document" in page.inner_text("#tip")
        page.keyboard.press("Escape")
        assert not page.is_visible("#tip")
        page.focus("[data-term='alpha']")
        assert page.is_visible("#tip")


def test_a_mixture_shows_its_datasets_and_moves_with_its_sliders(tmp_path, tokenizer_file, visit):
    for name, longest in (("short", 100), ("long", 3000)):
        corpus = write_jsonl(tmp_path / f"{name}.jsonl", make_texts(40, longest=longest))
        pack_here([corpus], tmp_path / name, tokenizer_file)
    both = (tmp_path / "short", tmp_path / "long")
    exact_prep("weigh", *both, "--rates", "0.7,0.3")
    exact_prep("report", tmp_path / "long", tmp_path / "short", "--html", tmp_path / "page.html")
    with visit(tmp_path / "page.html") as page:
        told = report(tmp_path / "long")
        assert [row[-1] for row in read_table(page, "mixture")] == pytest.approx(
            [one["weighted_share"] for one in told["weights"]["mixture"]["datasets"]]
        )
        assert read_figures(page)["tail after"] == pytest.approx(told["weights"]["weighted_tail_share"], rel=1e-9)
        page.focus("#alpha")
        page.keyboard.press("ArrowRight")
        moved, command = read_figures(page), page.inner_text("#command")
    assert command == f"exact-prep weigh {both[0]} {both[1]} --alpha 0.16 --gamma 0.5 --tail-from 16 --rates 0.7,0.3"
    exact_prep(*command.split()[1:])
    assert moved["tail after"] == pytest.approx(report(tmp_path / "long")["weights"]["weighted_tail_share"], rel=1e-9)


def test_tables_of_others_and_validation_rows(homes, tmp_path, tokenizer_file, visit):
    """Under --weights, and under the table of the train rows."""
    exact_prep("weigh", homes[0], "--alpha", 0.9, "-o", tmp_path / "table.json")
    exact_prep("report", homes[0], "--weights", tmp_path / "table.json", "--html", tmp_path / "a.html")
    told = json.loads(exact_prep("report", homes[0], "--weights", tmp_path / "table.json", "--json").stdout)[0]
    with visit(tmp_path / "a.html") as page:
        assert read_figures(page)["tail after"] == pytest.approx(told["weights"]["weighted_tail_share"], rel=1e-9)
    pack_here([write_jsonl(tmp_path / "in.jsonl", make_texts(60))], tmp_path / "split", tokenizer_file, validation=0.3)
    exact_prep("weigh", tmp_path / "split")
    exact_prep("report", tmp_path / "split", "--html", tmp_path / "b.html")
    with visit(tmp_path / "b.html") as page:
        page.select_option("#dataset", "1")
        told = report(tmp_path / "split/validation")
        assert read_figures(page)["tail after"] == pytest.approx(told["weights"]["weighted_tail_share"], rel=1e-9)


def test_pages_stay_small_and_the_same_facts_give_the_same_bytes(homes, page_file, tmp_path):
    assert page_file.stat().st_size < 1_000_000
    exact_prep("report", *homes, "--html", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()
