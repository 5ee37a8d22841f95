"""The LightningModule that trains a detector, alone or with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from .adapters import adapter_for, probe_channels
from .data import Batch, CocoFolder
from .distiller import DetectionDistiller, layer_names
from .evaluation import CocoBoxEvaluator
from .inheriting import inherit as inherit_from
from .models import DetectorConfig, build_detector


@dataclass
class FGDConfig:
    """Weights and temperature of the loss; see ``fgd_kernels.FGDLoss``. None keeps the preset's value.

    Args:
        preset: ``two_stage``, ``one_stage_anchor`` or ``one_stage_anchor_free``: the paper's values.
        alpha, beta, gamma, lambda_: weights of the foreground, background, attention and global term.
        temperature: of the attentions.
        level_weights: one factor a level, or ``inverse_area``.
        attention: ``both``, ``spatial``, ``channel`` or ``none`` (the paper's table 5).
        split: false distils fore- and background as one area, weighted by beta (table 1).
        backend: which kernels compute it.
    """

    preset: str = "one_stage_anchor"
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    lambda_: float | None = None
    temperature: float | None = None
    level_weights: list[float] | str | None = None
    attention: str = "both"
    split: bool = True
    backend: str = "auto"


def build_criterion(
    student: nn.Module,
    teacher: nn.Module,
    student_layers: str | Sequence[str],
    teacher_layers: str | Sequence[str],
    config: FGDConfig,
) -> nn.Module:
    """An ``FGDLoss`` for the feature maps that these layers give; their channels are found by a blank image.

    Raises:
        ValueError: student and teacher give different numbers of feature maps.
    """
    import fgd_kernels as fgd

    adapter = adapter_for(student)
    student_channels = probe_channels(student, layer_names(student_layers), adapter)
    teacher_channels = probe_channels(teacher, layer_names(teacher_layers), adapter)
    if len(student_channels) != len(teacher_channels):
        raise ValueError(
            f"expected as many feature maps of student and teacher, got {len(student_channels)} from student_layers "
            f"{student_layers} and {len(teacher_channels)} from teacher_layers {teacher_layers}"
        )
    return fgd.FGDLoss(student_channels, teacher_channels, **asdict(config))


class DetectionModule(pl.LightningModule):
    """Trains a torchvision detector; with a teacher, it inherits from it, is distilled from it, or both.

    Args:
        student: the detector to train.
        teacher: the detector to learn from, with its weights; needed by ``inherit`` and ``fgd``.
        inherit: whether the student starts with the teacher's neck and head.
        fgd: adds the FGD loss with these weights.
        student_layers, teacher_layers: modules whose feature maps are distilled.
        resize_teacher: whether teacher maps of another size are resized to the student's.
        optimizer: makes the optimizer from the trainable parameters.
        lr_scheduler: makes the learning-rate scheduler, stepped after every training step; None keeps it constant.

    Raises:
        ValueError: ``inherit`` or ``fgd`` without a teacher, a teacher without either, or a teacher without weights.
    """

    def __init__(
        self,
        student: DetectorConfig,
        teacher: DetectorConfig | None = None,
        inherit: bool = False,
        fgd: FGDConfig | None = None,
        student_layers: str | list[str] = "backbone.fpn",
        teacher_layers: str | list[str] = "backbone.fpn",
        resize_teacher: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        _check_teacher(teacher, inherit, fgd)
        self.student_config = student
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        model = build_detector(student)
        self.distiller: DetectionDistiller | None = None
        if teacher is not None:
            teacher_model = build_detector(teacher)
            if inherit:
                inherit_from(model, teacher_model)
            if fgd is not None:
                criterion = build_criterion(model, teacher_model, student_layers, teacher_layers, fgd)
                self.distiller = DetectionDistiller(
                    model, teacher_model, criterion, student_layers, teacher_layers, resize_teacher=resize_teacher
                )
        if self.distiller is None:
            self.student = model

    evaluator: CocoBoxEvaluator
    """Of the validation that runs now."""

    def _data(self, name: str) -> CocoFolder:
        dataset = getattr(getattr(self.trainer, "datamodule", None), name, None)
        if not isinstance(dataset, CocoFolder):
            raise TypeError(f"datamodule: expected a CocoDataModule with a {name}, got {type(dataset).__name__}")
        return dataset

    @property
    def detector(self) -> nn.Module:
        """The plain student."""
        return self.student if self.distiller is None else self.distiller.student

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_train_start(self) -> None:
        if self.distiller is not None:
            self.distiller.check_optimizer(*self.trainer.optimizers)
        largest = self._data("train_set").max_label()
        if largest >= self.student_config.num_classes:
            raise ValueError(
                f"num_classes: expected more than the largest category id, {largest}, "
                f"got {self.student_config.num_classes}"
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, targets = batch
        model = self.distiller if self.distiller is not None else self.student
        losses = model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach(), prog_bar=True, batch_size=len(images))
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()}, batch_size=len(images))
        return total

    def on_validation_epoch_start(self) -> None:
        self.evaluator = CocoBoxEvaluator(self._data("val_set").coco)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, targets = batch
        self.evaluator.update(self.detector(list(images)), [target["image_id"] for target in targets])

    def on_validation_epoch_end(self) -> None:
        metrics = self.evaluator.compute()  # equal on every process: it gathers all predictions
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # export-student rebuilds the detector from this. Its own weights are in the checkpoint, not in a file.
        checkpoint["detector"] = asdict(self.student_config) | {"weights": None}


def _check_teacher(teacher: DetectorConfig | None, inherit: bool, fgd: FGDConfig | None) -> None:
    if teacher is None and (inherit or fgd is not None):
        raise ValueError("teacher: inherit and fgd need one, got None")
    if teacher is not None and not inherit and fgd is None:
        raise ValueError("teacher: expected inherit: true or fgd: {...} beside it, got neither, so it would be unused")
    if teacher is not None and teacher.weights is None:
        raise ValueError("teacher.weights: expected a file with trained weights, got None: it would teach noise")
