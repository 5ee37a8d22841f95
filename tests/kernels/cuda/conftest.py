"""Skips without nvcc; a backend that is the interpreter."""

import pathlib

import pytest

from devtools.offline import cuda_build, cuda_device
from fgd_kernels import ops

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Tests that compile kernels need nvcc; those marked `gpu` ask for their backend themselves."""
    why = cuda_build.missing()
    for item in items:
        if why and HERE in pathlib.Path(item.fspath).parents and not item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def interpreted(monkeypatch):
    """A backend "ptx" for FGDLoss and the like: the CUDA kernels in the interpreter. Yields the runs it made."""
    choose, find, runs = ops.choose_backend, ops._operator, []
    monkeypatch.setitem(ops._NAMES, "ptx", "ptx")
    monkeypatch.setattr(ops, "choose_backend", lambda name, *rest: name if name == "ptx" else choose(name, *rest))
    monkeypatch.setattr(ops, "_operator", lambda name: cuda_device.operator(runs) if name == "ptx" else find(name))
    return runs
