"""How the frozen teacher runs: its type, its layout in memory, and whether it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import FGDTypeError, FGDValueError

Dtype = Literal["float16", "bfloat16", "float32"]
DTYPES = get_args(Dtype)


@dataclass
class TeacherSettings:
    """What makes a frozen teacher cheaper; it changes the teacher in place.

    Args:
        dtype: the floating type in which it runs and hands on its maps; None: its own. The loss takes them as they
            are, and sums in float32. It wins over autocast and over ``.to()`` of the distiller.
        channels_last: whether weights and batch lie in that order, in which many devices convolve faster.
        compile: whether ``torch.compile`` makes faster code of it. That takes minutes, and is for images of few sizes.

    Raises:
        TypeError, ValueError: a setting is of the wrong type or out of range.
    """

    dtype: Dtype | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise FGDValueError(f"teacher.dtype: expected one of {', '.join(DTYPES)}, or None, got {self.dtype!r}")
        for name in ("channels_last", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise FGDTypeError(f"teacher.{name}: expected true or false, got {getattr(self, name)!r}")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """``dtype`` as PyTorch has it."""
        return None if self.dtype is None else getattr(torch, self.dtype)

    def apply(self, teacher: nn.Module) -> None:
        """Brings the teacher into that type and layout.

        Raises:
            ValueError: channels_last of a teacher without convolutions.
        """
        if self.dtype is not None:
            teacher.to(self.torch_dtype)
        if self.channels_last:
            if not any(parameter.ndim == 4 for parameter in teacher.parameters()):
                raise FGDValueError(
                    f"teacher.channels_last: expected a teacher with convolutions, got {type(teacher).__name__} without"
                )
            teacher.to(memory_format=torch.channels_last)

    def batch(self, batch: Tensor, dtype: torch.dtype) -> Tensor:
        """A batch (N, 3, H, W) as the teacher takes it."""
        batch = batch.detach().to(dtype)
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch


def compile_what_runs(model: nn.Module, run: Callable[[], Any]) -> None:
    """Compiles in place the modules that ``run`` calls itself, rather than from inside of another module.

    What a family calls of a detector to get its maps differs: the backbone, each layer by turn, the whole model.

    Raises:
        ValueError: it calls none.
    """
    found: dict[int, nn.Module] = {}
    depth = 0

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal depth
        if depth == 0:
            found.setdefault(id(module), module)
        depth += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = [h for m in model.modules() for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise FGDValueError(f"teacher.compile: expected modules of {type(model).__name__} to run, got none")
    for module in found.values():
        module.compile()
