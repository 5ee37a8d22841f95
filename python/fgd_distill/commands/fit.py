"""``fgd-distill fit`` and ``validate``."""

from __future__ import annotations

from collections.abc import Sequence

from ..processes import leave_processes
from ..training.run import run


def fit(options: Sequence[str]) -> None:
    """Trains a detector, alone or with a teacher."""
    _run("fit", options)


def validate(options: Sequence[str]) -> None:
    """Evaluates a detector by COCO metrics."""
    _run("validate", options)


def _run(command: str, options: Sequence[str]) -> None:
    run([command, *options])
    leave_processes()
