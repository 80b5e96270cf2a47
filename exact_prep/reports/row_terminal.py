"""Renders the facts of a row in the terminal: a rule per segment, and a line of text per bucket of effective context.

Document text is data: it becomes `Text`, never markup, and hostile characters are spelled out. 60 columns are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from exact_prep.reports.hostile import escape_controls
from exact_prep.reports.row_parts import cut_pieces, describe_extent, describe_origin, describe_row, shade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from exact_prep.reports.row import PieceFacts, RowFacts
    from exact_prep.reports.row_parts import Part

COLOURS = ("cyan", "magenta", "green", "blue")
"""Of segments, in turn."""

SHADES = ("", "black on #fff0c2", "black on #ffdf80", "black on #ffc940", "black on #ffa500")
"""Of weights, from the smallest to the largest."""

NEWLINE = "↵"


def render_row(facts: RowFacts, *, said: str = "", needle: str = "", whole: bool = False, width: int = 80) -> Group:
    """A row for a terminal of `width` columns. `said` is how it was chosen, `needle` the text to mark.

    Unless it is to be `whole`, the middle of a long text is left out.
    """
    title = Text.assemble((escape_controls(facts.directory), "bold"), f"  row {facts.row:,} of {facts.rows:,}")
    heads = [Text(escape_controls(line)) for line in [*describe_row(facts), *([said] if said else [])]]
    gutter = len(f"{max((one.tokens for one in facts.segments), default=0):,}")
    columns = Columns(facts, max(gutter, len("context")), width)
    parts: list[RenderableType] = [title, *heads, Text()]
    parts.append(Text(f"{'context':>{columns.gutter}}   weight  text ({NEWLINE}: a newline of the document)", "dim"))
    for number, segment in enumerate(facts.segments):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(rule(f"segment {number + 1:,}: {describe_extent(segment)}", colour, width))
        parts.append(Text(escape_controls("; ".join(describe_origin(segment.origin))).replace("\n", "\\n"), "dim"))
        for piece, shown in cut_pieces(segment, needle, whole=whole):
            parts += columns.lines(piece, shown, colour)
    if facts.padding:
        parts.append(rule(f"padding: {facts.padding:,} tokens, weight 0", "dim", width))
    return Group(*parts)


def rule(title: str, style: str, width: int) -> Text:
    """A line across the terminal with a title."""
    return Text(f"── {title} ".ljust(width, "─"), style)


class Columns:
    """The columns of a piece: context, weight, text."""

    def __init__(self, facts: RowFacts, gutter: int, width: int) -> None:
        """`gutter` columns for contexts, of `width` in all."""
        self.gutter = gutter
        self._facts, self._console = facts, Console(width=width)
        self._text_width = max(width - gutter - len("  0.0000 │ ") - 1, 8)

    def lines(self, piece: PieceFacts, shown: list[Part], colour: str) -> Iterator[Text]:
        """The lines of a piece: the smallest context and the weight are in the first."""
        shadow = SHADES[round(shade(piece.weight, self._facts) * (len(SHADES) - 1))] if piece.weight else "dim"
        context, weight = f"{piece.low:>{self.gutter},}", f"{piece.weight:>8.5g}"
        for number, line in enumerate(self.wrap(piece, shown)):
            head = (f"{context} ", "bold"), (weight, shadow)
            blank = (" " * (self.gutter + 1 + len(weight)), "")
            yield Text.assemble(*(head if number == 0 else (blank,)), (" │ ", colour), line)

    def wrap(self, piece: PieceFacts, shown: list[Part]) -> list[Text]:
        """The text of a piece in lines that fit."""
        text = Text(style="" if piece.weight else "dim")
        for part in shown:
            if part.left_out:
                text.append(f" … {part.left_out:,} characters … ", "italic dim")
            for number, line in enumerate(part.text.split("\n")):
                if number:
                    text.append(f"{NEWLINE}\n", "dim")
                text.append(escape_controls(line), "reverse bold" if part.matches else "")
        if piece.special is not None:
            text = Text(f"[{escape_controls(piece.special)}]", "reverse dim")
        if text.plain.endswith("\n"):
            text.right_crop(1)
        return list(text.wrap(self._console, self._text_width, overflow="fold")) or [Text()]
