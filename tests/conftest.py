"""Shared set-up: deterministic seeds, and the skip of tests that need a GPU."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
