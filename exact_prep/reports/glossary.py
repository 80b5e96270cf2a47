"""What the words mean: for `exact-prep explain`, and wherever a report explains a term."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from exact_prep.errors import UsageError


class Term(NamedTuple):
    """A term and what it means."""

    name: str
    text: str
    also: tuple[str, ...] = ()
    """Other words for it."""


TERMS = (
    Term(
        "alignment",
        "Which token a weight belongs to. `target`: the weight at t is for the token at t, and the trainer shifts"
        " (Hugging Face). `prediction`: it is for the prediction made at t, whose target is the token at t + 1; "
        "the data come shifted (Megatron, Levanter, torchtitan). The wrong one trains the wrong tokens.",
        (
            "align",
            "prediction",
        ),
    ),
    Term(
        "alpha",
        "The extra supervision of the tail: the sum over the tail's buckets of share times (weight - 1). 0.15 "
        "gives the tail 15 % more than its own targets would have.",
    ),
    Term(
        "bucket",
        "A range of effective context: [0, 7], [8, 15], [16, 31], ..., each as wide as all before it. All targets"
        " of a bucket have one weight.",
    ),
    Term(
        "effective context",
        "How many tokens of its own document a model sees when it predicts a target: the target's position in its"
        " segment, at most the window under sliding-window attention. A document that a row cuts begins again at "
        "0.",
        (
            "context",
            "effective left context",
        ),
    ),
    Term(
        "exposure",
        "The histogram of a corpus: supervised targets per bucket of effective context. It is a sum, so tasks, "
        "shards, sources and datasets add up. Weights follow from it and the options alone.",
        ("histogram",),
    ),
    Term(
        "extra supervision",
        "What the weights add to the tail, relative to its own targets. As computed it is alpha, less what a "
        "limit of weights took; as stored it differs by the rounding to float16.",
    ),
    Term(
        "gamma",
        "How the extra supervision is spread inside the tail: a bucket gets it by its share to the power of "
        "-gamma. 0 gives all tail targets the same weight, 0.5 more to rare long contexts.",
    ),
    Term(
        "keep mixture",
        "Weights divided per dataset by their mean, so that each dataset of a mixture keeps its share of "
        "supervision. It lowers the extra supervision that the tail really gets; the report says to what.",
        (
            "mixture",
            "rates",
        ),
    ),
    Term(
        "ledger",
        "Where every token came from and went: text, BOS and EOS in, rows and nothing else out. A run whose "
        "ledger does not add up fails.",
        ("token ledger",),
    ),
    Term(
        "mean weight",
        "The mean weight of a supervised target over the corpus. Divide a batch's weighted loss by mean weight "
        "times its supervised targets where a sum over ranks is not at hand.",
        ("denominator",),
    ),
    Term(
        "segment",
        "What of one document lies in one row. Attention stops at its edges, and its first token has no context: "
        "it carries no loss unless --supervise-first.",
        (
            "seq_lengths",
            "cu_seqlens",
        ),
    ),
    Term(
        "source",
        "Where a document comes from, by --source-from: the input, its directory, or a field of the record. "
        "Reports show the share of supervision of each, before and after weighing.",
        ("label",),
    ),
    Term(
        "supervised target",
        "A token that carries loss: not padding, not masked, and not the first of its segment unless "
        "--supervise-first.",
        (
            "target",
            "targets",
        ),
    ),
    Term(
        "supervision",
        "The sum of weights of some targets; its share is what part of the loss they make. Before weighing every "
        "target weighs 1.",
        ("share",),
    ),
    Term(
        "tail",
        "The targets whose effective context is tau or more: those that long-context training is for. EXACT gives"
        " them a fixed extra supervision.",
    ),
    Term(
        "tail from",
        "tau: where the tail begins, a bucket edge. The default is the first edge from a quarter of the row on, "
        "or of the window if that is shorter.",
        (
            "tau",
            "tail-from",
        ),
    ),
    Term(
        "tree hash",
        "xxh3 over the content of all shards: token ids, segments, documents. Equal hash, equal data, with or "
        "without weights, on any machine, with any number of workers.",
    ),
    Term(
        "window",
        "Tokens that a query sees under sliding-window attention, itself included: contexts are at most that. "
        "Models with a layer that sees the whole document have none.",
        ("sliding window",),
    ),
)
"""Sorted by name."""


def find_term(word: str) -> Term:
    """The term of that name, or one that is also called so; raises UsageError with names that are near."""
    wanted = normalize(word)
    for term in TERMS:
        if wanted == normalize(term.name):
            return term
    for term in TERMS:
        if wanted in map(normalize, term.also):
            return term
    names = {normalize(name): term.name for term in TERMS for name in (term.name, *term.also)}
    close = [names[name] for name in difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)]
    close += [term.name for term in TERMS if wanted and wanted in normalize(term.name)]
    near = ", ".join(dict.fromkeys(close))
    hint = f"did you mean {near}?" if near else f"there is {', '.join(term.name for term in TERMS)}"
    raise UsageError(f"{word!r} is not a term of the glossary; {hint}")


def normalize(word: str) -> str:
    """A word without case, hyphens and the plural's s."""
    return " ".join(word.lower().replace("-", " ").replace("_", " ").split()).removesuffix("s")
