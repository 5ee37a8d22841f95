"""Pixels that belong to objects, as FGFI and DeFeat choose them: each box counts on one level, that of its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fgd_kernels.boxes import PackedBoxes

FINEST = 56.0  # boxes below twice this many pixels count on level 0, as in an FPN's assignment of proposals


def box_regions(boxes: PackedBoxes, level: int, levels: int, height: int, width: int) -> Tensor:
    """Where boxes of this level lie; (N, H, W) of bool. A box within a row or column of pixels counts as one pixel."""
    x1, y1, x2, y2 = _scaled(boxes, height, width).unbind(1)
    x1, x2 = _pixels(x1, x2, width)
    y1, y2 = _pixels(y1, y2, height)
    point = (x1 == x2) | (y1 == y2)
    # Of such a box the published code marks the first pixel alone.
    x2, y2 = torch.where(point, x1 + 1, x2), torch.where(point, y1 + 1, y2)
    x, y = (torch.arange(size, device=x1.device) for size in (width, height))
    columns = (x1[:, None] <= x) & (x < x2[:, None])
    rows = (y1[:, None] <= y) & (y < y2[:, None])
    inside = rows[:, :, None] & columns[:, None, :] & _of_level(boxes, level, levels)[:, None, None]
    return _by_image(inside, boxes)


def anchor_regions(
    boxes: PackedBoxes,
    level: int,
    levels: int,
    height: int,
    width: int,
    scales: Sequence[float],
    ratios: Sequence[float],
    threshold: float,
) -> Tensor:
    """Where an anchor overlaps a box of this level by more than ``threshold`` × the box's best; (N, H, W) of bool.

    Args:
        scales: the anchors' sizes in strides.
        ratios: of their height to their width.
    """
    if not len(boxes.values):
        return boxes.values.new_zeros((len(boxes.sizes), height, width), dtype=torch.bool)
    values, owner = boxes.values, _owner(boxes)
    stride_y, stride_x = (boxes.sizes[owner] / boxes.sizes.new_tensor([height, width])).unbind(1)  # (M,)
    scale, ratio = torch.cartesian_prod(*(values.new_tensor(list(each)) for each in (scales, ratios))).view(-1, 2).T
    x = _overlap(values[:, 0::2], stride_x, scale / ratio.sqrt(), width)  # (M, A, W)
    y = _overlap(values[:, 1::2], stride_y, scale * ratio.sqrt(), height)  # (M, A, H)
    common = y[:, :, :, None] * x[:, :, None, :]
    area = (values[:, 2] - values[:, 0]) * (values[:, 3] - values[:, 1])
    of_anchor = stride_x[:, None] * stride_y[:, None] * scale**2
    overlap = common / (area[:, None] + of_anchor).clamp(min=1e-6)[:, :, None, None].sub(common)
    best = overlap.flatten(1).amax(dim=1)
    near = (overlap > threshold * best[:, None, None, None]).any(dim=1)
    return _by_image(near & _of_level(boxes, level, levels)[:, None, None], boxes)


def _overlap(ends: Tensor, stride: Tensor, size: Tensor, count: int) -> Tensor:
    """(M, A, count): what boxes' sides have in common with anchors' sides of ``size`` strides around every pixel."""
    centre = torch.arange(count, device=ends.device) * stride[:, None]  # (M, count)
    half = (size * stride[:, None] / 2)[:, :, None]
    first = torch.maximum(centre[:, None] - half, ends[:, :1, None])
    return (torch.minimum(centre[:, None] + half, ends[:, 1:, None]) - first).clamp(min=0)


def _owner(boxes: PackedBoxes) -> Tensor:
    """Each box's image; the last for rows that belong to none, which `_of_level` leaves out."""
    rows = torch.arange(len(boxes.values), device=boxes.values.device, dtype=boxes.offsets.dtype)
    return torch.searchsorted(boxes.offsets[1:], rows, right=True).clamp(max=max(len(boxes.sizes) - 1, 0))


def _scaled(boxes: PackedBoxes, height: int, width: int) -> Tensor:
    """(M, 4) in pixels of the map."""
    map_size = boxes.values.new_tensor([width, height])
    factor = map_size / boxes.sizes[_owner(boxes)].flip(1)
    return boxes.values * factor.repeat(1, 2)


def _pixels(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return first.floor().clamp(0, size - 1), last.floor().clamp(0, size)


def _of_level(boxes: PackedBoxes, level: int, levels: int) -> Tensor:
    """(M,) of bool: whether a box is of this level, is one at all, and belongs to an image."""
    x1, y1, x2, y2 = boxes.values.unbind(1)
    side = ((x2 - x1 + 1) * (y2 - y1 + 1)).sqrt()
    own = (side / FINEST + 1e-6).log2().floor().clamp(0, levels - 1) == level
    height, width = boxes.sizes[_owner(boxes)].unbind(1)
    real = (x1 <= x2) & (y1 <= y2) & (x2 >= 0) & (y2 >= 0) & (x1 <= width) & (y1 <= height)
    rows = torch.arange(len(boxes.values), device=boxes.values.device)
    return own & real & boxes.values.isfinite().all(dim=1) & (rows < boxes.offsets[-1])


def _by_image(of_box: Tensor, boxes: PackedBoxes) -> Tensor:
    """(M, H, W) of bool to (N, H, W): whether any of an image's boxes has it."""
    found = of_box.new_zeros((len(boxes.sizes), *of_box.shape[1:]), dtype=torch.int32)
    return found.index_add_(0, _owner(boxes), of_box.int()) > 0
