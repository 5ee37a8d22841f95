"""The LightningModule that trains a detector, alone or with a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..adapters import as_adapter
from ..criterion import CriterionConfig, FGDConfig, build_criterion
from ..data.coco_json import category_names, check_same_categories
from ..data.datamodule import Batch, CocoFolder
from ..data.evaluation import CocoEvaluator
from ..data.labels import CategoryLabels
from ..data.resumable_loader import JointBatches, derived_seed
from ..detectors.by_name import DetectorConfig, TeacherConfig, build_detector
from ..detectors.checkpoint import student_state_dict
from ..distiller import DetectionDistiller
from ..errors import FGDTypeError, FGDValueError
from ..inheriting import inherit as inherit_from
from ..schedule import Schedule
from .checkpoint_io import keep_best, use_whole_checkpoints
from .learning_rate import LrMilestones
from .noise import first_process
from .precision import keep_boxes
from .teacher_cache import CacheConfig, TeacherCache, teacher_fingerprint


class DetectionModule(pl.LightningModule):
    """Trains a detector; with a teacher, it inherits from it, is distilled from it, or both.

    A training that is resumed from a checkpoint takes the steps that it would have taken, bit for bit on a CPU:
    the random numbers of a step are a function of the seed, the step and the process.

    Args:
        student: the detector to train.
        teacher: the detector to learn from, with its weights; needed by ``inherit``, ``fgd`` and ``criterion``.
        inherit: whether the student starts with the teacher's neck and head.
        fgd: adds the FGD loss with these weights.
        criterion: adds another loss on feature maps instead.
        student_layers, teacher_layers: modules whose feature maps are distilled; None takes the neck's.
        resize_teacher: whether teacher maps of another size are resized to the student's.
        schedule: the optimizer steps in which the loss counts, and for how many images; None: all.
        teacher_cache: keeps the teacher's feature maps on disk; for images that are the same in every epoch.
        optimizer: makes the optimizer from the trainable parameters.
        lr_scheduler: makes the learning-rate scheduler, stepped after every optimizer step; None: constant.
        lr_milestones: instead of ``lr_scheduler``: a warm-up, and drops at epochs.
        adapter: of detectors of your own family, ``module:Class``; None chooses by the student's class.

    Raises:
        ValueError: ``inherit`` or a loss without a teacher, a teacher without either or without weights, ``schedule``
            or ``teacher_cache`` without a loss, both ``fgd`` and ``criterion``, or both ``lr_scheduler`` and
            ``lr_milestones``.
    """

    def __init__(
        self,
        student: DetectorConfig,
        teacher: TeacherConfig | None = None,
        inherit: bool = False,
        fgd: FGDConfig | None = None,
        criterion: CriterionConfig | None = None,
        student_layers: str | list[str] | None = None,
        teacher_layers: str | list[str] | None = None,
        resize_teacher: bool = False,
        schedule: Schedule | None = None,
        teacher_cache: CacheConfig | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_milestones: LrMilestones | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__()
        if fgd is not None and criterion is not None:
            raise FGDValueError("criterion: expected it or fgd, got both; give fgd: null")
        loss = criterion if fgd is None else fgd
        _check_teacher(teacher, inherit, loss)
        _check_unused(loss, schedule=schedule, teacher_cache=teacher_cache)
        if lr_scheduler is not None and lr_milestones is not None:
            raise FGDValueError("lr_milestones: expected it or lr_scheduler, got both")
        self.student_config, self.cache_config = student, teacher_cache
        self.make_optimizer, self.make_scheduler, self.lr_milestones = optimizer, lr_scheduler, lr_milestones
        self.seed = torch.initial_seed()  # seed_everything's
        model = build_detector(student)
        self.adapter, self.adapter_name = as_adapter(adapter, model), adapter
        self.distiller: DetectionDistiller | None = None
        if teacher is not None:
            teacher_model = build_detector(teacher)
            if inherit:
                inherit_from(model, teacher_model, verbose=first_process(), adapter=self.adapter)
            if loss is not None:
                self.distiller = DetectionDistiller(
                    model,
                    teacher_model,
                    build_criterion(model, teacher_model, student_layers, teacher_layers, loss, self.adapter),
                    student_layers,
                    teacher_layers,
                    self.adapter,
                    resize_teacher=resize_teacher,
                    schedule=schedule,
                    teacher_settings=teacher if isinstance(teacher, TeacherConfig) else None,
                )
        if self.distiller is None:
            self.student = model

    evaluator: CocoEvaluator
    """Of the validation that runs now."""
    own_losses: dict[str, Tensor]
    """The student's own, without distillation, of the last step; detached."""

    def _data(self, name: str) -> CocoFolder:
        dataset = getattr(getattr(self.trainer, "datamodule", None), name, None)
        if not isinstance(dataset, CocoFolder):
            raise FGDTypeError(f"datamodule: expected a CocoDataModule with a {name}, got {type(dataset).__name__}")
        return dataset

    @property
    def detector(self) -> nn.Module:
        """The plain student."""
        return self.student if self.distiller is None else self.distiller.student

    def setup(self, stage: str) -> None:
        keep_boxes(self.trainer)
        use_whole_checkpoints(self.trainer)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_milestones is not None:
            scheduler: Any = LambdaLR(optimizer, partial(self._lr_factor, self.lr_milestones))
        elif self.make_scheduler is not None:
            try:
                scheduler = self.make_scheduler(optimizer)
            except ZeroDivisionError as error:  # of OneCycleLR
                raise FGDValueError(
                    "lr_scheduler: expected a schedule that PyTorch can follow, got one with a phase of a single step "
                    "(OneCycleLR's warm-up has total_steps x pct_start steps); train for longer, or change pct_start"
                ) from error
            _check_total_steps(scheduler, self.trainer.max_steps)
        else:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, milestones: LrMilestones, step: int) -> float:
        # The scheduler is made, and asked for step 0, before Lightning knows how many batches an epoch has.
        batches = self.trainer.num_training_batches if step else math.inf
        return milestones.factor(step, batches / self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        train_set = self._data("train_set")
        _check_labels(train_set, self.adapter.first_label(self.detector), self.student_config.num_classes)
        if self.distiller is None:
            return
        self.distiller.check_optimizer(*self.trainer.optimizers)
        self.open_teacher_cache(train_set)

    def open_teacher_cache(self, train_set: CocoFolder) -> None:
        """Lets the teacher's maps of these images be kept, where ``teacher_cache`` is set."""
        if self.distiller is None or self.cache_config is None:
            return
        if train_set.differs_between_epochs():
            raise FGDValueError(
                "teacher_cache: expected images that are the same in every epoch, but data.train_transforms "
                "change them at random; leave out either"
            )
        fingerprint = teacher_fingerprint(self.distiller.teacher, self.distiller.teacher_layers)
        self.distiller.teacher_cache = TeacherCache(self.cache_config, fingerprint, len(train_set))

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader  # another one after trainer.reload_dataloaders_every_n_epochs
        if not isinstance(loader.batch_sampler, JointBatches):
            raise FGDValueError(
                "trainer.use_distributed_sampler: expected false, the data module shares out its batches"
            )
        loader.steps_an_epoch = int(self.trainer.num_training_batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Detectors sample anchors and proposals at random. A function of the step needs no state in the checkpoint.
        torch.manual_seed(derived_seed(self.seed, self.global_step, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        if self.distiller is None:
            losses = self.adapter.student_step(self.student, images, targets).losses
        else:
            self.distiller.set_step(self.global_step)
            losses = self.distiller(images, targets)
        added = () if self.distiller is None else getattr(self.distiller.criterion, "loss_names", ())
        self.own_losses = {name: loss.detach() for name, loss in losses.items() if name not in added}
        total = torch.stack(list(losses.values())).sum()
        self._log_losses(total, losses, len(images))
        return total

    def _log_losses(self, total: Tensor, losses: Mapping[str, Tensor], images: int) -> None:
        """Logs the sum, and in steps that the loggers record, every term and every level's, as means over processes."""
        values = {"loss": total}
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            values |= {f"train/{name}": loss for name, loss in losses.items()}
            values |= self._level_terms()
            together = torch.stack([value.detach().float() for value in values.values()])
            values = dict(zip(values, self.trainer.strategy.reduce(together, reduce_op="mean"), strict=True))
        self.log("loss", values.pop("loss").detach(), prog_bar=True, batch_size=images)
        self.log_dict(values, batch_size=images)

    def _level_terms(self) -> dict[str, Tensor]:
        """Each level's share of each term of the loss, where the distiller tells it."""
        if self.distiller is None or self.distiller.level_terms is None:
            return {}
        names: Any = self.distiller.criterion.loss_names
        return {
            f"level{level}/{name}": term
            for level, terms in enumerate(self.distiller.level_terms)
            for name, term in zip(names, terms, strict=True)
        }

    def on_validation_epoch_start(self) -> None:
        data = self._data("val_set")
        self.evaluator = CocoEvaluator(data.coco, data.with_masks, data.labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        found = self.adapter.predict(self.detector, images)
        self.evaluator.update(found, [target["image_id"] for target in targets])

    def on_validation_epoch_end(self) -> None:
        # Equal on every process, because it gathers all predictions.
        self.log_dict({f"val/{name}": value for name, value in self.evaluator.compute().items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # export-student rebuilds the detector from this. Its own weights are in the checkpoint, not in a file.
        checkpoint["detector"] = asdict(self.student_config) | {"weights": None, "backbone_weights": None}
        checkpoint["adapter"] = self.adapter_name
        checkpoint["seed"] = self.seed
        checkpoint["labels"] = self._data("val_set").labels.state()
        trained = getattr(getattr(self.trainer, "datamodule", None), "train_set", None) or self._data("val_set")
        checkpoint["category_names"] = category_names(trained.coco.dataset)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seed = checkpoint.get("seed", self.seed)
        self._check_stored_labels(checkpoint.get("labels"))
        self._check_stored_names(checkpoint.get("category_names"))
        own = self.state_dict()
        if self._trainer is not None and self._trainer.state.fn != TrainerFn.FITTING:
            # Only the student is evaluated, so a checkpoint of one trained in another way will do.
            prefix = "student." if self.distiller is None else "distiller.student."
            student = {f"{prefix}{name}": value for name, value in student_state_dict(checkpoint).items()}
            rest = {name: value for name, value in own.items() if not name.startswith(prefix)}
            checkpoint["state_dict"] = rest | student
        elif self._trainer is not None:
            keep_best(self._trainer, checkpoint)
        _check_fits(own, checkpoint["state_dict"])

    def _check_stored_names(self, stored: dict[int, str | None] | None) -> None:
        """The data must have the categories that the detector was trained with."""
        datamodule = getattr(self._trainer, "datamodule", None)
        for split in ("train", "val"):
            dataset = getattr(datamodule, f"{split}_set", None)
            if stored is not None and isinstance(dataset, CocoFolder):
                path = getattr(datamodule, f"{split}_paths")[1]
                check_same_categories(stored, "the checkpoint", dataset.coco.dataset, path)

    def _check_stored_labels(self, stored: dict[str, Any] | None) -> None:
        """A training goes on with the labels that it had; an evaluation takes them from the checkpoint."""
        if stored is None or self._trainer is None:
            return
        dataset = self._data("val_set")
        if self._trainer.state.fn != TrainerFn.FITTING:
            dataset.labels = CategoryLabels.from_state(stored)
        elif stored["first_label"] != dataset.labels.first_label or (
            stored["first_label"] is not None and stored != dataset.labels.state()
        ):
            raise FGDValueError(
                f"ckpt_path: expected the labels of the checkpoint, data.first_label={stored['first_label']} for the "
                f"categories {stored['categories'][:8]} ..., got {dataset.labels.first_label} for "
                f"{dataset.labels.categories[:8]} ..."
            )


def _check_teacher(teacher: DetectorConfig | None, inherit: bool, loss: FGDConfig | CriterionConfig | None) -> None:
    if teacher is None and (inherit or loss is not None):
        raise FGDValueError("teacher: inherit, fgd and criterion need one, got None")
    if teacher is not None and not inherit and loss is None:
        raise FGDValueError(
            "teacher: expected inherit: true, fgd: {...} or criterion: {...} beside it, got none, so it would be unused"
        )
    if teacher is not None and teacher.weights is None:
        raise FGDValueError("teacher.weights: expected a file with trained weights, got None: it would teach noise")


def _check_total_steps(scheduler: Any, max_steps: int) -> None:
    total = getattr(scheduler, "total_steps", None)  # of OneCycleLR, which fails in the step after
    if total is not None and max_steps > total:
        raise FGDValueError(
            f"lr_scheduler.total_steps: expected at least trainer.max_steps, {max_steps}, got {total}; set both alike"
        )


def _check_unused(loss: FGDConfig | CriterionConfig | None, **options: object) -> None:
    for name, value in options.items():
        if loss is None and value is not None:
            raise FGDValueError(f"{name}: expected fgd: {{...}} beside it, got none, so it would be unused")


def _check_labels(train_set: CocoFolder, first_label: int, num_classes: int) -> None:
    largest = train_set.max_label()
    if train_set.labels.first_label is not None and num_classes != largest + 1:
        raise FGDValueError(
            f"num_classes: expected {largest + 1}, one more than the largest label that data.first_label="
            f"{train_set.labels.first_label} gives {len(train_set.labels.categories)} categories, got {num_classes}"
        )
    if largest >= num_classes:
        raise FGDValueError(
            f"num_classes: expected more than the largest category id, {largest}, got {num_classes}; data.first_label "
            "counts labels without gaps, from 0 or 1"
        )
    if first_label > 0 and train_set.uses_label(0):
        raise FGDValueError(
            "category id: expected 1 or more, because this detector's class 0 is the background; got 0 in annotations; "
            "count labels from 1 by --data.first_label=1, with num_classes the number of categories plus one"
        )


def _check_fits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises ValueError, with the first differences, unless both have the same names and shapes."""
    differs = [f"{name}: only in the checkpoint" for name in stored.keys() - own.keys()]
    differs += [f"{name}: not in the checkpoint" for name in own.keys() - stored.keys()]
    differs += [
        f"{name}: {tuple(stored[name].shape)} in the checkpoint, {tuple(own[name].shape)} here"
        for name in own.keys() & stored.keys()
        if own[name].shape != stored[name].shape
    ]
    if differs:
        shown = "\n  ".join(sorted(differs)[:4])
        raise FGDValueError(
            f"ckpt_path: the checkpoint does not fit, {len(differs)} tensors differ, such as\n  {shown}"
        )
