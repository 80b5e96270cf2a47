"""Measures a trained model of an experiment; says before the first run what cannot be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import TOKENIZER, open_dataset
from exact_prep.errors import UsageError
from exact_prep.validation import harness, nolima, probes, ruler
from exact_prep.validation.synthetic_data import SyntheticStream, make_document
from exact_prep.validation.tiers import TIERS
from exact_prep.validation.training_batches import make_batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from exact_prep.validation.items import Items
    from exact_prep.validation.jobs import Experiment, Job

    Measured = Callable[[int], None]


SUITE_LENGTHS = (0.5, 1, 2)
"""Of the text suite's texts, in rows."""


def measure(
    job: Job, model: nn.Module, measured: Measured = lambda tokens: None
) -> tuple[dict[str, Items], dict[str, float]]:
    """Take all measures of a trained model: by held-out item, and those of which only the mean is known.

    The held-out data are the same for every arm and seed. A run of the sweep has only the loss of the mixture, on other
    rows. `measured` is called with the tokens of each row, and of each question of the text suite.
    """
    experiment, tier = job.experiment, job.experiment.tier
    device, tail_from = experiment.device, job.tail_from
    if experiment.data is None:
        return measure_synthetic(job, model), {}
    corpus, length = job.corpus, job.stream.seq_len
    if job.sweeps:
        return keep_mixture(probes.measure_rows(model, corpus.tuning, tail_from, device)), {}
    measures = probes.measure_rows(
        model,
        corpus.held_out,
        tail_from,
        device,
        visible=choose_visible(tail_from, length) if tier.context_gain else (),
        gain_targets=tier.gain_targets,
        measured=lambda: measured(length),
    )
    codec, plain = load_codec(experiment.data), {}
    if codec and tier.ruler_items:
        makers = load_makers(experiment)
        lengths = tuple(int(times * length) for times in SUITE_LENGTHS)
        measures |= ruler.run_suite(model, codec, lengths, tier.ruler_items, 4242, device, makers, measured)
    if codec and experiment.harness:
        plain = harness.evaluate(model, codec, list(experiment.harness), device)
    return measures, plain


def measure_synthetic(job: Job, model: nn.Module) -> dict[str, Items]:
    """The measures of synthetic recall: of the mixture on rows as in training, others on longer ones."""
    tier, device, length = job.experiment.tier, job.experiment.device, 2 * job.experiment.tier.seq_len
    rows = SyntheticStream(
        seq_len=tier.seq_len, rows_per_step=1, steps=tier.held_out, seed=4244 if job.sweeps else 4242
    )
    mixture = keep_mixture(probes.measure_rows(model, map(rows.batch, range(tier.held_out)), job.tail_from, device))
    if job.sweeps:
        return mixture
    rng = np.random.default_rng(4242)
    held_out = [
        make_batch([(make_document(rng, length)[0], np.array([length], np.int32))]) for _ in range(tier.held_out)
    ]
    measures = probes.measure_rows(
        model,
        held_out,
        job.tail_from,
        device,
        visible=choose_visible(job.tail_from, length) if tier.context_gain else (),
        gain_targets=tier.gain_targets,
    )
    if tier.short_documents:
        rng = np.random.default_rng(4243)
        short = make_batch([(make_document(rng, 8)[0], np.array([8], np.int32)) for _ in range(tier.short_documents)])
        measures["loss 0-7"] = probes.measure_rows(model, [short], job.tail_from, device)["loss 0-7"]
    measures |= mixture
    if tier.questions:
        measures |= probes.recall_by_distance(model, length, tier.held_out, 4242, device)
        measures |= probes.evidence_ablation(model, tier.distances, 4242, device, questions=tier.questions)
    return measures


def keep_mixture(found: dict[str, Items]) -> dict[str, Items]:
    """The loss of the mixture alone."""
    return {name: items for name, items in found.items() if name.startswith("mixture ")}


def load_makers(experiment: Experiment) -> dict[str, ruler.Maker]:
    """The tasks of the text suite."""
    return ruler.MAKERS | (nolima.load_makers(experiment.nolima) if experiment.nolima else {})


def count_questions(experiment: Experiment) -> int:
    """Questions of the text suite that a run answers, or finds no room for; 0 without the suite."""
    if not experiment.tier.ruler_items or explain_no_text(experiment):
        return 0
    return experiment.tier.ruler_items * len(SUITE_LENGTHS) * len(load_makers(experiment))


def choose_visible(tail_from: int, length: int) -> tuple[int, ...]:
    """The numbers of visible tokens of context gain: tau, its half and quarter, and its doubles below `length`."""
    doubles = [tail_from << n for n in range(20) if (tail_from << n) + tail_from < length]
    return tuple(k for k in (tail_from // 4, tail_from // 2, *doubles) if k > 0)


def load_codec(directory: Path) -> ruler.Codec | None:
    """The tokenizer that a dataset keeps; None for a corpus of ids that named none. Raises DatasetError."""
    from tokenizers import Tokenizer

    dataset = open_dataset(directory)
    name = f"{TOKENIZER}/tokenizer.json"
    if name not in dataset.manifest.digests:
        return None
    loaded = Tokenizer.from_str(dataset.read(name).decode())

    class Text:
        def encode(self, text: str) -> list[int]:
            return loaded.encode(text, add_special_tokens=False).ids

        def decode(self, ids: list[int]) -> str:
            return loaded.decode(ids)

    return Text()


def check_text_suite(experiment: Experiment, notify: Callable[[str], None]) -> None:
    """Notify if the text suite will be skipped; raises UsageError if a requested measure cannot be taken."""
    if experiment.nolima is not None:
        nolima.load_makers(experiment.nolima)
    if experiment.harness:
        harness.import_harness()
    no_text = explain_no_text(experiment)
    absent = (
        "--no-text-suite leaves it out"
        if TIERS[experiment.tier_name].ruler_items
        else (f"the {experiment.tier_name} tier is too small for it")
    )
    small = "" if experiment.tier.ruler_items else absent
    no_suite = small or no_text if experiment.data is not None else no_text
    if experiment.nolima is not None and no_suite:
        raise UsageError(f"--nolima needs the text suite, but {no_suite}")
    if experiment.harness and no_text:
        raise UsageError(f"--harness needs a model that reads text, but {no_text}")
    if experiment.data is not None and no_suite:
        notify(f"no text suite: {no_suite}")


def explain_no_text(experiment: Experiment) -> str:
    """Why the models of an experiment cannot read text; empty if they can."""
    if experiment.data is None:
        return "synthetic tokens are not text"
    if load_codec(experiment.data):
        return ""
    return "the dataset was packed from ids, without a tokenizer"
