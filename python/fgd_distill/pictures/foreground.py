"""What the loss takes for foreground, level by level, over the image: boxes, rotated boxes, polygons or masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fgd_kernels.foreground import Foreground

from ..errors import FGDValueError
from .attention import TITLE, WIDTH, over_foreground


def draw_foreground(
    picture: Tensor,
    foreground: Foreground,
    sizes: Sequence[tuple[int, int]],
    index: int = 0,
    boxes: Tensor | None = None,
) -> Figure:
    """One panel a level: the weights of one image's foreground over it, each level in colours of its own.

    Args:
        picture: (3, h, w) in 0..1, the padded batch's image.
        foreground: as ``fgd_kernels.fgd_loss`` takes it: one map (N, H, W) a level, or what makes them, such as
            ``fgd_kernels.foreground.polygons`` or the ``foreground`` of a ``StudentStep``.
        sizes: (H, W) of each level.
        index: which image of the batch, counted from 0.
        boxes: (n, 4) xyxy in pixels of ``picture``, to be outlined.

    Raises:
        ValueError: there are not as many maps as sizes, or a map is not of its size.
    """
    maps = [foreground(*size) for size in sizes] if callable(foreground) else list(foreground)
    shapes = [tuple(level.shape[1:]) for level in maps]
    if shapes != [tuple(size) for size in sizes] or not maps:
        raise FGDValueError(f"foreground: expected maps (N, H, W) of {list(sizes)}, got {shapes}")
    tall = WIDTH * picture.shape[1] / picture.shape[2] + TITLE
    figure = Figure(figsize=(len(maps) * (WIDTH + 0.08), tall), layout="constrained")
    outlined = torch.zeros(0, 4) if boxes is None else boxes.cpu()
    for level, (axes, weights) in enumerate(zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)):
        over_foreground(axes, picture.cpu(), weights[index].cpu(), level, outlined)
    return figure
