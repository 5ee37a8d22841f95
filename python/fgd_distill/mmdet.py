"""MMDetection 3 with a teacher. Importing this imports ``mmdet`` and registers ``FGDDetector`` there.

custom_imports = dict(imports=["fgd_distill.mmdet"])
model = dict(type="FGDDetector", student=..., teacher=..., teacher_checkpoint=...)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.logging import MessageHub, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from .adapters.base import StudentStep
from .adapters.mmdet import MMDetectionAdapter
from .calibration.choose import find_by_loader, set_weights
from .calibration.propose import Bounds
from .detectors.checkpoint import CRITERION_PREFIX, published_criterion, student_state_dict
from .distiller import DetectionDistiller
from .distilling import distil
from .errors import FGDFileNotFoundError, FGDTypeError, FGDValueError
from .inheriting import InheritReport, inherit
from .shipped import CONFIGS


def config_path(name: str) -> str:
    """The path of a configuration of the paper's pairs, such as ``retinanet_x101_r50.py``, for ``tools/train.py``,
    ``Config.fromfile`` or as another one's ``_base_``.

    Raises:
        FileNotFoundError: there is none of this name; the message lists them.
    """
    path = CONFIGS / "mmdet" / name
    if not path.is_file():
        known = ", ".join(sorted(path.name for path in path.parent.glob("*.py")))
        raise FGDFileNotFoundError(f"name: expected one of {known}; got {name!r}")
    return str(path)


@MODELS.register_module()
class FGDDetector:
    """A detector of MMDetection that learns from a teacher, too.

    It is the student: of a class derived from the student's own, with its parts under its own names, so that hooks,
    optimizer constructors, averages, ``load_from`` and ``init_detector`` find what they look for. Beside them it has
    the loss as ``criterion``, whose parameters are therefore in the optimizer and in checkpoints. The teacher is in
    neither. In training, ``loss`` returns the student's losses and the terms; in eval mode the student's alone.

    The teacher's weights are read when training begins (``init_weights``, or the first loss), strictly. To predict, no
    file of the teacher is needed.

    Args:
        student: its config, or the name of a config file (``mmdet::retinanet/retinanet_r50_fpn_2x_coco.py``, or a
            path); or the name of its class, such as ``RetinaNet``, and then ``own`` is its config.
        teacher: its config, or the name of a config file; or a detector that has its weights already.
        teacher_checkpoint: file or address of its weights, as MMEngine takes them; None takes those that its config
            names, by ``init_cfg=dict(type="Pretrained", checkpoint=...)``.
        inherit: whether the student begins with the teacher's neck and head; or the names of the modules to inherit.
            What was inherited is logged, and is in ``inherit_report``.
        distillation: as ``fgd_distill.distil`` takes it: ``preset``, ``layers``, ``alpha`` and so on; a
            ``schedule``, such as ``dict(start=500, ramp=1000)``, counts iterations.
        own: the student's config where ``student`` names its class, as in a config that is laid over the student's own;
            otherwise nothing but ``data_preprocessor``.

    Raises:
        ValueError: the teacher has no weights, or another detector's; or as ``fgd_distill.distil``.
        TypeError: an argument is unknown, or a config is none.
    """

    distiller: DetectionDistiller
    inherit_report: InheritReport | None

    def __new__(
        cls,
        student: Any = None,
        teacher: Any = None,
        teacher_checkpoint: Any = None,
        inherit: Any = False,
        distillation: Any = None,
        **own: Any,
    ) -> Any:
        if cls is not FGDDetector:  # by a copy or a pickle
            return super().__new__(cls)
        return _blank(_class_of(_student_config(student, own)))

    def __init__(
        self,
        student: str | Mapping[str, Any],
        teacher: str | Mapping[str, Any] | nn.Module,
        teacher_checkpoint: str | Path | None = None,
        inherit: bool | str | Sequence[str] = False,
        distillation: Mapping[str, Any] | None = None,
        **own: Any,
    ) -> None:
        config = _student_config(student, own)
        super().__init__(**{name: value for name, value in config.items() if name not in ("type", "_scope_")})
        self._teacher_checkpoint = None if teacher_checkpoint is None else str(teacher_checkpoint)
        if not isinstance(teacher, nn.Module):
            teacher, self._teacher_checkpoint = _built_teacher(teacher, self._teacher_checkpoint)
        self._inherit, self.inherit_report = inherit, None
        self._metrics: dict[str, Any] = {}
        self.distillation = dict(distillation or {})
        # Past nn.Module's setattr: the distiller has this detector as a part, and must not be a part of it.
        itself: Any = self
        self.__dict__["distiller"] = distil(itself, teacher, adapter=PreparedBatches(), **self.distillation)
        self.criterion = self.distiller.criterion

    def __reduce__(self) -> Any:
        return _blank, (type(self).__mro__[2],), self.__dict__

    def init_weights(self) -> None:
        """The student's, then the teacher's out of its checkpoint, then what the student inherits."""
        begun = self.is_init  # type: ignore[attr-defined]
        super().init_weights()  # type: ignore[misc]
        checkpoint = self._teacher_checkpoint
        self.load_teacher()
        if self._inherit and not begun:
            wanted = None if self._inherit is True else self._inherit
            teacher, adapter = self.distiller.teacher, self.distiller.adapter
            if checkpoint is not None and self.distiller.teacher_settings.dtype is not None:
                teacher = copy.deepcopy(teacher).float()  # what is inherited has the digits of the file
                _load_strictly(teacher, checkpoint)
            self.inherit_report = inherit(self, teacher, wanted, verbose=False, adapter=adapter)  # type: ignore[arg-type]
            print_log(str(self.inherit_report), logger="current")

    def load_teacher(self) -> None:
        """Reads the teacher's weights, once; ``init_weights`` and the first loss do it.

        Raises:
            ValueError: they are another detector's; the message says what differs.
        """
        if self._teacher_checkpoint is not None:
            _load_strictly(self.distiller.teacher, self._teacher_checkpoint)
            self._teacher_checkpoint = None

    def loss(self, batch_inputs: Tensor, batch_data_samples: Any) -> dict[str, Any]:
        """The student's losses, in training with the terms of the criterion.

        Args:
            batch_inputs: (N, 3, H, W), as ``data_preprocessor`` makes it: the frame that the maps and boxes share.
            batch_data_samples: one sample an image, with ``gt_instances``.
        """
        if not self.training:  # type: ignore[attr-defined]
            return super().loss(batch_inputs, batch_data_samples)  # type: ignore[misc]
        self.load_teacher()
        iteration = MessageHub.get_current_instance().get_info("iter") if self.distiller.schedule else None
        if iteration is not None:
            self.distiller.set_step(int(iteration))
        losses = self.distiller({"inputs": batch_inputs, "data_samples": batch_data_samples})
        metrics, self._metrics = self._metrics, {}
        return {**losses, **metrics}

    def student_losses(self, batch_inputs: Tensor, batch_data_samples: Any) -> dict[str, Any]:
        """The student's alone. What is no loss, an accuracy say, is kept for the log."""
        told = super().loss(batch_inputs, batch_data_samples)  # type: ignore[misc]
        self._metrics = {name: value for name, value in told.items() if "loss" not in name}
        return told

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes the published code's entries, too, which have the student under a name of its own, and a plain
        detector's, which leave the criterion as it is."""
        mine = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
        if any(name.startswith(("student.", "distiller.student.")) for name in mine):
            for name in mine:
                del state_dict[prefix + name]
            found = student_state_dict(mine) | published_criterion(mine)
            state_dict.update({prefix + name: value for name, value in found.items()})
        if not any(name.startswith(prefix + CRITERION_PREFIX) for name in state_dict):
            print_log("the checkpoint is of a detector alone: the criterion stays as it is", logger="current")
            kept = self.criterion.state_dict(prefix=prefix + CRITERION_PREFIX)
            state_dict.update({name: value.clone() for name, value in kept.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


@HOOKS.register_module()
class FGDCalibration(Hook):
    """Chooses temperature and weights of an ``FGDDetector`` before its first iteration, as ``fgd-distill calibrate``
    does, by some batches of the training images; checkpoints keep them for a resumed training.

    custom_hooks = [dict(type="FGDCalibration")]

    Args:
        batches: how many.
        total: what all terms together are at first, as a multiple of the detector's own loss: 0.4 to 8.

    Raises:
        ValueError: the total is out of range.
    """

    KEY = "fgd_weights"

    def __init__(self, batches: int = 4, total: float = Bounds.total) -> None:
        self.batches, self.total = batches, Bounds(total).total
        self._found: dict[str, float] | None = None
        self._stored: dict[str, float] | None = None

    def before_train(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, FGDDetector):
            raise FGDTypeError(f"model: expected an FGDDetector to calibrate, got {type(model).__name__}")
        if runner.iter == 0:
            model.load_teacher()
            self._found = find_by_loader(
                model.distiller,
                runner.train_dataloader,
                lambda batch: model.data_preprocessor(batch, training=True),  # type: ignore[attr-defined]
                model.distillation,
                self.total,
                count=self.batches,
            )
        elif self._stored is None:
            raise FGDValueError(
                f"load_from: expected a checkpoint with {self.KEY!r}, of a training with FGDCalibration, to resume it"
            )
        else:
            self._found = self._stored
        runner.logger.info(set_weights(model.criterion, self._found))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.KEY] = self._found

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._stored = checkpoint.get(self.KEY)


class PreparedBatches(MMDetectionAdapter):
    """For an ``FGDDetector``: its batches have left the preprocessor already."""

    def neck_and_head(self, model: Any) -> Sequence[str]:
        return [name for name in super().neck_and_head(model) if f"{name}." != CRITERION_PREFIX]

    def student_step(self, student: Any, images: Any, targets: Any) -> StudentStep:
        return self.prepared_step(images, student.student_losses)


@cache
def _kind(plain: type) -> type:
    """The class of a student that is distilled."""
    return type(f"FGD{plain.__name__}", (FGDDetector, plain), {"__module__": __name__, "__doc__": FGDDetector.__doc__})


def _blank(plain: type) -> Any:
    kind: Any = _kind(plain)
    return kind.__new__(kind)


def _student_config(student: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The student's config, a copy of its own: a file may give one and the same to student and teacher."""
    if isinstance(student, str) and not _names_file(student):
        return ConfigDict(copy.deepcopy(dict(own)), type=student)
    config = _config("student", student)
    unknown = own.keys() - {"data_preprocessor"}
    if unknown:
        raise FGDTypeError(
            f"{sorted(unknown)[0]}: expected an argument of FGDDetector, got an unknown one; with the student's class "
            "as student, such as 'RetinaNet', further arguments are the student's config"
        )
    return ConfigDict({**copy.deepcopy(dict(own)), **config})


def _config(role: str, given: Any) -> dict[str, Any]:
    if isinstance(given, str) and _names_file(given):
        content = get_config(given) if "::" in given else Config.fromfile(given)
        given = content.get("model")
    if not isinstance(given, Mapping) or "type" not in given:
        raise FGDTypeError(
            f"{role}: expected a detector's config, a dict with its type, or the name of a config file that has one as "
            f"model; got {sorted(given) if isinstance(given, Mapping) else given!r}"
        )
    return ConfigDict(copy.deepcopy(dict(given)))


def _names_file(name: str) -> bool:
    return "::" in name or name.endswith((".py", ".yaml", ".yml", ".json"))


def _class_of(config: Mapping[str, Any]) -> type:
    kind = config["type"]
    with MODELS.switch_scope_and_registry(config.get("_scope_")) as registry:
        found = registry.get(kind) if isinstance(kind, str) else kind
    if not isinstance(found, type):
        raise FGDTypeError(f"student: expected the name of a registered detector as its type, got {kind!r}")
    return found


def _built_teacher(given: Any, checkpoint: str | None) -> tuple[nn.Module, str]:
    """The teacher without its weights, and where they are."""
    config = _config("teacher", given)
    pretrained = config.get("init_cfg") or {}
    if checkpoint is None and isinstance(pretrained, Mapping):
        checkpoint = pretrained.get("checkpoint")
    if checkpoint is None:
        raise FGDValueError(
            f"teacher_checkpoint: expected a file or an address of the weights of the teacher, a {config['type']}; got "
            "none, and an untrained teacher has nothing to teach"
        )
    return MODELS.build(config), checkpoint


def _load_strictly(teacher: nn.Module, checkpoint: str) -> None:
    """All weights of a checkpoint, which may be one of a distilled student, or an error."""
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    except OSError as error:
        raise FGDFileNotFoundError(f"teacher_checkpoint: could not be read: {checkpoint}: {error}") from error
    state = content.get("state_dict", content)
    if any(name.startswith((CRITERION_PREFIX, "student.", "distiller.student.")) for name in state):
        state = student_state_dict(state)
    try:
        load_state_dict(teacher, state, strict=True)
    except RuntimeError as error:
        lines = "\n".join(line[:300] for line in str(error).splitlines()[:8])
        raise FGDValueError(
            f"teacher_checkpoint: expected the weights of a {type(teacher).__name__} with the teacher's config, got "
            f"others in {checkpoint}:\n{lines}"
        ) from error
