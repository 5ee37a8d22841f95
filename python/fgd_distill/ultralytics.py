"""Ultralytics' own trainer with a teacher. Importing this imports ``ultralytics``, which is licensed under the AGPL.

YOLO("yolov8n.yaml").train(trainer=FGDTrainer.with_teacher("teacher.pt"), data="coco.yaml", epochs=100)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from .distiller import DetectionDistiller
from .distilling import distil
from .errors import FGDTypeError, FGDValueError


class FGDTrainer(DetectionTrainer):
    """Ultralytics' trainer of detectors, with the distillation loss added to the detector's own.

    Data, augmentation, schedule, mixed precision and checkpoints are Ultralytics'. A checkpoint's model is the plain
    student; the loss's own parameters are saved with the optimizer's state, so that ``resume=True``, given with the
    same trainer, continues them too. The terms are logged beside the detector's losses.

    Like Ultralytics' own losses, they are multiplied by the batch size. A ``schedule`` counts batches here.
    """

    teacher: nn.Module | str | Path | None = None
    settings: Mapping[str, Any] = {}
    distiller: DetectionDistiller

    @classmethod
    def with_teacher(cls, teacher: nn.Module | str | Path, **settings: Any) -> type[FGDTrainer]:
        """The trainer's class with a teacher, to be given as ``trainer=``.

        Args:
            teacher: a detector's file, such as ``best.pt`` of a training; or ``YOLO(...)``; or the network in it.
            settings: as ``fgd_distill.distil`` takes them: ``preset``, ``layers``, ``alpha`` and so on.
        """
        return type(cls.__name__, (cls,), {"teacher": teacher, "settings": settings})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.teacher is None:
            raise FGDTypeError("FGDTrainer: expected a teacher, got none; give trainer=FGDTrainer.with_teacher(...)")
        if self.world_size > 1:
            raise FGDValueError(f"device: expected one for distillation, got {self.world_size} of them")
        if self.args.compile:
            raise FGDValueError(f"compile: expected False for distillation, got {self.args.compile!r}")
        self._batches = 0  # seen so far, for the schedule

    def build_optimizer(self, model: nn.Module, *args: Any, **options: Any) -> Optimizer:
        optimizer = super().build_optimizer(model, *args, **options)
        self.distiller = distil(model, _network(self.teacher).to(self.device), **self.settings)
        plain = next(group for group in optimizer.param_groups if group["param_group"] == "bn")  # without weight decay
        self.distiller.join(optimizer, **{name: value for name, value in plain.items() if name != "params"})
        return optimizer

    def _setup_train(self) -> None:
        super()._setup_train()
        student: Any = self.model
        plain = student.forward
        self._batches = self.start_epoch * len(self.train_loader)

        def forward(x: Any, *args: Any, **options: Any) -> Any:
            if not (student.training and isinstance(x, Mapping)):
                return plain(x, *args, **options)
            self.distiller.set_step(self._batches)
            self._batches += 1
            losses = self.distiller(x)
            total: Tensor = torch.stack(list(losses.values())) * len(x["img"])
            return total, {name: loss.detach() for name, loss in losses.items()}

        student.forward = forward

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        average: Any = self.ema.ema if self.ema else None
        if average is not None and "forward" in vars(average):
            del average.forward  # of a copy of the model; it would call the model itself


def _network(teacher: Any) -> nn.Module:
    if isinstance(teacher, str | Path):
        teacher = YOLO(teacher)
    return getattr(teacher, "model", teacher) if isinstance(teacher, YOLO) else teacher
