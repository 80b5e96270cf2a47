"""What is measured on a trained model of an experiment, and what is not, said beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exact_prep.dataset import load_manifest
from exact_prep.errors import UsageError
from exact_prep.stores.local import read_bytes
from exact_prep.validation import harness, nolima, probes, ruler
from exact_prep.validation.batches import batch_of
from exact_prep.validation.synthetic import SyntheticStream, document

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from exact_prep.validation.plan import Experiment, Job


def measure(job: Job, model: nn.Module) -> dict[str, float]:
    """All measures of a trained model; held-out data are the same for every arm and seed."""
    experiment, tier = job.experiment, job.experiment.tier
    device = experiment.device
    if experiment.data is None:
        length = 2 * tier.seq_len
        rng = np.random.default_rng(4242)
        held_out = [batch_of([(document(rng, length)[0], np.array([length], np.int32))]) for _ in range(tier.held_out)]
        mixture = SyntheticStream(seq_len=tier.seq_len, rows_per_step=1, steps=tier.held_out, seed=4242)
        rows = [mixture.batch(step) for step in range(tier.held_out)]
        losses = probes.loss_by_bucket(model, held_out, device)
        if tier.short_documents:
            rng = np.random.default_rng(4243)
            short = batch_of([(document(rng, 8)[0], np.array([8], np.int32)) for _ in range(tier.short_documents)])
            losses["loss 0-7"] = probes.loss_by_bucket(model, [short], device)["loss 0-7"]
        return {
            **losses,
            **probes.loss_of_mixture(model, rows, job.tail_from, device),
            **probes.recall_by_distance(model, length, tier.held_out, 4242, device),
            **probes.evidence_ablation(model, tier.distances, 4242, device, questions=tier.questions),
        }
    stream, held_out = job.corpus
    measures = probes.loss_by_bucket(model, held_out, device)
    measures |= probes.loss_of_mixture(model, held_out, job.tail_from, device)
    tokenizer = stream.rows.manifest.tokenizer
    codec = codec_of(tokenizer.name, tokenizer.sha256)
    if codec and tier.ruler_items:
        lengths = (stream.seq_len // 2, stream.seq_len, 2 * stream.seq_len)
        makers = ruler.MAKERS | (nolima.makers(experiment.nolima) if experiment.nolima else {})
        measures |= ruler.suite(model, codec, lengths, tier.ruler_items, 4242, device, makers)
    if codec and experiment.harness:
        measures |= harness.evaluate(model, codec, list(experiment.harness), device)
    return measures


def codec_of(tokenizer: str, sha256: str) -> ruler.Codec | None:
    """The dataset's tokenizer if it is still where it was, unchanged; None if not."""
    from tokenizers import Tokenizer

    from exact_prep.tokenization import locate
    from exact_prep.tokenization.files import digest

    if not tokenizer or not Path(tokenizer).exists():
        return None
    data = read_bytes(locate(tokenizer))
    if digest(data) != sha256:
        return None
    loaded = Tokenizer.from_str(data.decode())

    class Text:
        def encode(self, text: str) -> list[int]:
            return loaded.encode(text, add_special_tokens=False).ids

        def decode(self, ids: list[int]) -> str:
            return loaded.decode(ids)

    return Text()


def tell_of_text_suite(experiment: Experiment, told: Callable[[str], None]) -> None:
    """Say if the text suite will be left out; raises UsageError if what was asked for cannot be measured."""
    if experiment.nolima is not None:
        nolima.makers(experiment.nolima)
    if experiment.harness:
        harness.imported()
    no_text = why_no_text(experiment)
    small = "" if experiment.tier.ruler_items else f"the {experiment.tier_name} tier is too small for it"
    no_suite = small or no_text if experiment.data is not None else no_text
    if experiment.nolima is not None and no_suite:
        raise UsageError(f"--nolima needs the text suite, but {no_suite}")
    if experiment.harness and no_text:
        raise UsageError(f"--harness needs a model that reads text, but {no_text}")
    if experiment.data is not None and no_suite:
        told(f"no text suite: {no_suite}")


def why_no_text(experiment: Experiment) -> str:
    """Why the models of an experiment cannot be asked in words; empty if they can."""
    if experiment.data is None:
        return "synthetic tokens are no text"
    tokenizer = load_manifest(experiment.data).tokenizer
    if codec_of(tokenizer.name, tokenizer.sha256):
        return ""
    return f"the dataset's tokenizer {tokenizer.name!r} is not there, or no longer the one it was packed with"
