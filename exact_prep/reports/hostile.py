"""Text that comes from files, made harmless for terminals and pages: the one place that says which characters are not.

A document may hold commands to a terminal, marks that turn the direction of what follows, and characters that nobody
sees. Markup is not touched here: each renderer escapes its own.
"""

from __future__ import annotations

import re

HOSTILE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0, but tab and newline
    "\x7f-\x9f"  # DEL and C1: \x9b begins a command as ESC [ does
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"  # nothing is seen of these
    "\u200b-\u200f"  # zero width, marks of direction
    "\u2028-\u202e"  # ends of line and paragraph, embeddings and overrides of direction
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\ud800-\udfff"  # halves of pairs, which no encoding can write
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]"
)
"""Controls, and characters that are not seen. Joiners of emoji are among them: what is shown is what is there."""


def escape_controls(text: str) -> str:
    r"""The text with every hostile character spelled out: `\x1b`, `\u202e`. Newlines and tabs stay."""
    return HOSTILE.sub(lambda found: ascii(found[0])[1:-1], text)


def escape_json(text: str) -> str:
    """JSON that means the same, with hostile characters as JSON spells them: harmless in a terminal too."""
    return HOSTILE.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in utf16(found[0])), text)


def utf16(char: str) -> list[int]:
    """The UTF-16 units of a character, halves of pairs included."""
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
