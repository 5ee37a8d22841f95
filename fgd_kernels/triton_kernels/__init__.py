"""The loss in Triton, for GPUs without the compiled kernels: docs/triton.md. Importing this imports Triton.

Both functions have the operator's schema (ops.py). Everything they decide, they decide from shapes, strides and types:
no synchronisation, nothing copied to the device, so that a CUDA graph can record them.
"""

from .host.backward import backward
from .host.forward import forward

__all__ = ["backward", "forward"]
