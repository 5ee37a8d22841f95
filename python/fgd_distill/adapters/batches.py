"""For families that take a ready tensor: images of several sizes as one batch, and targets checked against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2.functional import convert_bounding_box_format
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..errors import FGDTypeError, FGDValueError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the channels, which many families normalise by."""


def stack_images(images: Any, divisor: int, fill: float) -> Tensor:
    """Images as one batch, padded at the right and at the bottom, so that boxes stay where they are.

    Args:
        images: a sequence of float tensors (3, H_i, W_i), or one tensor (N, 3, H, W).
        divisor: height and width of the batch become multiples of it, in pixels.
        fill: the value of added pixels.

    Returns:
        (N, 3, H, W).

    Raises:
        TypeError, ValueError: as ``check_images``.
    """
    images = check_images(images)
    height, width = (math.ceil(max(image.shape[axis] for image in images) / divisor) * divisor for axis in (1, 2))
    return torch.stack(
        [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=fill) for image in images]
    )


def stack_normalised(
    images: Any, divisor: int, mean: Sequence[float], std: Sequence[float], square: bool = False
) -> Tensor:
    """Images as one batch, each normalised and then padded by 0, the mean, at the right and at the bottom.

    Args:
        images: as for ``stack_images``.
        divisor: height and width of the batch become multiples of it, in pixels.
        mean, std: of each channel.
        square: whether height and width become equal.

    Returns:
        (N, 3, H, W).

    Raises:
        TypeError, ValueError: as ``check_images``.
    """
    images = check_images(images)
    shift, scale = (images[0].new_tensor(values).view(3, 1, 1) for values in (mean, std))
    batch = stack_images([(image - shift) / scale for image in images], divisor, 0.0)
    if square:
        side = max(batch.shape[-2:])
        batch = F.pad(batch, (0, side - batch.shape[3], 0, side - batch.shape[2]))
    return batch


def denormalised(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A normalised batch (N, 3, H, W) as it looks: float32 in 0..1, as ``picture`` returns it."""
    batch = batch.detach().float()
    shift, scale = (batch.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return (batch * scale + shift).clamp(0, 1)


def check_images(images: Any) -> list[Tensor]:
    """The images as a list of float tensors (3, H_i, W_i).

    Raises:
        TypeError, ValueError: there is no image, or something is no such image.
    """
    images = list(images)
    if not images:
        raise FGDValueError("images: expected at least one image, got none")
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise FGDTypeError(f"images[{index}]: expected a float tensor (3, H, W) in 0..1, got {_what(image)}")
        if image.ndim != 3 or image.shape[0] != 3:
            raise FGDValueError(f"images[{index}]: expected (3, H, W), got {tuple(image.shape)}")
    return images


def check_targets(targets: Any, images: Tensor | list[Tensor], classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and labels of the targets, on the device of the images.

    Args:
        targets: one dict an image: ``boxes`` (n_i, 4), xyxy in pixels, and ``labels`` (n_i,).
        images: as many images, as one tensor or several.
        classes: labels count from 0 to ``classes - 1``.

    Returns:
        boxes, float tensors (n_i, 4), and labels, int64 tensors (n_i,).

    Raises:
        TypeError, ValueError: the targets are something else.
    """
    if not isinstance(targets, Sequence) or len(targets) != len(images):
        raise FGDValueError(f"targets: expected one dict for each of {len(images)} images, got {_what(targets)}")
    device = images[0].device
    boxes, labels = [], []
    for index, target in enumerate(targets):
        box = torch.as_tensor(target["boxes"]).to(device, torch.float32)
        label = torch.as_tensor(target["labels"]).to(device, torch.int64)
        if box.ndim != 2 or box.shape[1] != 4 or label.shape != box.shape[:1]:
            shapes = f"{tuple(box.shape)} and {tuple(label.shape)}"
            raise FGDValueError(f"targets[{index}]: expected boxes (n, 4) and labels (n,), got {shapes}")
        if len(label) and not (int(label.min()) >= 0 and int(label.max()) < classes):
            span = f"{int(label.min())} to {int(label.max())}"
            raise FGDValueError(f"targets[{index}]: the detector counts labels from 0 to {classes - 1}, got {span}")
        boxes.append(box)
        labels.append(label)
    return boxes, labels


def check_same_normalisation(argument: str, student: Any, teacher: Any) -> None:
    """Raises ValueError unless these, what normalises each one's batch, are equal: the teacher gets the student's."""
    if student != teacher:
        raise FGDValueError(
            f"{argument}: the teacher gets the student's normalised batch, so both must normalise alike; got {student} "
            f"for the student and {teacher} for the teacher"
        )


def check_divides(what: str, student: int, teacher: int) -> None:
    """Raises ValueError unless a batch of the student's multiples, of a stride say, suits the teacher."""
    if student % teacher:
        raise FGDValueError(f"teacher: its largest {what}, {teacher}, must divide the student's, {student}")


def boxes_as_corners(targets: Any, images: Any) -> Any:
    """Targets whose ``boxes``, if they are torchvision's BoundingBoxes, became plain tensors, xyxy in pixels.

    Detectors take them for tensors and would read other formats as xyxy. What is no list of such targets stays.

    Raises:
        ValueError: boxes are rotated, or of another canvas than their image.
    """
    if not isinstance(targets, Sequence) or not all(isinstance(target, Mapping) for target in targets):
        return targets
    return [_with_corners(target, images, index) for index, target in enumerate(targets)]


def _with_corners(target: Mapping[str, Any], images: Any, index: int) -> Mapping[str, Any]:
    boxes = target.get("boxes")
    if not isinstance(boxes, BoundingBoxes):
        return target
    if boxes.format not in (BoundingBoxFormat.XYXY, BoundingBoxFormat.XYWH, BoundingBoxFormat.CXCYWH):
        raise FGDValueError(
            f"targets[{index}]['boxes']: expected the format XYXY, XYWH or CXCYWH, got {boxes.format.value}; "
            "give the upright boxes around them"
        )
    size = tuple(images[index].shape[-2:]) if isinstance(images, Sequence | Tensor) and index < len(images) else None
    if size is not None and tuple(boxes.canvas_size) != size:
        raise FGDValueError(
            f"targets[{index}]['boxes']: expected the canvas of images[{index}], {size}, got "
            f"{tuple(boxes.canvas_size)}; resize boxes and image together"
        )
    corners = convert_bounding_box_format(boxes, new_format=BoundingBoxFormat.XYXY).as_subclass(Tensor)
    return {**target, "boxes": corners}


def to_relative(boxes: Tensor, batch: Tensor) -> Tensor:
    """xyxy in pixels of a batch (N, 3, H, W) to cx, cy, w, h in 0..1 of it, (n, 4)."""
    return box_convert(boxes, "xyxy", "cxcywh") / _extent(batch)


def to_pixels(boxes: Tensor, batch: Tensor) -> Tensor:
    """cx, cy, w, h in 0..1 of a batch (N, 3, H, W) to xyxy in its pixels, (n, 4)."""
    return box_convert(boxes * _extent(batch), "cxcywh", "xyxy")


def detection(boxes: Tensor, scores: Tensor, labels: Tensor, image: Tensor) -> dict[str, Tensor]:
    """One image's detections, boxes cut to the image (3, H, W), as ``predict`` returns them."""
    height, width = image.shape[-2:]
    return {"boxes": clip_boxes_to_image(boxes, (height, width)), "scores": scores, "labels": labels.long()}


def _extent(batch: Tensor) -> Tensor:
    height, width = batch.shape[-2:]
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=batch.device)


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sequence) else type(value).__name__
