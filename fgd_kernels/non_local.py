"""The Non-local relation of the paper's table 6, in place of GcBlock in the global term (12).

Wang et al., "Non-local Neural Networks", CVPR 2018, as the detection toolboxes have it: embedded Gaussian, half the
channels, logits divided by sqrt(C / 2), an output convolution that starts at zero.

    R(F) = F + W_out · Σ_j softmax_j( (W_θ F_i)·(W_φ F_j) / sqrt(C/2) ) W_g F_j

Plain PyTorch, not part of the fused pass. The P×P attention of a level with P pixels is never written out where
`scaled_dot_product_attention` has a kernel for it: on CPUs for every dtype, on GPUs for all but float64.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autocast import without_autocast


class NonLocalBlock(nn.Module):
    """What a Non-local block adds to its features; (N, C, H, W) to (N, C, H, W).

    Parameters have the names and the initialisation of the toolboxes' block: theta, phi and g normal with a deviation
    of 0.01, conv_out and all biases 0, so that the block starts as identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.g, self.theta, self.phi = (nn.Conv2d(channels, hidden, kernel_size=1) for _ in range(3))
        self.conv_out = nn.Conv2d(hidden, channels, kernel_size=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the class says."""
        for layer in (self.g, self.theta, self.phi):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(self.conv_out.weight)
        for layer in (self.g, self.theta, self.phi, self.conv_out):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        # (N, 1, P, C): one head. Each pixel's channels have to lie together, or no kernel takes it.
        pixels = features.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
        query, key, value = (_linear(layer, pixels) for layer in (self.theta, self.phi, self.g))
        related = _linear(self.conv_out, F.scaled_dot_product_attention(query, key, value))
        return related.squeeze(1).transpose(1, 2).view_as(features)


def non_local_terms(
    blocks: Iterable[tuple[NonLocalBlock, NonLocalBlock]], students: Sequence[Tensor], teachers: Sequence[Tensor]
) -> Tensor:
    """(12) without λ, with Non-local blocks: Σ (R(F^T) − R(F^S))² of each level, averaged over the images; (L,).

    float32, or float64 for float64 features, whatever autocast says: sums of squares leave float16's range.

    Args:
        blocks: the student's and the teacher's block of each level.
        students, teachers: one (N, C, H, W) a level, of equal shapes.
    """
    return torch.stack([_level(*pair, s, t) for pair, s, t in zip(blocks, students, teachers, strict=True)])


def _level(of_student: NonLocalBlock, of_teacher: NonLocalBlock, student: Tensor, teacher: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    if student.shape[0] == 0:  # zero, and gradients of zero for all that may take one
        empty = [x.flatten()[:0].sum() for x in (student, *of_student.parameters(), *of_teacher.parameters())]
        return torch.stack([x.to(dtype) for x in empty]).sum()
    with without_autocast(student.device.type):
        s, t = student.to(dtype), teacher.to(dtype)
        difference = (s + of_student(s)) - (t + of_teacher(t))
        return difference.square().sum() / student.shape[0]


def _linear(layer: nn.Conv2d, pixels: Tensor) -> Tensor:
    """A 1×1 convolution over pixels (N, 1, P, C)."""
    bias = None if layer.bias is None else layer.bias.to(pixels.dtype)
    return F.linear(pixels, layer.weight.flatten(1).to(pixels.dtype), bias)
