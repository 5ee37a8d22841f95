"""Foreground beyond upright boxes: the weight of every pixel, M·S of (2) and (3), from rotated boxes, polygons, masks.

What the functions here return makes a level's weights of its size, so that one of them serves all levels:

    shapes = foreground.polygons([[corners, ...], ...], image_sizes)
    losses = criterion(student_features, teacher_features, foreground=shapes)

As for boxes, each object's pixels weigh 1 / area, the number of pixels that it covers on the level, and where objects
overlap the smallest wins.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import frame_sizes
from .errors import FGDTypeError, FGDValueError

Foreground: TypeAlias = Sequence[Tensor] | Callable[[int, int], Tensor]
"""One (N, H, W) a level, or what makes it of H and W."""

_TESTS_AT_ONCE = 1 << 22  # edges times pixels: the memory that polygons take, some ten times as many bytes
_MASK_PIXELS_AT_ONCE = 1 << 22  # of masks as float32, four times as many bytes


def foreground_maps(foreground: Foreground, students: Sequence[Tensor], validate: bool = False) -> Tensor:
    """The checked weights as the operator takes them: float32 (Σ N·H·W,), level after level.

    Args:
        foreground: as `fgd_loss` takes it.
        students: the levels' features (N, C, H, W).
        validate: also check values that lie on a GPU, which costs a synchronisation.

    Raises:
        TypeError: it is neither maps nor a callable, or a map is no floating-point tensor.
        ValueError: a map's shape, device or values are wrong, or it requires a gradient.
    """
    sizes = [(int(s.shape[2]), int(s.shape[3])) for s in students]
    if callable(foreground):
        _check_signature(foreground)
        maps = [foreground(height, width) for height, width in sizes]
        maps = [m.to(students[0].device) if isinstance(m, Tensor) else m for m in maps]
    elif isinstance(foreground, Sequence) and len(foreground) == len(sizes):
        maps = list(foreground)
    elif isinstance(foreground, Sequence):
        raise FGDValueError(f"foreground: expected {len(sizes)} maps, one a level, got {len(foreground)}")
    else:
        raise FGDTypeError(
            f"foreground: expected a list of tensors (N, H, W), one a level, or a callable that makes one of (H, W), "
            f"got {type(foreground).__name__}"
        )
    for level, (weights, student) in enumerate(zip(maps, students, strict=True)):
        _check_map(weights, f"foreground[{level}]", student, validate)
    return torch.cat([weights.detach().float().flatten() for weights in maps])


def _check_signature(foreground: Callable) -> None:
    if torch.compiler.is_compiling():
        return
    try:
        inspect.signature(foreground).bind(1, 1)
    except TypeError as error:
        raise FGDTypeError(
            f"foreground: expected a callable that makes a level's weights of (height, width), got one that cannot be "
            f"called with two integers: {error}"
        ) from None
    except ValueError:
        return  # a builtin that states none


def _check_map(weights: Tensor, name: str, student: Tensor, validate: bool) -> None:
    if not isinstance(weights, Tensor):
        raise FGDTypeError(f"{name}: expected a tensor (N, H, W), got {type(weights).__name__}")
    if not weights.is_floating_point():
        raise FGDTypeError(
            f"{name}: expected a floating-point tensor, got {weights.dtype}; foreground.instance_masks weighs masks"
        )
    if weights.layout != torch.strided:
        raise FGDTypeError(f"{name}: expected a dense tensor, got {weights.layout}")
    expected = (student.shape[0], *student.shape[2:])
    if tuple(weights.shape) != expected:
        raise FGDValueError(f"{name}: expected shape {expected}, as the features, got {tuple(weights.shape)}")
    if weights.device != student.device:
        raise FGDValueError(f"{name}: expected device {student.device}, as the features, got {weights.device}")
    if weights.requires_grad:
        raise FGDValueError(f"{name}: expected no gradient, got requires_grad=True; detach() it")
    if not weights.numel() or not (validate or (weights.device.type == "cpu" and not torch.compiler.is_compiling())):
        return
    low, high = (float(value) for value in weights.float().aminmax())  # as the kernels get them
    if not (low >= 0 and high < float("inf")):
        raise FGDValueError(f"{name}: expected finite weights >= 0, got some from {low:g} to {high:g}")


def _check_list(name: str, value: object, expected: str, tensors: bool = False) -> None:
    """`tensors`: a tensor will do, too, whose rows are the list's entries."""
    if not isinstance(value, Sequence) and not (tensors and isinstance(value, Tensor)):
        raise FGDTypeError(f"{name}: expected a list {expected}, got {type(value).__name__}")


class _Shapes:
    """Polygons of a batch, as equally many corners each; makes a level's weights."""

    def __init__(self, corners: Tensor, owner: Tensor, sizes: Tensor) -> None:
        self.corners = corners  # (M, K, 2): x, y in fractions of the frame
        self.owner = owner  # (M,): each one's image
        self.sizes = sizes  # (N, 2)

    def __call__(self, height: int, width: int) -> Tensor:
        """Weights (N, height, width), float32."""
        count, edges = self.corners.shape[:2]
        weights = self.corners.new_zeros(len(self.sizes), height, width)
        step = max(_TESTS_AT_ONCE // max(edges * (height + 1) * (width + 1), 1), 1)
        for start in range(0, count, step):
            some = slice(start, start + step)
            covered = _covered(self.corners[some], height, width)
            area = covered.sum((1, 2), keepdim=True).clamp(min=1)  # with the row and column past the map, as for boxes
            own = (covered / area)[:, :height, :width]
            index = self.owner[some, None, None].expand_as(own)
            weights.scatter_reduce_(0, index, own, "amax")
        return weights


def _covered(corners: Tensor, height: int, width: int) -> Tensor:
    """Which points (x, y) of a map, 0 <= x <= width and 0 <= y <= height, polygons cover; (M, height + 1, width + 1).

    A point is covered if the polygon meets the open square of half side 1 around it: for an upright box these are the
    pixels floor(x1) .. ceil(x2) and floor(y1) .. ceil(y2) of (2).
    """
    scaled = corners * corners.new_tensor([width, height])
    x, y = torch.arange(width + 1, device=corners.device), torch.arange(height + 1, device=corners.device)
    crossings = torch.zeros(len(corners), height + 1, width + 1, dtype=torch.bool, device=corners.device)
    touched = torch.zeros_like(crossings)
    for start, end in zip(scaled.unbind(1), scaled.roll(-1, 1).unbind(1), strict=True):
        (x1, y1), (x2, y2) = (point[:, :, None, None].unbind(1) for point in (start, end))
        px, py = x[None, None, :], y[None, :, None]
        above = (y1 > py) != (y2 > py)
        reach = (x2 - x1) * (py - y1) - (px - x1) * (y2 - y1)  # > 0 on one side of the edge, < 0 on the other
        crossings ^= above & ((reach > 0) == (y2 > y1))
        near = (torch.minimum(x1, x2) < px + 1) & (torch.maximum(x1, x2) > px - 1)
        near = near & (torch.minimum(y1, y2) < py + 1) & (torch.maximum(y1, y2) > py - 1)
        across = (x2 - x1).abs() + (y2 - y1).abs()
        touched |= near & ((reach.abs() < across) | (across == 0))
    inside_frame = (scaled.amax(1) >= 0).all(1) & (corners.amin(1) <= 1).all(1) & corners.isfinite().all(2).all(1)
    return (crossings | touched) & inside_frame[:, None, None]


def polygons(polygons: Sequence[Sequence[Tensor]], image_sizes: Sequence[Sequence[float]] | Tensor) -> _Shapes:
    """Foreground of polygons, which may be concave.

    Args:
        polygons: one list an image, with one floating-point tensor (k, 2) a polygon, k >= 1: its corners x, y in
            pixels, in order. All lie on the device of the features.
        image_sizes: one (height, width) an image, in the same pixels: the frame that the whole feature map covers,
            which is the padded batch size.

    Returns:
        A callable: (H, W) of a level to its weights (N, H, W), float32. What lies outside of the frame covers nothing,
        and so do polygons with a corner that is not finite.

    Raises:
        TypeError: a polygon is no floating-point tensor.
        ValueError: a shape, a device or an image size is wrong.
    """
    _check_list("polygons", polygons, "of lists of tensors (k, 2)", tensors=True)
    for index, image in enumerate(polygons):
        _check_list(f"polygons[{index}]", image, "of tensors (k, 2), one a polygon", tensors=True)
    flat = [polygon for image in polygons for polygon in image]
    for index, image in enumerate(polygons):
        for number, polygon in enumerate(image):
            name = f"polygons[{index}][{number}]"
            if not isinstance(polygon, Tensor) or not polygon.is_floating_point():
                got = polygon.dtype if isinstance(polygon, Tensor) else type(polygon).__name__
                raise FGDTypeError(f"{name}: expected a floating-point tensor (k, 2), got {got}")
            if polygon.ndim != 2 or polygon.shape[1] != 2 or not len(polygon):
                raise FGDValueError(f"{name}: expected shape (k, 2) with k >= 1, got {tuple(polygon.shape)}")
            if polygon.device != flat[0].device:
                raise FGDValueError(f"{name}: expected device {flat[0].device}, as the first, got {polygon.device}")
    longest = max((len(polygon) for polygon in flat), default=1)
    same = [torch.cat([p, p[-1:].expand(longest - len(p), 2)]).detach().float() for p in flat]
    device = flat[0].device if flat else torch.device("cpu")
    corners = torch.stack(same) if same else torch.zeros(0, longest, 2)
    return _shapes(corners, [len(image) for image in polygons], image_sizes, device)


def rotated_boxes(boxes: Sequence[Tensor], image_sizes: Sequence[Sequence[float]] | Tensor) -> _Shapes:
    """Foreground of rotated boxes. One whose angle is 0 weighs what `fgd_loss` gives the upright box.

    Args:
        boxes: one floating-point tensor (n_i, 5) an image: x, y of the centre, width, height in pixels, and the angle
            in radians by which the width is turned from x towards y (clockwise in the picture), as Ultralytics' xywhr
            and MMRotate's le90 have it. n_i may be 0.
        image_sizes: as for `polygons`.

    Returns:
        As `polygons`.

    Raises:
        TypeError, ValueError: a tensor's type, shape or device is wrong, or an image size.
    """
    _check_list("boxes", boxes, "of tensors (n_i, 5)")
    for index, box in enumerate(boxes):
        if not isinstance(box, Tensor) or not box.is_floating_point():
            got = box.dtype if isinstance(box, Tensor) else type(box).__name__
            raise FGDTypeError(f"boxes[{index}]: expected a floating-point tensor (n, 5), got {got}")
        if box.ndim != 2 or box.shape[1] != 5:
            raise FGDValueError(f"boxes[{index}]: expected shape (n, 5), got {tuple(box.shape)}")
        if box.device != boxes[0].device:
            raise FGDValueError(f"boxes[{index}]: expected device {boxes[0].device}, as the first, got {box.device}")
    device = boxes[0].device if boxes else torch.device("cpu")
    values = torch.cat([box.detach().float() for box in boxes]) if boxes else torch.zeros(0, 5)
    centre, half, angle = values[:, :2], values[:, 2:4].abs() / 2, values[:, 4]
    along = torch.stack([angle.cos(), angle.sin()], 1) * half[:, :1]
    across = torch.stack([-angle.sin(), angle.cos()], 1) * half[:, 1:]
    corners = torch.stack([centre + s * along + t * across for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))], 1)
    return _shapes(corners, [len(box) for box in boxes], image_sizes, device)


def _shapes(corners: Tensor, counts: list[int], image_sizes, device: torch.device) -> _Shapes:
    sizes = frame_sizes(image_sizes, len(counts), device)
    owner = torch.arange(len(counts), device=device).repeat_interleave(
        torch.tensor(counts, dtype=torch.int64, device=device)  # an empty list alone would be of floats
    )
    return _Shapes(corners.to(device) / sizes[owner].flip(1)[:, None], owner, sizes)


class _Masks:
    """Instance masks of a batch; makes a level's weights."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        self.masks = masks

    def __call__(self, height: int, width: int) -> Tensor:
        """Weights (N, height, width), float32."""
        if not self.masks:
            return torch.zeros(0, height, width)
        return torch.stack([_mask_weights(masks, height, width) for masks in self.masks])


def _mask_weights(masks: Tensor, height: int, width: int) -> Tensor:
    if not len(masks):
        return torch.zeros(height, width, device=masks.device)
    weights = torch.zeros(height, width, device=masks.device)
    for some in masks.split(max(_MASK_PIXELS_AT_ONCE // masks[0].numel(), 1)):
        covered = F.adaptive_max_pool2d((some != 0).float(), (height, width))
        weights = torch.maximum(weights, (covered / covered.sum((1, 2), keepdim=True).clamp(min=1)).amax(0))
    return weights


def instance_masks(masks: Sequence[Tensor]) -> _Masks:
    """Foreground of instance masks: a pixel of a level belongs to an object if any of the mask's pixels in it does.

    Args:
        masks: one tensor (n_i, h_i, w_i) an image, of any dtype: 0 outside of an object. A mask covers the frame that
            the whole feature map covers, the padded batch, in whatever resolution. n_i may be 0.

    Returns:
        As `polygons`.

    Raises:
        TypeError: masks is no list of tensors.
        ValueError: a shape or a device is wrong.
    """
    _check_list("masks", masks, "of tensors (n_i, h, w), one an image")
    for index, mask in enumerate(masks):
        if not isinstance(mask, Tensor):
            raise FGDTypeError(f"masks[{index}]: expected a tensor (n, h, w), got {type(mask).__name__}")
        if mask.ndim != 3 or not mask.shape[1] or not mask.shape[2]:
            raise FGDValueError(f"masks[{index}]: expected shape (n, h, w), got {tuple(mask.shape)}")
        if mask.device != masks[0].device:
            raise FGDValueError(f"masks[{index}]: expected device {masks[0].device}, as the first, got {mask.device}")
    return _Masks(list(masks))
