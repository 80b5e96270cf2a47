"""Where supervision goes: one record of facts (`facts`), and its renderings (`terminal`, the record's own JSON)."""

from exact_prep.reports.facts import Facts, gather

__all__ = ["Facts", "gather"]
