"""Formulas over counts: from what is visible to what weighs how much. No file is opened here.

    context.py    effective left context, its buckets, and a window that limits it
    exposure.py   the additive histogram of supervised targets per bucket
    mixture.py    several datasets with rates as one exposure, and weights that keep their shares
    weights.py    options and exposure -> weight per bucket -> weight per position -> float16
    files.py      weights.json from a table, and a table from weights.json

Source of the formulas: "Where Does Long-Context Supervision Actually Go? Effective-Context Exposure Balancing",
arXiv 2605.10544.
"""
