"""The instruction set, one module a family. Importing this package fills the tables."""

from . import (  # noqa: F401  (imported for their registrations)
    async_copy,
    atomics,
    barriers,
    bits,
    branches,
    compare,
    convert,
    float_math,
    integer_math,
    loads_stores,
    matrix,
    mbarrier,
    moves,
    warp,
)
from .registry import CONTROL, STEPS

__all__ = ["CONTROL", "STEPS"]
