"""Renders the facts of a row as one page that needs nothing else: no script, no address, light and dark.

Document text is data: markup in it is escaped, hostile characters are spelled out, and its direction stays inside.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from exact_prep.reports.hostile import escape_controls
from exact_prep.reports.row_parts import cut_pieces, describe_extent, describe_origin, describe_row, shade

if TYPE_CHECKING:
    from exact_prep.reports.row import PieceFacts, RowFacts, SegmentFacts
    from exact_prep.reports.row_parts import Part

HUES = (200, 300, 120, 20)
"""Of segments, in turn, degrees."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; }} h1, p, h2 {{ margin: .3rem 0; overflow-wrap: anywhere; }}
h2 {{ font-size: .9rem; font-weight: 600; }} .origin {{ font-size: .85rem; opacity: .75; }}
section {{ border-left: 4px solid; padding-left: .8rem; margin: 1rem 0; }}
.text {{ font-family: ui-monospace, monospace; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.text span {{ unicode-bidi: isolate; }} small {{ opacity: .65; user-select: none; font-size: .65rem; }}
.none {{ opacity: .55; }} i {{ opacity: .6; }} .special {{ border: 1px solid; border-radius: 3px; opacity: .6; }}
</style></head><body>
<h1>{title}</h1>
{heads}
{segments}
</body></html>
"""


def render_page(facts: RowFacts, *, said: str = "", needle: str = "", whole: bool = True) -> str:
    """The page of a row; `said` is how it was chosen, `needle` the text to mark."""
    heads = [*describe_row(facts), *([said] if said else [])]
    heads.append("Small numbers are effective contexts at bucket edges; the darker, the more a target weighs.")
    sections = [render_segment(facts, number, needle=needle, whole=whole) for number in range(len(facts.segments))]
    if facts.padding:
        sections.append(f"<section><h2>padding: {facts.padding:,} tokens, weight 0</h2></section>")
    return PAGE.format(
        title=safe(f"{facts.directory}, row {facts.row:,} of {facts.rows:,}"),
        heads="\n".join(f"<p>{safe(line)}</p>" for line in heads),
        segments="\n".join(sections),
    )


def safe(text: str) -> str:
    """Text that is text in a page, whatever it holds."""
    return escape(escape_controls(text))


def render_segment(facts: RowFacts, number: int, *, needle: str, whole: bool) -> str:
    """A segment: what it is, where it came from, its text."""
    segment: SegmentFacts = facts.segments[number]
    pieces = [render_piece(facts, piece, shown) for piece, shown in cut_pieces(segment, needle, whole=whole)]
    return (
        f'<section style="border-color: hsl({HUES[number % len(HUES)]} 60% 50%)">'
        f"<h2>segment {number + 1:,}: {describe_extent(segment)}</h2>"
        f'<p class="origin">{safe("; ".join(describe_origin(segment.origin)))}</p>'
        f'<div class="text">{"".join(pieces)}</div></section>'
    )


def render_piece(facts: RowFacts, piece: PieceFacts, shown: list[Part]) -> str:
    """A piece, shaded by its weight, with its context and weight in small numbers."""
    kind = "special" if piece.special is not None else "" if piece.weight else "none"
    depth = shade(piece.weight, facts)
    style = f' style="background: rgb(255 165 0 / {0.1 + 0.5 * depth:.2f})"' if depth else ""
    text = "".join(
        f"<i> … {part.left_out:,} characters … </i>" * bool(part.left_out)
        + (f"<mark>{safe(part.text)}</mark>" if part.matches else safe(part.text))
        for part in shown
    )
    said = f"context {piece.low:,} to {piece.high:,}, weight {piece.weight:.5g} each"
    return f'<span class="{kind}" title="{said}"{style}><small>{piece.low:,}×{piece.weight:.4g} </small>{text}</span>'
