"""Renders a dataset's facts in the terminal. Below 80 columns counts are shortened; 60 columns are enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from exact_prep.choices import CUTS, MAX_WEIGHT
from exact_prep.records.manifest import describe_special_tokens
from exact_prep.reports.facts import Facts, MeasuredFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from exact_prep.reports.facts import BucketFacts, ExposureFacts, MixtureFacts, WeightFacts

BAR_WIDTH = 28

NARROW = 80
"""A terminal with fewer columns than this is narrow."""

SOURCES = 20
"""Sources that are shown, at most."""


UNITS = ((15, "Q"), (12, "T"), (9, "B"), (6, "M"))


class Columns:
    """Tables and counts for a terminal of `width` columns."""

    def __init__(self, width: int) -> None:
        self.narrow = width < NARROW

    def table(self) -> Table:
        """A table without lines."""
        return Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1 if self.narrow else 2, 0, 0))

    def count(self, number: int) -> str:
        """A count: all its digits, or four of them where the terminal is narrow and the count is long."""
        return shorten(number) if self.narrow else f"{number:,}"


def shorten(number: int) -> str:
    """A count in at most 7 characters, as people say it: 41.21M, 1.235T; exact below a million."""
    if number < 10**6:
        return f"{number:,}"
    rounded = float(f"{number:.4g}")
    power, letter = next(unit for unit in UNITS if rounded >= 10 ** unit[0])
    return f"{rounded / 10**power:.4g}{letter}"


def render(facts: Facts | MeasuredFacts, *, by_source: bool = False, width: int = NARROW) -> RenderableType:
    """A heading, the state of the weights, the histogram, and a table of counts; `by_source` shows all sources.

    `width` is that of the terminal, in columns.
    """
    columns = Columns(width)
    how = facts.packing if isinstance(facts, Facts) else f"{facts.options.layout}: {CUTS[facts.options.rows]}"
    title = Text.assemble(
        (facts.directory, "bold"),
        f"  {facts.rows:,} rows of {facts.seq_len:,} tokens, {how}",
    )
    parts: list[RenderableType] = [title, Text(describe_state(facts)), Text(), make_histogram(facts, columns), Text()]
    if isinstance(facts, Facts) and (len(facts.sources) > 1 or by_source):
        parts += [make_sources(facts, columns, None if by_source else SOURCES), Text()]
    if facts.weights and facts.weights.mixture:
        parts += [make_mixture(facts.weights.mixture, facts.weights, columns), Text()]
    return Group(*parts, make_figures(facts) if isinstance(facts, Facts) else make_measured_figures(facts))


def describe_state(facts: ExposureFacts) -> str:
    """One sentence about the weights: how much supervision the tail gets."""
    weights = facts.weights
    if weights is None:
        return "not weighed: every supervised target has weight 1; run `exact-prep weigh` to give the tail more"
    if weights.state != "complete":
        return "half-weighed: some shards hold these weights, others do not; run `exact-prep weigh` again"
    return (
        f"effective context of {weights.tail_start:,} or more: {weights.tail_share:.2%} of supervision before, "
        f"{weights.weighted_tail_share:.2%} after (alpha {weights.options.alpha:g}, gamma {weights.options.gamma:g})"
    )


def make_histogram(facts: ExposureFacts, columns: Columns) -> Table:
    """One line per bucket of effective context: share of supervision before weighting, weight, share after."""
    table = columns.table()
    table.add_column("context", justify="right", no_wrap=True)
    table.add_column("targets", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    # The only column that shrinks on a narrow terminal.
    table.add_column("", min_width=6, max_width=BAR_WIDTH)
    if facts.weights:
        table.add_column("weight", justify="right", no_wrap=True)
        table.add_column("after", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max((bucket.share for bucket in facts.buckets), default=0.0)
    for bucket in facts.buckets:
        table.add_row(*make_bucket_cells(bucket, largest, columns), style="" if bucket.targets else "dim")
    return table


def make_bucket_cells(bucket: BucketFacts, largest: float, columns: Columns) -> list[RenderableType]:
    """The cells of one bucket's line."""
    colour = "yellow" if bucket.in_tail else "blue"
    cells: list[RenderableType] = [
        f"{bucket.low:,} - {bucket.high:,}",
        columns.count(bucket.targets),
        f"{bucket.share:.2%}",
        Bar(size=largest or 1.0, begin=0, end=bucket.share, color=colour),
    ]
    if bucket.weight is not None and bucket.weighted_share is not None:
        cells += [f"{bucket.weight:.4f}", f"{bucket.weighted_share:.2%}"]
    return [*cells, Text("tail", "yellow") if bucket.in_tail else Text("")]


def make_sources(facts: Facts, columns: Columns, most: int | None = SOURCES) -> Table:
    """One line per source, the largest first, at most `most`: share of supervision before and after weighting."""
    table = columns.table()
    table.add_column("source", overflow="fold")
    for name in ("documents", "tokens", "share", *(("in the tail", "after") if facts.weights else ())):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(facts.sources, key=lambda source: -source.tokens)
    for source in ranked[:most]:
        # Text, because rich would read brackets in a label as markup.
        counts = columns.count(source.documents), columns.count(source.tokens)
        cells = [Text(source.label), *counts, f"{source.share:.2%}"]
        if source.tail_share is not None and source.weighted_share is not None:
            cells += [f"{source.tail_share:.2%}", f"{source.weighted_share:.2%}"]
        table.add_row(*cells)
    if most is not None and len(ranked) > most:
        table.add_row(Text(f"and {len(ranked) - most} more, see --by-source", "dim"))
    return table


def make_mixture(mixture: MixtureFacts, weights: WeightFacts, columns: Columns) -> RenderableType:
    """One line per dataset of a mixture: share of supervision before and after weighting."""
    table = columns.table()
    table.add_column("weighed together", overflow="fold")
    for name in ("rows", "tokens read", "share", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in mixture.datasets:
        table.add_row(
            Text(one.directory or f"tree hash {one.id[:8]}..."),
            columns.count(one.rows),
            f"{one.rate:.2%}",
            f"{one.share:.2%}",
            f"{one.weighted_share:.2%}",
        )
    if not weights.options.keep_mixture:
        return table
    kept = f"each keeps its share; the tail's extra supervision is {mixture.extra:.6g} of {weights.extra:.6g}"
    return Group(table, Text(kept))


def compare(facts: Sequence[Facts | MeasuredFacts], reference: int, *, width: int = NARROW) -> Table:
    """Some datasets side by side, with differences to the one at `reference` in points of percent.

    In a terminal of fewer than 80 columns (`width`), the differences have lines of their own.
    """
    columns = Columns(width)
    table = columns.table()
    table.add_column("side by side", overflow="fold")
    for name in ("rows", "padding", "tail", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = measure_shares(facts[reference])
    for number, one in enumerate(facts):
        cells = []
        for own, other in zip(measure_shares(one), chosen, strict=True):
            shown = "" if own is None else f"{own:.2%}"
            if number != reference and own is not None and other is not None:
                difference = f"{100 * (own - other):+.2f}"
                shown += f"\n{difference}" if columns.narrow else f" ({difference})"
            cells.append(shown)
        table.add_row(Text(one.directory), columns.count(one.rows), *cells)
    return table


def measure_shares(facts: Facts | MeasuredFacts) -> tuple[float | None, float, float | None]:
    """Padding of all positions, if it is known; the tail's share of supervision before and after weighting."""
    tail = sum(bucket.share for bucket in facts.buckets if bucket.in_tail)
    after = None if facts.weights is None else facts.weights.weighted_tail_share
    return facts.padding_share if isinstance(facts, Facts) else None, tail, after


def describe_extra(weights: WeightFacts) -> str:
    """The extra supervision of the tail, and what a limit and rounding took."""
    limit = weights.options.max_weight or MAX_WEIGHT
    lost = weights.options.alpha - weights.extra
    clipped = f" of alpha {weights.options.alpha:g}, weights are limited to {limit:g}" if lost > 1e-9 else ""
    rounding = f"float16 off by at most {weights.max_relative_rounding_error:.1e}"
    return f"extra supervision {weights.extra:.6g}{clipped}, {rounding}"


def make_figures(facts: Facts) -> Table:
    """A table of counts: tokens, documents, segments, text, tokenizer, weights."""
    documents, ledger, tokenizer = facts.documents, facts.ledger, facts.tokenizer
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    alone = f", {facts.padding_rows:,} rows of padding alone" if facts.padding_rows else ""
    padding = f"{ledger.padding:,} padding ({facts.padding_share:.2%}){alone}"
    table.add_row("tokens", f"{ledger.row_tokens:,} in rows, {padding}")
    table.add_row(
        "documents",
        f"{documents.packed:,} packed, {facts.documents_cut:,} of them cut, {documents.empty:,} empty, "
        f"{documents.rejected:,} rejected" + f", {documents.held_out:,} held out" * bool(documents.held_out),
    )
    table.add_row("segments", f"{facts.segments:,}, the longest context is {facts.longest_context:,}")
    table.add_row("text", f"{facts.text_bytes:,} bytes from {facts.input_files:,} files, {facts.shards:,} shards")
    if tokenizer.backend:
        compared = f"{tokenizer.parity_texts:,} texts ({tokenizer.parity_bytes:,} bytes) compared with tokenizers"
        # Text, because rich would read brackets in a path as markup.
        table.add_row(
            "tokenizer",
            Text(f"{tokenizer.name or 'ids'}, {tokenizer.backend} {tokenizer.backend_version}, {compared}"),
        )
    table.add_row("", Text(describe_special_tokens(tokenizer.special_tokens)))
    if facts.weights and facts.weights.state == "complete":
        table.add_row("weights", describe_extra(facts.weights))
    table.add_row("tree hash", facts.tree_hash)
    return table


def make_measured_figures(facts: MeasuredFacts) -> Table:
    """A table of counts for tokens that others wrote: what was read, how it is cut, what is dropped."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    options = facts.options
    dropped = "".join(f", {tokens:,} not read ({reason})" for reason, tokens in facts.dropped.items())
    files = "file" if facts.files == 1 else "files"
    table.add_row("tokens", f"{facts.tokens:,} in {facts.files:,} {files}{dropped}")
    cut = "" if facts.documents_cut is None else f", {facts.documents_cut:,} of them cut"
    told = f"told apart by {options.documents}" if options.isolated else "not kept apart: a row counts as one document"
    table.add_row("documents", f"{facts.documents:,}{cut}, {told}")
    order = "expected counts, for documents in random order" if facts.estimated else "counted"
    segments = "" if facts.estimated else f"{facts.segments:,}, "
    table.add_row("segments", f"{segments}the longest context is {facts.longest_context:,}; {order}")
    if facts.weights and facts.weights.state == "complete":
        table.add_row("weights", describe_extra(facts.weights))
    table.add_row("fingerprint", facts.fingerprint)
    return table
