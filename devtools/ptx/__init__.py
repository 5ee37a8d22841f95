"""Runs PTX, as nvcc and Triton write it, on the CPU: values, errors and counters, with no GPU. See
devtools/ptx/README.md.
"""

from .counters import Counts
from .errors import (
    Deadlock,
    DeviceAssert,
    Misaligned,
    OutOfBounds,
    PtxError,
    PtxSyntaxError,
    RaceError,
    ReadOnly,
    TooManySteps,
    UninitialisedShared,
    WarpSyncError,
)
from .floats import bf16_to_f32, f32_to_bf16
from .gpu import GPU
from .parser import parse

__all__ = [
    "GPU",
    "Counts",
    "Deadlock",
    "DeviceAssert",
    "Misaligned",
    "OutOfBounds",
    "PtxError",
    "PtxSyntaxError",
    "RaceError",
    "ReadOnly",
    "TooManySteps",
    "UninitialisedShared",
    "WarpSyncError",
    "bf16_to_f32",
    "f32_to_bf16",
    "parse",
]
