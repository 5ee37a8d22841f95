"""Weights for a pair of detectors in somebody else's trainer: measured and proposed in one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..criterion import FGDConfig
from ..distiller import DetectionDistiller
from .measure import measure
from .propose import Bounds, propose


def choose_weights(
    distiller: DetectionDistiller, batches: Sequence[tuple[Any, Any]], preset: str | None = None, **settings: Any
) -> FGDConfig:
    """Temperature and weights, as ``fgd-distill calibrate`` proposes them; the student is left as it was.

    Args:
        distiller: student, teacher and an ``FGDLoss``.
        batches: images and targets as the adapter takes them, on the distiller's device.
        preset: whose ratios are kept; None takes that of the student's family.
        settings: as ``fgd_distill.distil`` takes them; a temperature among them is kept.

    Raises:
        ValueError: no batch, or losses that are not above 0 and finite.
    """
    known = {field.name for field in fields(FGDConfig)}
    chosen = {name: value for name, value in settings.items() if name in known}
    preset = preset or distiller.adapter.preset(distiller.student) or FGDConfig.preset
    config = FGDConfig(preset, **chosen)
    state = copy.deepcopy(distiller.student.state_dict())
    temperatures = [] if config.temperature is None else [config.temperature]
    measurement = measure(distiller, batches, temperatures)
    distiller.student.load_state_dict(state)  # its batch statistics have moved
    return propose(measurement, config, Bounds(), config.temperature)
