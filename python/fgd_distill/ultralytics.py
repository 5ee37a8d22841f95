"""Ultralytics' own trainers with a teacher. Importing this imports ``ultralytics``, which is licensed under the AGPL.

YOLO("yolov8n.yaml").train(trainer=FGDTrainer.with_teacher("teacher.pt"), data="coco.yaml", epochs=100)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import unwrap_model

from .adapters.ultralytics import is_rt_detr
from .calibration.choose import find_by_batches, set_weights, total_of
from .distiller import DetectionDistiller
from .distilling import distil
from .errors import FGDTypeError, FGDValueError
from .files import write_text
from .processes import average_gradients, share_parameters

_TRAINERS = {"detect": DetectionTrainer, "segment": SegmentationTrainer, "pose": PoseTrainer, "obb": OBBTrainer}
_CALIBRATED = "fgd_weights.yaml"
"""In the run's folder: what ``weights="calibrate"`` found, for a resumed training."""


class FGDTrainer(DetectionTrainer):
    """Ultralytics' trainer of a task, with the distillation loss added to the model's own.

    It is that task's trainer: detect, segment, pose or obb, or RT-DETR's where the model's file says so. Data,
    augmentation, schedule, mixed precision, several devices and checkpoints are Ultralytics'. A checkpoint's model is
    the plain student; the loss's own parameters are saved with the optimizer's state, so that ``resume=True``, given
    with the same trainer, continues them too. The terms are logged beside the model's losses.

    Like YOLO's own losses, they are multiplied by the batch size. A ``schedule`` counts batches here. With
    ``compile=True`` the layers of both networks are compiled, and not the loss.
    """

    teacher: nn.Module | str | Path | None = None
    settings: Mapping[str, Any] = {}
    total: float | None = None
    distiller: DetectionDistiller

    def __new__(cls, cfg: Any = None, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> FGDTrainer:
        task = (overrides or {}).get("task") or "detect"
        if task not in _TRAINERS:
            raise FGDValueError(f"task: expected one of {', '.join(_TRAINERS)} for distillation, got {task}")
        base = RTDETRTrainer if _names_rt_detr((overrides or {}).get("model")) else _TRAINERS[task]
        return object.__new__(cls if issubclass(cls, base) else type(cls.__name__, (cls, base), {}))

    @classmethod
    def with_teacher(
        cls, teacher: nn.Module | str | Path, weights: str | float | None = None, **settings: Any
    ) -> type[FGDTrainer]:
        """The trainer's class with a teacher, to be given as ``trainer=``.

        Args:
            teacher: a model's file, such as ``best.pt`` of a training; or ``YOLO(...)``; or the network in it.
            weights: ``calibrate`` chooses temperature and weights by four batches of the training images before the
                first step, as ``fgd-distill calibrate`` does: all terms together are three times the detector's own
                loss then. A number is another multiple, such as 1 for a student that begins with random weights. None
                takes those of the settings.
            settings: as ``fgd_distill.distil`` takes them: ``preset``, ``layers``, ``alpha`` and so on. They are
                checked when a training begins.

        Raises:
            ValueError: ``weights`` is neither ``calibrate`` nor a number from 0.4 to 8.
        """
        return type(cls.__name__, (cls,), {"teacher": teacher, "settings": settings, "total": total_of(weights)})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.teacher is None:
            raise FGDTypeError("FGDTrainer: expected a teacher, got none; give trainer=FGDTrainer.with_teacher(...)")
        self._batches = 0  # seen so far, for the schedule

    def build_optimizer(self, model: nn.Module, *args: Any, **options: Any) -> Optimizer:
        optimizer = super().build_optimizer(model, *args, **options)
        self.distiller = distil(unwrap_model(model), _network(self.teacher).to(self.device), **self.settings)
        share_parameters(self.distiller.criterion)
        plain = next(group for group in optimizer.param_groups if group["param_group"] == "bn")  # without weight decay
        self.distiller.join(optimizer, **{name: value for name, value in plain.items() if name != "params"})
        return optimizer

    def _setup_train(self) -> None:
        # Compiled as one, the student would not call its layers, whose outputs are distilled.
        self._compile_mode = compile_mode = self.args.compile
        self.args.compile = False
        super()._setup_train()
        model: Any = self.model
        student: Any = unwrap_model(model)
        if self.total is not None:
            self._calibrate(self.total)
        if compile_mode:
            teacher: Any = self.distiller.teacher
            for layer in (*student.model, *teacher.model):
                layer.compile(mode=None if compile_mode is True else compile_mode)
        plain = student.forward
        self._batches = self.start_epoch * len(self.train_loader)
        per_image = not is_rt_detr(student)

        def forward(x: Any, *args: Any, **options: Any) -> Any:
            if not (student.training and isinstance(x, Mapping)):
                return plain(x, *args, **options)
            self.distiller.set_step(self._batches)
            self._batches += 1
            losses = self.distiller(x)
            total: Tensor = torch.stack(list(losses.values())) * (len(x["img"]) if per_image else 1)
            return total, {name: loss.detach() for name, loss in losses.items()}

        student.forward = forward

    def _calibrate(self, total: float) -> None:
        """Weights by a few training batches, or those that a training which goes on has begun with."""
        file = self.save_dir / _CALIBRATED
        if self.resume and not file.exists():
            raise FGDValueError(f"weights: expected {file}, which the training wrote when it began, to resume it")
        if self.resume:
            found = yaml.safe_load(file.read_text())
        else:
            found = find_by_batches(self.distiller, self._some_batches, self.preprocess_batch, self.settings, total)
            write_text(file, yaml.safe_dump(found))
        LOGGER.info(set_weights(self.distiller.criterion, found))

    def _some_batches(self) -> Iterator[Any]:
        """By a loader of their own, in this process: the training's and its mosaics stay as they are."""
        size = self.train_loader.batch_size
        with override_configs(self.args, {"cache": False, "workers": 0}):
            loader = self.get_dataloader(self.data["train"], batch_size=size, rank=-1, mode="train")
        yield from itertools.islice(loader, 4)

    def save_model(self) -> bool:
        with override_configs(self.args, {"compile": self._compile_mode}):  # for a resumed training
            return super().save_model()

    def optimizer_step(self) -> None:
        # DistributedDataParallel holds the student alone.
        average_gradients(self.distiller.criterion.parameters())
        super().optimizer_step()

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        average: Any = self.ema.ema if self.ema else None
        if average is not None and "forward" in vars(average):
            del average.forward  # of a copy of the model; it would call the model itself


def _names_rt_detr(file: Any) -> bool:
    """By its name, as Ultralytics tells it, or by what is in it, as in ``last.pt``."""
    path = Path(str(file))
    if path.suffix == ".pt" and path.is_file():
        return is_rt_detr(load_checkpoint(path)[0])
    return "rtdetr" in path.stem


def _network(teacher: Any) -> Any:
    """The network of what ``with_teacher`` takes, which must have been trained."""
    if isinstance(teacher, str | Path):
        teacher = YOLO(teacher)
    if not isinstance(teacher, Model):
        return teacher
    if teacher.ckpt == {}:  # as its class has it: neither loaded from a file nor trained
        raise FGDValueError(
            f"teacher: expected a file of weights, such as best.pt of a training, got {teacher.model_name}, which "
            "describes a network without weights: it has nothing to teach"
        )
    return teacher.model
