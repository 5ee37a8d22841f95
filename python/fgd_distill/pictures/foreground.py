"""What the loss takes for foreground, level by level, over the image: boxes, rotated boxes, polygons or masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fgd_kernels.foreground import Foreground

from ..errors import FGDTypeError, FGDValueError
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
        TypeError: an argument is of another kind.
        ValueError: a shape is wrong, there are not as many maps as sizes, or there is no such image.
    """
    _check_tensor("picture", picture, "(3, h, w)")
    if not isinstance(sizes, Sequence) or not sizes or not all(_is_size(size) for size in sizes):
        raise FGDValueError(f"sizes: expected (H, W) of each level, numbers > 0, got {sizes!r}")
    if not callable(foreground) and not isinstance(foreground, Sequence):
        raise FGDTypeError(
            f"foreground: expected maps (N, H, W), one a level, or what makes them, got {type(foreground).__name__}"
        )
    maps = [foreground(*size) for size in sizes] if callable(foreground) else list(foreground)
    for level, weights in enumerate(maps):
        _check_tensor(f"foreground[{level}]", weights, "(N, H, W)")
    shapes = [tuple(level.shape[1:]) for level in maps]
    if shapes != [tuple(size) for size in sizes]:
        raise FGDValueError(f"foreground: expected maps (N, H, W) of {list(sizes)}, got {shapes}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < min(map(len, maps)):
        raise FGDValueError(f"index: expected an image of the {min(map(len, maps))} of the maps, from 0, got {index!r}")
    if boxes is not None:
        _check_tensor("boxes", boxes, "(n, 4)")
    tall = WIDTH * picture.shape[1] / picture.shape[2] + TITLE
    figure = Figure(figsize=(len(maps) * (WIDTH + 0.08), tall), layout="constrained")
    outlined = torch.zeros(0, 4) if boxes is None else boxes.detach().cpu()
    for level, (axes, weights) in enumerate(zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)):
        over_foreground(axes, picture.detach().cpu(), weights[index].detach().cpu(), level, outlined)
    return figure


def _check_tensor(argument: str, given: object, shape: str) -> None:
    """Raises unless it is a tensor of as many sizes as ``shape`` has, those equal that are numbers in it."""
    sizes = shape.strip("()").split(", ")
    if not isinstance(given, Tensor):
        raise FGDTypeError(f"{argument}: expected a tensor {shape}, got {type(given).__name__}")
    fits = given.ndim == len(sizes) and all(
        not size.isdecimal() or int(size) == length for size, length in zip(sizes, given.shape, strict=True)
    )
    if not fits:
        raise FGDValueError(f"{argument}: expected a tensor {shape}, got {tuple(given.shape)}")


def _is_size(size: object) -> bool:
    return (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size)
    )
