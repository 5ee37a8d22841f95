"""The paper, equation by equation, in plain PyTorch: slow, obvious, and the judge of every kernel.

Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022. Numbers in parentheses are the
paper's equations; where it is silent, the authors' published implementation decides. Symbols, for one FPN level:

    student, teacher    (N, C, H, W)    features; the teacher is a constant
    box_values          (M, 4)          x1, y1, x2, y2 of all images' boxes, in pixels of the image
    box_offsets         (N + 1,)        image n owns the boxes box_offsets[n] .. box_offsets[n + 1]
    image_sizes         (N, 2)          height and width of the frame that the whole feature map covers

Everything is vectorised (no Python loop over boxes or images) and differentiable by autograd. float16 and bfloat16
features are computed in float32, as the kernels do it. This file imports nothing of the package.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class GcBlockPair(NamedTuple):
    """One level's two GcBlocks, the student's and the teacher's: its tensors in the published state dict's order."""

    key_s: Tensor  # conv_mask_s.weight (1, C, 1, 1): W_k of (12)
    key_bias_s: Tensor  # conv_mask_s.bias (1,): b_k
    key_t: Tensor  # conv_mask_t, likewise
    key_bias_t: Tensor
    w1_s: Tensor  # channel_add_conv_s.0.weight (K, C, 1, 1): W_v1
    b1_s: Tensor  # channel_add_conv_s.0.bias (K,)
    ln_weight_s: Tensor  # channel_add_conv_s.1.weight (K, 1, 1)
    ln_bias_s: Tensor  # channel_add_conv_s.1.bias (K, 1, 1)
    w2_s: Tensor  # channel_add_conv_s.3.weight (C, K, 1, 1): W_v2
    b2_s: Tensor  # channel_add_conv_s.3.bias (C,)
    w1_t: Tensor  # channel_add_conv_t, likewise
    b1_t: Tensor
    ln_weight_t: Tensor
    ln_bias_t: Tensor
    w2_t: Tensor
    b2_t: Tensor


GC_BLOCK_SIZE = len(GcBlockPair._fields)


def spatial_activation(features: Tensor) -> Tensor:
    """G^S (5): mean over the channels of |F|; (N, C, H, W) to (N, H, W)."""
    return features.abs().mean(dim=1)


def channel_activation(features: Tensor) -> Tensor:
    """G^C (6): mean over the pixels of |F|; (N, C, H, W) to (N, C)."""
    return features.abs().mean(dim=(2, 3))


def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """A^S (7): H·W·softmax(G^S / T) over an image's pixels; (N, H, W), mean 1. T = inf gives ones: no attention."""
    activation = spatial_activation(features)
    n, h, w = activation.shape
    return h * w * F.softmax(activation.view(n, h * w) / temperature, dim=1).view(n, h, w)


def channel_attention(features: Tensor, temperature: float) -> Tensor:
    """A^C (8): C·softmax(G^C / T) over the channels; (N, C), mean 1. T = inf gives ones: no attention."""
    return features.shape[1] * F.softmax(channel_activation(features) / temperature, dim=1)


def box_rectangles(box_values: Tensor, frame: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixels that each box covers on a map, ends included, and its weight 1 / (H_r·W_r) of (3).

    `frame` (M, 2) is each box's image height and width. Boxes are clamped to the image first. Returns the corners
    (M, 4) as x0, y0, x1, y1 and the weights (M,), all float32. Boxes that are not finite, inverted, or outside the
    image cover nothing: their corners are inverted. A corner may lie one pixel outside the map (x1 = width): it
    counts in the weight, as in the published implementation.
    """
    box_values, frame = box_values.float(), frame.float()
    h, w = frame.unbind(1)
    x1, y1, x2, y2 = box_values.unbind(1)
    covers = (x1 <= x2) & (y1 <= y2) & (x2 >= 0) & (y2 >= 0) & (x1 <= w) & (y1 <= h) & box_values.isfinite().all(1)
    zero = torch.zeros_like(w)
    x1, x2 = (torch.clamp(x, zero, w) / w * width for x in (x1, x2))
    y1, y2 = (torch.clamp(y, zero, h) / h * height for y in (y1, y2))
    x1, y1, x2, y2 = x1.floor(), y1.floor(), x2.ceil(), y2.ceil()
    weight = 1.0 / (y2 + 1 - y1) / (x2 + 1 - x1)
    corners = torch.stack([x1, y1, x2, y2], dim=1)
    nothing = corners.new_tensor([1.0, 1.0, 0.0, 0.0])
    return torch.where(covers[:, None], corners, nothing), weight


def foreground_mask(box_values: Tensor, box_offsets: Tensor, image_sizes: Tensor, height: int, width: int) -> Tensor:
    """M·S of (2) and (3): each pixel's largest box weight (the smallest box wins), 0 outside all; (N, H, W) float32."""
    images, boxes = image_sizes.shape[0], box_values.shape[0]
    mask = image_sizes.new_zeros((images, height, width), dtype=torch.float32)
    if images == 0 or boxes == 0:
        return mask
    rows = torch.arange(boxes, device=box_values.device, dtype=box_offsets.dtype)
    owner = torch.searchsorted(box_offsets[1:], rows, right=True)
    owned = owner < images  # rows after the last image's belong to none
    owner = owner.clamp(max=images - 1)
    corners, weight = box_rectangles(box_values, image_sizes[owner], height, width)
    weight = torch.where(owned, weight, 0.0)
    x0, y0, x1, y1 = corners[:, :, None].unbind(1)
    x = torch.arange(width, device=mask.device)
    y = torch.arange(height, device=mask.device)
    inside = ((y0 <= y) & (y <= y1))[:, :, None] & ((x0 <= x) & (x <= x1))[:, None, :]
    weights = torch.where(inside, weight[:, None, None], 0.0)
    index = owner[:, None, None].expand_as(weights)
    return mask.scatter_reduce(0, index, weights, "amax")


def background_mask(foreground: Tensor) -> Tensor:
    """(1 - M)·S of (3) and (4): 1 / N_bg on the pixels that no box covers, 0 elsewhere; (N, H, W)."""
    background = (foreground == 0).to(foreground.dtype)
    return background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def feature_loss(student: Tensor, teacher: Tensor, mask: Tensor, attention_s: Tensor, attention_c: Tensor) -> Tensor:
    """One of the two sums of (9), without its weight: Σ mask·A^S·A^C·(F^T - F^S)² over an image; (N,)."""
    error = (teacher - student).square()
    return torch.einsum("nchw,nhw,nc->n", error, mask.to(error.dtype) * attention_s, attention_c)


def attention_loss(student_s: Tensor, teacher_s: Tensor, student_c: Tensor, teacher_c: Tensor) -> Tensor:
    """(10) without γ: the L1 distances of spatial and channel attention, summed over an image; (N,)."""
    return (student_s - teacher_s).abs().sum(dim=(1, 2)) + (student_c - teacher_c).abs().sum(dim=1)


def gc_context(features: Tensor, mask_weight: Tensor, mask_bias: Tensor) -> Tensor:
    """The inner sum of (12): features averaged with softmax(W_k·F + b_k) over an image's pixels; (N, C).

    The weights sum to 1, so the average may be subtracted from the features first. In ∂L/∂W_k that leaves little to
    cancel: where one pixel has all the weight, its feature minus the average is 0, and no rounding stands for it.
    """
    logits = torch.einsum("nchw,c->nhw", features, mask_weight.flatten()) + mask_bias
    weights = F.softmax(logits.flatten(1), dim=1).view_as(logits)
    with torch.no_grad():
        average = torch.einsum("nchw,nhw->nc", features, weights)
    return average + torch.einsum("nchw,nhw->nc", features - average[:, :, None, None], weights)


def gc_transform(context: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """W_v2·ReLU(LN(W_v1·context)) of (12), with the biases of the published convolutions; (N, C) to (N, C)."""
    w1, b1, ln_weight, ln_bias, w2, b2 = parameters
    hidden = F.linear(context, w1.flatten(1), b1)
    hidden = F.layer_norm(hidden, hidden.shape[1:], ln_weight.flatten(), ln_bias.flatten())
    return F.linear(F.relu(hidden), w2.flatten(1), b2)


def gc_block_pair(student: Tensor, teacher: Tensor, gc_block: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the student's and the teacher's GcBlock add to every pixel of their features; two (N, C).

    `gc_block` has the level's 16 tensors in the order of `GcBlockPair`.
    """
    p = GcBlockPair(*(tensor.to(student.dtype) for tensor in gc_block))
    transform_s = p.w1_s, p.b1_s, p.ln_weight_s, p.ln_bias_s, p.w2_s, p.b2_s
    transform_t = p.w1_t, p.b1_t, p.ln_weight_t, p.ln_bias_t, p.w2_t, p.b2_t
    added_s = gc_transform(gc_context(student, p.key_s, p.key_bias_s), transform_s)
    added_t = gc_transform(gc_context(teacher, p.key_t, p.key_bias_t), transform_t)
    return added_s, added_t


def global_loss(student: Tensor, teacher: Tensor, gc_block: Sequence[Tensor]) -> Tensor:
    """(12) without λ: Σ (R(F^T) - R(F^S))² over an image; (N,). Zero where there are no GcBlocks (`gc_block` empty)."""
    if not gc_block:
        return student.new_zeros(student.shape[0])
    added_s, added_t = gc_block_pair(student, teacher, gc_block)
    difference = (student + added_s[:, :, None, None]) - (teacher + added_t[:, :, None, None])
    return difference.square().sum(dim=(1, 2, 3))


def level_terms(
    student: Tensor,
    teacher: Tensor,
    box_values: Tensor,
    box_offsets: Tensor,
    image_sizes: Tensor,
    gc_block: Sequence[Tensor],
    spatial_temperature: float,
    channel_temperature: float,
    foreground: Tensor | None = None,
) -> Tensor:
    """The four terms of one level, unweighted and averaged over the images: (4,) = L_fg, L_bg, L_at, L_gl.

    float32, or float64 for float64 features. The paper's ablations: a temperature of inf switches that attention
    off (table 5); empty `gc_block` leaves the global term out (table 4); no boxes at all gives one common area
    (table 1, 'no split'); the areas and losses themselves are switched by their weights. `foreground` (N, H, W)
    float32 is M·S of (2) and (3) where it does not come from boxes.
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if student.shape[0] == 0:  # zeros, and gradients of zero for all that may take one
        return torch.stack([x.flatten()[:0].sum() for x in (student, *gc_block)]).sum().to(dtype).expand(4)
    student_s, teacher_s = (spatial_attention(f, spatial_temperature) for f in (student, teacher))
    student_c, teacher_c = (channel_attention(f, channel_temperature) for f in (student, teacher))
    if foreground is None:
        foreground = foreground_mask(box_values, box_offsets, image_sizes, *student.shape[2:])
    background = background_mask(foreground.to(dtype))
    terms = [
        feature_loss(student, teacher, foreground, teacher_s, teacher_c),
        feature_loss(student, teacher, background, teacher_s, teacher_c),
        attention_loss(student_s, teacher_s, student_c, teacher_c),
        global_loss(student, teacher, gc_block),
    ]
    return torch.stack(terms).mean(dim=1)


def split_levels(foreground: Tensor, student: Sequence[Tensor]) -> list[Tensor]:
    """One (N, H, W) a level, from their numbers one after another."""
    shapes = [(s.shape[0], *s.shape[2:]) for s in student]
    parts = foreground.split([n * h * w for n, h, w in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def pyramid_terms(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    box_values: Tensor,
    box_offsets: Tensor,
    image_sizes: Tensor,
    gc_block: Sequence[Tensor],
    weights: Sequence[float],
    spatial_temperature: float,
    channel_temperature: float,
    foreground: Tensor | None = None,
) -> Tensor:
    """(13) without the detector's own loss: weighted terms of every level, (L, 4); their sum is the loss.

    `gc_block` is the levels' tensors one after another (16·L of them, or none), `weights` the (L, 4) factors in
    row order: α, β, γ, λ of level 0, of level 1, and so on. `foreground` has the numbers of every level's M·S, level
    after level, each (N, H, W); None takes them from the boxes.
    """
    size = GC_BLOCK_SIZE if gc_block else 0
    maps = [None] * len(student) if foreground is None else split_levels(foreground, student)
    rows = [
        level_terms(
            s,
            t,
            box_values,
            box_offsets,
            image_sizes,
            gc_block[level * size : (level + 1) * size],
            spatial_temperature,
            channel_temperature,
            maps[level],
        )
        for level, (s, t) in enumerate(zip(student, teacher, strict=True))
    ]
    terms = torch.stack(rows)
    return terms * terms.new_tensor(list(weights)).view(-1, 4)
