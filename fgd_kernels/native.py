"""Loads the compiled library, once, and keeps the reason if that fails."""

import functools
import pathlib

import torch

PATTERN = "_C*.so"


@functools.cache
def load() -> str | None:
    """Load the compiled library into torch.ops.fgd_kernels; None if that worked, else the reason why not."""
    folder = pathlib.Path(__file__).parent
    files = sorted(folder.glob(PATTERN))
    if not files:
        return "the compiled library is not there: this is a pure-Python install (no C++ compiler when it was built?)"
    try:
        torch.ops.load_library(str(files[0]))
    except (OSError, RuntimeError) as error:
        return f"{files[0].name} failed to load: {error}"
    return None


def has_cuda() -> bool:
    """Whether the loaded library carries the CUDA kernels."""
    return load() is None and torch._C._dispatch_has_kernel_for_dispatch_key("fgd_kernels::forward", "CUDA")
