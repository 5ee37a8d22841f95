"""The loss as it is commonly pasted into training code: our own statement of the published implementation.

It loops over images and over boxes with indices read back one by one, and multiplies whole feature maps with square
roots of masks and attentions. Tests compare masks with it bit for bit (boxes inside the image); benchmarks time it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def published_masks(boxes: list[Tensor], image_sizes, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Foreground and background masks (N, H, W) of (2) to (4), box by box."""
    foreground = torch.zeros(len(boxes), height, width)
    background = torch.ones_like(foreground)
    for n, (box, (h, w)) in enumerate(zip(boxes, image_sizes, strict=True)):
        scaled = box.clone()
        scaled[:, 0::2] = box[:, 0::2] / w * width
        scaled[:, 1::2] = box[:, 1::2] / h * height
        x0, y0 = scaled[:, 0].floor().int(), scaled[:, 1].floor().int()
        x1, y1 = scaled[:, 2].ceil().int(), scaled[:, 3].ceil().int()
        weight = 1.0 / (y1 + 1 - y0) / (x1 + 1 - x0)
        for j in range(len(box)):
            region = foreground[n, y0[j] : y1[j] + 1, x0[j] : x1[j] + 1]
            foreground[n, y0[j] : y1[j] + 1, x0[j] : x1[j] + 1] = torch.maximum(region, weight[j])
        background[n] = torch.where(foreground[n] > 0, 0.0, 1.0)
        if background[n].sum():
            background[n] /= background[n].sum()
    return foreground, background


def published_attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Spatial (N, H, W) and channel (N, C) attention of (5) to (8)."""
    n, c, h, w = features.shape
    magnitude = features.abs()
    spatial = h * w * F.softmax((magnitude.mean(1) / temperature).view(n, -1), dim=1).view(n, h, w)
    channel = c * F.softmax(magnitude.mean(2).mean(2) / temperature, dim=1)
    return spatial, channel


def published_context(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The GcBlock's context (N, C, 1, 1)."""
    n, c, h, w = features.shape
    mask = F.softmax(F.conv2d(features, weight, bias).view(n, 1, h * w), dim=2)
    return torch.matmul(features.view(n, 1, c, h * w), mask.unsqueeze(-1)).view(n, c, 1, 1)


def published_transform(context: Tensor, parameters) -> Tensor:
    """The GcBlock's two convolutions with LayerNorm and ReLU between them."""
    w1, b1, ln_weight, ln_bias, w2, b2 = parameters
    hidden = F.layer_norm(F.conv2d(context, w1, b1), ln_weight.shape, ln_weight, ln_bias)
    return F.conv2d(F.relu(hidden), w2, b2)


def published_loss(
    student: Tensor, teacher: Tensor, boxes, image_sizes, gc_block, weights, temperature: float
) -> Tensor:
    """One level's weighted loss. `weights` are α, β, γ, λ; `gc_block` as in fgd_kernels.reference.gc_block_pair."""
    alpha, beta, gamma, lambda_ = weights
    n = len(student)
    teacher_s, teacher_c = published_attention(teacher, temperature)
    student_s, student_c = published_attention(student, temperature)
    masks = published_masks(boxes, image_sizes, *student.shape[2:])

    attended_t = teacher * teacher_s.unsqueeze(1).sqrt() * teacher_c[:, :, None, None].sqrt()
    attended_s = student * teacher_s.unsqueeze(1).sqrt() * teacher_c[:, :, None, None].sqrt()
    fg, bg = (
        F.mse_loss(attended_s * root, attended_t * root, reduction="sum") / n
        for root in (mask.to(student.dtype).unsqueeze(1).sqrt() for mask in masks)
    )
    attention = ((student_c - teacher_c).abs().sum() + (student_s - teacher_s).abs().sum()) / n

    related_s = student + published_transform(published_context(student, *gc_block[0:2]), gc_block[4:10])
    related_t = teacher + published_transform(published_context(teacher, *gc_block[2:4]), gc_block[10:16])
    relation = F.mse_loss(related_s, related_t, reduction="sum") / n
    return alpha * fg + beta * bg + gamma * attention + lambda_ * relation
