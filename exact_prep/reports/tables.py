"""Facts as tables for documents: Markdown, CSV, LaTeX. Pure functions of the facts."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from exact_prep.errors import UsageError
from exact_prep.reports.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exact_prep.reports.facts import MeasuredFacts

Row = tuple[str, ...]

BUCKETS: Row = ("dataset", "context", "targets", "share", "weight", "share after", "tail")
SOURCES: Row = ("dataset", "source", "documents", "tokens", "share", "share in the tail", "share after")

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)
"""What LaTeX reads as commands."""


def format_facts(facts: Sequence[Facts | MeasuredFacts], kind: str, *, by_source: bool) -> str:
    """The buckets of some datasets as one table, or their sources."""
    header = SOURCES if by_source else BUCKETS
    rows = [row for one in facts for row in (list_sources(one) if by_source else list_buckets(one))]
    return FORMATS[kind](header, rows)


def list_buckets(facts: Facts | MeasuredFacts) -> list[Row]:
    """A row per bucket: shares as fractions; weight and share after are empty before `weigh`."""
    return [
        (
            facts.directory,
            f"{bucket.low}-{bucket.high}",
            str(bucket.targets),
            f"{bucket.share:.6f}",
            "" if bucket.weight is None else f"{bucket.weight:.6f}",
            "" if bucket.weighted_share is None else f"{bucket.weighted_share:.6f}",
            "tail" if bucket.in_tail else "",
        )
        for bucket in facts.buckets
    ]


def list_sources(facts: Facts | MeasuredFacts) -> list[Row]:
    """A row per source; raises UsageError for tokens that others wrote, whose sources are not known."""
    if not isinstance(facts, Facts):
        raise UsageError(f"{facts.directory} is measured, and its sources are not known; leave --by-source out")
    return [
        (
            facts.directory,
            source.label,
            str(source.documents),
            str(source.tokens),
            f"{source.share:.6f}",
            "" if source.tail_share is None else f"{source.tail_share:.6f}",
            "" if source.weighted_share is None else f"{source.weighted_share:.6f}",
        )
        for source in facts.sources
    ]


def make_markdown(header: Row, rows: Sequence[Row]) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"

    ruler = "|" + "|".join(["---", "---", *["---:"] * (len(header) - 2)]) + "|"
    return "\n".join([line(header), ruler, *map(line, rows)]) + "\n"


def make_csv(header: Row, rows: Sequence[Row]) -> str:
    """Comma-separated values, as RFC 4180 quotes them."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([header, *rows])
    return sink.getvalue()


def make_latex(header: Row, rows: Sequence[Row]) -> str:
    """A tabular of LaTeX's booktabs."""

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cell.translate(LATEX).replace("\n", " ") for cell in cells) + r" \\"

    columns = "ll" + "r" * (len(header) - 2)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"  \toprule", line(header), r"  \midrule", *map(line, rows)]
    return "\n".join([*lines, r"  \bottomrule", r"\end{tabular}"]) + "\n"


FORMATS: dict[str, Callable[[Row, Sequence[Row]], str]] = {"md": make_markdown, "csv": make_csv, "latex": make_latex}


def check_reference(reference: str | None, facts: Sequence[Facts | MeasuredFacts]) -> int:
    """Which dataset the others are compared with, by its place; raises UsageError if it is none of them."""
    if reference is None:
        return 0
    names = [one.directory for one in facts]
    if reference not in names:
        raise UsageError(f"--compare-to {reference}: it is none of the datasets that are shown ({', '.join(names)})")
    return names.index(reference)
