"""MGD: the student's masked features have to generate the teacher's (Yang et al., ECCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import FGDValueError
from .base import Channels, FeatureCriterion, Level, align_convolutions, checked_number, run, summed_in


class MGDLoss(FeatureCriterion):
    """The squared difference of the teacher's map and what two convolutions make of the student's with pixels masked.

    Summed over channels, pixels and levels, a mean over images. Which pixels are masked is random in every call; seed
    torch to repeat it.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the loss; the authors take 2e-5 for one-stage and 5e-7 for two-stage detectors.
        masked: the share of pixels that is masked.
    """

    loss_names = ("loss_mgd",)

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 2e-5,
        masked: float = 0.65,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.masked = checked_number("masked", masked)
        if self.masked > 1:
            raise FGDValueError(f"masked: expected a share, 0 to 1, got {masked}")
        self.align = align_convolutions(self.channels)
        self.generation = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(teacher, teacher, kernel_size=3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(teacher, teacher, kernel_size=3, padding=1),
            )
            for _, teacher in self.channels
        )

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.align[level.number], level.student)
        n, _, h, w = student.shape
        kept = torch.rand((n, 1, h, w), device=student.device) <= 1 - self.masked
        generated = run(self.generation[level.number], student * kept)
        with summed_in(level):
            return ((generated.to(level.teacher.dtype) - level.teacher).square().sum() / n,)
