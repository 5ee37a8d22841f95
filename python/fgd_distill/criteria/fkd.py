"""FKD: imitation weighted by both networks' attention, and non-local relations (Zhang and Ma, ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgd_kernels.boxes import is_integer
from fgd_kernels.reference import spatial_attention

from ..errors import FGDValueError
from .base import Channels, FeatureCriterion, Level, checked_number, run, summed_in


class FKDLoss(FeatureCriterion):
    """Distances of features under attention, of channel means, of pixel means, and of what a non-local module relates.

    Each is a norm over the whole batch, not a mean over images, as published. The four weights are the authors'.

    Args:
        student_channels, teacher_channels, num_levels: as ``FGDLoss`` takes them.
        weight: of the whole loss.
        features, channels, pixels, relation: of the four terms.
        temperature: of the spatial attention.
        pools: each level's stride of the max-pooling before keys and values of the relation; None: 8, 4 and then 2.
        hidden: each level's channels of the relation; None: a quarter of the teacher's where ``pools`` is above 2, and
            half of them elsewhere.
    """

    loss_names = ("loss_fkd_features", "loss_fkd_channels", "loss_fkd_pixels", "loss_fkd_relation")

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        num_levels: int | None = None,
        weight: float = 1.0,
        features: float = 7e-5,
        channels: float = 4e-3,
        pixels: float = 4e-3,
        relation: float = 7e-5,
        temperature: float = 0.5,
        pools: Sequence[int] | None = None,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__(student_channels, teacher_channels, num_levels, weight)
        named = {"features": features, "channels": channels, "pixels": pixels, "relation": relation}
        self.weights = tuple(checked_number(name, value) for name, value in named.items())
        self.temperature = checked_number("temperature", temperature, above_zero=True)
        count = len(self.channels)
        strides = [8, 4, *[2] * count][:count] if pools is None else _counts("pools", pools, count)
        teacher = [t for _, t in self.channels]
        divided = [max(t // (4 if stride > 2 else 2), 1) for t, stride in zip(teacher, strides, strict=True)]
        inner = divided if hidden is None else _counts("hidden", hidden, count)
        self.levels = nn.ModuleList(_FKDLevel(*each) for each in zip(self.channels, inner, strides, strict=True))

    def level_terms(self, level: Level) -> tuple[Tensor, ...]:
        layers, teacher = cast(_FKDLevel, self.levels[level.number]), level.teacher
        adapted = run(layers.features, level.student)
        with summed_in(level):
            student = level.student.to(teacher.dtype)
            ours, theirs = (spatial_attention(f.detach(), self.temperature) for f in (student, teacher))
            mask = (ours + theirs) / 2
            terms = (
                (adapted.to(teacher.dtype) - teacher) * mask.sqrt()[:, None],
                run(layers.channels, student.mean(dim=(2, 3))) - teacher.mean(dim=(2, 3)),
                run(layers.pixels, student.mean(dim=1, keepdim=True)) - teacher.mean(dim=1, keepdim=True),
                run(layers.related, run(layers.relation_s, run(layers.enter, student)))
                - run(layers.relation_t, teacher),
            )
            # A norm, whose gradient at 0 is 0; the root of a sum of squares has none there.
            norms = (torch.linalg.vector_norm(term) for term in terms)
            return tuple(norm * weight for norm, weight in zip(norms, self.weights, strict=True))


class _FKDLevel(nn.Module):
    """What one level learns."""

    def __init__(self, channels: tuple[int, int], hidden: int, stride: int) -> None:
        super().__init__()
        student, teacher = channels
        # The published code supposes as many channels; where they differ the relation needs one more convolution.
        self.enter = nn.Conv2d(student, teacher, kernel_size=1) if student != teacher else nn.Identity()
        self.features = nn.Conv2d(student, teacher, kernel_size=1)
        self.channels = nn.Linear(student, teacher)
        self.pixels = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.related = nn.Conv2d(teacher, teacher, kernel_size=1)
        self.relation_s = DotProductRelation(teacher, hidden, stride)
        self.relation_t = DotProductRelation(teacher, hidden, stride)


class DotProductRelation(nn.Module):
    """A non-local block by dot products: F + BN(W · θ(F) φ(F)ᵀ g(F) / J), over J pooled pixels; it starts as identity.

    Without a softmax the products associate: φᵀg first, so no matrix of pixels by pixels is ever made.

    Args:
        channels: of the features.
        hidden: channels of the products.
        stride: of the max-pooling of φ and g.
    """

    def __init__(self, channels: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, hidden, kernel_size=1) for _ in range(3))
        self.out = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stride = stride
        for layer in (self.g, self.theta, self.phi):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        size = [min(self.stride, side) for side in features.shape[2:]]  # a map smaller than the pool is pooled whole
        key, value = (F.max_pool2d(layer(features), size).flatten(2) for layer in (self.phi, self.g))
        query = self.theta(features)
        moments = value @ key.transpose(1, 2) / key.shape[2]  # (N, C', C')
        return features + self._normalised(self.out((moments @ query.flatten(2)).view_as(query)))

    def _normalised(self, related: Tensor) -> Tensor:
        if related.numel() > related.shape[1]:
            return self.norm(related)
        # One image's map of one pixel has no deviation: by what earlier batches had.
        norm = self.norm
        return F.batch_norm(related, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def _counts(name: str, values: Sequence[int], levels: int) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != levels:
        raise FGDValueError(f"{name}: expected {levels} integers >= 1, one a level, got {values!r}")
    for index, value in enumerate(values):
        if not is_integer(value) or value < 1:
            raise FGDValueError(f"{name}[{index}]: expected an integer >= 1, got {value!r}")
    return [int(value) for value in values]
