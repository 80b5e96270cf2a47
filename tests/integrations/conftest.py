"""Two packed rows that every framework must train on alike, and the rule that here a skip can be a failure."""

from __future__ import annotations

import json
import os

import pytest
from written_dataset import documents, weigh_dataset, write_dataset

import exact_prep

REQUIRED = os.environ.get("EXACT_PREP_REQUIRE_FRAMEWORKS") == "1"
"""Set where the frameworks are installed: a test that would skip fails instead."""

SEQ_LEN = 64


def refuse_skip(report):
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although EXACT_PREP_REQUIRE_FRAMEWORKS=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return refuse_skip((yield))


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A weighed dataset of some 40 rows whose tail weights are large enough to be seen."""
    path = write_dataset(tmp_path_factory.mktemp("data") / "packed", documents(40, 200), seq_len=SEQ_LEN)
    return weigh_dataset(path, alpha=1.5, gamma=0.7)


@pytest.fixture(scope="session")
def weights_file(directory):
    """weights.json as plain data."""
    return json.loads((directory / "weights.json").read_text())


@pytest.fixture(scope="session")
def dataset(directory):
    return exact_prep.open(directory)


@pytest.fixture(scope="session")
def two_rows(dataset):
    """A row with padding and several documents, and a row with tail weights."""
    many = next(i for i, row in enumerate(dataset) if len(row.seq_lengths) > 2 and row.seq_lengths.sum() < SEQ_LEN)
    tail = next(i for i, row in enumerate(dataset) if row.loss_weights.max() > 1 and i != many)
    return dataset.select([many, tail])
