"""Several datasets weighed as one mixture: one table, its shares, the rows at its rates, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
from runs import exact_prep, make_texts, pack_here, read_files, read_json, read_rows, write_jsonl

import exact_prep as package
from exact_prep.errors import DatasetError, UsageError
from exact_prep.pipeline.verify import verify
from exact_prep.reader.mixture import apportion
from exact_prep.records.weights import WeightsFile
from exact_prep.reports import load_facts

SEQ_LEN = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_file):
    """Three datasets of different lengths of documents; not to be changed."""
    base = tmp_path_factory.mktemp("mixture")
    texts = make_texts(260)
    corpora = {
        "short": [text[:60] or "a" for text in texts[:160]],
        "mid": [" ".join(texts[i : i + 2]) for i in range(160, 200)],
        "long": [" ".join(texts[i : i + 9]) for i in range(200, 250)],
    }
    for name, own in corpora.items():
        pack_here([write_jsonl(base / f"{name}.jsonl", own)], base / name, tokenizer_file)
    return base


@pytest.fixture
def homes(made, tmp_path):
    return [shutil.copytree(made / name, tmp_path / name) for name in ("short", "mid", "long")]


def sum_targets(home, *, low=0, weighted=False):
    """Supervised targets of a dataset with an effective context from `low` on, token by token; or their weights."""
    total = 0.0
    for row in read_rows(home):
        start = 0
        for length in row["seq_lengths"]:
            for position in range(1, length):
                if position >= low:
                    total += row["loss_weights"][start + position] if weighted else 1
            start += length
    return total


def count_rows(home):
    return read_json(home / "manifest.json")["rows"]


def test_without_rates_the_table_is_that_of_all_rows_together(homes):
    ran = exact_prep("weigh", *homes, "--alpha", 0.5)
    files = [read_json(home / "weights.json") for home in homes]
    exposures = [read_json(home / "manifest.json")["exposure"]["counts"] for home in homes]
    counts = [sum(own[b] for own in exposures if b < len(own)) for b in range(max(map(len, exposures)))]
    assert all(isinstance(count, int) for count in files[0]["table"]["counts"])
    assert [file["table"]["counts"] for file in files] == [counts] * 3
    rows = [count_rows(home) for home in homes]
    assert [one["rate"] for one in files[0]["datasets"]] == [count / sum(rows) for count in rows]
    # The tail's extra over all rows is alpha, as one dataset of all rows would have it.
    tail = sum(sum_targets(home, low=16) for home in homes)
    extra = sum(sum_targets(home, low=16, weighted=True) for home in homes) / tail - 1
    assert extra == pytest.approx(0.5, rel=2e-3)
    assert verify(homes) == []
    for home, line in zip(homes, ran.stdout.splitlines()[2:], strict=True):
        others = sum(sum_targets(one) for one in homes)
        weighed = sum(sum_targets(one, weighted=True) for one in homes)
        before, after = sum_targets(home) / others, sum_targets(home, weighted=True) / weighed
        assert line.startswith(f"  {home}: {count_rows(home) / sum(rows):.2%} of the tokens, {before:.2%} of")
        assert abs(float(line.split()[-2].rstrip("%")) / 100 - after) < 2e-4


def test_rates_and_their_shares(homes):
    """Counts of the mixture as the spec's formula gives them, and shares of supervision token by token."""
    rates = [0.5, 0.2, 0.3]
    ran = exact_prep("weigh", *homes, "--rates", "5,2,3", "--alpha", 0.5)
    file = read_json(homes[0] / "weights.json")
    rows = [count_rows(home) for home in homes]
    exposures = [read_json(home / "manifest.json")["exposure"]["counts"] for home in homes]
    for b, count in enumerate(file["table"]["counts"]):
        parts = zip(rates, rows, exposures, strict=True)
        own = [rate * (one[b] if b < len(one) else 0) / number for rate, number, one in parts]
        assert count == pytest.approx(sum(rows) * sum(own), rel=1e-12)
    before = [rate * sum_targets(home) / number for rate, home, number in zip(rates, homes, rows, strict=True)]
    after = [
        rate * sum_targets(home, weighted=True) / number for rate, home, number in zip(rates, homes, rows, strict=True)
    ]
    lines = ran.stdout.splitlines()[2:]
    for line, rate, own, weighed in zip(lines, rates, before, after, strict=True):
        words = line.split(": ")[1].split()
        said = [float(word.rstrip("%")) / 100 for word in (words[0], words[4], words[-2])]
        assert said == pytest.approx([rate, own / sum(before), weighed / sum(after)], abs=2e-4)
    assert verify(homes) == []


def test_keep_mixture_keeps_each_dataset_s_share(homes):
    rates = [0.2, 0.3, 0.5]
    ran = exact_prep("weigh", *homes, "--rates", "0.2,0.3,0.5", "--alpha", 2, "--keep-mixture")
    for home in homes:
        # The mean weight of each dataset is 1, so supervision is shared as targets are.
        assert sum_targets(home, weighted=True) / sum_targets(home) == pytest.approx(1, abs=1e-3)
    rows = [count_rows(home) for home in homes]

    def mean(low, high):
        weighed = targets = 0.0
        for rate, home, number in zip(rates, homes, rows, strict=True):
            weighed += (
                rate / number * (sum_targets(home, low=low, weighted=True) - sum_targets(home, low=high, weighted=True))
            )
            targets += rate / number * (sum_targets(home, low=low) - sum_targets(home, low=high))
        return weighed / targets

    said = float(ran.stdout.splitlines()[-1].split()[-1])
    assert said == pytest.approx(mean(16, 64) / mean(0, 16) - 1, rel=5e-3)
    assert 0 < said < 2
    weighed = [
        rate / number * sum_targets(home, weighted=True) for rate, home, number in zip(rates, homes, rows, strict=True)
    ]
    tail = [
        rate / number * sum_targets(home, low=16, weighted=True)
        for rate, home, number in zip(rates, homes, rows, strict=True)
    ]
    after = float(ran.stdout.splitlines()[0].split()[-2].rstrip("%")) / 100
    assert after == pytest.approx(sum(tail) / sum(weighed), abs=5e-4)
    assert verify(homes) == []
    mixture = package.open(homes)
    for part, home in zip(mixture.parts, homes, strict=True):
        assert part.weight_per_row == pytest.approx(sum_targets(home, weighted=True) / count_rows(home))


def test_the_report_shows_the_mixture(homes):
    exact_prep("weigh", *homes, "--rates", "0.5,0.2,0.3", "--alpha", 2, "--keep-mixture")
    (facts,) = json.loads(exact_prep("report", homes[1], "--json").stdout)
    mixture = facts["weights"]["mixture"]
    file = read_json(homes[1] / "weights.json")
    assert [one["id"] for one in mixture["datasets"]] == [one["id"] for one in file["datasets"]]
    assert [one["directory"] for one in mixture["datasets"]] == ["", str(homes[1]), ""]
    assert [one["rate"] for one in mixture["datasets"]] == [0.5, 0.2, 0.3]
    assert [one["divisor"] for one in mixture["datasets"]] == [one["divisor"] for one in file["datasets"]]
    for one in mixture["datasets"]:
        assert one["weighted_share"] == pytest.approx(one["share"], rel=1e-9)
    shown = exact_prep("report", homes[1]).stdout
    assert f"tree hash {file['datasets'][0]['id'][:8]}" in shown
    assert f"each keeps its share; the tail's extra supervision is {mixture['extra']:.6g} of 2" in shown
    exact_prep("weigh", homes[1])
    assert load_facts(homes[1]).weights.mixture is None


def test_a_table_of_a_mixture_beside_its_datasets(homes, tmp_path):
    before = [read_files(home) for home in homes]
    out = tmp_path / "mixed.json"
    exact_prep("weigh", *homes, "--rates", "1,1,2", "--out", out)
    assert [read_files(home) for home in homes] == before
    assert verify(homes, weights=out) == []
    aside = [[row.loss_weights.tolist() for row in part] for part in package.open(homes, weights=out).parts]
    exact_prep("weigh", *homes, "--rates", "1,1,2")
    assert [[row.loss_weights.tolist() for row in part] for part in package.open(homes).parts] == aside


def test_rows_come_at_the_rates_until_the_first_dataset_was_served(homes):
    exact_prep("weigh", *homes, "--rates", "0.5,0.2,0.3")
    mixture = package.open(homes, seed=3)
    chosen, places = mixture.origins
    sizes = [count_rows(home) for home in homes]
    whole = min(size / rate for size, rate in zip(sizes, (0.5, 0.2, 0.3), strict=True))
    counts = Counter(chosen.tolist())
    assert all(abs(counts[part] - whole * rate) < 1 for part, rate in enumerate((0.5, 0.2, 0.3)))
    assert any(counts[part] == size for part, size in enumerate(sizes))
    assert len(set(zip(chosen.tolist(), places.tolist(), strict=True))) == len(mixture), "a row came twice"
    for number in (0, 1, len(mixture) - 1):
        stored = read_rows(homes[chosen[number]])[places[number]]
        assert mixture[number].input_ids.tolist() == stored["input_ids"]
        assert mixture[number].loss_weights.tolist() == stored["loss_weights"]
    # Every tenth of the order holds about the same of each: the order is mixed, not concatenated.
    assert len(set(chosen[: len(mixture) // 4].tolist())) == 3
    again, other = package.open(homes, seed=3), package.open(homes, seed=4)
    assert [one.tolist() for one in again.origins] == [chosen.tolist(), places.tolist()]
    assert other.origins[0].tolist() != chosen.tolist()
    baseline = package.open(homes, seed=3, plain=True)
    assert [one.tolist() for one in baseline.origins] == [chosen.tolist(), places.tolist()]
    assert set(baseline[0].loss_weights.tolist()) <= {0.0, 1.0}


def test_default_rates_serve_every_row_once(homes):
    exact_prep("weigh", *homes)
    chosen, places = package.open(homes).origins
    found = sorted(zip(chosen.tolist(), places.tolist(), strict=True))
    assert found == [(part, row) for part, home in enumerate(homes) for row in range(count_rows(home))]


def test_more_rows_repeat_and_say_so(homes):
    exact_prep("weigh", *homes, "--rates", "1,1,1")
    smallest = min(map(count_rows, homes))
    with pytest.warns(UserWarning, match=f"rows repeat: {min(homes, key=count_rows)} 2.00 times"):
        mixture = package.open(homes, rows=6 * smallest)
    assert len(mixture) == 6 * smallest
    chosen, places = mixture.origins
    assert Counter(chosen.tolist()) == dict.fromkeys(range(3), 2 * smallest)
    own = places[chosen == [count_rows(home) for home in homes].index(smallest)]
    assert set(Counter(own.tolist()).values()) == {2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(package.open(homes, rows=3 * smallest)) == 3 * smallest


def test_a_mixture_is_sliced_shuffled_and_shared_over_ranks(homes):
    exact_prep("weigh", *homes)
    mixture = package.open(homes)
    rows = [row.input_ids.tolist() for row in mixture]
    assert [row.input_ids.tolist() for row in mixture[3:9:2]] == rows[3:9:2]
    ranks = [[row.input_ids.tolist() for row in mixture.shard(rank, 3)] for rank in range(3)]
    assert [ranks[i % 3][i // 3] for i in range(len(rows))] == rows
    shuffled = [row.input_ids.tolist() for row in mixture.shuffle(1)]
    assert shuffled != rows
    assert sorted(shuffled) == sorted(rows)
    sums = [float(row.loss_weights.astype(np.float64).sum()) for row in mixture]
    assert mixture.weight_per_row == pytest.approx(sum(sums) / len(sums))
    with pytest.raises(IndexError, match="row"):
        mixture[len(mixture)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100, 10**6 + 1])
def test_rows_are_shared_out_within_one_row(rows):
    rates = np.array([0.5, 1 / 3, 1 / 6])
    counts = apportion(rows, rates)
    assert counts.sum() == rows
    assert np.abs(counts - rows * rates).max() < 1


def test_what_is_no_mixture_is_refused_before_anything_is_written(homes, made, tokenizer_file, tmp_path):
    before = [read_files(home) for home in homes]

    def refuse(words, *arguments):
        ran = exact_prep("weigh", *arguments, check=2)
        assert words in ran.stderr, ran.stderr

    refuse("--rates names 2 rates for 3 directories", *homes, "--rates", "1,2")
    refuse("--rates: 0 for", *homes, "--rates", "1,0,1")
    refuse("--rates: nan for", *homes, "--rates", "1,nan,1")
    refuse("numbers with commas", *homes, "--rates", "1;2;3")
    refuse("hold the same rows", homes[0], made / "short")
    pack_here([made / "mid.jsonl"], tmp_path / "rows-of-32", tokenizer_file, seq_lens=(32,))
    refuse(f"{homes[0]}: 64; {tmp_path / 'rows-of-32'}: 32", homes[0], tmp_path / "rows-of-32")
    refuse("exclude each other", *homes, "--keep-mixture", "--normalize", "mean")
    assert [read_files(home) for home in homes] == before


def test_several_tokenizers_are_refused(homes, tmp_path, tokenizer_file, made):
    other = tmp_path / "other.json"
    other.write_text(tokenizer_file.read_text() + " ")
    pack_here([made / "mid.jsonl"], tmp_path / "other", other)
    ran = exact_prep("weigh", homes[0], tmp_path / "other", check=2)
    assert f"one tokenizer, and these differ ({homes[0]}" in ran.stderr


def test_datasets_of_several_row_lengths_are_mixed_by_row_length(made, tokenizer_file, tmp_path):
    places = [tmp_path / name for name in ("a", "b")]
    for place, name in zip(places, ("short", "long"), strict=True):
        pack_here([made / f"{name}.jsonl"], place, tokenizer_file, seq_lens=(32, 64))
    weights = package.weigh(places, rates=[1, 3], progress=False)
    assert [one.seq_len for one in weights] == [32, 32, 64, 64]
    for length in ("32", "64"):
        files = [read_json(place / length / "weights.json") for place in places]
        assert files[0]["table"] == files[1]["table"]
        assert [one["rate"] for one in files[0]["datasets"]] == [0.25, 0.75]
    assert verify(places) == []


def test_a_part_that_was_weighed_again_is_found(homes):
    exact_prep("weigh", *homes)
    exact_prep("weigh", homes[1], "--alpha", 0.9)
    with pytest.raises(DatasetError, match="different tables of weights; weigh them together: `exact-prep weigh"):
        package.open(homes)
    findings = verify(homes)
    assert len(findings) == 2
    assert all("holds other weights now; weigh them together again" in one for one in findings)
    assert verify(homes[1]) == []
    exact_prep("weigh", *homes)
    assert verify(homes) == []
    with pytest.raises(DatasetError, match="in a mixture with 1 more"):
        package.open(homes[:2])
    with pytest.raises(DatasetError, match="comes twice"):
        package.open([*homes, homes[0]])
    with pytest.raises(UsageError, match="at least one dataset"):
        package.open([])
    with pytest.raises(UsageError, match="for a list of datasets"):
        package.open(homes[0], rows=3)


def test_a_mixture_that_was_stopped_is_finished_by_the_same_command(homes):
    """What a kill between two datasets leaves: the first holds the new table, the others their plain weights."""
    wanted = exact_prep("weigh", *homes, "--alpha", 0.7).stdout
    whole = [read_files(home) for home in homes]
    exact_prep("weigh", homes[1], "--alpha", 0.1)
    with pytest.raises(DatasetError, match="different tables"):
        package.open(homes)
    assert exact_prep("weigh", *homes, "--alpha", 0.7).stdout == wanted
    assert [read_files(home) for home in homes] == whole


def test_one_table_is_loaded_for_each_dataset_of_its_own(homes):
    exact_prep("weigh", *homes, "--keep-mixture", "--alpha", 1)
    file = WeightsFile.model_validate_json((homes[0] / "weights.json").read_bytes())
    for home, dataset in zip(homes, file.datasets, strict=True):
        loaded = package.load_weights(home)
        assert loaded.dataset_id == dataset.id
        assert loaded.lut[1] == np.float32(np.float16(1 / dataset.divisor))
