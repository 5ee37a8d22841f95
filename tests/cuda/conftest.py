"""Imports for the tests here: the interpreter of tests/ptx, and the helpers beside this file."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ptx")]


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` need a device; those that compile kernels need nvcc."""
    import compiled
    import torch

    from fgd_kernels import ops

    here = [item for item in items if pathlib.Path(item.fspath).parent == HERE]
    status = ops.backends()["cuda"]
    no_gpu = None if torch.cuda.is_available() and status.available else f"needs a GPU: {status.reason}"
    for item in here:
        on_device = item.get_closest_marker("gpu")
        why = no_gpu if on_device else compiled.missing()
        if why and not item.get_closest_marker("plain"):
            item.add_marker(pytest.mark.skip(reason=why))
