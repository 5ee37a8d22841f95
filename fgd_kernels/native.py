"""Loads the compiled library, once, and keeps the reason if that fails; what the library says about itself."""

import ctypes
import functools
import pathlib
from typing import NamedTuple

import torch


class BuildInfo(NamedTuple):
    """What the compiled library was built with, and which kernels it uses on this machine."""

    instruction_set: str  # "baseline", "avx2" or "avx512": the CPU kernels in use (FGD_CPU_ISA lowers it)
    compiler: str
    cuda: str  # nvcc and the architectures; "" without CUDA kernels
    cuda_missing: str  # why there are no CUDA kernels; "" where there are


def _path() -> pathlib.Path:
    return pathlib.Path(__file__).with_name("_C.so")


@functools.cache
def load() -> str | None:
    """Load the compiled library into torch.ops.fgd_kernels; None if that worked, else the reason why not."""
    library = _path()
    if not library.exists():
        note = library.with_suffix(".missing.txt")  # written by setup.py
        why = note.read_text() if note.exists() else "it was not built"
        return f"the compiled library is not there: {why}"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} failed to load: {error.__cause__ or error}"  # torch tells the path alone
    return None


def has_cuda() -> bool:
    """Whether the loaded library carries the CUDA kernels."""
    return load() is None and torch._C._dispatch_has_kernel_for_dispatch_key("fgd_kernels::forward", "CUDA")


@functools.cache
def build_info() -> BuildInfo | None:
    """What the loaded library was built with; None without one, and of one that an older checkout left here."""
    if load() is not None:
        return None
    library = ctypes.CDLL(str(_path()))
    queries = [f"fgd_{name}" for name in ("instruction_set", "compiler", "cuda_build", "cuda_missing")]
    if not all(hasattr(library, name) for name in queries):
        return None
    for name in queries:
        getattr(library, name).restype = ctypes.c_char_p
    return BuildInfo(*(getattr(library, name)().decode() for name in queries))


def cuda_missing() -> str:
    """Why the loaded library has no CUDA kernels."""
    info = build_info()
    return info.cuda_missing if info else "it does not say why"
