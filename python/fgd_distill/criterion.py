"""The loss of a pair of detectors: its settings, the names of its weights and terms, and how it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from fgd_kernels import LOSS_NAMES, PRESETS, FGDLoss

from .adapters import DetectorAdapter, as_adapter, probe_channels
from .adapters.presets import guess_preset
from .criteria import CriterionConfig, criterion_class
from .errors import FGDValueError
from .shares import NormalisedFGDLoss, checked_shares
from .taps import layer_names

__all__ = ["TERMS", "WEIGHTS", "CriterionConfig", "FGDConfig", "build_criterion", "guess_preset", "resolved"]
WEIGHTS = ("alpha", "beta", "gamma", "lambda_")
"""In the order of the terms that they weight."""
TERMS = tuple(name.removeprefix("loss_fgd_") for name in LOSS_NAMES)


@dataclass
class FGDConfig:
    """Weights and temperature of the loss; see ``fgd_kernels.FGDLoss``. None keeps the preset's value.

    Args:
        preset: ``two_stage``, ``one_stage_anchor`` or ``one_stage_anchor_free``: the paper's values.
        alpha, beta, gamma, lambda_: weights of the foreground, background, attention and global term.
        temperature: T of the attentions; the smaller, the more their strongest pixels and channels count.
        level_weights: one factor a level, or ``inverse_area`` for 1 / (H·W) of each; None for 1.
        attention: ``both``, ``spatial``, ``channel`` or ``none`` (the paper's table 5).
        split: false distils fore- and background as one area, weighted by beta (table 1).
        relation: of the global term: ``gc``, ``non_local`` (table 6, dear) or ``none``.
        backend: which kernels compute it: ``auto``, or one of ``fgd_kernels.backends()``.
        normalise: ``detector`` keeps each term at a share of the detector's own loss, by moving averages, in place of
            the four weights, which then have to be None.
        shares: with it, what all terms together are, as a multiple of the detector's own loss, or what each is: fg, bg,
            attention, global. None takes 2, 0.15, 0.1 and 0.75.

    Raises:
        TypeError, ValueError: by ``check``, where these contradict each other.
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
    relation: str = "gc"
    backend: str = "auto"
    normalise: str | None = None
    shares: float | list[float] | None = None

    def check(self) -> None:
        """Raises unless the terms are weighted in one way."""
        if self.normalise not in (None, "detector"):
            raise FGDValueError(f"normalise: expected 'detector' or None, got {self.normalise!r}")
        if self.normalise is None:
            if self.shares is not None:
                raise FGDValueError(f"shares: expected normalise='detector' beside it, got none and {self.shares}")
            return
        checked_shares(self.shares, self.split, self.attention, self.relation)
        given = {name: getattr(self, name) for name in WEIGHTS if getattr(self, name) is not None}
        if given:
            name, value = next(iter(given.items()))
            raise FGDValueError(
                f"{name}: expected None beside normalise='detector', which finds the weights itself, got {value}; give "
                "shares, or leave out either"
            )


def resolved(config: FGDConfig) -> tuple[float, list[float]]:
    """Temperature and the weights alpha, beta, gamma, lambda, with the preset's for those that are None."""
    preset = PRESETS[config.preset]
    given = [getattr(config, name) for name in ("temperature", *WEIGHTS)]
    names = ("temperature", *WEIGHTS)
    temperature, *weights = [preset[n] if value is None else value for n, value in zip(names, given, strict=True)]
    return temperature, weights


def build_criterion(
    student: nn.Module,
    teacher: nn.Module,
    student_layers: str | Sequence[str] | None,
    teacher_layers: str | Sequence[str] | None,
    config: FGDConfig | CriterionConfig,
    adapter: DetectorAdapter | str | None = None,
) -> nn.Module:
    """The loss, an ``FGDLoss`` or another, for the feature maps that these layers give; a blank image tells channels.

    Layers that are None are the neck's, as the detectors' adapter names them; an adapter that is None is chosen by the
    student's class; it may be given as ``module:Class``.

    Raises:
        ValueError: student and teacher give different numbers of feature maps.
    """
    adapter = as_adapter(adapter, student)
    student_layers = layer_names(student_layers or adapter.default_layers(student))
    teacher_layers = layer_names(teacher_layers or adapter.default_layers(teacher))
    student_channels = probe_channels(student, student_layers, adapter)
    teacher_channels = probe_channels(teacher, teacher_layers, adapter)
    if len(student_channels) != len(teacher_channels):
        raise FGDValueError(
            f"expected as many feature maps of student and teacher, got {len(student_channels)} from student_layers "
            f"{student_layers} and {len(teacher_channels)} from teacher_layers {teacher_layers}"
        )
    if isinstance(config, CriterionConfig):
        return criterion_class(config.name)(student_channels, teacher_channels, None, **config.arguments())
    config.check()
    settings = asdict(config)
    normalise, shares = settings.pop("normalise"), settings.pop("shares")
    if normalise is None:
        return FGDLoss(student_channels, teacher_channels, **settings)
    rest = {name: value for name, value in settings.items() if name not in WEIGHTS}
    return NormalisedFGDLoss(student_channels, teacher_channels, shares, **rest)
