"""Ground truth, packed once a step and shared by all levels; the one place where boxes are checked."""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PackedBoxes(NamedTuple):
    """The boxes of a batch without padding rows.

    values  (M, 4) float32: x1, y1, x2, y2 in pixels, image after image
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
) -> PackedBoxes:
    """Pack a list of boxes.

    Args:
        boxes: one floating-point tensor (n_i, 4) an image, on `device`: x1, y1, x2, y2 in pixels; n_i may be 0.
        image_sizes: one (height, width) an image, in the same pixels: the frame that the whole feature map covers,
            which is the padded batch size. A tensor (N, 2) works too.
        device: where the features are.
        validate: also check values that lie on a GPU, which costs a synchronisation. Values on the host are always
            checked. Unchecked boxes that are not finite or inverted cover nothing.

    Returns:
        PackedBoxes on `device`. Boxes that reach out of the image stay as they are: the masks clamp them.

    Raises:
        TypeError: boxes is no list of tensors, or a tensor is not floating point.
        ValueError: a shape, a device, the number of images, an image size or a box's values are wrong.
    """
    device = _indexed(torch.device(device))
    if isinstance(boxes, Tensor) or not isinstance(boxes, Sequence):
        raise TypeError(f"boxes: expected a list of tensors (n_i, 4), one an image, got {type(boxes).__name__}")
    sizes = _pack_sizes(image_sizes, len(boxes), device, validate)
    for index, box in enumerate(boxes):
        _check_box_tensor(box, index, device)
    values = torch.cat(list(boxes)).detach().float() if len(boxes) else sizes.new_zeros((0, 4))
    ends = [0, *itertools.accumulate(box.shape[0] for box in boxes)]
    offsets = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
    if validate or _readable(values):
        _check_values(values, ends)
    return PackedBoxes(values, offsets, sizes)


def _indexed(device: torch.device) -> torch.device:
    """'cuda' is the current GPU: tensors on it say 'cuda:0', and the two do not compare equal."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_packed(packed: PackedBoxes, images: int, device: torch.device) -> None:
    """Raise ValueError unless `packed` fits a batch of `images` images on `device`."""
    expected = {"values": (packed.values.shape[0], 4), "offsets": (images + 1,), "sizes": (images, 2)}
    dtypes = {"values": torch.float32, "offsets": torch.int32, "sizes": torch.float32}
    for name, tensor in packed._asdict().items():
        if tuple(tensor.shape) != expected[name] or tensor.dtype != dtypes[name] or tensor.device != device:
            raise ValueError(
                f"boxes.{name}: expected {dtypes[name]} {expected[name]} on {device}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


def _readable(values: Tensor) -> bool:
    """Whether values can be looked at without a synchronisation or a graph break."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _pack_sizes(image_sizes: Sequence[Sequence[float]] | Tensor, images: int, device: torch.device, validate: bool):
    if isinstance(image_sizes, Tensor):
        if (
            image_sizes.is_complex()
            or image_sizes.dtype == torch.bool
            or image_sizes.is_meta != (device.type == "meta")
        ):
            raise TypeError(
                f"image_sizes: expected a tensor of numbers, got {image_sizes.dtype} on {image_sizes.device}"
            )
        sizes = image_sizes.detach().to(device, torch.float32)
    else:
        rows = _size_rows(image_sizes)
        if not torch.compiler.is_compiling():
            _check_sizes(rows)
        sizes = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2).to(device, non_blocking=True)
    if tuple(sizes.shape) != (images, 2):
        raise ValueError(
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
        raise TypeError(f"image_sizes: expected one (height, width) an image, got {image_sizes!r}") from None
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"image_sizes: expected (height, width) for every image, got {list(image_sizes)}")
    return rows


def _check_sizes(rows: list[list[float]]) -> None:
    for index, (height, width) in enumerate(rows):
        if not (0 < height < float("inf") and 0 < width < float("inf")):
            raise ValueError(
                f"image_sizes[{index}]: expected a positive, finite (height, width), got ({height}, {width})"
            )


def _check_box_tensor(box: Tensor, index: int, device: torch.device) -> None:
    if not isinstance(box, Tensor):
        raise TypeError(f"boxes[{index}]: expected a tensor (n, 4), got {type(box).__name__}")
    if box.dtype not in _FLOATS:
        raise TypeError(f"boxes[{index}]: expected a floating-point tensor, got {box.dtype}")
    if box.layout != torch.strided or box.is_nested:
        raise TypeError(f"boxes[{index}]: expected a dense tensor (n, 4), got {box.layout}, nested: {box.is_nested}")
    if box.ndim != 2 or box.shape[1] != 4:
        raise ValueError(f"boxes[{index}]: expected shape (n, 4), got {tuple(box.shape)}")
    if box.device != device:
        raise ValueError(f"boxes[{index}]: expected device {device}, as the features, got {box.device}")


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
        raise ValueError(
            f"boxes[{image}][{row - ends[image]}]: expected finite x1 <= x2 and y1 <= y2, got {values[row].tolist()}"
        )
