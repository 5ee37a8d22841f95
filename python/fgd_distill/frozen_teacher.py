"""A module with a frozen teacher, which moves with its owner and is in none of its lists."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from .errors import FGDValueError


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ValueError if the two are one model, or share a part: a teacher that trains with the student."""
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        raise FGDValueError(f"teacher: shares {len(shared)} parameters with the student; expected a model of its own")


class FrozenTeacher(nn.Module):
    """A base class. Its ``teacher`` moves with ``.to()``, and is in none of ``parameters()``, ``state_dict()``,
    ``modules()`` and ``train()``.

    Deep copies share the teacher with the original, because it never changes; ``.to()`` of a copy leaves it where it
    is. A pickle contains it.
    """

    teacher: nn.Module
    shared: tuple[str, ...] = ("teacher",)
    """Names of the attributes that deep copies share."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            # Past nn.Module's own setattr, which would register the teacher and with it train, save and optimise it.
            object.__setattr__(self, "teacher", value)
            object.__setattr__(self, "_moves_teacher", True)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        for shared in (getattr(self, name) for name in self.shared):
            memo.setdefault(id(shared), shared)
        duplicate = memo[id(self)] = type(self).__new__(type(self))
        duplicate.__setstate__(copy.deepcopy(self.__dict__, memo) | {"_moves_teacher": False})
        return duplicate

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Everything that moves or converts a module (.to, .cuda, .half) passes here.
        super()._apply(fn, recurse)
        if recurse and self._moves_teacher:
            self._apply_to_teacher(fn)
        return self

    def _apply_to_teacher(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.teacher._apply(fn)
