"""Skips where Triton's interpreter cannot run.

The folder is not called triton: tests/kernels is on the path, and without Triton `import triton` would find it.
"""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest


def interpreter_lacks() -> str:
    """Triton up to 3.6 turns arrays of one element into numbers as numpy 2.4 no longer does."""
    try:
        triton, numpy = (tuple(map(int, re.findall(r"\d+", version(name))[:2])) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return ""  # the tests say so themselves
    if triton < (3, 7) and numpy >= (2, 4):
        return f"Triton {version('triton')}'s interpreter fails with numpy {version('numpy')}: needs numpy < 2.4"
    return ""


def pytest_collection_modifyitems(items):
    why = interpreter_lacks()
    for item in items:
        if why and item.path.parent.name == "triton_backend" and item.path.name == "test_interpreted.py":
            item.add_marker(pytest.mark.skip(reason=why))
