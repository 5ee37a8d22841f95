"""FGFI: imitation where anchors are near objects (Wang et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import FGDTypeError, FGDValueError
from .base import Channels, FeatureCriterion, Level, checked_number, run, summed_in
from .regions import anchor_regions


class FGFILoss(FeatureCriterion):
    """The squared difference on pixels where an anchor overlaps an object by more than half of what any anchor does.

    Divided by twice the number of these pixels, a mean over the levels. For detectors with anchors; give it theirs.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the loss.
        threshold: the share of an object's best overlap.
        anchor_scales: the anchors' sizes, in strides of their level.
        anchor_ratios: of their height to their width.
    """

    loss_names = ("loss_fgfi",)

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 0.01,
        threshold: float = 0.5,
        anchor_scales: Sequence[float] = (8.0,),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.threshold = checked_number("threshold", threshold)
        self.anchor_scales = _numbers("anchor_scales", anchor_scales)
        self.anchor_ratios = _numbers("anchor_ratios", anchor_ratios)
        self.adapt = small_convolutions(self.channels)

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.adapt[level.number], level.student)
        with summed_in(level):
            height, width = student.shape[2:]
            near = anchor_regions(
                level.boxes,
                level.number,
                len(self.channels),
                height,
                width,
                self.anchor_scales,
                self.anchor_ratios,
                self.threshold,
            ).to(level.teacher.dtype)
            error = (student.to(level.teacher.dtype) - level.teacher).square().sum(dim=1)
            return ((error * near).sum() / (2 * near.sum()).clamp(min=1) / len(self.channels),)


def small_convolutions(channels: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """A level's 3x3 convolution to the teacher's channels, that begins near zero: the adaptation of FGFI and DeFeat."""
    layers = nn.ModuleList(nn.Conv2d(s, t, kernel_size=3, padding=1) for s, t in channels)
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=1e-4, a=-2e-4, b=2e-4)  # type: ignore[arg-type]
    return layers


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise FGDTypeError(f"{name}: expected a list of numbers > 0, got {values!r}")
    if not values:
        raise FGDValueError(f"{name}: expected at least one number, got none")
    return [checked_number(f"{name}[{index}]", value, above_zero=True) for index, value in enumerate(values)]
