"""Temperature and weights that fit a pair of detectors, from what the loss's terms measure on a few batches."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fgd_kernels import LOSS_NAMES, PRESETS, FGDLoss
from fgd_kernels.reference import spatial_attention

from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..training.module import FGDConfig

WEIGHTS = ("alpha", "beta", "gamma", "lambda_")
TERMS = tuple(name.removeprefix("loss_fgd_") for name in LOSS_NAMES)
# Of the largest level's mean |F|. The paper's 0.5 serves necks whose mean it does not tell; 1.2 comes from the digits
# teacher, where the table-7 ablation shows how flat the choice is (bench/results/digits_ablations.md).
TEMPERATURE_FACTOR = 1.2


@dataclass(frozen=True)
class Bounds:
    """What the terms of the loss may be, as shares of the detector's own loss.

    Args:
        total: all terms together.
        low, high: each term.

    Raises:
        ValueError: not 0 < low <= high, or a total that no terms within the bounds can have.
    """

    total: float = 3.0
    low: float = 0.1
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < float("inf"):
            raise ValueError(f"low, high: expected 0 < low <= high, got low={self.low} and high={self.high}")
        if not len(TERMS) * self.low <= self.total <= len(TERMS) * self.high:
            raise ValueError(
                f"total: expected {len(TERMS)} terms within low and high to sum to it, that is from "
                f"{len(TERMS) * self.low:g} to {len(TERMS) * self.high:g}, got {self.total}"
            )


@dataclass(frozen=True)
class Attention:
    """How the teacher's spatial attention spreads over one level's map, a mean over images.

    Args:
        peak: the share of the strongest pixel, 0..1.
        pixels: 1 / sum of squared shares: as many pixels of equal share would be as concentrated.
        area: the map's pixels.
    """

    peak: float
    pixels: float
    area: int


@dataclass(frozen=True)
class Measurement:
    """What a pair of detectors measures, a mean over batches.

    Args:
        images: number of images.
        detector: the student's own losses by name.
        activation: mean |F| of the teacher, one number a level.
        terms: by temperature, (L, 4): each level's terms at weights of 1.
        attention: by temperature, one entry a level.
    """

    images: int
    detector: dict[str, float]
    activation: list[float]
    terms: dict[float, Tensor]
    attention: dict[float, list[Attention]]

    @property
    def detector_loss(self) -> float:
        """The detector's own loss."""
        return sum(self.detector.values())

    def shares(self, config: FGDConfig) -> Tensor:
        """(L, 4): what each level's terms are with these weights, as shares of the detector's own loss.

        Raises:
            KeyError: its temperature was not measured.
        """
        temperature, weights = resolved(config)
        return self.terms[temperature] * torch.tensor(weights) / self.detector_loss


def resolved(config: FGDConfig) -> tuple[float, list[float]]:
    """Temperature and the weights alpha, beta, gamma, lambda, with the preset's for those that are None."""
    preset = PRESETS[config.preset]
    given = [getattr(config, name) for name in ("temperature", *WEIGHTS)]
    names = ("temperature", *WEIGHTS)
    temperature, *weights = [preset[n] if value is None else value for n, value in zip(names, given, strict=True)]
    return temperature, weights


@torch.no_grad()
def measure(distiller: DetectionDistiller, batches: Sequence[Batch], temperatures: Iterable[float]) -> Measurement:
    """Runs both detectors over the batches, without training.

    The student runs in training mode, because only there a detector returns its losses; its batch statistics move.

    Args:
        distiller: student, teacher and an ``FGDLoss``, whose attention, split and level weights count.
        batches: as the data module's loader gives them, on the distiller's device.
        temperatures: to measure, besides the one that ``temperature_for`` proposes.

    Raises:
        ValueError: no batch, or a loss of the student that is not finite and positive.
    """
    if not batches:
        raise ValueError("batches: expected at least one, got none")
    distiller.train()
    activation = _mean_activation(distiller, batches)
    wanted = dict.fromkeys([*temperatures, temperature_for(activation)])
    detector: defaultdict[str, list[float]] = defaultdict(list)
    terms: dict[float, list[Tensor]] = {temperature: [] for temperature in wanted}
    attention: dict[float, list[list[Attention]]] = {temperature: [] for temperature in wanted}
    for images, targets in batches:
        features = distiller.features(images, targets)
        for name, loss in features.step.losses.items():
            detector[name].append(float(loss))
        inputs = (features.student, features.teacher, features.step.boxes, features.frames)
        for temperature in wanted:
            criterion = _unweighted(distiller.criterion, temperature)
            terms[temperature].append(criterion(*inputs, return_levels=True)[1].double().cpu())
            attention[temperature].append([_spread(level, temperature) for level in features.teacher])
    means = {name: fmean(values) for name, values in detector.items()}
    if not 0 < sum(means.values()) < float("inf"):
        raise ValueError(f"student: expected a loss above 0 and finite on the training images, got {means}")
    return Measurement(
        images=sum(len(images) for images, _ in batches),
        detector=means,
        activation=activation,
        terms={temperature: torch.stack(parts).mean(dim=0) for temperature, parts in terms.items()},
        attention={temperature: _mean_attention(parts) for temperature, parts in attention.items()},
    )


def temperature_for(activation: Sequence[float]) -> float:
    """The proposed T, to two digits: 1.2 times the largest level's mean |F| of the teacher."""
    return float(f"{TEMPERATURE_FACTOR * max(activation):.2g}")


def propose(
    measurement: Measurement,
    config: FGDConfig,
    bounds: Bounds,
    temperature: float | None = None,
    equal: bool = False,
) -> FGDConfig:
    """Temperature and weights for the measured pair.

    With ``equal`` every term gets the same share of the detector's own loss. Otherwise the preset's ratios are kept as
    far as the bounds allow: one factor scales all four weights, terms that leave the bounds are held there, and the
    factor is the one with which all terms together are ``bounds.total``.

    Args:
        measurement: of the pair.
        config: its preset gives the ratios; a weight that it sets to 0 stays 0.
        bounds: of the shares.
        temperature: a measured one; None proposes it, too.
        equal: the same share for every term.

    Returns:
        ``config`` with other temperature and weights; these have two digits.

    Raises:
        ValueError: no term of the loss is above 0 and finite.
    """
    temperature = temperature_for(measurement.activation) if temperature is None else temperature
    unit = (measurement.terms[temperature].sum(dim=0) / measurement.detector_loss).tolist()
    ratios = [PRESETS[config.preset][name] for name in WEIGHTS]
    off = [getattr(config, name) == 0 for name in WEIGHTS]
    active = [not none and 0 < share < float("inf") for share, none in zip(unit, off, strict=True)]
    if not any(active):
        raise ValueError(f"expected terms of the loss above 0 and finite, got {dict(zip(TERMS, unit, strict=True))}")
    preset = [ratio * share for ratio, share, on in zip(ratios, unit, active, strict=True) if on]
    # Terms that are off or always 0 leave their part of the total to nobody.
    total = bounds.total * sum(active) / len(TERMS)
    factor, targets = _fit([1.0] * len(preset) if equal else preset, total, bounds)
    chosen, weights = iter(targets), []
    for ratio, share, none, on in zip(ratios, unit, off, active, strict=True):
        # A term that is 0 on these batches (no box in them, say) keeps its ratio: nothing better is known.
        weights.append(next(chosen) / share if on else 0.0 if none else factor * ratio)
    alpha, beta, gamma, lambda_ = (float(f"{weight:.2g}") for weight in weights)
    return replace(config, temperature=temperature, alpha=alpha, beta=beta, gamma=gamma, lambda_=lambda_)


def _fit(shares: Sequence[float], total: float, bounds: Bounds) -> tuple[float, list[float]]:
    """The factor with which shares, each held within the bounds, sum to ``total``, and those shares."""

    def held(factor: float) -> list[float]:
        return [min(max(factor * share, bounds.low), bounds.high) for share in shares]

    below, above = bounds.low / max(shares), bounds.high / min(shares)  # all at the lower, all at the upper bound
    for _ in range(200):  # by halves on a logarithmic scale, far beyond the two digits that are kept
        middle = (below * above) ** 0.5
        below, above = (middle, above) if sum(held(middle)) < total else (below, middle)
    return above, held(above)


def guess_preset(student: Any, default: str) -> str:
    """The preset for the student's family: by its class's name, or ``default`` for a name that tells nothing."""
    name = type(student).__name__.lower()
    if hasattr(student, "roi_heads") or "rcnn" in name:
        return "two_stage"
    families = {"fcos": "one_stage_anchor_free", "yolo": "one_stage_anchor_free"}
    families |= {"retinanet": "one_stage_anchor", "ssd": "one_stage_anchor"}
    return next((preset for family, preset in families.items() if family in name), default)


def _mean_activation(distiller: DetectionDistiller, batches: Sequence[Batch]) -> list[float]:
    rows = [[float(f.float().abs().mean()) for f in distiller.features(*batch).teacher] for batch in batches]
    return [fmean(level) for level in zip(*rows, strict=True)]


def _unweighted(criterion: Any, temperature: float) -> FGDLoss:
    """A copy of the loss with weights of 1 and this temperature."""
    if not isinstance(criterion, FGDLoss):
        raise TypeError(f"criterion: expected an FGDLoss, got {type(criterion).__name__}")
    criterion = copy.deepcopy(criterion)
    criterion.alpha = criterion.beta = criterion.gamma = criterion.lambda_ = 1.0
    criterion.temperature = temperature
    return criterion


def _spread(teacher: Tensor, temperature: float) -> Attention:
    area = teacher.shape[2] * teacher.shape[3]
    share = spatial_attention(teacher.float(), temperature).flatten(1) / area
    pixels = 1 / share.square().sum(dim=1)
    return Attention(float(share.amax(dim=1).mean()), float(pixels.mean()), area)


def _mean_attention(batches: Sequence[Sequence[Attention]]) -> list[Attention]:
    return [
        Attention(fmean(a.peak for a in level), fmean(a.pixels for a in level), round(fmean(a.area for a in level)))
        for level in zip(*batches, strict=True)
    ]
