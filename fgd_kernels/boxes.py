"""Ground truth, packed once a step and shared by all levels; the one place where boxes are checked."""

import bisect
import itertools
import math
import numbers
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import FGDTypeError, FGDValueError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PackedBoxes(NamedTuple):
    """The boxes of a batch, one after another.

    values  (M, 4) float32: x1, y1, x2, y2 in pixels, image after image; rows after the last image's belong to none
    offsets (N + 1,) int32: image n owns the rows offsets[n] .. offsets[n + 1] of `values`
    sizes   (N, 2) float32: height and width, in the same pixels, of what the feature maps cover
    """

    values: Tensor
    offsets: Tensor
    sizes: Tensor


def pack_boxes(
    boxes: Sequence[Tensor],
    image_sizes: Sequence[Sequence[float]] | Tensor,
    device: torch.device | str,
    *,
    validate: bool = False,
    capacity: int | None = None,
) -> PackedBoxes:
    """Pack a list of boxes: once a step, outside a compiled model, so that it is one graph for all numbers of boxes.

    Args:
        boxes: one floating-point tensor (n_i, 4) an image, on `device`: x1, y1, x2, y2 in pixels; n_i may be 0.
            torchvision's BoundingBoxes are converted from the format that they state.
        image_sizes: one (height, width) an image, in the same pixels: the frame that the whole feature map covers,
            which is the padded batch size. A tensor (N, 2) works too.
        device: where the features are.
        validate: also check values that lie on a GPU, which costs a synchronisation. Values on the host are always
            checked. Unchecked boxes that are not finite or inverted cover nothing. Boxes that all lie in 0..1, as
            fractions of the image do, are refused too.
        capacity: rows of `values`, whatever the number of boxes, for CUDA graphs, which need one shape in all steps.
            None: as many as there are boxes.

    Returns:
        PackedBoxes on `device`. Boxes that reach out of the image stay as they are: the masks clamp them.

    Raises:
        TypeError: boxes is no list of tensors, a tensor is not floating point, or capacity is no integer.
        ValueError: a shape, a device, the number of images, an image size, a box's values or its canvas are wrong, or
            there are more boxes than `capacity`.
    """
    device = _indexed(torch.device(device))
    if isinstance(boxes, Tensor) or not isinstance(boxes, Sequence):
        raise FGDTypeError(f"boxes: expected a list of tensors (n_i, 4), one an image, got {type(boxes).__name__}")
    sizes = frame_sizes(image_sizes, len(boxes), device, validate)
    for index, box in enumerate(boxes):
        _check_box_tensor(box, index, device)
    corners = [_corners(box, index, sizes) for index, box in enumerate(boxes)]
    values = torch.cat(corners).detach().float() if corners else sizes.new_zeros((0, 4))
    ends = [0, *itertools.accumulate(box.shape[0] for box in boxes)]
    offsets = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
    if validate or _readable(values):
        _check_values(values, ends)
    packed = PackedBoxes(_padded(values, capacity), offsets, sizes)
    if validate and (doubt := doubtful_boxes(packed)):
        raise FGDValueError(doubt)
    return packed


def _padded(values: Tensor, capacity: int | None) -> Tensor:
    """`capacity` rows; without it, a number of rows that graphs compiled from now on take as free."""
    if capacity is None:
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            torch._dynamo.maybe_mark_dynamic(values, 0)
        return values
    if not is_integer(capacity):
        raise FGDTypeError(f"capacity: expected an integer or None, got {capacity!r}")
    if len(values) > capacity:
        raise FGDValueError(f"capacity: expected at least the number of boxes, {len(values)}, got {capacity}")
    return torch.nn.functional.pad(values, (0, 0, 0, int(capacity) - len(values)))


def is_integer(value: object) -> bool:
    """Whether it is an integer of Python's or of numpy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def doubtful_boxes(packed: PackedBoxes) -> str | None:
    """What makes boxes look as if they were no pixels, or None; reads values, so it waits for a GPU.

    Boxes within 0..1 in all images of a batch cover one pixel each of any map; no real annotations do.
    """
    values, sizes = packed.values, packed.sizes
    if not len(values) or float(values.max()) > 1 or float(values.max()) <= 0 or float(sizes.min()) <= 4:
        return None
    return (
        f"boxes: expected x1, y1, x2, y2 in pixels of image_sizes, got numbers that all lie in 0..1 (the largest is "
        f"{float(values.max()):.4g}); multiply x by the width and y by the height"
    )


def doubtful_frame(sizes: Tensor, maps: Sequence[Sequence[int]]) -> str | None:
    """What makes image sizes look as if they were not the maps' frame, or None; reads values, so it waits for a GPU.

    A map of H·W pixels covers a frame of h·w if one stride s makes both: H = h/s and W = w/s, rounded to a neighbour.

    Args:
        sizes: (N, 2), height and width of each image's frame.
        maps: (H, W) of each level.
    """
    for level, (height, width) in enumerate(maps):
        for image, (h, w) in enumerate(sizes.tolist()):
            if _one_stride(h, w, height, width):
                continue
            swapped = "; as (width, height) it would fit: swap the two" if _one_stride(w, h, height, width) else ""
            return (
                f"image_sizes[{image}]: expected the (height, width) that the whole feature map covers, got "
                f"({h:g}, {w:g}), whose shape is not that of level {level}, {height} x {width}{swapped or _PADDED}"
            )
    return None


_PADDED = "; give the size of the padded batch"


def _one_stride(h: float, w: float, height: int, width: int) -> bool:
    """Whether a stride s exists with h/s within 1 of the map's height and w/s within 1 of its width."""
    lowest = max(h / (height + 1), w / (width + 1))
    highest = min(h / (height - 1) if height > 1 else math.inf, w / (width - 1) if width > 1 else math.inf)
    return lowest <= highest


def _indexed(device: torch.device) -> torch.device:
    """'cuda' is the current GPU: tensors on it say 'cuda:0', and the two do not compare equal."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def no_boxes(images: int, device: torch.device) -> PackedBoxes:
    """A batch without any boxes."""
    sizes = torch.ones(images, 2, device=device, dtype=torch.float32)
    return PackedBoxes(sizes.new_zeros(0, 4), torch.zeros(images + 1, dtype=torch.int32, device=device), sizes)


def check_packed(packed: PackedBoxes, images: int, device: torch.device) -> None:
    """Raise ValueError unless `packed` fits a batch of `images` images on `device`."""
    expected = {"values": (packed.values.shape[0], 4), "offsets": (images + 1,), "sizes": (images, 2)}
    dtypes = {"values": torch.float32, "offsets": torch.int32, "sizes": torch.float32}
    for name, tensor in packed._asdict().items():
        if tuple(tensor.shape) != expected[name] or tensor.dtype != dtypes[name] or tensor.device != device:
            raise FGDValueError(
                f"boxes.{name}: expected {dtypes[name]} {expected[name]} on {device}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


def _readable(values: Tensor) -> bool:
    """Whether values can be looked at without a synchronisation or a graph break."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def frame_sizes(
    image_sizes: Sequence[Sequence[float]] | Tensor, images: int, device: torch.device, validate: bool = False
) -> Tensor:
    """Checked image sizes as (N, 2) float32 on `device`."""
    if isinstance(image_sizes, Tensor):
        if (
            image_sizes.is_complex()
            or image_sizes.dtype == torch.bool
            or image_sizes.is_meta != (device.type == "meta")
        ):
            raise FGDTypeError(
                f"image_sizes: expected a tensor of numbers, got {image_sizes.dtype} on {image_sizes.device}"
            )
        sizes = image_sizes.detach().to(device, torch.float32)
    else:
        rows = _size_rows(image_sizes)
        if not torch.compiler.is_compiling():
            _check_sizes(rows)
        sizes = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2).to(device, non_blocking=True)
    if tuple(sizes.shape) != (images, 2):
        raise FGDValueError(
            f"image_sizes: expected one (height, width) for each of {images} images in boxes, "
            f"got shape {tuple(sizes.shape)}"
        )
    if isinstance(image_sizes, Tensor) and (validate or _readable(sizes)):
        _check_sizes(sizes.tolist())
    return sizes


def _size_rows(image_sizes: Sequence[Sequence[float]]) -> list[list[float]]:
    try:
        rows = [[float(number) for number in size] for size in image_sizes]
    except (TypeError, ValueError):
        raise FGDTypeError(f"image_sizes: expected one (height, width) an image, got {image_sizes!r}") from None
    if any(len(row) != 2 for row in rows):
        raise FGDValueError(f"image_sizes: expected (height, width) for every image, got {list(image_sizes)}")
    return rows


def _check_sizes(rows: list[list[float]]) -> None:
    for index, (height, width) in enumerate(rows):
        if not (0 < height < float("inf") and 0 < width < float("inf")):
            raise FGDValueError(
                f"image_sizes[{index}]: expected a positive, finite (height, width), got ({height}, {width})"
            )


def _check_box_tensor(box: Tensor, index: int, device: torch.device) -> None:
    if not isinstance(box, Tensor):
        raise FGDTypeError(f"boxes[{index}]: expected a tensor (n, 4), got {type(box).__name__}")
    form = getattr(getattr(box, "format", None), "value", getattr(box, "format", None))
    if form is not None and form not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise FGDValueError(
            f"boxes[{index}]: expected BoundingBoxes in one of the formats {known}, got {form}; give the upright boxes "
            "around them"
        )
    if box.dtype not in _FLOATS:
        raise FGDTypeError(f"boxes[{index}]: expected a floating-point tensor, got {box.dtype}")
    if box.layout != torch.strided or box.is_nested:
        raise FGDTypeError(f"boxes[{index}]: expected a dense tensor (n, 4), got {box.layout}, nested: {box.is_nested}")
    if box.ndim != 2 or box.shape[1] != 4:
        raise FGDValueError(f"boxes[{index}]: expected shape (n, 4), got {tuple(box.shape)}")
    if box.device != device:
        raise FGDValueError(f"boxes[{index}]: expected device {device}, as the features, got {box.device}")


def _corners(box: Tensor, index: int, sizes: Tensor) -> Tensor:
    """x1, y1, x2, y2 of an image's boxes: converted from the format that torchvision's BoundingBoxes state."""
    form = getattr(box, "format", None)
    if form is None:
        return box
    convert = _FORMATS[getattr(form, "value", form)]
    canvas, frame = box.canvas_size, sizes[index]  # type: ignore[attr-defined]
    if _readable(frame) and (canvas[0] > frame[0] or canvas[1] > frame[1]):
        raise FGDValueError(
            f"boxes[{index}]: expected a canvas within image_sizes[{index}] = ({frame[0]:g}, {frame[1]:g}), the frame "
            f"that the feature maps cover, got canvas_size {tuple(canvas)}; resize the boxes with their image"
        )
    return convert(box.as_subclass(Tensor))


def _from_corner_and_size(box: Tensor) -> Tensor:
    return torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], dim=1)


def _from_centre_and_size(box: Tensor) -> Tensor:
    return torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)


_FORMATS = {"XYXY": lambda box: box, "XYWH": _from_corner_and_size, "CXCYWH": _from_centre_and_size}


def _check_values(values: Tensor, ends: list[int]) -> None:
    if not len(values):
        return
    # Finite and >= 0 only if all four numbers are finite, x1 <= x2 and y1 <= y2.
    low, high = (values[:, 2:] - values[:, :2]).aminmax()
    if float(low) >= 0 and float(high) < float("inf"):
        return
    good = values.isfinite().all(1) & (values[:, :2] <= values[:, 2:]).all(1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        image = bisect.bisect_right(ends, row) - 1
        raise FGDValueError(
            f"boxes[{image}][{row - ends[image]}]: expected finite x1 <= x2 and y1 <= y2, got {values[row].tolist()}"
        )
