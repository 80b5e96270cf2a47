"""Fixtures and the property-test profile shared by all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tokenizer import train_tokenizer

import exact_prep

# Processes that tests start import the package under test, installed or not.
os.environ["PYTHONPATH"] = str(Path(exact_prep.__file__).parents[1])

# They keep its byte code, as they would on a user's machine: to compile it takes each of them a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Jobs in the background ignore Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Kernels compile at their first call, so no deadline is meaningful.
settings.register_profile("exact", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("exact")


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    """A byte-level BPE of 400 tokens with an EOS, trained here."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture
def one_thread():
    """Torch on one thread, where bitwise laws hold."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
