"""Shared set-up: deterministic seeds, the skip of tests that need a GPU, and which files workers begin with."""

from collections import Counter

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Begun last, one of these would keep a single worker busy at the end.
SLOWEST = ("test_compiled.py", "test_interpreted_exact.py", "test_interpreted_cases.py", "test_interpreted.py")


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # `make test` takes them in this order, by --no-loadscope-reorder
        rank, tests = {name: i for i, name in enumerate(SLOWEST)}, Counter(item.path for item in items)
        items.sort(key=lambda item: (rank.get(item.path.name, len(rank)), -tests[item.path]))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
