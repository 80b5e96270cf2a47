"""Fixtures and the property-test profile shared by all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import exact_prep

# Processes that tests start import the package under test, installed or not.
os.environ["PYTHONPATH"] = str(Path(exact_prep.__file__).parents[1])

# Kernels compile at their first call, so no deadline is meaningful.
settings.register_profile("exact", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("exact")


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    """A byte-level BPE of 400 tokens with an EOS, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["the long context of a row", "context and weight", "supervision of the tail", "documents 0123"] * 3
    tokenizer.train_from_iterator(texts, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path
