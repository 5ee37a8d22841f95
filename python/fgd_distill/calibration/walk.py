"""The walk over a few batches that every calibration makes: the student's own loss, and a criterion's terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.datamodule import Batch
from ..distiller import DetectionDistiller
from ..errors import FGDValueError


class Walk(NamedTuple):
    """What was seen, means over the batches.

    Args:
        images: number of images.
        detector: the student's own losses by name.
        terms: one (L, number of terms) a criterion, float64, on the CPU: each level's terms as the criterion has them.
    """

    images: int
    detector: dict[str, float]
    terms: list[Tensor]


@torch.no_grad()
def walk(distiller: DetectionDistiller, batches: Sequence[Batch], criteria: Sequence[nn.Module]) -> Walk:
    """Runs both detectors over the batches, without training.

    The student runs in training mode, because only there a detector returns its losses; its batch statistics move.

    Args:
        distiller: student and teacher.
        batches: as the data module's loader gives them, or what else the adapter takes, on the distiller's device.
        criteria: each judges the same features.

    Raises:
        ValueError: no batch, or a loss of the student that is not finite and positive.
    """
    check_batches(batches)
    distiller.train()
    images = 0
    detector: defaultdict[str, list[float]] = defaultdict(list)
    terms: list[list[Tensor]] = [[] for _ in criteria]
    for batch in batches:
        features = distiller.features(*batch)
        images += len(features.step.batch)
        for name, loss in features.step.losses.items():
            detector[name].append(float(loss))
        for criterion, parts in zip(criteria, terms, strict=True):
            parts.append(features.judged_by(criterion, return_levels=True)[1].double().cpu())
    means = {name: fmean(values) for name, values in detector.items()}
    if not 0 < sum(means.values()) < float("inf"):
        raise FGDValueError(f"student: expected a loss above 0 and finite on the training images, got {means}")
    return Walk(images, means, [torch.stack(parts).mean(dim=0) for parts in terms])


def check_batches(batches: Sequence[Batch]) -> None:
    """Raises ValueError if there is none."""
    if not batches:
        raise FGDValueError("batches: expected at least one, got none")
