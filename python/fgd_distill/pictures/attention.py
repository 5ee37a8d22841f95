"""Figures 1 and 5 of the paper, for one's own image and models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from ..detectors.by_name import DetectorConfig, build_detector
from ..errors import FGDValueError
from .images import coco_image, image_file
from .style import HEAT, check_png, save
from .view import TEACHER, AttentionView, view_attention

Scale = Literal["fixed", "teacher"]
ForegroundKind = Literal["boxes", "masks"]
WIDTH = 2.0  # inches of a panel
TITLE = 0.42  # inches above it
BRIGHTEST = 4.0  # times the mean: what the fixed scale's last colour stands for


def draw_attention(
    view: AttentionView,
    levels: Sequence[int] | None = None,
    temperature: float | None = None,
    scale: Scale = "fixed",
) -> Figure:
    """Two rows a level: the foreground mask and each model's spatial attention over the image; below, its channel
    attention as a grid with one square a channel.

    A title tells how concentrated the attention is: on how many pixels of equal share it would be as concentrated; a
    student's also the mean difference from the teacher's attention.

    Args:
        view: what ``view_attention`` found.
        levels: which feature maps, counted from 0; None for all.
        temperature: T, for the title.
        scale: of the colours, the same for all models. ``fixed``: from 0 to 4 times the mean, so that pictures compare
            and flat attention looks flat; ``teacher``: from the level's smallest to its largest value of the teacher.

    Raises:
        ValueError: a level that does not exist.
    """
    count = len(view.foreground)
    levels = list(range(count)) if levels is None else list(levels)
    if not levels or not all(0 <= level < count for level in levels):
        raise FGDValueError(f"levels: expected some of 0 to {count - 1}, got {levels}")
    columns = 1 + len(view.spatial)
    tall = WIDTH * view.picture.shape[1] / view.picture.shape[2]
    heights = [height + TITLE for _ in levels for height in (tall, min(WIDTH, max(tall, 1.3)))]
    figure = Figure(figsize=(columns * (WIDTH + 0.08), sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for row, level in enumerate(levels):
        _draw_spatial(grid[2 * row], grid[2 * row + 1, 0], view, level, scale)
        _draw_channels(list(grid[2 * row + 1, 1:]), grid[2 * row + 1, 0], view, level, scale)
    if temperature is not None:
        figure.suptitle(f"attention at T = {temperature:g}", fontsize=11)
    return figure


def _draw_spatial(row: Sequence[Axes], legend: Axes, view: AttentionView, level: int, scale: Scale) -> None:
    over_foreground(row[0], view.picture, view.foreground[level], level, view.boxes)
    span = _span(view.spatial[TEACHER][level], scale)
    for axes, (name, maps) in zip(row[1:], view.spatial.items(), strict=True):
        shown = _over_picture(axes, view.picture, maps[level], span, view.boxes)
        axes.set_title(_title(name, "pixels", maps[level], view.spatial[TEACHER][level]), fontsize=9)
    _colour_bar(legend, shown, 0.62, "spatial attention $A^S$", scale)


def _draw_channels(row: Sequence[Axes], legend: Axes, view: AttentionView, level: int, scale: Scale) -> None:
    span = _span(view.channel[TEACHER][level], scale)
    for axes, vectors in zip(row, view.channel.values(), strict=True):
        vector = vectors[level]
        side = math.ceil(math.sqrt(len(vector)))
        square = torch.full((side * side,), torch.nan)
        square[: len(vector)] = vector
        shown = axes.imshow(square.view(side, side).numpy(), cmap=HEAT, vmin=span[0], vmax=span[1])
        axes.set_title(_title("", "channels", vector, view.channel[TEACHER][level]), fontsize=9)
        axes.set_axis_off()
    _colour_bar(legend, shown, 0.22, "channel attention $A^C$", scale)


def over_foreground(axes: Axes, picture: Tensor, weights: Tensor, level: int, boxes: Tensor) -> None:
    """A level's foreground (H, W) over the grey picture, the background left free."""
    _over_picture(axes, picture, weights.where(weights > 0, torch.nan), None, boxes)
    height, width = weights.shape
    axes.set_title(f"level {level}, {height}×{width}: foreground", fontsize=9)


def _over_picture(
    axes: Axes, picture: Tensor, values: Tensor, span: tuple[float, float] | None, boxes: Tensor
) -> AxesImage:
    """``values`` (H, W) over the grey picture, in the picture's pixels: the map covers it from edge to edge."""
    _, height, width = picture.shape
    extent = (0, width, height, 0)
    axes.imshow(picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    low, high = span or (0.0, float(values.nan_to_num(0.0).max()) or 1.0)
    shown = axes.imshow(
        values.numpy(), cmap=HEAT, vmin=low, vmax=high, alpha=0.62, extent=extent, interpolation="nearest"
    )
    for x1, y1, x2, y2 in boxes.tolist():
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=0.9))
    axes.set_axis_off()
    return shown


def _span(values: Tensor, scale: Scale) -> tuple[float, float]:
    if scale == "fixed":
        return 0.0, BRIGHTEST
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def effective(attention: Tensor) -> float:
    """How many entries of equal share would be as concentrated as ``attention``: 1 / sum of squared shares."""
    share = attention.double().flatten() / attention.double().sum()
    return float(1 / share.square().sum())


def _title(name: str, kind: str, values: Tensor, teacher: Tensor) -> str:
    """The name, how concentrated the attention is, and mean |A - A_T|, where the two can be compared."""
    spread = f"as on {effective(values):.0f} of {values.numel()} {kind}"
    if values is teacher or values.shape != teacher.shape:
        return f"{name}\n{spread}" if name else spread
    off = f"off by {float((values - teacher).abs().mean()):.2f}"
    return f"{name}, {off}\n{spread}" if name else f"{spread}\n{off}"


def _colour_bar(legend: Axes, shown: AxesImage, bottom: float, label: str, scale: Scale) -> None:
    """A colour bar inside the empty panel ``legend``."""
    legend.set_axis_off()
    inset = legend.inset_axes((0.06, bottom, 0.88, 0.07))
    extend = "max" if scale == "fixed" else "neither"
    bar: Colorbar = legend.figure.colorbar(shown, cax=inset, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)


def show_attention(
    teacher: DetectorConfig,
    student: DetectorConfig,
    distilled: DetectorConfig | None = None,
    image: str | None = None,
    images: str | None = None,
    annotations: str | None = None,
    index: int = 0,
    teacher_layers: str | list[str] | None = None,
    student_layers: str | list[str] | None = None,
    levels: list[int] | None = None,
    temperature: float = 0.5,
    scale: Scale = "fixed",
    output: str = "attention.png",
    adapter: str | None = None,
    foreground: ForegroundKind = "boxes",
) -> None:
    """Draws the spatial and channel attention of teacher, student and distilled student for one image, as a PNG.

    The image is a file (--image), or one of a COCO folder (--images, --annotations and --index), whose boxes then give
    the foreground mask.

    Args:
        teacher: the detector that teaches.
        student: the student trained without it; left untrained if no weights are given, and then called so.
        distilled: the student trained with it.
        image: an image file.
        images: a folder of images, with ``annotations``.
        annotations: a COCO json file.
        index: which image of ``annotations``, counted from 0.
        teacher_layers: modules of the teacher whose feature maps are shown; the neck's by default.
        student_layers: modules of the student whose feature maps are shown; the neck's by default.
        levels: which of the feature maps, counted from 0; all by default.
        temperature: T of the attentions; give the one that the loss uses.
        scale: of the colours; fixed goes from 0 to 4 times the mean, so that flat attention looks flat; teacher spans
            the teacher's values, so that small differences show.
        output: the PNG file to write.
        adapter: of detectors of your own family, module:Class; by the student's class if none is given.
        foreground: what the foreground is made of; masks are those of the annotations' polygons, which may also be
            rotated boxes, as the loss gets them from ``fgd_kernels.foreground.instance_masks``.

    Raises:
        FileNotFoundError: an image, an annotation file or weights are missing.
        ValueError: an option is out of range, a layer does not exist, or the teacher has no weights.
    """
    check_png(output)
    if (image is None) == (annotations is None) or (images is None) != (annotations is None):
        got = {"image": image, "images": images, "annotations": annotations}
        raise FGDValueError(f"expected either image, or images and annotations, got {got}")
    if teacher.weights is None:
        raise FGDValueError("teacher.weights: expected a file with trained weights, got None: it would look at noise")
    if images is not None and annotations is not None:
        pixels, boxes, masks = coco_image(images, annotations, index, foreground == "masks")
    elif foreground == "masks":
        raise FGDValueError(f"foreground: expected boxes for an image without annotations, got {foreground}")
    else:
        pixels, boxes, masks = image_file(str(image))
    configs = {"student": student} | ({} if distilled is None else {"distilled student": distilled})
    view = view_attention(
        build_detector(teacher).eval(),
        {_name(name, config): build_detector(config).eval() for name, config in configs.items()},
        pixels,
        boxes,
        teacher_layers=teacher_layers,
        student_layers=student_layers,
        temperature=temperature,
        adapter=adapter,
        masks=masks,
    )
    save(draw_attention(view, levels, temperature, scale), output)


def _name(name: str, config: DetectorConfig) -> str:
    return name if config.weights is not None else f"{name} (untrained)"
