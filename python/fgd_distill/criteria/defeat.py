"""DeFeat's loss on the neck: objects and background apart (Guo et al., CVPR 2021)."""

from __future__ import annotations

from torch import Tensor

from .base import Channels, FeatureCriterion, Level, checked_number, run, summed_in
from .fgfi import small_convolutions
from .regions import box_regions


class DeFeatLoss(FeatureCriterion):
    """Half the mean squared difference in the boxes and out of them, with a weight each, a mean over the levels.

    A box counts on the level of its size. DeFeat's part on the classification of proposals is not in it: it needs the
    detectors' heads.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the whole loss.
        objects, background: of the two parts; the published configuration's.
    """

    loss_names = ("loss_defeat_fg", "loss_defeat_bg")

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 1.0,
        objects: float = 3.0,
        background: float = 12.0,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.objects, self.background = checked_number("objects", objects), checked_number("background", background)
        self.adapt = small_convolutions(self.channels)

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.adapt[level.number], level.student)
        with summed_in(level):
            inside = box_regions(level.boxes, level.number, len(self.channels), *student.shape[2:])
            error = (student.to(level.teacher.dtype) - level.teacher).square().sum(dim=1)
            parts = [
                (error * area).sum() / (2 * student.shape[1] * area.sum()).clamp(min=1) / len(self.channels)
                for area in (inside.to(error.dtype), (~inside).to(error.dtype))
            ]
            return parts[0] * self.objects, parts[1] * self.background
