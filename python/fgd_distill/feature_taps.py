"""Feature maps and boxes for the loss in anybody's training loop, without an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from typing_extensions import Self

from fgd_kernels import FGDLoss, pack_boxes
from fgd_kernels.boxes import doubtful_boxes, doubtful_frame

from .adapters.registry import check_plain
from .errors import FGDRuntimeError, FGDTypeError, FGDValueError
from .frozen_teacher import FrozenTeacher, check_apart
from .taps import LayerTap, find_layer, layer_names

FITS = ("stretch", "pad", "centre")


class LossInputs(NamedTuple):
    """What the loss is called with: ``criterion(*inputs)``.

    Args:
        student, teacher: one (N, C, H, W) a level.
        boxes: one float tensor (n_i, 4) an image, xyxy in pixels of the batch.
        image_sizes: one (height, width) an image: the batch's, which every whole map covers.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    boxes: list[Tensor]
    image_sizes: list[tuple[int, int]]


class FeatureTaps(FrozenTeacher):
    """Taps two models in a loop of your own, whatever they are and however they are called.

    The loop runs the student as it always does, inside of ``with taps:``; ``inputs`` then runs the teacher on the same
    batch, in eval mode, without gradient and no further than its last tapped layer. Both models may be wrapped by
    DistributedDataParallel, as accelerate does; hooks exist only inside of the block.

    Args:
        student: the model that is trained.
        teacher: the model to learn from. It goes to the batch's device, and gets the batch in its own floating type.
        layers: name or names of the student's modules whose outputs are distilled, from fine to coarse, such as
            ``backbone.fpn``; outputs may be tensors (N, C, H, W), or dicts, lists or tuples of them.
        teacher_layers: the same of the teacher; None takes the names in ``layers``.
        run_teacher: called as ``run_teacher(teacher, batch)``; None calls ``teacher(batch)``.

    Raises:
        ValueError: a layer does not exist, and the message lists close names; or the models share parameters.
        TypeError: a model is wrapped by torch.compile, which would not call its layers.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: str | Sequence[str],
        teacher_layers: str | Sequence[str] | None = None,
        run_teacher: Callable[[nn.Module, Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        self.layers = layer_names(layers)
        self.teacher_layers = self.layers if teacher_layers is None else layer_names(teacher_layers)
        # Not as a submodule: the student belongs to the loop.
        object.__setattr__(self, "student", _inside("student", student))
        self.teacher = _inside("teacher", teacher)
        check_apart(self.student, self.teacher)
        for model, names in ((self.student, self.layers), (self.teacher, self.teacher_layers)):
            for name in names:
                find_layer(model, name)
        self.run_teacher = run_teacher
        self._tap: LayerTap | None = None
        self._looked_at = False

    student: nn.Module

    def __enter__(self) -> Self:
        self._tap = LayerTap(self.student, self.layers)
        self._tap.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._tap is not None:
            self._tap.__exit__(*error)

    @torch.no_grad()
    def criterion(self, batch: Tensor, preset: str = "one_stage_anchor", **settings: Any) -> FGDLoss:
        """The loss for these maps, on the batch's device; its parameters belong in the optimizer.

        Args:
            batch: (N, 3, H, W); both models run on it once, in eval mode, to tell their channels. The student has to
                take it alone, as the teacher does.
            preset, settings: as ``fgd_kernels.FGDLoss`` takes them. Instead of weights, ``DetectorShares`` keeps its
                terms at shares of the detector's own loss, which the loop alone knows.
        """
        for name in settings.keys() & {"normalise", "shares"}:
            raise FGDTypeError(
                f"{name}: expected a setting of FGDLoss, got {settings[name]!r}; in a loop of your own the terms of a "
                "loss with weights of 1 are kept at shares by fgd_distill.DetectorShares: losses = shares(losses, "
                "detector_loss)"
            )
        modes = [(module, module.training) for module in self.student.modules()]
        self.student.eval()
        try:
            with LayerTap(self.student, self.layers, stop=True) as tap:
                self.student(batch)
        finally:
            for module, mode in modes:
                module.training = mode
        ours, theirs = ([f.shape[1] for f in maps] for maps in (tap.features(), self._teacher_maps(batch)))
        return FGDLoss(ours, theirs, preset=preset, **settings).to(batch.device)

    def inputs(
        self,
        batch: Tensor,
        boxes: Sequence[Tensor],
        sizes: Sequence[Sequence[float]] | None = None,
        fit: str = "stretch",
    ) -> LossInputs:
        """What the loss is called with, after the student has run inside of the ``with`` block.

        Args:
            batch: (N, 3, H, W), the tensor that the student got: resized, normalised and padded.
            boxes: one tensor (n_i, 4) an image, xyxy in pixels; integers become floats.
            sizes: one (height, width) an image: of the image in which its boxes are counted, before it was resized to
                the batch. None: boxes are in pixels of the batch.
            fit: how such an image became one of the batch: ``stretch`` to its height and width; or by one factor, as
                large as fits, and then ``pad`` at the right and at the bottom, or ``centre``, as much on both sides.

        Raises:
            RuntimeError: the student did not run inside of the block.
            TypeError: ``batch`` or a box is no tensor.
            ValueError: student and teacher give different numbers or sizes of maps, or the student's carry no gradient;
                or ``boxes``, ``sizes`` or ``fit`` are wrong.
        """
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            got: Any = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise FGDTypeError(f"batch: expected the tensor (N, 3, H, W) that the student got, got {got}")
        if not isinstance(boxes, Sequence) or len(boxes) != len(batch):
            got = len(boxes) if isinstance(boxes, Sequence) else type(boxes).__name__
            raise FGDValueError(f"boxes: expected one tensor for each of {len(batch)} images, got {got}")
        if self._tap is None:
            raise FGDRuntimeError("inputs: expected the student to have run in `with taps:`, but it was not entered")
        student = self._tap.features()
        if torch.is_grad_enabled() and not any(level.requires_grad for level in student):
            raise FGDValueError(
                f"layers: the student's outputs of {self.layers} carry no gradient, so nothing would be distilled; are "
                "they frozen, or did it run under torch.no_grad()? To measure the loss alone, call inputs under it, too"
            )
        teacher = self._teacher_maps(batch)
        self._tap = None
        shapes = [[tuple(feature.shape[2:]) for feature in maps] for maps in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise FGDValueError(f"maps: expected the teacher's of the student's sizes, {shapes[0]}, got {shapes[1]}")
        height, width = (int(side) for side in batch.shape[-2:])
        frames = [(height, width)] * len(batch)
        placed = (
            [_as_floats(box, index) for index, box in enumerate(boxes)]
            if sizes is None
            else boxes_in_batch(boxes, sizes, (height, width), fit)
        )
        found = LossInputs(student, teacher, placed, frames)
        if not self._looked_at:
            self._looked_at = True
            for doubt in doubts(student, placed, frames, self.layers):
                warnings.warn(doubt, stacklevel=2)
        return found

    def _teacher_maps(self, batch: Tensor) -> list[Tensor]:
        self.teacher.eval()
        batch = batch.detach()
        if (parameter := next(self.teacher.parameters(), None)) is not None:
            if parameter.device != batch.device:
                self.teacher.to(batch.device)
            batch = batch.to(parameter.dtype) if batch.is_floating_point() else batch
        with torch.no_grad(), LayerTap(self.teacher, self.teacher_layers, stop=True) as tap:
            self.teacher(batch) if self.run_teacher is None else self.run_teacher(self.teacher, batch)
        return tap.features()


def _as_floats(box: Any, index: int) -> Tensor:
    """Integers, as annotations have them, would cut off what a factor leaves behind the point."""
    if not isinstance(box, Tensor):
        raise FGDTypeError(f"boxes[{index}]: expected a tensor (n, 4), got {type(box).__name__}")
    return box if box.is_floating_point() else box.float()


def boxes_in_batch(
    boxes: Sequence[Tensor], sizes: Sequence[Sequence[float]], frame: tuple[int, int], fit: str = "stretch"
) -> list[Tensor]:
    """Boxes, as floats, where their images are in a batch; see ``FeatureTaps.inputs``.

    Args:
        boxes: one tensor (n_i, 4) an image, xyxy in pixels of an image of its size in ``sizes``.
        sizes: one (height, width) an image.
        frame: height and width of the batch.
        fit: ``stretch``, ``pad`` or ``centre``.
    """
    if fit not in FITS:
        raise FGDValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
    if not hasattr(sizes, "__len__") or len(sizes) != len(boxes):
        got: Any = len(sizes) if hasattr(sizes, "__len__") else repr(sizes)
        raise FGDValueError(f"sizes: expected one (height, width) for each of {len(boxes)} images, got {got}")
    placed = []
    for index, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        if not hasattr(size, "__len__") or len(size) != 2 or not min(size) > 0:
            got = tuple(size) if hasattr(size, "__len__") else repr(size)
            raise FGDValueError(f"sizes[{index}]: expected (height, width), both > 0, got {got}")
        box, (height, width) = _as_floats(box, index), size
        down, across = frame[0] / height, frame[1] / width
        if fit != "stretch":
            down = across = min(down, across)
        left, top = ((frame[1] - across * width) / 2, (frame[0] - down * height) / 2) if fit == "centre" else (0.0, 0.0)
        placed.append(box * box.new_tensor([across, down, across, down]) + box.new_tensor([left, top, left, top]))
    return placed


def doubts(
    maps: Sequence[Tensor], boxes: Sequence[Tensor], frames: Sequence[tuple[int, int]], layers: Sequence[str]
) -> list[str]:
    """What makes a loss's inputs look wrong though each could be meant: fractions for boxes, a frame of another shape
    than the maps, levels from coarse to fine. Reads values, so it waits for a GPU."""
    packed = pack_boxes(boxes, frames, maps[0].device)
    found = [doubtful_boxes(packed), doubtful_frame(packed.sizes, [feature.shape[2:] for feature in maps])]
    areas = [feature.shape[2] * feature.shape[3] for feature in maps]
    if areas != sorted(areas, reverse=True):
        found.append(
            f"layers: expected feature maps from fine to coarse, got {list(layers)} with {areas} pixels; level_weights "
            "and logs count levels in that order"
        )
    return [doubt for doubt in found if doubt]


def _inside(role: str, model: Any) -> nn.Module:
    """The model inside of what accelerate and DistributedDataParallel put around it."""
    if isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    check_plain(role, model)
    return model
