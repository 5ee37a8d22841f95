"""The distiller: a student detector, a frozen teacher and the loss between their feature maps."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fgd_kernels.autocast import without_autocast

from .adapters import DetectorAdapter, StudentStep, as_adapter
from .adapters.batches import boxes_as_corners
from .adapters.registry import check_plain
from .errors import FGDError, FGDRuntimeError, FGDTypeError, FGDValueError
from .feature_taps import doubts
from .frozen_teacher import FrozenTeacher, check_apart
from .joined_optimizer import join
from .optimizer_check import ChangeWatch, missing_parameters
from .schedule import Schedule
from .shares import DetectorShares
from .taps import LayerTap, find_layer, layer_names
from .teacher_settings import TeacherSettings, compile_what_runs


class TeacherCache(Protocol):
    """Keeps the teacher's feature maps, so that it sees an image once instead of once an epoch."""

    def features(self, batch: Tensor, targets: Any, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """What ``compute(batch)`` returns, or returned for the same images before.

        Args:
            batch: (N, 3, H, W), as the student's backbone gets it.
            targets: as the data loader gave them; they tell which images these are.
            compute: runs the teacher on such a batch, or on some images of it; one (N, C, H, W) a level, no gradient.
        """


class DistilledFeatures(NamedTuple):
    """What the criterion compares in one training step.

    Args:
        step: the student's losses, batch and boxes.
        student, teacher: one (N, C, H, W) a level; channel counts may differ, sizes are equal.
        frames: one (height, width) an image, in pixels: the padded batch, which the whole map covers.
    """

    step: StudentStep
    student: list[Tensor]
    teacher: list[Tensor]
    frames: list[tuple[int, int]]

    def judged_by(self, criterion: Callable[..., Any], student: list[Tensor] | None = None, **options: Any) -> Any:
        """What the criterion returns for these features, or for other ones of the student.

        A criterion that has no argument ``foreground`` gets the boxes, whatever the family knows beyond them.
        """
        features = (self.student if student is None else student, self.teacher)
        forward = getattr(criterion, "forward", criterion)
        if self.step.foreground is not None and "foreground" in inspect.signature(forward).parameters:
            return criterion(*features, foreground=self.step.foreground, **options)
        return criterion(*features, self.step.boxes, self.frames, **options)


class DetectionDistiller(FrozenTeacher):
    """Trains ``student`` with its own losses and a distillation loss towards ``teacher``.

    In training mode a call returns the student's loss dict with the terms of ``criterion`` added; in eval mode it
    returns the student's predictions. The teacher always runs in eval mode and without gradient, on the very tensor
    that the student's backbone got, and no further than the last tapped layer. It moves with ``.to()`` but is in none
    of ``parameters()``, ``state_dict()``, ``modules()`` and ``train()``. Features are read by hooks that exist only
    during the call.

    Copies (``copy.deepcopy``, ``torch.optim.swa_utils.AveragedModel``) share the teacher with the original: it never
    changes. ``.to()`` of a copy leaves it; when it runs, it goes where the batch is. A pickle contains it.

    Wrap the distiller, not the student, in ``DistributedDataParallel``. Parts of both models may be compiled in place
    (``student.backbone.compile()``), tapped layers inside or not.

    Args:
        student: the detector to train.
        teacher: the detector to learn from; it may be of another floating type than the student.
        criterion: called as ``criterion(student_features, teacher_features, boxes, image_sizes)``; returns a dict of
            losses, as ``fgd_kernels.FGDLoss`` does. Its parameters belong in the optimizer: ``check_optimizer``. If it
            has a ``DetectorShares`` as ``shares``, its terms are kept at shares of the student's own loss.
        student_layers, teacher_layers: name or names of the modules whose outputs are distilled, such as
            ``backbone.fpn``; outputs may be tensors (N, C, H, W), or dicts, lists or tuples of them. None takes those
            that the adapter names, the neck's.
        adapter: knows how the detectors are run; an object, or its class as ``module:Class``. None chooses one by the
            student's class.
        resize_teacher: whether teacher maps of another height and width are resized (bilinear) to the student's;
            otherwise they are an error.
        schedule: when the criterion's terms count, and for which images, or a dict of its arguments; it needs
            ``set_step``. None: always and all.
        teacher_cache: asked for the teacher's maps instead of the teacher itself.
        teacher_settings: type and layout, into which the teacher is brought in place, and whether it is compiled, or a
            dict of them; a student inherits before that, or its digits are the type's.

    Raises:
        ValueError: a layer does not exist (the message lists close names), or the two cannot share one input.
        TypeError: there is no adapter for the detectors, or one is wrapped; or settings are unknown.
    """

    student: nn.Module
    criterion: nn.Module
    shared = ("teacher", "teacher_cache")
    level_terms: Tensor | None
    """(L, 4), detached: the criterion's weighted terms of each level in the last training call, for logs. None before
    it, where the schedule was at 0, and for a criterion that has no argument ``return_levels``, as FGDLoss has it."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        criterion: nn.Module,
        student_layers: str | Sequence[str] | None = None,
        teacher_layers: str | Sequence[str] | None = None,
        adapter: DetectorAdapter | str | None = None,
        resize_teacher: bool = False,
        schedule: Schedule | Mapping[str, Any] | None = None,
        teacher_cache: TeacherCache | None = None,
        teacher_settings: TeacherSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_models(student, teacher)
        self.adapter = as_adapter(adapter, student)
        self.adapter.check_pair(student, teacher)
        self.student_layers = self._layers(student, student_layers, "student_layers")
        self.teacher_layers = self._layers(teacher, teacher_layers, "teacher_layers")
        self.resize_teacher, self.teacher_cache = resize_teacher, teacher_cache
        self.schedule: Schedule | None = _settings("schedule", Schedule, schedule)
        self.student, self.criterion = student, criterion
        self.teacher = teacher.eval()
        chosen = _settings("teacher_settings", TeacherSettings, teacher_settings)
        self.teacher_settings: TeacherSettings = chosen or TeacherSettings()
        self.teacher_settings.apply(teacher)
        self._teacher_ran = False
        self.step: int | None = None
        self.level_terms = None
        self._watch = ChangeWatch()
        self._inputs_looked_at = False
        self._tells_levels = "return_levels" in inspect.signature(criterion.forward).parameters
        # With these a step without distillation knows its keys; another criterion's are learnt by running it once.
        self._term_names: tuple[str, ...] = tuple(getattr(criterion, "loss_names", ()))

    def _layers(self, model: nn.Module, layers: str | Sequence[str] | None, argument: str) -> list[str]:
        names = self.adapter.default_layers(model) if layers is None else layer_names(layers)
        if not names:
            raise FGDValueError(f"{argument}: expected at least one layer's name, got none")
        for name in names:
            find_layer(model, name)
        return names

    def set_step(self, step: int) -> None:
        """Tells ``schedule`` where training is; call it before each training step.

        The number is the training loop's (with gradient accumulation it stays for several calls), so nothing of it is
        in ``state_dict()``: a loop that resumes tells its own.

        Args:
            step: optimizer steps taken so far.
        """
        self.step = step

    def forward(self, images: Any, targets: Any = None) -> Any:
        """Losses in training mode, predictions in eval mode.

        Args:
            images: a sequence of float tensors (3, H_i, W_i) in 0..1, or what else the adapter takes.
            targets: a sequence of dicts with ``boxes`` (n_i, 4), xyxy in pixels of the image, and ``labels``, or what
                else the adapter takes. torchvision's BoundingBoxes are converted from the format that they state.
                Needed in training mode only.

        Returns:
            the student's losses and the criterion's, one dict of scalar tensors, which has the same keys in every
            step; or the student's predictions.

        Raises:
            ValueError: feature maps of student and teacher do not correspond, or the student's carry no gradient.
            TypeError: a layer returns no feature maps, or the criterion no dict.
            RuntimeError: a layer did not run, or ran several times, or its output was changed in place; or there is a
                schedule, and ``set_step`` was not called.
        """
        if not self.training:
            return self.adapter.predict(self.student, images)
        factor = self._factor()
        if factor == 0 and self._term_names:
            step = self.adapter.student_step(self.student, images, boxes_as_corners(targets, images))
            self.level_terms = None
            terms = dict.fromkeys(self._term_names, _zero(self.criterion.parameters(), step.batch))
        else:
            in_doubt = factor != 0 and self._watch.look(self.student, self.criterion)
            features = self.features(images, targets)
            step, terms = features.step, self._terms(features, factor)
            if in_doubt:
                self._watch.warn(terms.values(), self.criterion)
        clash = terms.keys() & step.losses.keys()
        if clash:
            raise FGDValueError(f"student and criterion both return losses called {sorted(clash)}")
        return {**step.losses, **terms}

    def _factor(self) -> float:
        if self.schedule is None:
            return 1.0
        if self.step is None:
            raise FGDRuntimeError(
                "schedule: call set_step(step) before each training step, or the schedule never moves"
            )
        return self.schedule.factor(self.step)

    def _terms(self, features: DistilledFeatures, factor: float) -> dict[str, Tensor]:
        """The criterion's terms and, as ``level_terms``, what each level contributes to them, all times ``factor``."""
        if torch.is_grad_enabled() and not any(feature.requires_grad for feature in features.student):
            raise FGDValueError(
                f"student_layers: the outputs of {self.student_layers} carry no gradient, so nothing would be "
                "distilled; are they frozen, or run by a reentrant torch.utils.checkpoint?"
            )
        self._look_at_inputs(features)
        if self._tells_levels:
            terms, levels = features.judged_by(self.criterion, return_levels=True)
        else:
            terms, levels = features.judged_by(self.criterion), None
        if not isinstance(terms, Mapping):
            raise FGDTypeError(f"criterion: expected it to return a dict of losses, got {type(terms).__name__}")
        self._term_names = tuple(terms)
        # Of a criterion that weighs its terms by the student's own loss, which only the distiller knows.
        shares = getattr(self.criterion, "shares", None)
        if isinstance(shares, DetectorShares):
            own = torch.stack([loss.detach() for loss in features.step.losses.values()]).sum()
            factors = shares.factors(terms, own)
            terms = {name: term * weight for (name, term), weight in zip(terms.items(), factors, strict=True)}
            levels = None if levels is None else levels * factors
        self.level_terms = None if levels is None or factor == 0 else levels * factor
        return dict(terms) if factor == 1 else {name: term * factor for name, term in terms.items()}

    def _look_at_inputs(self, features: DistilledFeatures) -> None:
        """Warns, once, of what looks wrong in them; waits for a GPU, once."""
        if self._inputs_looked_at or not any(len(boxes) for boxes in features.step.boxes):
            return
        self._inputs_looked_at = True
        for doubt in doubts(features.student, features.step.boxes, features.frames, self.student_layers):
            warnings.warn(doubt, stacklevel=4)

    def features(self, images: Any, targets: Any) -> DistilledFeatures:
        """Runs student and teacher, in the mode that the student is in, and returns what the criterion would get.

        Args:
            images, targets: as for ``forward`` in training mode.

        Raises:
            ValueError: feature maps of student and teacher do not correspond.
        """
        with LayerTap(self.student, self.student_layers) as tap:
            step = self.adapter.student_step(self.student, images, boxes_as_corners(targets, images))
        student = tap.features()
        if self.schedule is not None and self.schedule.part < 1:
            some = self.schedule.images(self.step or 0, len(step.batch))
            step, student, targets = _of_images(step, some), [level[some] for level in student], _some(targets, some)
        if self.teacher_cache is None:
            teacher = self.teacher_features(step.batch)
        else:
            teacher = self.teacher_cache.features(step.batch, targets, self.teacher_features)
        # The maps cover the padded batch, so its size is every image's frame, whatever the image measured before.
        height, width = step.batch.shape[-2:]
        return DistilledFeatures(step, student, self._match(student, teacher), [(height, width)] * len(step.batch))

    def _apply_to_teacher(self, fn: Callable[[Tensor], Tensor]) -> None:
        if self.teacher_settings.dtype is None:
            return super()._apply_to_teacher(fn)
        # Its type was asked for: going through another one would cost digits.
        self.teacher.to(fn(next(self.teacher.parameters()).new_empty(0)).device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_teacher_ran": False})  # what was compiled is not in the state

    def teacher_features(self, batch: Tensor) -> list[Tensor]:
        """The teacher's feature maps for a prepared batch (N, 3, H, W), without gradient."""
        self.teacher.eval()  # again, for whoever holds the teacher may have called train() on it
        settings, parameter = self.teacher_settings, next(self.teacher.parameters())
        dtype = settings.torch_dtype or parameter.dtype
        if (parameter.device, parameter.dtype) != (batch.device, dtype):
            self.teacher.to(batch.device, dtype)
        batch = settings.batch(batch, dtype)

        def maps() -> list[Tensor]:
            with torch.no_grad(), LayerTap(self.teacher, self.teacher_layers, stop=True) as tap:
                self.adapter.run_backbone(self.teacher, batch)
            return tap.features()

        with contextlib.nullcontext() if settings.dtype is None else without_autocast(batch.device.type):
            return maps() if self._teacher_ran else self._first_maps(maps)

    def _first_maps(self, maps: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The teacher's first run, which is compiled where that is asked for, and refused where it does not run so."""
        settings = self.teacher_settings
        with _blaming(settings.dtype and f"teacher.dtype: expected a teacher that runs in {settings.dtype} here"):
            if settings.compile:
                compile_what_runs(self.teacher, maps)  # runs it as it is
            else:
                found = maps()
        if settings.compile:
            with _blaming("teacher.compile: expected a teacher that torch.compile takes, and a compiler for it"):
                found = maps()
        if settings.dtype is not None and not all(bool(level.isfinite().all()) for level in found):
            raise FGDValueError(
                f"teacher.dtype: expected feature maps that {settings.dtype} can hold, got some that are not finite; "
                "take bfloat16, or leave it out"
            )
        self._teacher_ran = True
        return found

    def _match(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """The teacher's maps at the student's sizes."""
        if len(student) != len(teacher):
            raise FGDValueError(
                f"student_layers {self.student_layers} give {len(student)} feature maps, teacher_layers "
                f"{self.teacher_layers} give {len(teacher)}; expected as many"
            )
        sizes = [(tuple(s.shape[-2:]), tuple(t.shape[-2:])) for s, t in zip(student, teacher, strict=True)]
        for level, (ours, theirs) in enumerate(sizes):
            if ours != theirs and not self.resize_teacher:
                shapes = f"the student's is {ours[0]}x{ours[1]}, the teacher's {theirs[0]}x{theirs[1]}"
                raise FGDValueError(
                    f"feature map {level}: {shapes}; tap layers of equal stride, or set resize_teacher=True"
                )
        return [
            t if ours == theirs else F.interpolate(t, size=ours, mode="bilinear", align_corners=False)
            for t, (ours, theirs) in zip(teacher, sizes, strict=True)
        ]

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raises unless the optimizers hold every trainable parameter of the student and of the criterion.

        The criterion has parameters of its own (GcBlocks, align convolutions). An optimizer made from
        ``student.parameters()`` would leave them at their initial values. Without this check, a warning says so after
        a few steps.

        Raises:
            RuntimeError: parameters are missing; the message names them.
        """
        missing = missing_parameters(self, optimizers)
        if missing:
            raise FGDRuntimeError(
                f"{len(missing)} trainable parameters of the distiller are in no optimizer and would never change, "
                f"among them {missing[:3]}; make the optimizer from distiller.parameters()"
            )

    def join(self, optimizer: Optimizer, **options: Any) -> None:
        """Gives the criterion to the optimizer of a trainer that was made for the student alone.

        For trainers of others: their checkpoints then hold the plain student, and the criterion in the optimizer's
        state dict, from which it comes back when they resume. Call it before that state is loaded. The trainer has to
        clear gradients by ``optimizer.zero_grad()``: the student's ``zero_grad()`` leaves the criterion's to grow.

        Args:
            optimizer: made from the student's parameters.
            options: of the criterion's parameter group, such as ``lr`` and ``weight_decay``; by default the optimizer's
                own.
        """
        join(optimizer, self.criterion, **options)


@contextlib.contextmanager
def _blaming(expected: str | None) -> Iterator[None]:
    """What fails in here is reported as an argument's fault; None leaves it as it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if expected is None or isinstance(error, FGDError):
            raise
        raise FGDRuntimeError(f"{expected}, got {error}; leave it out") from error


def _settings(argument: str, kind: type[Any], given: Any) -> Any:
    """An object of this dataclass, which may be given as a dict of its arguments; None stays."""
    if given is None or isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]
    if not isinstance(given, Mapping) or not given.keys() <= set(names):
        got = sorted(given.keys() - set(names), key=str) if isinstance(given, Mapping) else given
        raise FGDTypeError(
            f"{argument}: expected a {kind.__name__}, or a dict with some of {', '.join(names)}, got {got!r}"
        )
    return kind(**given)


def _of_images(step: StudentStep, some: slice) -> StudentStep:
    """The step with batch, boxes and foreground of these images; the losses stay those of all."""
    whole = step.foreground
    if whole is None:
        part: Any = None
    elif callable(whole):
        make: Callable[[int, int], Tensor] = whole

        def part(height: int, width: int) -> Tensor:
            return make(height, width)[some]

    else:
        part = [level[some] for level in whole]
    return replace(step, batch=step.batch[some], boxes=list(step.boxes[some]), foreground=part)


def _some(targets: Any, some: slice) -> Any:
    """The targets of these images, for a cache that asks which images they are; a family's own kind stays whole."""
    return targets[some] if isinstance(targets, list | tuple) else targets


def _check_models(student: nn.Module, teacher: nn.Module) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        check_plain(role, model)
    check_apart(student, teacher)


def _zero(parameters: Iterable[Tensor], batch: Tensor) -> Tensor:
    """0, with a gradient of 0 for each parameter: DistributedDataParallel waits for one from all of them."""
    zeros = [parameter.sum() * 0 for parameter in parameters if parameter.requires_grad]
    return torch.stack(zeros).sum() if zeros else batch.new_zeros((), dtype=torch.float32)
