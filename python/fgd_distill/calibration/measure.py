"""What a pair of detectors measures on a few batches: losses, activations, attention, and the loss's terms."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fgd_kernels import FGDLoss
from fgd_kernels.reference import spatial_activation

from ..criterion import FGDConfig, resolved
from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..errors import FGDTypeError, FGDValueError
from .walk import check_batches, walk

# Of a map's pixels, on the level where attention is most concentrated. From the digits pair, where shares of 0.37, 0.75
# and 0.95 gave 8.5, 10.3 and 10.0 AP (docs/guides/weights.md).
SHARE = 0.75


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

    @property
    def share(self) -> float:
        """``pixels`` of the map's, 0..1: 1 where all are alike."""
        return self.pixels / self.area


@dataclass(frozen=True)
class Measurement:
    """What a pair of detectors measures, a mean over batches.

    Args:
        images: number of images.
        detector: the student's own losses by name.
        activation: mean |F| of the teacher, one number a level.
        terms: by temperature, (L, 4): each level's terms at weights of 1.
        attention: by temperature, one entry a level.
        temperature: the proposed one.
        recall: of the images' objects, the share that the teacher finds: with as many detections an image as it has
            objects, of any class, and an IoU of 0.5. None without objects, and for a family's own batches.
    """

    images: int
    detector: dict[str, float]
    activation: list[float]
    terms: dict[float, Tensor]
    attention: dict[float, list[Attention]]
    temperature: float
    recall: float | None = None

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
        batches: as the data module's loader gives them, or what else the adapter takes, on the distiller's device.
        temperatures: to measure, besides the one that is proposed.

    Raises:
        ValueError: no batch, or a loss of the student that is not finite and positive.
    """
    check_batches(batches)
    distiller.train()
    maps = _activations(distiller, batches)
    proposed = temperature_for(maps)
    wanted = dict.fromkeys([*temperatures, proposed])
    seen = walk(distiller, batches, [_unweighted(distiller.criterion, temperature) for temperature in wanted])
    return Measurement(
        images=seen.images,
        detector=seen.detector,
        activation=[fmean(float(batch.mean()) for batch in level) for level in maps],
        terms=dict(zip(wanted, seen.terms, strict=True)),
        attention={temperature: [_spread(level, temperature) for level in maps] for temperature in wanted},
        temperature=proposed,
        recall=_recall(distiller, batches),
    )


def temperature_for(maps: Sequence[Sequence[Tensor]]) -> float:
    """The proposed T, to two digits: attention is as on ``SHARE`` of the pixels on the level where it is on the fewest.

    Args:
        maps: by level and batch, (N, H, W): mean |F| of the teacher.
    """
    scale = max(float(batch.max()) for level in maps for batch in level)
    low, high = 1e-6 * scale, 1e3 * scale
    if not 0 < scale < float("inf"):
        raise FGDValueError(f"teacher: expected features above 0 and finite, got a largest mean |F| of {scale}")
    for _ in range(60):  # by halves on a logarithmic scale; a higher T spreads attention
        middle = (low * high) ** 0.5
        concentrated = min(_spread(level, middle).share for level in maps) < SHARE
        low, high = (middle, high) if concentrated else (low, middle)
    return float(f"{high:.2g}")


def _activations(distiller: DetectionDistiller, batches: Sequence[Batch]) -> list[list[Tensor]]:
    rows = [[spatial_activation(f.float()).cpu() for f in distiller.features(*batch).teacher] for batch in batches]
    return [list(level) for level in zip(*rows, strict=True)]


def _recall(distiller: DetectionDistiller, batches: Sequence[Batch]) -> float | None:
    found = objects = 0
    teacher = distiller.teacher
    if any(parameter.dtype != torch.float32 for parameter in teacher.parameters()):
        teacher = copy.deepcopy(teacher).float()  # predictions are no matter of half precision
    teacher.eval()
    for images, targets in batches:
        if targets is None:
            return None
        in_float32 = [image.float() for image in images]
        for detected, target in zip(distiller.adapter.predict(teacher, in_float32), targets, strict=True):
            boxes = target["boxes"]
            strongest = detected["boxes"][detected["scores"].argsort(descending=True)[: len(boxes)]]
            if len(boxes) and len(strongest):
                found += int((box_iou(boxes.float(), strongest.float()).amax(dim=1) >= 0.5).sum())
            objects += len(boxes)
    return found / objects if objects else None


def _unweighted(criterion: Any, temperature: float) -> FGDLoss:
    """A copy of the loss with weights of 1 and this temperature."""
    if not isinstance(criterion, FGDLoss):
        raise FGDTypeError(f"criterion: expected an FGDLoss, got {type(criterion).__name__}")
    criterion = copy.deepcopy(criterion)
    criterion.alpha = criterion.beta = criterion.gamma = criterion.lambda_ = 1.0
    criterion.temperature = temperature
    return criterion


def _spread(level: Sequence[Tensor], temperature: float) -> Attention:
    """A mean over the images of all batches; ``level`` has one (N, H, W) a batch."""
    shares = [(batch.flatten(1) / temperature).softmax(dim=1) for batch in level]
    peak = torch.cat([share.amax(dim=1) for share in shares])
    pixels = torch.cat([1 / share.square().sum(dim=1) for share in shares])
    return Attention(float(peak.mean()), float(pixels.mean()), round(fmean(share.shape[1] for share in shares)))
