"""Shared set-up: paths, deterministic seeds, and the skip of tests that need a GPU."""

import pathlib
import sys

import pytest
import torch
from hypothesis import settings

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]


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
