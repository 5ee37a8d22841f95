"""The distiller: a student detector, a frozen teacher and the loss between their feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from .adapters import DetectorAdapter, adapter_for
from .taps import LayerTap, find_layer


class DetectionDistiller(nn.Module):
    """Trains ``student`` with its own losses and a distillation loss towards ``teacher``.

    In training mode a call returns the student's loss dict with the terms of ``criterion`` added; in eval mode it
    returns the student's predictions. The teacher always runs in eval mode and without gradient, on the very tensor
    that the student's backbone got. It moves with ``.to()`` but is in none of ``parameters()``, ``state_dict()``,
    ``modules()`` and ``train()``. Features are read by hooks that exist only during the call.

    Args:
        student: the detector to train.
        teacher: the detector to learn from.
        criterion: called as ``criterion(student_features, teacher_features, boxes, image_sizes)``; returns a dict of
            losses, as ``fgd_kernels.FGDLoss`` does. Its parameters belong in the optimizer: ``check_optimizer``.
        student_layers, teacher_layers: name or names of the modules whose outputs are distilled, such as
            ``backbone.fpn``; outputs may be tensors (N, C, H, W), or dicts, lists or tuples of them.
        adapter: knows how the detectors are run; None chooses one (torchvision's detectors).
        resize_teacher: whether teacher maps of another height and width are resized (bilinear) to the student's;
            otherwise they are an error.

    Raises:
        ValueError: a layer does not exist (the message lists close names), or the two cannot share one input.
        TypeError: there is no adapter for the detectors.
    """

    student: nn.Module
    teacher: nn.Module
    criterion: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        criterion: nn.Module,
        student_layers: str | Sequence[str] = "backbone.fpn",
        teacher_layers: str | Sequence[str] = "backbone.fpn",
        adapter: DetectorAdapter | None = None,
        resize_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.adapter = adapter or adapter_for(student)
        self.adapter.check_pair(student, teacher)
        self.student_layers, self.teacher_layers = layer_names(student_layers), layer_names(teacher_layers)
        for model, names in ((student, self.student_layers), (teacher, self.teacher_layers)):
            for name in names:
                find_layer(model, name)
        self.resize_teacher = resize_teacher
        self.student, self.criterion = student, criterion
        # Past nn.Module's own setattr, which would register the teacher and with it train, save and optimise it.
        object.__setattr__(self, "teacher", teacher.eval())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DetectionDistiller:
        # Everything that moves or converts a module (.to, .cuda, .half) passes here.
        super()._apply(fn, recurse)
        if recurse:
            self.teacher._apply(fn)
        return self

    def forward(self, images: Any, targets: Any = None) -> Any:
        """Losses in training mode, predictions in eval mode.

        Args:
            images: what the student takes; for torchvision's detectors a sequence of float tensors (3, H_i, W_i).
            targets: what the student takes; there a sequence of dicts with ``boxes`` (n_i, 4), xyxy in pixels of the
                image, and ``labels``. Needed in training mode only.

        Returns:
            the student's losses and the criterion's, one dict of scalar tensors; or the student's predictions.

        Raises:
            ValueError: feature maps of student and teacher do not correspond.
        """
        if not self.training:
            return self.student(list(images))
        with LayerTap(self.student, self.student_layers) as tap:
            step = self.adapter.student_step(self.student, images, targets)
        student_features = tap.features()
        teacher_features = self._match(student_features, self.teacher_features(step.batch))
        # The maps cover the padded batch, so its size is every image's frame, whatever the image measured before.
        frames = [tuple(step.batch.shape[-2:])] * step.batch.shape[0]
        terms = self.criterion(student_features, teacher_features, step.boxes, frames)
        clash = terms.keys() & step.losses.keys()
        if clash:
            raise ValueError(f"student and criterion both return losses called {sorted(clash)}")
        return {**step.losses, **terms}

    def teacher_features(self, batch: Tensor) -> list[Tensor]:
        """The teacher's feature maps for a prepared batch (N, 3, H, W), without gradient."""
        self.teacher.eval()  # again, for whoever holds the teacher may have called train() on it
        with torch.no_grad(), LayerTap(self.teacher, self.teacher_layers) as tap:
            self.adapter.run_backbone(self.teacher, batch.detach())
        return tap.features()

    def _match(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """The teacher's maps at the student's sizes."""
        if len(student) != len(teacher):
            raise ValueError(
                f"student_layers {self.student_layers} give {len(student)} feature maps, teacher_layers "
                f"{self.teacher_layers} give {len(teacher)}; expected as many"
            )
        sizes = [(tuple(s.shape[-2:]), tuple(t.shape[-2:])) for s, t in zip(student, teacher, strict=True)]
        for level, (ours, theirs) in enumerate(sizes):
            if ours != theirs and not self.resize_teacher:
                shapes = f"the student's is {ours[0]}x{ours[1]}, the teacher's {theirs[0]}x{theirs[1]}"
                raise ValueError(
                    f"feature map {level}: {shapes}; tap layers of equal stride, or set resize_teacher=True"
                )
        return [
            t if ours == theirs else F.interpolate(t, size=ours, mode="bilinear", align_corners=False)
            for t, (ours, theirs) in zip(teacher, sizes, strict=True)
        ]

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raises unless the optimizers hold every trainable parameter of the student and of the criterion.

        The criterion has parameters of its own (GcBlocks, align convolutions). An optimizer made from
        ``student.parameters()`` would leave them at their initial values without a word.

        Raises:
            RuntimeError: parameters are missing; the message names them.
        """
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in held]
        if missing:
            raise RuntimeError(
                f"{len(missing)} trainable parameters of the distiller are in no optimizer and would never change, "
                f"among them {missing[:3]}; make the optimizer from distiller.parameters()"
            )


def layer_names(layers: str | Sequence[str]) -> list[str]:
    """One name or several as a list."""
    return [layers] if isinstance(layers, str) else list(layers)
