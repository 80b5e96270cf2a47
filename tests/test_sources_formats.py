"""Laws of the table of formats: it is the only list, and whatever else names formats agrees with it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from corpora import FORMATS as WRITERS
from corpora import SEPARATOR, gather, make_part

from exact_prep.choices import FileFormat, InputFormat
from exact_prep.errors import SourceError
from exact_prep.records.options import SourceOptions
from exact_prep.sources import RecordPlaces, find_inputs
from exact_prep.sources.batching import reject
from exact_prep.sources.formats import BY_SUFFIX, FORMATS
from exact_prep.sources.streams import CODECS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_words_of_options_and_records_are_the_table() -> None:
    assert list(get_args(FileFormat)) == list(FORMATS)
    assert set(get_args(InputFormat)) == {"auto", *FORMATS} - {"hub"}
    assert all(name == row.name for name, row in FORMATS.items())


def test_no_suffix_means_two_formats() -> None:
    assert len(BY_SUFFIX) == sum(len(row.suffixes) for row in FORMATS.values())
    assert not set(BY_SUFFIX) & set(CODECS)


def test_every_format_has_a_reader_and_a_corpus_to_test_it() -> None:
    for row in FORMATS.values():
        module, function = row.reader.split(":")
        assert callable(getattr(import_module(f"exact_prep.sources.{module}"), function))
    tested = {BY_SUFFIX[Path(name).suffix.lower()].name for name in WRITERS}
    assert tested == set(FORMATS) - {"hub"}


@pytest.mark.parametrize("suffix", [*BY_SUFFIX, *CODECS])
def test_the_readme_names_every_suffix(suffix: str) -> None:
    assert f"`{suffix}`" in README


@pytest.mark.parametrize("name", WRITERS)
def test_places_are_those_that_the_reader_names(tmp_path: Path, name: str) -> None:
    """A document that the tokenizer refuses is where the reader would have said that it is bad."""
    documents = [f"text {i}" for i in range(9)]
    (tmp_path / name).write_bytes(WRITERS[name](documents))
    inputs = find_inputs([str(tmp_path)], SourceOptions(separator=SEPARATOR))
    row = FORMATS[inputs.files[0].format]
    places = RecordPlaces(inputs, [make_part(inputs).slice])
    gather(inputs.read([make_part(inputs).slice], places))
    first = 0 if row.is_columnar else 1
    for record in (0, 4, 8):
        place = (str(tmp_path / name), f"{row.record} {first + record}")
        assert places.find(record) == place
        part = make_part(inputs, on_error="reject")
        bad = reject(part, record, "it is bad")
        assert (bad.source, bad.place) == place
        with pytest.raises(SourceError, match=re.escape(", ".join(place) + ": it is bad;")):
            reject(make_part(inputs), record, "it is bad")
    if row.unit in ("", "byte"):
        return
    later = make_part(inputs).slice.model_copy(update={"start": 1, "stop": 2})
    if name not in ("m.arrow", "o.arrow"):
        places = RecordPlaces(inputs, [later])
        gather(inputs.read([later], places))
        assert places.find(1) == (str(tmp_path / name), "row 4")


def test_what_is_compressed_from_outside_is_text() -> None:
    columnar = {row.name for row in FORMATS.values() if not row.compressible}
    assert columnar == {"parquet", "arrow", "hub"}
