"""What a training step costs, and how much of it is the distillation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.datamodule import Batch
from ..distiller import DetectionDistiller


@dataclass
class StepCost:
    """Median seconds of a training step with distillation, of the same step without, and of two parts.

    Args:
        step: forward, backward and optimizer.
        student: the same of the student alone.
        teacher: the teacher's forward pass.
        loss: forward and backward of the criterion, from the features to their gradients.
    """

    step: float
    student: float
    teacher: float
    loss: float

    @property
    def loss_share(self) -> float:
        """The criterion's share of the step, 0..1."""
        return self.loss / self.step

    @property
    def teacher_share(self) -> float:
        """The teacher's share of the step, 0..1."""
        return self.teacher / self.step


def measure_step(distiller: DetectionDistiller, batch: Batch, repeats: int = 12) -> StepCost:
    """Times a training step on the CPU; changes the distiller's parameters as that many steps do.

    The parts are timed in turn with the whole step, so that a change in the machine's speed meets all of them.

    Args:
        distiller: on the CPU; it is put in training mode.
        batch: images and targets, as the data module gives them.
        repeats: how many times each is measured; the first of each is not counted.
    """
    images, targets = batch
    distiller.train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-6)
    with torch.no_grad():
        features = distiller.features(images, targets)
    for feature in features.student:
        feature.requires_grad_()

    def update(losses: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    def loss_only() -> None:
        terms = features.judged_by(distiller.criterion)
        torch.stack(list(terms.values())).sum().backward()

    parts = (
        lambda: update(distiller(images, targets)),
        lambda: update(distiller.adapter.student_step(distiller.student, images, targets).losses),
        lambda: distiller.teacher_features(features.step.batch),
        loss_only,
    )
    return StepCost(*_alternating_medians(parts, repeats))


def _alternating_medians(parts: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(repeats + 1):
        for part, collected in zip(parts, seconds, strict=True):
            start = time.perf_counter()
            part()
            collected.append(time.perf_counter() - start)
    return [statistics.median(collected[1:]) for collected in seconds]
