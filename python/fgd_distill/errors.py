"""Errors of this package's own checks, beside those of ``fgd_kernels.errors``."""

from __future__ import annotations

from fgd_kernels.errors import FGDError, FGDRuntimeError, FGDTypeError, FGDValueError

__all__ = [
    "FGDError",
    "FGDFileExistsError",
    "FGDFileNotFoundError",
    "FGDOSError",
    "FGDRuntimeError",
    "FGDTypeError",
    "FGDValueError",
]


class FGDOSError(FGDError, OSError):
    """A file or folder that cannot be used."""


class FGDFileNotFoundError(FGDOSError, FileNotFoundError):
    """A file or folder that is missing."""


class FGDFileExistsError(FGDOSError, FileExistsError):
    """A file or folder where nothing, or another one, was expected."""
