"""Names that training code imports; a test that must change here breaks it. Those of `exact_prep`: test_reader.py."""

from __future__ import annotations

import importlib

import pytest
from oracle import framework

INTEGRATIONS = {
    "torch": {
        "BatchPolicy",
        "Collator",
        "ContextWatch",
        "Loader",
        "assert_documents_isolated",
        "carried",
        "carry",
        "denominator",
        "document_block_mask",
        "linear_weighted_cross_entropy",
        "weighted_cross_entropy",
    },
    "transformers": {"WeightedLossMixin", "hugging_face_dataset"},
    "jax": {"BatchPolicy", "Loader", "collate", "denominator", "weighted_cross_entropy"},
}


@pytest.mark.parametrize("name", sorted(INTEGRATIONS))
def test_the_names_of_each_integration_stay_where_they_are(name):
    framework(name)
    module = importlib.import_module(f"exact_prep.integrations.{name}")
    assert INTEGRATIONS[name] <= set(dir(module))
