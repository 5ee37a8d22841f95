"""The losses by name, and what a configuration says of one."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ..errors import FGDTypeError, FGDValueError

CRITERIA = {
    "imitation": "imitation:ImitationLoss",
    "fgfi": "fgfi:FGFILoss",
    "fkd": "fkd:FKDLoss",
    "defeat": "defeat:DeFeatLoss",
    "pkd": "pkd:PKDLoss",
    "cwd": "cwd:CWDLoss",
    "mgd": "mgd:MGDLoss",
}


@dataclass
class CriterionConfig:
    """Another loss than FGD's, to compare with.

    Args:
        name: ``imitation``, ``fgfi``, ``fkd``, ``defeat``, ``pkd``, ``cwd`` or ``mgd``.
        weight: of the loss; None takes its authors'. ``calibrate`` finds one.
        options: further arguments of its class, such as ``{tau: 4}`` for ``cwd``.

    Raises:
        ValueError: there is no such loss, or it has no such option.
    """

    name: str
    weight: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("criterion.name", self.name, list(CRITERIA), FGDValueError)
        for name in self.options:
            _one_of("criterion.options", name, self._known(), FGDTypeError)

    def _known(self) -> list[str]:
        taken = inspect.signature(criterion_class(self.name)).parameters
        return [name for name in taken if name not in ("student_channels", "teacher_channels", "num_levels", "weight")]

    def arguments(self) -> dict[str, Any]:
        """Of the class, besides the channels."""
        return self.options | ({} if self.weight is None else {"weight": self.weight})


def criterion_class(name: str) -> type:
    """The class of a loss, by its name in ``CRITERIA``: made and called as ``FGDLoss`` is, with boxes."""
    module, _, attribute = CRITERIA[name].partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)


def _one_of(argument: str, value: str, known: list[str], error: type[Exception]) -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise error(f"{argument}: expected one of {', '.join(known) or 'none'}, got {value!r}{meant}")
