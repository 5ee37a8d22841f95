"""The functional call: checks the features, packs the boxes or the maps in their place, runs the operator."""

import math
import numbers
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import ops
from .boxes import PackedBoxes, check_packed, doubtful_frame, no_boxes, pack_boxes
from .errors import FGDTypeError, FGDValueError
from .foreground import Foreground, foreground_maps
from .reference import GC_BLOCK_SIZE, GcBlockPair
from .shared import MAX_CHANNELS

LOSS_NAMES = ("loss_fgd_fg", "loss_fgd_bg", "loss_fgd_attention", "loss_fgd_global")
ATTENTIONS = ("both", "spatial", "channel", "none")

_SMALLEST_TEMPERATURE = 1 / torch.finfo(torch.float32).max
_HIDDEN_BIASES = tuple(GcBlockPair._fields.index(name) for name in ("b1_s", "b1_t"))
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fgd_loss(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    boxes: Sequence[Tensor] | PackedBoxes | None = None,
    image_sizes: Sequence[Sequence[float]] | Tensor | None = None,
    *,
    foreground: Foreground | None = None,
    gc_block: Sequence[Tensor] = (),
    alpha: float = 1e-3,
    beta: float = 5e-4,
    gamma: float = 1e-3,
    lambda_: float = 5e-6,
    temperature: float = 0.5,
    attention: str = "both",
    split: bool = True,
    level_weights: Sequence[float] | str | None = None,
    backend: str = "auto",
    validate: bool = False,
    return_levels: bool = False,
) -> dict[str, Tensor] | tuple[dict[str, Tensor], Tensor]:
    """The FGD loss (the paper's (9), (10) and (12)) of one level or of a whole pyramid.

    Of one image and level, with d = F_t - F_s, the teacher's features less the student's, at channel c and pixel p:

        loss_fgd_fg         alpha · Σ_pc  A_S[p] · A_C[c] · d²  / area of the object over p;  0 outside of objects
        loss_fgd_bg         beta · Σ_pc  A_S[p] · A_C[c] · d²  / number of background pixels;  0 inside of objects
        loss_fgd_attention  gamma · (Σ_p |A_S[p] - the student's| + Σ_c |A_C[c] - the student's|)
        loss_fgd_global     lambda_ · Σ_pc  (R(F_t) - R(F_s))²

    A_S = H·W · softmax_p(mean_c |F_t| / T) and A_C = C · softmax_c(mean_p |F_t| / T) are the teacher's attentions (7)
    and (8). Where objects overlap the smallest counts. R adds to the features what each network's own GcBlock makes of
    them, one vector for all pixels. Levels are added up, images averaged.

    Args:
        student: features (N, C, H, W), or a list of them, one a level; N and device are common to all levels,
            C, H and W are each level's own. float32, float16, bfloat16 (summed in float32) or float64; contiguous
            or channels_last, without a copy. C at most 2048.
        teacher: features of the same shapes; they take no gradient. The dtype may differ from the student's.
        boxes: one tensor (n_i, 4) an image, x1, y1, x2, y2 in pixels; or what `pack_boxes` made of them.
        image_sizes: one (height, width) an image, in the same pixels: the frame that the whole feature map covers,
            which is the padded batch size. None if the boxes are packed.
        foreground: in place of boxes and image_sizes, the weight of every pixel of M·S (2), (3): one floating-point
            tensor (N, H, W) a level, >= 0, where 0 is background; or what makes it of (H, W), such as
            `foreground.rotated_boxes`, `.polygons` and `.instance_masks`. The maps take no gradient.
        gc_block: the GcBlock parameters of the student and the teacher, 16 tensors a level, in the order given in
            `reference.GcBlockPair`; FGDLoss holds them. Empty: no global term (the paper's table 4).
        alpha, beta, gamma, lambda_: weights of foreground, background, attention and global term; the default is
            the paper's for one-stage detectors with anchors.
        temperature: T of (7) and (8), > 0; so large that 1/T is finite in float32.
        attention: 'both', 'spatial' alone, 'channel' alone or 'none' (table 5).
        split: False distils the image as one area, weighted by beta, instead of fore- and background (table 1).
        level_weights: one factor a level, or 'inverse_area' for 1 / (H·W); None for 1.
        backend: 'auto', or one of `backends()`.
        validate: check values of boxes and foreground on a GPU too, which costs a synchronisation; refuse boxes that
            are fractions of their image and image sizes whose shape contradicts the maps', such as (width, height).
        return_levels: also return the weighted terms of each level, detached (L, 4), for logs.

    Returns:
        dict of four 0-dim tensors, float32 (float64 for float64 features), averaged over the images: loss_fgd_fg,
        loss_fgd_bg, loss_fgd_attention and loss_fgd_global. Their sum is the loss. Second derivatives
        and forward mode are the reference's alone.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        RuntimeError: the backend asked for by name cannot run here.
    """
    students, teachers = _as_levels(student, "student"), _as_levels(teacher, "teacher")
    _check_features(students, teachers)
    first = students[0]
    maps = None
    if foreground is not None:
        if boxes is not None or image_sizes is not None:
            raise FGDTypeError("boxes, image_sizes: expected None, because foreground takes their place")
        maps = foreground_maps(foreground, students, validate)
        packed = no_boxes(first.shape[0], first.device)
    else:
        packed = _pack(boxes, image_sizes, first, validate)
    if maps is None and validate and (doubt := doubtful_frame(packed.sizes, [s.shape[2:] for s in students])):
        raise FGDValueError(doubt)
    if not split:
        maps, packed = None, packed._replace(values=packed.values[:0], offsets=torch.zeros_like(packed.offsets))
    _check_gc_block(gc_block, teachers)
    check_settings(
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        lambda_=lambda_,
        temperature=temperature,
        attention=attention,
        level_weights=level_weights,
        levels=len(students),
    )
    weights = [
        factor * weight for factor in level_factors(level_weights, students) for weight in (alpha, beta, gamma, lambda_)
    ]
    *terms, levels = ops.pyramid_loss(
        students,
        teachers,
        packed,
        gc_block,
        weights,
        temperature if attention in ("both", "spatial") else math.inf,
        temperature if attention in ("both", "channel") else math.inf,
        backend,
        maps,
    )
    losses = dict(zip(LOSS_NAMES, terms, strict=True))
    return (losses, levels) if return_levels else losses


def checked_inputs(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Sequence[Tensor] | PackedBoxes,
    image_sizes: Sequence[Sequence[float]] | Tensor | None,
    validate: bool,
    channels: Sequence[tuple[int, int]],
) -> tuple[list[Tensor], list[Tensor], PackedBoxes]:
    """What `fgd_loss` takes, checked as it does, for another loss on the same features, whose channels may differ."""
    students, teachers = _as_levels(student, "student"), _as_levels(teacher, "teacher")
    _check_features(students, teachers, channels)
    packed = _pack(boxes, image_sizes, students[0], validate)
    if validate and (doubt := doubtful_frame(packed.sizes, [s.shape[2:] for s in students])):
        raise FGDValueError(doubt)
    return students, teachers, packed


def check_settings(*, alpha, beta, gamma, lambda_, temperature, attention, level_weights, levels) -> None:
    """Raise TypeError or ValueError unless these are what `fgd_loss` takes for a pyramid of `levels` levels."""
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("lambda_", lambda_)):
        _check_weight(name, value)
    _check_number("temperature", temperature, "> 0")
    if not temperature > 0:
        raise FGDValueError(f"temperature: expected a number > 0, got {temperature}")
    if temperature < _SMALLEST_TEMPERATURE:
        raise FGDValueError(
            f"temperature: expected at least {_SMALLEST_TEMPERATURE:.3g}, below which 1/T overflows float32, "
            f"got {temperature}"
        )
    if attention not in ATTENTIONS:
        raise FGDValueError(f"attention: expected one of {', '.join(ATTENTIONS)}, got {attention!r}")
    if level_weights is None or (isinstance(level_weights, str) and level_weights == "inverse_area"):
        return
    if isinstance(level_weights, str) or not isinstance(level_weights, Sequence):
        kind = FGDValueError if isinstance(level_weights, str) else FGDTypeError
        raise kind(f"level_weights: expected numbers, 'inverse_area' or None, got {level_weights!r}")
    if len(level_weights) != levels:
        raise FGDValueError(f"level_weights: expected {levels} numbers, one a level, got {len(level_weights)}")
    for level, value in enumerate(level_weights):
        _check_weight(f"level_weights[{level}]", value)


def _check_weight(name: str, value) -> None:
    _check_number(name, value, ">= 0")
    if not 0 <= value < math.inf:
        raise FGDValueError(f"{name}: expected a finite number >= 0, got {value}")


def _check_number(name: str, value, range_: str) -> None:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise FGDTypeError(f"{name}: expected a number {range_}, got {value!r} of type {type(value).__name__}")


def _as_levels(features: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    if isinstance(features, Mapping) or not isinstance(features, Sequence):
        raise FGDTypeError(f"{name}: expected a tensor or a list of tensors, got {type(features).__name__}")
    if not features:
        raise FGDValueError(f"{name}: expected at least one level, got none")
    return list(features)


def _check_features(
    students: list[Tensor], teachers: list[Tensor], channels: Sequence[tuple[int, int]] | None = None
) -> None:
    """`channels`: what each level's student and teacher must have; None: the same number, whatever it is."""
    if len(students) != len(teachers):
        raise FGDValueError(f"teacher: expected {len(students)} levels, as the student has, got {len(teachers)}")
    for name, levels in (("student", students), ("teacher", teachers)):
        for level, features in enumerate(levels):
            _check_level(features, f"{name}[{level}]", levels[0], students[0])
    for level, (s, t) in enumerate(zip(students, teachers, strict=True)):
        of_student, of_teacher = (s.shape[1], s.shape[1]) if channels is None else channels[level]
        if s.shape[1] != of_student:
            raise FGDValueError(f"student[{level}]: expected {of_student} channels, got {s.shape[1]}")
        expected = (s.shape[0], of_teacher, *s.shape[2:])
        if tuple(t.shape) != expected:
            raise FGDValueError(
                f"teacher[{level}]: expected the student's shape {expected}, got {tuple(t.shape)} "
                "(align the channels, resize the maps)"
                if channels is None
                else f"teacher[{level}]: expected shape {expected}, got {tuple(t.shape)} (resize the maps)"
            )
        if t.requires_grad:
            raise FGDValueError(f"teacher[{level}]: expected no gradient, got requires_grad=True; detach() it")


def _check_level(features: Tensor, name: str, first: Tensor, student: Tensor) -> None:
    if not isinstance(features, Tensor):
        raise FGDTypeError(f"{name}: expected a tensor (N, C, H, W), got {type(features).__name__}")
    if features.dtype not in _DTYPES:
        raise FGDTypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {features.dtype}")
    if features.dtype != first.dtype:
        raise FGDTypeError(f"{name}: expected one dtype for all levels, {first.dtype}, got {features.dtype}")
    if features.layout != torch.strided or features.is_nested:
        raise FGDTypeError(f"{name}: expected a dense tensor, got {features.layout}, nested: {features.is_nested}")
    if features.ndim != 4:
        raise FGDValueError(f"{name}: expected shape (N, C, H, W), got {tuple(features.shape)}")
    n, c, h, w = features.shape
    if n != student.shape[0]:
        raise FGDValueError(f"{name}: expected {student.shape[0]} images, as on the first level, got {n}")
    if not 1 <= c <= MAX_CHANNELS or h < 1 or w < 1:
        raise FGDValueError(f"{name}: expected 1 to {MAX_CHANNELS} channels and H, W >= 1, got {tuple(features.shape)}")
    if features.device != student.device:
        raise FGDValueError(f"{name}: expected device {student.device}, as the first level, got {features.device}")


def _pack(boxes, image_sizes, first: Tensor, validate: bool) -> PackedBoxes:
    if boxes is None:
        raise FGDTypeError("boxes: expected a list of tensors (n_i, 4), one an image, or foreground in their place")
    if not isinstance(boxes, PackedBoxes):
        if image_sizes is None:
            raise FGDTypeError("image_sizes: expected one (height, width) an image, got None")
        boxes = pack_boxes(boxes, image_sizes, first.device, validate=validate)
        images = boxes.sizes.shape[0]
        if images != first.shape[0]:
            raise FGDValueError(f"boxes: expected one tensor for each of {first.shape[0]} images, got {images}")
    elif image_sizes is not None:
        raise FGDTypeError("image_sizes: expected None, because the boxes are packed with their image sizes")
    check_packed(boxes, first.shape[0], first.device)
    return boxes


def _check_gc_block(gc_block: Sequence[Tensor], teachers: list[Tensor]) -> None:
    if not isinstance(gc_block, Sequence):
        raise FGDTypeError(f"gc_block: expected a list of tensors, which may be empty, got {type(gc_block).__name__}")
    if gc_block and len(gc_block) != GC_BLOCK_SIZE * len(teachers):
        raise FGDValueError(
            f"gc_block: expected {GC_BLOCK_SIZE} tensors for each of {len(teachers)} levels, got {len(gc_block)}"
        )
    device = teachers[0].device
    for index, tensor in enumerate(gc_block):
        if not isinstance(tensor, Tensor):
            raise FGDTypeError(f"gc_block[{index}]: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != device:
            raise FGDValueError(f"gc_block[{index}]: expected device {device}, got {tensor.device}")
        if tensor.dtype not in _DTYPES:
            raise FGDTypeError(f"gc_block[{index}]: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    for first in range(0, len(gc_block), GC_BLOCK_SIZE):
        shapes = [tensor.shape for tensor in gc_block[first : first + GC_BLOCK_SIZE]]
        expected = _gc_block_shapes(teachers[first // GC_BLOCK_SIZE].shape[1], shapes)
        if shapes != expected:
            index = next(i for i in range(GC_BLOCK_SIZE) if shapes[i] != expected[i])
            raise FGDValueError(
                f"gc_block[{first + index}]: expected shape {expected[index]}, got {tuple(shapes[index])}"
            )


def _gc_block_shapes(channels: int, found: Sequence[torch.Size]) -> list[tuple[int, ...]]:
    """What a level's 16 shapes have to be; the hidden channels are free, one number for each of its two GcBlocks."""
    mask = [(1, channels, 1, 1), (1,)]
    shapes = [*mask, *mask]
    for index in _HIDDEN_BIASES:
        biases = found[index]
        hidden = biases[0] if biases else 1
        shapes += [(hidden, channels, 1, 1), (hidden,), (hidden, 1, 1), (hidden, 1, 1)]
        shapes += [(channels, hidden, 1, 1), (channels,)]
    return shapes


def level_factors(level_weights: Sequence[float] | str | None, students: list[Tensor]) -> list[float]:
    """One factor a level, from what `fgd_loss` takes as `level_weights`."""
    if level_weights is None:
        return [1.0] * len(students)
    if isinstance(level_weights, str):
        return [1.0 / (s.shape[2] * s.shape[3]) for s in students]
    return [float(weight) for weight in level_weights]
