"""Runs a file of tests in Triton's interpreter, and skips it where that cannot run.

The folder is not called triton: tests/kernels is on the path, and without Triton `import triton` would find it.
"""

import os
import pathlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest


def interpreter_lacks() -> str:
    """Triton up to 3.6 turns arrays of one element into numbers as numpy 2.4 no longer does."""
    try:
        triton, numpy = (tuple(map(int, re.findall(r"\d+", version(name))[:2])) for name in ("triton", "numpy"))
    except PackageNotFoundError:
        return "Triton is not installed"
    if triton < (3, 7) and numpy >= (2, 4):
        return f"Triton {version('triton')}'s interpreter fails with numpy {version('numpy')}: needs numpy < 2.4"
    return ""


@pytest.fixture
def interpret():
    """Runs a file of this folder with TRITON_INTERPRET=1 in a process of its own: Triton decides at import."""
    if why := interpreter_lacks():
        pytest.skip(why)

    def run(name: str) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        path = pathlib.Path(__file__).with_name(name)
        command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        print(done.stdout[-6000:], done.stderr[-2000:])
        assert done.returncode == 0, done.stdout[-6000:]

    return run
