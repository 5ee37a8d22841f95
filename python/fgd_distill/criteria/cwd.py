"""CWD: every channel's map as a distribution over the pixels (Shu et al., ICCV 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import Channels, FeatureCriterion, Level, align_convolutions, checked_number, run, summed_in


class CWDLoss(FeatureCriterion):
    """The Kullback-Leibler divergence between the teacher's and the student's softmax over the pixels of a channel.

    A mean over channels and images, summed over the levels.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the loss.
        tau: temperature of both softmaxes; the loss is multiplied by its square.
    """

    loss_names = ("loss_cwd",)

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 10.0,
        tau: float = 1.0,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.tau = checked_number("tau", tau, above_zero=True)
        self.align = align_convolutions(self.channels)

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.align[level.number], level.student)
        with summed_in(level):
            ours, theirs = (
                F.log_softmax(features.to(level.teacher.dtype).flatten(2) / self.tau, dim=2)
                for features in (student, level.teacher)
            )
            channels = ours.shape[0] * ours.shape[1]
            return (F.kl_div(ours, theirs, reduction="sum", log_target=True) * (self.tau**2 / channels),)
