"""Texts that expose differences between two tokenizer libraries, the same in every run. Nothing is encoded here.

About 520 KB; the reference takes 0.2 s for them.
"""

from __future__ import annotations

import unicodedata
from itertools import chain, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WHITE_SPACE = [chr(c) for c in (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010))]
WHITE_SPACE += [chr(c) for c in (0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)]
"""White space, and the characters that some Unicode version or library counts as white space."""

CONTEXTS = ("a{}", " {}", "{}1", "'{}", "{}\n", "{}s ", ".{}", "\n{}e\u0301")
"""Surroundings of a character, used in turn: they decide which part of a regex matches it."""

PROSE = (
    "It's the year's end; they'll say I'm WE'RE YOU'LL He'D it\u2019s they\u2018re DON'T o'clock 'tis 's 'S 'sa 'llama 'l 're'",
    "\u017f'\u017f 'ſ İstanbul ıI ǅ ǆ ß ẞ ﬀ ŉ Σίσυφος ΣΊΣΥΦΟΣ K Å Ω",  # long s: case folding reaches beyond ASCII
    "HTTPServer getElementById XMLHttpRequest iPhone snake_case_name SCREAMING_CASE kebab-case aB AbC ABc aʰB ªº",
    "https://user:pw@example.com:8080/a/b/../c?x=1&y=%20#frag mailto:a.b+c@d.org file:///etc/passwd C:\\dir\\f.txt",
    "1 12 123 1234 12345 123456 1,234,567.89 0x1F 1e-10 ３４５ ١٢٣٤ १२३४ ²³ ½ Ⅻ 一二三 12a34 a1b2 1st 2nd 3.14.15",
    'The quick brown fox. "Quoted," she said -- then... left?! (Really?) [1] {2} <3> $4.00 €5 £6 ¥7 #8 @9 50% a&b',
    "中文，没有空格。日本語のテキスト、カタカナとひらがな。한국어 문장입니다. 漢字仮名交じり文　全角スペース「引用」",
    "עברית עם ניקוד: שָׁלוֹם. العربية مع التشكيل: السَّلامُ عَلَيْكُم \u200fRTL\u200e \u202bmixed\u202c فارسی‌نیم‌فاصله",
    "हिन्दी में क़ानून ক্ষ தமிழ் ภาษาไทยไม่มีช่องว่าง ລາວ မြန်မာ ខ្មែរ አማርኛ ქართული հայերեն Ελληνικά Українська",
    "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇫🇷🇩🇪 👍🏿 ☺️ ☺︎ 1️⃣ ©️ 😀😃😄 🧑‍🚀🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    'def f(x: int) -> str:\n\treturn f"{x!r:>10}"  # ok\n\n\nclass A:\n    pass\n\nif (a&&b||!c) { x[i]++; y->z = ~0; } /* */ //\n',
    '<html>\n  <p class="x">a&nbsp;b</p>\r\n</html>\r\n\r\n{"k": [1, null, "\\u00e9\\n"]}\n- [ ] todo\n* a\n\n---\n| a | b |\n',
)

HEADS = ("", "a", ".", "1", "中", "é", "'", "/", "!\n", "'s", " ", "\u0301")
TAILS = ("", "b", ",", "2", "文", "É", "'t", "/", "\n", "\u0301", " ")


def stress_texts(spellings: Sequence[str]) -> Iterator[str]:
    """Texts, each at most a few thousand characters; `spellings` are the tokenizer's added tokens."""
    yield from ("", " ", "\n", "\0", "a", "\ufeff", "\U0010ffff", "\ud7ff\ue000", "".join(map(chr, range(160))))
    yield from PROSE
    yield from characters()
    yield from white_space()
    yield from repeats()
    yield from combining()
    yield from spelled(spellings)


def characters() -> Iterator[str]:
    """Every code point of the basic plane, every seventh of plane 1, and all emoji and tags, in changing contexts."""
    planes = chain(
        (c for c in range(0x10000) if not 0xD800 <= c <= 0xDFFF),
        range(0x10000, 0x1F000, 7),
        range(0x1F000, 0x1FB00),
        range(0x20000, 0x32000, 211),
        range(0xE0000, 0xE01F0),
        range(0xF0000, 0x110000, 9973),
    )
    shown = [CONTEXTS[i % len(CONTEXTS)].format(chr(c)) for i, c in enumerate(planes)]
    for start in range(0, len(shown), 512):
        yield "".join(shown[start : start + 512])


def white_space() -> Iterator[str]:
    """Runs of every length and kind of white space, and mixtures of kinds, between every class of neighbour."""
    for kind in WHITE_SPACE:
        yield "".join(f"{head}{kind * n}{tail}" for n in (1, 2, 3) for head, tail in zip("a.1中", "b,2文", strict=True))
    for kind in (" ", "\t", "\n", "\r\n", "\u3000", " \n", "\n ", "\t "):
        yield "x".join(kind * n for n in (*range(1, 40), 63, 64, 65, 127, 128, 129))
    mixtures = ["".join(mixture) for n in (2, 3, 4) for mixture in product(" \t\n\r", repeat=n)]
    for head, tail in (("a", "b"), (".", ","), ("1", "/"), ("!", " x"), ("\n", "\u0301")):
        yield "".join(head + mixture + tail for mixture in mixtures)
    for mixture in mixtures:
        yield "end" + mixture


def repeats() -> Iterator[str]:
    """Repeated characters, very long words, and repeating patterns whose period is not a power of two."""
    for character in "a0 -=#._*/\\'\"~한中é\u0301😀\u200d\n\t":
        yield " ".join(character * n for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 255, 256, 257, 300))
    yield "".join(chr(97 + i * i % 26) for i in range(3000))
    yield "".join(chr(65 + i * i % 26 + 32 * (i % 3 > 0)) for i in range(3000))
    yield "".join(chr(0x4E00 + i * i % 20000) for i in range(1000))
    yield "0123456789" * 150
    yield "'s't're've'm'll'd" * 60
    yield "ab'CD " * 300


def combining() -> Iterator[str]:
    """Composed and decomposed forms of the same characters, marks in and out of order, jamo, and marks without a letter."""
    marks = "\u0300\u0301\u0323\u0327\u0338\u0345\u05b0\u064e\u093c\u0e49\u3099\u20d0\ufe0f"
    yield "".join(a + b + c + " " for a, (b, c) in product("aEoZ ㄱ/か=", product(marks[:6], marks)))
    yield " ".join(marks) + "".join(marks) + "\n" + marks
    latin = "".join(chr(c) for c in (*range(0xC0, 0x250), *range(0x1E00, 0x2000), 0x212A, 0x212B, 0x2126, 0x1FEF))
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        yield unicodedata.normalize(form, latin + "가각갂뷁힣 क़ख़ग़ がぎぐ ﷺ ① ㍿ ﬁ 舘\ufa6d")
    yield "".join(chr(0x1100 + i % 19) + chr(0x1161 + i % 21) + chr(0x11A7 + i % 28) for i in range(200))


def spelled(spellings: Sequence[str]) -> Iterator[str]:
    """Added tokens: complete, partial, in the wrong case, next to each other and next to every class of neighbour."""
    few = list(spellings) if len(spellings) <= 48 else [*spellings[:24], *spellings[-24:]]
    yield "".join(spellings)
    yield " ".join(spellings)
    yield "x".join(spellings)
    for token in few:
        yield "".join(head + token + tail for head, tail in zip(HEADS, TAILS * 2, strict=False))
        yield "\n".join((token[1:], token[:-1], token.upper(), token.lower(), token[:1] + token, token + token[-1:]))
        yield f" {token}  {token}\n{token}\t\n {token * 3}{token[:-1]}{token}"
    yield "<s></s><unk><pad><mask><|endoftext|><|im_start|>user\n<|im_end|>[INST][/INST][CLS][SEP]<0x0A><extra_id_0>▁▁a▁"
