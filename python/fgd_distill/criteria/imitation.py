"""Plain imitation of features: the paper's equation (1), as FitNet has it (Romero et al., ICLR 2015)."""

from __future__ import annotations

from torch import Tensor

from .base import Channels, FeatureCriterion, Level, align_convolutions, run, summed_in


class ImitationLoss(FeatureCriterion):
    """The mean squared difference of each level, summed over the levels.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the loss.
    """

    loss_names = ("loss_imitation",)

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.align = align_convolutions(self.channels)

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.align[level.number], level.student)
        with summed_in(level):
            return ((student.to(level.teacher.dtype) - level.teacher).square().mean(),)
