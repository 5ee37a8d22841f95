"""Errors of this project's own checks. Their messages say all: the argument, what was expected, what came."""

from __future__ import annotations


class FGDError(Exception):
    """What the caller gave cannot be used. A command shows the message alone, without a traceback."""


class FGDValueError(FGDError, ValueError):
    """A value out of range, or one that does not fit another."""


class FGDTypeError(FGDError, TypeError):
    """An argument of another type."""


class FGDRuntimeError(FGDError, RuntimeError):
    """A call that cannot be served in this state or on this machine."""
