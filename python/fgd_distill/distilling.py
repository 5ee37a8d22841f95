"""From two detectors to a distiller in one call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from .adapters import DetectorAdapter, as_adapter
from .criterion import TERMS, WEIGHTS, CriterionConfig, FGDConfig, build_criterion, resolved
from .distiller import DetectionDistiller, TeacherCache
from .errors import FGDTypeError
from .schedule import Schedule
from .shares import checked_shares
from .taps import layer_names
from .teacher_settings import TeacherSettings


def distil(
    student: nn.Module,
    teacher: nn.Module,
    preset: str | None = None,
    layers: str | Sequence[str] | None = None,
    teacher_layers: str | Sequence[str] | None = None,
    adapter: DetectorAdapter | str | None = None,
    resize_teacher: bool = False,
    schedule: Schedule | Mapping[str, Any] | None = None,
    teacher_cache: TeacherCache | None = None,
    teacher_settings: TeacherSettings | Mapping[str, Any] | None = None,
    criterion: str | None = None,
    verbose: bool = True,
    **loss: Any,
) -> DetectionDistiller:
    """A distiller of two detectors: adapter, layers, channels, loss and preset are found, and reported in a line each.

    Make the optimizer from ``distiller.parameters()``: the loss has parameters, too.

    Args:
        student: the detector to train.
        teacher: the detector to learn from, with its weights; it is frozen.
        preset: the loss's weights and temperature, ``two_stage``, ``one_stage_anchor`` or ``one_stage_anchor_free``;
            None takes those of the student's family.
        layers: name or names of the student's modules whose outputs are distilled; None takes the neck's.
        teacher_layers: the same of the teacher; None takes the names in ``layers``, or the neck's.
        adapter: knows how the detectors are run; an object, or its class as ``module:Class``. None chooses one by the
            student's class.
        resize_teacher: whether teacher maps of another height and width are resized to the student's.
        schedule: when the loss counts, and for which images, or a dict such as ``{"start": 500, "ramp": 1000}``; it
            needs ``distiller.set_step``. None: always and all.
        teacher_cache: asked for the teacher's maps instead of the teacher itself.
        teacher_settings: a cheaper type and layout for the teacher, which is changed in place, and whether it is
            compiled; or a dict, such as ``{"dtype": "bfloat16"}``.
        criterion: another loss than FGD's, by its name in ``fgd_distill.criteria.CRITERIA``, such as ``pkd``.
        verbose: whether the decisions are printed.
        loss: in place of the preset's: ``alpha``, ``beta``, ``gamma``, ``lambda_``, ``temperature``; and
            ``level_weights``, ``attention``, ``split``, ``relation``, ``backend``, as ``fgd_kernels.FGDLoss`` takes
            them; or, in place of weights, ``normalise="detector"`` and ``shares``, as ``FGDConfig`` has them. Of a
            ``criterion``: ``weight``, and what else its class takes.

    Returns:
        the distiller, in training mode, its loss on the student's device.

    Raises:
        TypeError: there is no adapter for the detectors, one is wrapped, or an argument is unknown.
        ValueError: a layer does not exist, the detectors give different numbers of maps or cannot share one input, or
            a setting of the loss is out of range.
    """
    config = _config(criterion, preset, loss)
    chosen = f"for {type(student).__name__}" if adapter is None else "given"
    adapter = as_adapter(adapter, student)
    adapter.check_pair(student, teacher)
    teacher_layers = layers if teacher_layers is None else teacher_layers
    ours = adapter.default_layers(student) if layers is None else layer_names(layers)
    theirs = adapter.default_layers(teacher) if teacher_layers is None else layer_names(teacher_layers)
    of_family = adapter.preset(student)
    if isinstance(config, FGDConfig):
        config.preset = preset or of_family or FGDConfig.preset
    module = build_criterion(student, teacher, ours, theirs, config, adapter)
    module.to(next(student.parameters()).device)
    distiller = DetectionDistiller(
        student, teacher, module, ours, theirs, adapter, resize_teacher, schedule, teacher_cache, teacher_settings
    ).train()
    if verbose:
        print(f"distil: adapter {type(adapter).__name__}, {chosen}")
        print(f"distil: layers {', '.join(ours)} of the student, {', '.join(theirs)} of the teacher")
        channels: Any = module.channels
        of_student, of_teacher = (_channels(counts) for counts in zip(*channels, strict=True))
        print(f"distil: {len(channels)} maps, channels {of_student} of the student, {of_teacher} of the teacher")
        whose = "given" if preset else "by the student's class" if of_family else "none is known for such detectors"
        print(f"distil: {_described(config, whose)}")
    return distiller


def _described(config: FGDConfig | CriterionConfig, whose: str) -> str:
    if isinstance(config, CriterionConfig):
        return f"the loss {config.name}, {config.arguments() or 'as its authors have it'}"
    temperature, weights = resolved(config)
    if config.normalise is not None:
        shares = zip(TERMS, checked_shares(config.shares, config.split, config.attention, config.relation), strict=True)
        kept = ", ".join(f"{name} {share:.2g}" for name, share in shares)
        return f"{len(TERMS)} terms, temperature {temperature:g}, kept at shares of the detector's own loss: {kept}"
    named = ", ".join(f"{name} {weight:g}" for name, weight in zip(WEIGHTS, weights, strict=True))
    return f"{len(TERMS)} terms, {config.preset} ({whose}): temperature {temperature:g}, {named}"


def _config(criterion: str | None, preset: str | None, loss: dict[str, Any]) -> FGDConfig | CriterionConfig:
    if criterion is None:
        _check_names(loss)
        return FGDConfig(**loss)
    if preset is not None:
        raise FGDTypeError(
            f"preset: expected None beside criterion={criterion!r}, which has no presets, got {preset!r}"
        )
    return CriterionConfig(
        criterion, options={k: v for k, v in loss.items() if k != "weight"}, weight=loss.get("weight")
    )


def _channels(counts: Iterable[int]) -> str:
    counts = list(counts)
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


def _check_names(loss: dict[str, Any]) -> None:
    known = [field.name for field in fields(FGDConfig) if field.name != "preset"]
    for name in loss.keys() - set(known):
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise FGDTypeError(f"{name}: expected one of {', '.join(known)}, got an unknown argument{meant}")
