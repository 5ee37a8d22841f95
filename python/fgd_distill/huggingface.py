"""Hugging Face's Trainer with a teacher. Importing this imports ``transformers``.

trainer = FGDTrainer(student, arguments, teacher=teacher, train_dataset=..., data_collator=...)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .calibration.choose import find_by_loader, set_weights, total_of
from .distiller import DetectionDistiller
from .distilling import distil
from .errors import FGDTypeError, FGDValueError
from .files import write_text
from .processes import average_gradients, share_parameters

logger = logging.getLogger(__name__)
_CALIBRATED = "fgd_weights.yaml"
"""In a checkpoint: what ``weights="calibrate"`` found, for a resumed training."""


class FGDTrainer(Trainer):
    """Hugging Face's Trainer, with the distillation loss added to the detector's own.

    The model that it trains, evaluates and saves is the plain student; ``eval_loss`` is the detector's own. The loss's
    own parameters are trained by the same optimizer, without weight decay, and saved with its state, so that
    ``train(resume_from_checkpoint=True)`` continues them too. The terms are logged at every ``logging_steps``.

    Args:
        model: the student, a detector for which there is an adapter.
        teacher: the detector to learn from, with its weights; it is frozen.
        weights: ``calibrate`` chooses temperature and weights before the first step, by four batches of the training
            images, as ``fgd-distill calibrate`` does: all terms together are three times the detector's own loss then;
            a number is another multiple. A checkpoint keeps them. None takes those of ``distillation``.
        distillation: as ``fgd_distill.distil`` takes it: ``preset``, ``layers``, ``alpha`` and so on. A ``schedule``
            counts optimizer steps.
        args, options: as Trainer takes them. A batch of the data collator has ``pixel_values`` (N, 3, H, W), as the
            model's image processor makes them, and ``labels``, one dict an image with ``class_labels`` (n,) and
            ``boxes`` (n, 4), relative, by their centres.

    Raises:
        TypeError: there is no adapter for the detectors, no student (``model_init``), or a setting is unknown.
        ValueError: one process would run on several devices, or the model compiled as a whole or divided (FSDP,
            DeepSpeed); or there is another loss than the model's (``compute_loss_func``, label smoothing); or
            ``optimizers`` has a scheduler, which cannot know of the loss's parameters.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean of a batch, whatever their number in an optimizer step

    def __init__(
        self,
        model: nn.Module | None,
        args: Any = None,
        *,
        teacher: nn.Module,
        distillation: dict[str, Any] | None = None,
        weights: str | float | None = None,
        **options: Any,
    ) -> None:
        if model is None:
            raise FGDTypeError(
                "model: expected the student, got None; with model_init there would be another student in each trial, "
                "so make the trainer anew for each"
            )
        super().__init__(model, args, **options)
        total = total_of(weights)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise FGDValueError(
                "compute_loss_func: expected None and label_smoothing_factor=0 for distillation, got another loss: the "
                "student is trained by its own, and the terms are added to it"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise FGDValueError(
                "args: expected whole models in each process for distillation, got FSDP or DeepSpeed, which divide "
                "them; start one process a device by torchrun or accelerate launch"
            )
        if self.args.n_gpu > 1:
            raise FGDValueError(
                f"args: expected one device a process for distillation, got {self.args.n_gpu}; start one process a "
                "device by torchrun or accelerate launch"
            )
        if self.args.torch_compile:
            raise FGDValueError(
                "args: expected torch_compile=False for distillation, got True; compile parts of both models in place, "
                "such as model.model.encoder.compile()"
            )
        if self.lr_scheduler is not None:
            raise FGDValueError(
                "optimizers: expected (optimizer, None), got a scheduler, which was made without the loss's "
                "parameters; name one by TrainingArguments(lr_scheduler_type=...)"
            )
        self.settings = dict(distillation or {})
        self.distiller = distil(model, teacher, **self.settings)
        share_parameters(self.distiller.criterion)
        self._joined: Optimizer | None = None
        self._terms: dict[str, Tensor] = {}
        self._summed = 0
        self.add_callback(_CriterionsGradients(self.distiller.criterion))
        self._calibrated: dict[str, float] = {}
        self._resumed_from: str | None = None
        if total is not None:
            self.add_callback(_Calibration(self, total))

    def create_optimizer(self, *args: Any, **options: Any) -> Optimizer:
        optimizer = super().create_optimizer(*args, **options)
        plain = getattr(optimizer, "optimizer", optimizer)  # after a training accelerate's wrapper is around it
        if plain is not self._joined:
            self.distiller.join(plain, weight_decay=0.0)
            self._joined = plain
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.distiller.set_step(self.state.global_step)
        with self.accelerator.autocast(), _called_for(model, self.distiller):
            losses = model(inputs)
        for name, loss in losses.items():
            self._terms[name] = self._terms.get(name, 0) + loss.detach()
        self._summed += 1
        return sum(losses.values())

    def calibrate(self, loader: Any, total: float) -> None:
        """Weights by the training's batches, or those that a training which goes on has begun with."""
        if self.state.global_step == 0:
            size = self._train_batch_size
            self._calibrated = find_by_loader(self.distiller, loader, self._prepare_inputs, self.settings, total, size)
        else:
            file = Path(str(self._resumed_from)) / _CALIBRATED
            if not file.exists():
                raise FGDValueError(f"weights: expected {file}, which a calibrated training writes, to resume it")
            self._calibrated = yaml.safe_load(file.read_text())
        logger.info(set_weights(self.distiller.criterion, self._calibrated))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._calibrated and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_text(folder / _CALIBRATED, yaml.safe_dump(self._calibrated))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed_from = resume_from_checkpoint
        if model is not None or not self._load_by_names_of_today(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_by_names_of_today(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_by_names_of_today(self, folder: str | None) -> bool:
        """Loads a checkpoint's model, and says whether it could.

        Trainer loads the file by names, leniently. Some models, RT-DETR among them, are saved under older names, which
        only from_pretrained translates: their encoder would keep the numbers that it has, with a mere warning.
        """
        if folder is None or not isinstance(self.model, PreTrainedModel):
            return False
        saved = type(self.model).from_pretrained(folder)
        self.model.load_state_dict(saved.state_dict())
        return True

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs and self._summed:
            logs = {**logs, **{name: total.item() / self._summed for name, total in self._terms.items()}}
            self._terms, self._summed = {}, 0
        super().log(logs, *args, **options)


@contextlib.contextmanager
def _called_for(model: nn.Module, distiller: DetectionDistiller) -> Iterator[None]:
    """Here a call of the model, or of what DistributedDataParallel made of it, is one of the distiller."""
    student: Any = distiller.student
    own = vars(student).get("forward")  # accelerate's, where it has one

    def give_back() -> None:
        vars(student).pop("forward", None)
        if own is not None:
            student.forward = own

    def forward(batch: Any) -> Any:
        give_back()
        return distiller(batch)

    student.forward = forward
    try:
        yield
    finally:
        give_back()


class _Calibration(TrainerCallback):
    """Before the first step, when the models are where they train."""

    def __init__(self, trainer: FGDTrainer, total: float) -> None:
        self.trainer, self.total = trainer, total

    def on_train_begin(self, *args: Any, train_dataloader: Any = None, **options: Any) -> None:
        self.trainer.calibrate(train_dataloader, self.total)


class _CriterionsGradients(TrainerCallback):
    """Trainer clears the gradients of its model alone, and its processes share those alone."""

    def __init__(self, criterion: nn.Module) -> None:
        self.criterion = criterion

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        self.criterion.zero_grad()

    def on_pre_optimizer_step(self, *args: Any, **options: Any) -> None:
        average_gradients(self.criterion.parameters())
