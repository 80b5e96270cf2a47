"""Two packed rows that every framework must train on alike, and the rule that here a skip can be a failure."""

from __future__ import annotations

import os

import pytest
from written_dataset import (
    documents,
    first_thirds,
    mask_dataset,
    read_weights_file,
    weigh_dataset,
    write_dataset,
    write_table,
)

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


ROWS = documents(40, 200)

OWN = {"alpha": 1.5, "gamma": 0.7}
"""Weights large enough to be seen in a gradient."""
OTHER = {"alpha": 2.5, "gamma": 0.2, "normalize": "mean"}
"""Weights of a table in a file."""


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A weighed dataset of some 40 rows whose shards hold the weights."""
    return weigh_dataset(write_dataset(tmp_path_factory.mktemp("data") / "packed", ROWS, seq_len=SEQ_LEN), **OWN)


@pytest.fixture(scope="session")
def table_directory(tmp_path_factory):
    """The same dataset with the same weights in weights.json alone (`--loss-weights table`)."""
    path = tmp_path_factory.mktemp("data") / "packed"
    return weigh_dataset(write_dataset(path, ROWS, seq_len=SEQ_LEN, loss_weights="table"), **OWN)


@pytest.fixture(scope="session")
def weights_table(directory, tmp_path_factory):
    """A table of other weights for the same rows, as `weigh --out` writes it."""
    return write_table(directory, tmp_path_factory.mktemp("tables") / "other.json", **OTHER)


@pytest.fixture(scope="session")
def weights_file(directory):
    """weights.json as plain data."""
    return read_weights_file(directory / "weights.json")


@pytest.fixture(scope="session", params=["column", "table", "column with a file", "table with a file"])
def weighed(request, directory, table_directory, weights_table):
    """Each way to keep weights: the directory, the table to open it with (or None), and the weights as plain data."""
    path = directory if request.param.startswith("column") else table_directory
    table = weights_table if request.param.endswith("file") else None
    return path, table, read_weights_file(table or path / "weights.json")


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """A weighed dataset in which the first third of each document carries no loss, and its weights as plain data."""
    path = write_dataset(tmp_path_factory.mktemp("data") / "masked", ROWS, seq_len=SEQ_LEN)
    weigh_dataset(mask_dataset(path, first_thirds), **OWN)
    return path, read_weights_file(path / "weights.json") | {"masked": True}


@pytest.fixture(scope="session")
def dataset(directory):
    return exact_prep.open(directory)


@pytest.fixture(scope="session")
def two_rows(dataset):
    """A row with padding and several documents, and a row with tail weights."""
    many = next(i for i, row in enumerate(dataset) if len(row.seq_lengths) > 2 and row.seq_lengths.sum() < SEQ_LEN)
    tail = next(i for i, row in enumerate(dataset) if row.loss_weights.max() > 1 and i != many)
    return dataset.select([many, tail])
