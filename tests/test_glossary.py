"""`exact-prep explain`: every term is found by each of its names, and an unknown one names those that are near."""

from __future__ import annotations

import os

import pytest
from runs import exact_prep

from exact_prep.errors import UsageError
from exact_prep.reports.glossary import TERMS, find_term


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_is_found_by_each_of_its_names(term):
    for name in (term.name, term.name.upper(), term.name.replace(" ", "-"), f"{term.name}s"):
        assert find_term(name) is term
    names = {one.name for one in TERMS}
    for name in term.also:
        assert find_term(name).name in {term.name, name} | (names & {name})


def test_terms_are_sorted_and_told_apart():
    names = [term.name for term in TERMS]
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("word", "near"),
    [("effectiv contxt", "effective context"), ("hash", "tree hash"), ("buckt", "bucket"), ("xyz", "alignment, alpha")],
)
def test_an_unknown_term_names_those_that_are_near(word, near):
    with pytest.raises(UsageError, match=near):
        find_term(word)


def test_the_command_explains_a_term_and_lists_all():
    listed = exact_prep("explain").stdout
    for term in TERMS:
        assert f"\n{term.name}" in f"\n{listed}"
    assert max(map(len, listed.splitlines())) <= 80
    said = exact_prep("explain", "effective", "context").stdout
    assert said.startswith("effective context (also: context, effective left context)\n\nHow many tokens of its own")
    assert max(map(len, said.splitlines())) <= 80
    for arguments in ((), ("effective", "context")):
        narrow = exact_prep("explain", *arguments, env={**os.environ, "COLUMNS": "60"}).stdout
        assert max(map(len, narrow.splitlines())) <= 60
        assert narrow.split() == (said if arguments else listed).split()
    assert exact_prep("explain", "tau").stdout.startswith("tail from")
    assert "did you mean bucket?" in exact_prep("explain", "buckt", check=2).stderr
