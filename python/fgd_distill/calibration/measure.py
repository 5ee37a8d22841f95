"""What a pair of detectors measures on a few batches: losses, activations, attention, and the loss's terms."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fgd_kernels import FGDLoss
from fgd_kernels.reference import spatial_attention

from ..criterion import FGDConfig, resolved
from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..errors import FGDTypeError, FGDValueError

# Of the largest level's mean |F|. The paper's 0.5 serves necks whose mean it does not tell; 1.2 comes from the digits
# teacher, where the table-7 ablation shows how flat the choice is (bench/results/digits_ablations.md).
TEMPERATURE_FACTOR = 1.2


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
        raise FGDValueError("batches: expected at least one, got none")
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
        raise FGDValueError(f"student: expected a loss above 0 and finite on the training images, got {means}")
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


def _mean_activation(distiller: DetectionDistiller, batches: Sequence[Batch]) -> list[float]:
    rows = [[float(f.float().abs().mean()) for f in distiller.features(*batch).teacher] for batch in batches]
    return [fmean(level) for level in zip(*rows, strict=True)]


def _unweighted(criterion: Any, temperature: float) -> FGDLoss:
    """A copy of the loss with weights of 1 and this temperature."""
    if not isinstance(criterion, FGDLoss):
        raise FGDTypeError(f"criterion: expected an FGDLoss, got {type(criterion).__name__}")
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
