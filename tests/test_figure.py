"""`report --figure`: the figure shows the numbers of the report, at the size and in the letters that a paper needs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from runs import exact_prep, make_texts, pack_here, weigh_here, write_jsonl

from exact_prep.reports import load_facts
from exact_prep.reports.figure import AFTER, BEFORE, STYLE, draw, short_context

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def homes(tmp_path_factory, tokenizer_file):
    """A weighed dataset, and one that is not weighed."""
    base = tmp_path_factory.mktemp("figure")
    texts = write_jsonl(base / "texts.jsonl", make_texts(60))
    for name in ("weighed", "plain"):
        pack_here([texts], base / name, tokenizer_file)
    weigh_here(base / "weighed")
    return base / "weighed", base / "plain"


def test_bars_and_steps_are_the_numbers_of_the_report(homes):
    told = json.loads(exact_prep("report", homes[0], "--json").stdout)[0]
    bars, beside = draw(load_facts(homes[0]), "column").axes
    heights = [[bar.get_height() / 100 for bar in container] for container in bars.containers]
    assert heights[0] == pytest.approx([bucket["share"] for bucket in told["buckets"]])
    assert heights[1] == pytest.approx([bucket["weighted_share"] for bucket in told["buckets"]])
    weights = [bucket["weight"] for bucket in told["buckets"]]
    assert list(beside.lines[0].get_ydata()) == [*weights, weights[-1]]
    # The shade begins between the last bucket below the tail and the first one inside.
    first = next(number for number, bucket in enumerate(told["buckets"]) if bucket["in_tail"])
    (shade,) = [patch for patch in bars.patches if patch.get_label() == "tail"]
    assert shade.get_x() == first - 0.5
    assert shade.get_x() + shade.get_width() == len(told["buckets"]) - 0.5


@pytest.mark.parametrize(("width", "inches"), [("column", 3.3), ("text", 6.9)])
def test_a_figure_has_its_width_and_letters_of_8_points(homes, tmp_path, width, inches):
    exact_prep("report", homes[0], "--figure", tmp_path / "figure.pdf", "--width", width)
    pdf = (tmp_path / "figure.pdf").read_bytes()
    box = [float(number) for number in re.search(rb"/MediaBox \[([^]]*)\]", pdf).group(1).split()]
    assert box[2] - box[0] == pytest.approx(72 * inches)
    assert b"/Type3" not in pdf
    exact_prep("report", homes[0], "--figure", tmp_path / "figure.svg", "--width", width)
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert root.attrib["width"] == f"{72 * inches:g}pt"
    texts = list(root.iter(f"{SVG}text"))
    assert {"before", "after", "weight", "tail", "share of supervision (%)"} <= {text.text for text in texts}
    # matplotlib's SVG has one unit per point.
    assert {re.search(r"(\S+)px", text.attrib["style"]).group(1) for text in texts} == {"8"}
    exact_prep("report", homes[0], "--figure", tmp_path / "figure.png", "--width", width)
    header = (tmp_path / "figure.png").read_bytes()[:24]
    assert int.from_bytes(header[16:20]) == round(300 * inches)


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_the_same_facts_give_the_same_bytes(homes, tmp_path, kind):
    for name in ("a", "b"):
        exact_prep("report", homes[0], "--figure", tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a." + kind, "a.txt", "b." + kind, "b.txt"]


def test_bars_differ_in_grey():
    def grey(colour):
        red, green, blue = to_rgb(colour)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert grey(BEFORE) - grey(AFTER) > 0.1


def test_nothing_in_a_figure_overlaps(homes):
    with rc_context(STYLE):
        figure = draw(load_facts(homes[0]), "column")
        figure.savefig(io.BytesIO())  # lays it out
    labels = []
    for axis in (figure.axes[0].xaxis, *(axes.yaxis for axes in figure.axes)):
        low, high = sorted(axis.get_view_interval())
        labels += [
            label
            for place, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            if low <= place <= high
        ]
    boxes = [
        one.get_window_extent()
        for one in (*labels, *(axes.yaxis.label for axes in figure.axes), figure.axes[0].xaxis.label, *figure.legends)
        if not hasattr(one, "get_text") or (one.get_text() and one.get_visible())
    ]
    seen = [box for box in boxes if box.width and box.height]
    assert len(seen) > 10
    for number, box in enumerate(seen):
        assert not any(box.overlaps(other) for other in seen[number + 1 :])
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1


def test_the_caption_says_the_figures(homes, tmp_path):
    facts = load_facts(homes[0])
    said = exact_prep("report", homes[0], "--figure", tmp_path / "figure.pdf").stdout
    written = (tmp_path / "figure.txt").read_text()
    assert said.endswith(written)
    for figure in (
        f"{facts.supervised_targets:,} supervised targets in {facts.rows:,} rows of {facts.seq_len:,} tokens",
        f"{facts.weights.tail_share:.2%} before and {facts.weights.weighted_tail_share:.2%} after",
        f"{facts.weights.tail_start:,} tokens or more",
        "alpha 0.15, gamma 0.5",
    ):
        assert figure in written


def test_a_dataset_that_is_not_weighed_has_one_bar_per_bucket(homes, tmp_path):
    facts = load_facts(homes[1])
    (axes,) = draw(facts, "column").axes
    assert [len(container) for container in axes.containers] == [len(facts.buckets)]
    exact_prep("report", homes[1], "--figure", tmp_path / "figure.svg")
    assert "Every target weighs 1." in (tmp_path / "figure.txt").read_text()


def test_edges_are_named_as_people_say_them():
    assert [short_context(low) for low in (0, 8, 512, 1024, 65536)] == ["0", "8", "512", "1K", "64K"]


def test_what_cannot_be_drawn_is_refused(homes, tmp_path):
    for arguments, said in (
        ((homes[0], "--figure", tmp_path / "figure.jpg"), r"written as jpg; name it .pdf, .svg or .png"),
        ((homes[0], "--figure", tmp_path / "figure"), "a file without suffix"),
        (
            (*homes, "--figure", tmp_path / "figure.pdf"),
            f"one dataset, and here are 2; name one of them: {homes[0]}, {homes[1]}",
        ),
    ):
        assert said in exact_prep("report", *arguments, check=2).stderr
    missing = exact_prep("report", homes[0], "--figure", tmp_path / "none" / "figure.pdf", check=None)
    assert missing.returncode
    assert "cannot write" in missing.stderr
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(homes, tmp_path):
    program = "import sys; sys.modules['matplotlib'] = None; from exact_prep.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "report", str(homes[0]), "--figure", str(tmp_path / "figure.pdf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "pip install 'exact-prep[plot]'" in done.stderr


def read_bars(svg: bytes, buckets: int) -> list[float]:
    """Heights of the bars, each over the highest one: first those before weighing, then those after."""
    heights = []
    for fill in (rb"#56b4e9", rb"url\(\S+\)"):
        bar = rb'<path d="M \S+ (\S+) \nL \S+ \S+ \nL \S+ (\S+)[^>]*style="fill: ' + fill + rb"; stroke"
        # The last one is the legend's.
        heights += [float(low) - float(high) for low, high in re.findall(bar, svg)[:buckets]]
    return [height / max(heights) for height in heights]


def test_the_picture_of_the_readme_is_that_of_the_demo(tmp_path, monkeypatch):
    """The commands that README names make its picture, light and dark, and its text says the same."""
    readme = (ROOT / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("examples").mkdir()
    exact_prep("demo")
    commands = re.findall(r"exact-prep (report exact-demo --figure .*)", readme)
    assert len(commands) == 2
    for command in commands:
        exact_prep(*command.split())
    facts = load_facts(Path("exact-demo"))
    shares = [bucket.share for bucket in facts.buckets] + [bucket.weighted_share for bucket in facts.buckets]
    for theme in ("light", "dark"):
        made, committed = ((base / f"examples/supervision-{theme}.svg").read_bytes() for base in (tmp_path, ROOT))
        for svg in (made, committed):
            expected = [share / max(shares) for share in shares]
            assert read_bars(svg, len(facts.buckets)) == pytest.approx(expected, abs=1e-4)
        texts = [re.findall(rb">([^<>\n]+)</text>", svg) for svg in (made, committed)]
        assert texts[0] == texts[1]
        assert len(texts[0]) > 20
    for share in (facts.weights.tail_share, facts.weights.weighted_tail_share):
        assert f"{100 * share:.1f} %" in readme


def test_a_dark_figure_is_light_ink_on_what_lies_below(homes, tmp_path):
    exact_prep("report", homes[0], "--figure", tmp_path / "dark.svg", "--theme", "dark")
    root = ElementTree.parse(tmp_path / "dark.svg").getroot()
    assert {re.search(r"fill: (\S+?)(;|$)", text.attrib["style"]).group(1) for text in root.iter(f"{SVG}text")} == {
        "#e6e6e6"
    }
    paper = root.find(f".//{SVG}g[@id='patch_1']/{SVG}path")
    assert "fill: none" in paper.attrib["style"]
    exact_prep("report", homes[0], "--figure", tmp_path / "light.svg")
    light = ElementTree.parse(tmp_path / "light.svg").getroot()
    assert "fill: #ffffff" in light.find(f".//{SVG}g[@id='patch_1']/{SVG}path").attrib["style"]
