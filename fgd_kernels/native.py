"""Loads the compiled library, once, and keeps the reason if that fails."""

import functools
import pathlib

import torch


@functools.cache
def load() -> str | None:
    """Load the compiled library into torch.ops.fgd_kernels; None if that worked, else the reason why not."""
    library = pathlib.Path(__file__).with_name("_C.so")
    if not library.exists():
        note = library.with_suffix(".missing.txt")  # written by setup.py
        why = note.read_text() if note.exists() else "it was not built"
        return f"the compiled library is not there: {why}"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} failed to load: {error}"
    return None


def has_cuda() -> bool:
    """Whether the loaded library carries the CUDA kernels."""
    return load() is None and torch._C._dispatch_has_kernel_for_dispatch_key("fgd_kernels::forward", "CUDA")
