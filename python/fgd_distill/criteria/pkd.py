"""PKD: features compared by Pearson's correlation (Cao et al., NeurIPS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Channels, FeatureCriterion, Level, align_convolutions, run, summed_in


class PKDLoss(FeatureCriterion):
    """Half the mean squared difference of maps that are normalised channel by channel: 1 − r, Pearson's correlation.

    Summed over the levels. Magnitudes do not count, so one weight serves pairs of all kinds: the authors take 6 for
    two-stage detectors and 10 for others.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the loss.
    """

    loss_names = ("loss_pkd",)

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 6.0,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        self.align = align_convolutions(self.channels)

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        student = run(self.align[level.number], level.student)
        with summed_in(level):
            difference = normalised(student.to(level.teacher.dtype)) - normalised(level.teacher)
            return (difference.square().mean() / 2,)


def normalised(features: Tensor) -> Tensor:
    """Mean 0 and deviation 1 of each channel over a batch's pixels; 0 where a channel is constant."""
    pixels = features.shape[0] * features.shape[2] * features.shape[3]
    deviation, mean = torch.std_mean(features, dim=(0, 2, 3), keepdim=True, correction=min(1, pixels - 1))
    return (features - mean) / (deviation + 1e-6)
