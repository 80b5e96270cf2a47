"""What `pack --dry-run` prints: what a run will take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from exact_prep.pipeline.estimate import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exact_prep.pipeline.estimate import Estimate

GROUPS = 20
"""Groups of files that are shown, at most."""

FIELDS = 20
"""Fields of a format that are shown, at most."""


def print_estimate(estimate: Estimate) -> None:
    """Print an estimate on stdout."""
    Console().print(render(estimate))


def render(estimate: Estimate) -> RenderableType:
    """Files, figures, row lengths, and the first documents."""
    parts: list[RenderableType] = [make_files(estimate), Text(), make_figures(estimate), Text(), make_rows(estimate)]
    if estimate.first_documents:
        parts += [Text(), Text("first documents", "dim"), make_documents(estimate)]
    return Group(*parts)


def make_files(estimate: Estimate) -> Table:
    """One line per format, compression and source."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("format", no_wrap=True)
    table.add_column("source", overflow="fold")
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for group in estimate.groups[:GROUPS]:
        name = f"{group.format}, {group.compression}" if group.compression else group.format
        size = "not known" if group.format == "hub" else format_bytes(group.bytes)
        # Text, because rich would read brackets in a label as markup.
        table.add_row(name, Text(escape(group.source or "from a field")), f"{group.files:,}", size)
    if len(rest := estimate.groups[GROUPS:]):
        files, size = sum(group.files for group in rest), sum(group.bytes for group in rest)
        table.add_row(f"{len(rest):,} more", "", f"{files:,}", format_bytes(size))
    return table


def make_figures(estimate: Estimate) -> Table:
    """Fields, tokens, time, room."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fields in estimate.fields.items():
        more = f" and {len(fields) - FIELDS} more" if len(fields) > FIELDS else ""
        table.add_row(f"fields, {name}", Text(escape(", ".join(fields[:FIELDS])) + more))
    for name in estimate.unknown:
        table.add_row("left out", Text(f"{escape(name)}: the size of a hub dataset is not known before it is loaded"))
    table.add_row("sample", f"{format_bytes(estimate.sampled_bytes)} of input; all figures below follow from it")
    table.add_row("documents", f"about {estimate.documents:,}")
    if estimate.text_bytes and estimate.text_tokens:
        text, per_token = format_bytes(estimate.text_bytes), estimate.text_bytes / estimate.text_tokens
        table.add_row("text", f"about {text}, {per_token:.3f} bytes per token")
    table.add_row("tokens", f"about {estimate.tokens:,}, in {estimate.tasks:,} task{'s' * (estimate.tasks != 1)}")
    if estimate.text_bytes_per_second:
        rate = estimate.text_bytes_per_second / 1e6
        written = format_bytes(estimate.needed_bytes / estimate.seconds)
        several = estimate.workers > 1
        workers = f"{estimate.workers} workers that encode" if several else "1 worker that encodes"
        table.add_row(
            "time",
            f"about {format_seconds(estimate.seconds)}, {workers} {rate:.1f} MB/s{' each' if several else ''}; "
            f"longer where the disk writes less than {written}/s",
        )
    free = "an unknown amount" if estimate.free_bytes is None else format_bytes(estimate.free_bytes)
    short = estimate.free_bytes is not None and estimate.needed_bytes > estimate.free_bytes
    fits = ": TOO LITTLE, this run would not start" if short else ""
    place = escape(str(estimate.free_at))
    table.add_row(
        "disk",
        Text(f"{format_bytes(estimate.needed_bytes)} needed, {free} free at {place}{fits}"),
    )
    return table


def make_rows(estimate: Estimate) -> Table:
    """One line per row length."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("row length", "rows", "padding", "with weights", "without"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in estimate.lengths:
        padding = one.padding / max(one.rows * one.seq_len, 1)
        sizes = format_bytes(one.bytes_with_weights), format_bytes(one.bytes_without_weights)
        table.add_row(f"{one.seq_len:,}", f"{one.rows:,}", f"{padding:.2%}", *sizes)
    return table


def make_documents(estimate: Estimate) -> Table:
    """The first documents as they will be read."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, text in enumerate(estimate.first_documents, 1):
        table.add_row(str(number), Text(escape(text), no_wrap=False, overflow="fold"))
    return table


def format_seconds(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def escape(text: str) -> str:
    """The text with control characters escaped: it comes from files, and goes to a terminal."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)
