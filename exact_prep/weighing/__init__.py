"""Formulas over counts: effective context, exposure, weights. Opens no file."""
