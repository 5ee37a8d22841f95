"""What the criteria share: the interface of ``fgd_kernels.FGDLoss``, its checks, and how numbers are kept in range."""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgd_kernels.autocast import without_autocast
from fgd_kernels.boxes import PackedBoxes
from fgd_kernels.functional import checked_inputs
from fgd_kernels.modules import channels_per_level, checked_channels

from ..errors import FGDTypeError, FGDValueError

Channels = int | Sequence[int]


class Level(NamedTuple):
    """One level of a batch.

    Args:
        number: of the level.
        student: (N, C_s, H, W), as the student gave it.
        teacher: (N, C_t, H, W), float32 (float64 for float64 features), without gradient.
        boxes: of the batch.
    """

    number: int
    student: Tensor
    teacher: Tensor
    boxes: PackedBoxes


class FeatureCriterion(nn.Module):
    """A distillation loss on a pyramid of feature maps, called as ``FGDLoss`` is.

    Its parameters are trained with the student. Convolutions run as autocast says; sums are taken in float32, outside
    of it (float64 for float64 features).

    Args:
        student_channels: channels of the student's levels; one number for all, or one a level.
        teacher_channels: the same for the teacher.
        num_levels: number of levels; 5 if both channel arguments are single numbers.
        weight: of the whole loss.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; the message names it.
    """

    loss_names: tuple[str, ...]
    """The keys that a call returns."""

    def __init__(
        self, student_channels: Channels, teacher_channels: Channels, num_levels: int | None, weight: float
    ) -> None:
        super().__init__()
        self.weight = checked_number("weight", weight)
        pairs = channels_per_level(student_channels, teacher_channels, num_levels)
        self.channels = [checked_channels(*pair) for pair in pairs]

    @abstractmethod
    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        """One 0-dim term a name of ``loss_names``, unweighted; a batch has at least one image."""

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        boxes: Sequence[Tensor] | PackedBoxes,
        image_sizes: Sequence[Sequence[float]] | Tensor | None = None,
        *,
        validate: bool = False,
        return_levels: bool = False,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], Tensor]:
        """The weighted terms by name; they sum to the loss.

        Args:
            student_features: one (N, C_s, H, W) a level.
            teacher_features: one (N, C_t, H, W) a level, without gradient.
            boxes: one tensor (n_i, 4) an image, x1, y1, x2, y2 in pixels; or what ``pack_boxes`` made of them.
            image_sizes: one (height, width) an image: the frame that the whole feature map covers; None if the boxes
                are packed.
            validate: check box values on a GPU too.
            return_levels: also return each level's weighted terms, detached (L, number of terms).
        """
        self._check_student(student_features)
        students, teachers, packed = checked_inputs(
            student_features, teacher_features, boxes, image_sizes, validate, self.channels
        )
        rows = [self._row(Level(i, s, t, packed)) for i, (s, t) in enumerate(zip(students, teachers, strict=True))]
        terms = torch.stack(rows) * self.weight
        losses = dict(zip(self.loss_names, terms.sum(dim=0).unbind(), strict=True))
        return (losses, terms.detach()) if return_levels else losses

    def _check_student(self, features: object) -> None:
        expected = f"student_features: expected a list of {len(self.channels)} tensors"
        if isinstance(features, Tensor | Mapping) or not isinstance(features, Sequence):
            raise FGDTypeError(f"{expected}, got {type(features).__name__}")
        if len(features) != len(self.channels):
            raise FGDValueError(f"{expected} (num_levels), got {len(features)}")

    def _row(self, level: Level) -> Tensor:
        s, t = level.student, level.teacher
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        if len(s) == 0:  # zeros, and gradients of zero for all that may take one
            nothing = torch.stack([x.flatten()[:0].sum().to(dtype) for x in (s, *self.parameters())]).sum()
            return nothing.expand(len(self.loss_names))
        return torch.stack([term.to(dtype) for term in self.level_terms(level._replace(teacher=t.to(dtype)))])

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


def align_convolutions(channels: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """A level's 1x1 convolution to the teacher's channels, or nothing where the student has as many."""
    return nn.ModuleList(nn.Conv2d(s, t, kernel_size=1) if s != t else nn.Identity() for s, t in channels)


def run(module: nn.Module, features: Tensor) -> Tensor:
    """A module of features of any dtype: under autocast they are taken as they are, else in the module's dtype."""
    parameter = next(module.parameters(), None)
    if parameter is None or (not features.is_meta and torch.is_autocast_enabled(features.device.type)):
        return module(features)
    return module(features.to(parameter.dtype))


def summed_in(level: Level) -> AbstractContextManager:
    """For sums: autocast switched off on the level's device."""
    return without_autocast(level.student.device.type)


def checked_number(name: str, value: object, above_zero: bool = False) -> float:
    """``value`` as a float.

    Raises:
        TypeError, ValueError: it is no finite number >= 0, or > 0.
    """
    wanted = "> 0" if above_zero else ">= 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise FGDTypeError(f"{name}: expected a number {wanted}, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise FGDValueError(f"{name}: expected a finite number {wanted}, got {value}")
    return float(value)
