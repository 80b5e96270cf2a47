"""JSON Schemas of what exact-prep writes, generated from the records: `python -m exact_prep.reports.schemas DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from exact_prep.records import canonical_json
from exact_prep.records.manifest import Manifest
from exact_prep.records.measured import MeasuredExposure
from exact_prep.records.weights import WeightsFile
from exact_prep.records.work import TaskRecord
from exact_prep.reports.facts import Facts, MeasuredFacts
from exact_prep.reports.row import RowFacts
from exact_prep.reports.simulate import Simulation

RECORDS: dict[str, Any] = {
    "manifest": Manifest,
    "task-record": TaskRecord,
    "exposure": MeasuredExposure,
    "weights": WeightsFile,
    "report": list[Facts | MeasuredFacts],
    "simulation": Simulation,
    "row": RowFacts,
}


def schema_files() -> dict[str, bytes]:
    """File name -> JSON Schema, as committed in `schemas/`."""
    return {f"{name}.schema.json": canonical_json(make_schema(name)) for name in RECORDS}


def make_schema(name: str) -> dict[str, Any]:
    """The schema of a record as it is written."""
    schema = TypeAdapter(RECORDS[name]).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    for file, data in schema_files().items():
        (Path(sys.argv[1]) / file).write_bytes(data)
